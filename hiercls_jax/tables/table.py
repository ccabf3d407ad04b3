"""Shared by all formats: the opened table, its checks, its errors."""

import contextlib
import csv
import dataclasses
import re
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

import numpy as np

from hiercls_jax.errors import UserError


class TableError(UserError):
    """A file is not the table that it should be; the message names the file and the row."""


Rows = Callable[[int], Iterator[np.ndarray]]
"""Reads a table from the start in arrays of so many rows; the last array has the rest."""

Write = Callable[..., object]
"""Writes the next rows: `[n, K]` and, if the table has identifiers, those `[n]`."""


@dataclasses.dataclass(frozen=True)
class Identifiers:
    """A column that identifies the rows.

    Args:
      name: its name.
      dtype: int64, or object for text.
      read: reads the identifiers, `[n]` at a time.
    """

    name: str
    dtype: np.dtype
    read: Rows


class Opened(NamedTuple):
    """What a format found in a file.

    Args:
      rows: number of rows N.
      classes: the classes that the columns are.
      read: reads the numbers, columns in the order of the classes.
      ids: the column that identifies the rows; None without one.
    """

    rows: int
    classes: tuple[str, ...]
    read: Rows
    ids: Identifiers | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in a file, whose size and columns are checked.

    Args:
      name: the file, as messages name it.
      format: its suffix.
      rows: number of rows N.
      classes: names of its K columns.
      read: reads the rows.
      ids: the column that identifies the rows; None without one.
    """

    name: str
    format: str
    rows: int
    classes: tuple[str, ...]
    read: Rows
    ids: Identifiers | None = None

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Read from the start: float32 `[n, K]`, columns in the order of the classes.

        All chunks have n = `size`, but the last has the rest.
        """
        with as_table_error(self.name):
            for chunk in self.read(size):
                with np.errstate(over="ignore"):  # to infinity, which the reader rejects
                    chunk = chunk.astype(np.float32, copy=False)
                yield chunk

    def id_chunks(self, size: int) -> Iterator[np.ndarray]:
        """Read the identifiers from the start, `[n]` at a time; nothing if there are none."""
        if self.ids is not None:
            with as_table_error(self.name):
                yield from self.ids.read(size)


@contextlib.contextmanager
def as_table_error(name: str) -> Iterator[None]:
    """Turn the errors of reading a damaged file into a TableError of one line that names it."""
    try:
        yield
    except TableError:
        raise
    except UnicodeDecodeError as error:
        raise TableError(f"{name} is not UTF-8 text: {error}") from error
    except (
        OSError, ValueError, EOFError, NotImplementedError, OverflowError, MemoryError,
        zipfile.BadZipFile, zlib.error, struct.error, csv.Error,
        tokenize.TokenError, SyntaxError,  # NumPy parses a broken header as Python 2
    ) as error:  # fmt: skip
        # Arrow's errors are OSErrors and ValueErrors. The text of an OSError repeats the file.
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise TableError(f"{name} cannot be read: {text or type(error).__name__}") from error


def check_rows(name: str, rows: int, wanted: int | None) -> None:
    """Reject a column without rows, or of another number of rows than `wanted`, if given."""
    if not rows:
        raise TableError(f"{name} has no rows; at least one is needed")
    if wanted is not None and rows != wanted:
        raise TableError(f"{name} has {rows} rows, allowed is one for each of {wanted} samples")


def split_key(name: str) -> tuple[str, str | None]:
    """Return the file and the key of `file.npz:key`; the key is None for another name."""
    match = re.fullmatch(r"(.+\.npz):(.+)", name, re.IGNORECASE)
    return (match[1], match[2]) if match else (name, None)


def read_exactly(
    name: str, stream: IO[bytes], dtype: np.dtype, shape: tuple[int, ...], start: int = 0
) -> np.ndarray:
    """Read an array of `shape` from a stream; `start` is its first row, for the message."""
    array = np.empty(shape, dtype)
    rest = array.reshape(-1).view(np.uint8).data
    while rest:
        count = stream.readinto(rest)  # type: ignore[attr-defined]  # typeshed's IO lacks it
        if not count:
            row = start + (array.nbytes - len(rest)) * len(array) // array.nbytes
            raise TableError(f"{name} is truncated: it ends in row {row} (from 0)")
        rest = rest[count:]
    return array
