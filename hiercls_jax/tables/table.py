"""Shared by all formats: the opened table, its checks, its errors."""

import contextlib
import csv
import dataclasses
import re
import struct
import tokenize
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from hiercls_jax.errors import UserError, preview


class TableError(UserError):
    """A file is not the table that it should be; the message names the file and the row."""


Rows = Callable[[int], Iterator[np.ndarray]]
"""Reads a table from the start in arrays of so many rows; the last array has the rest."""


class Format(Protocol):
    """The module of a file format."""

    def open_numbers(
        self, name: str, classes: Sequence[str], scratch: Path | None, /
    ) -> tuple[int, Rows]:
        """Return the number of rows, and the function that reads them."""

    def read_column(
        self, name: str, classes: Sequence[str], rows: int | None, /
    ) -> np.ndarray | list[str]:
        """Return a table's only column: integers or names `[N]`."""

    def write_rows(
        self, path: Path, columns: Sequence[str], rows: int, dtype: np.dtype, /
    ) -> AbstractContextManager[Callable[[np.ndarray], object]]:
        """Yield a function that writes the next rows `[n, K]`."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in a file, whose size and columns are checked.

    Args:
      name: the file, as messages name it.
      format: its suffix.
      rows: number of rows N.
      read: reads the rows.
    """

    name: str
    format: str
    rows: int
    read: Rows

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Read from the start: float32 `[n, K]`, columns in the order of the classes.

        All chunks have n = `size`, but the last has the rest.
        """
        with as_table_error(self.name):
            for chunk in self.read(size):
                with np.errstate(over="ignore"):  # to infinity, which the reader rejects
                    chunk = chunk.astype(np.float32, copy=False)
                yield chunk


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


def check_shape(name: str, rows: int, width: int, classes: Sequence[str]) -> None:
    """Reject a table without rows, or without exactly one column per class."""
    if width != len(classes):
        raise TableError(
            f"{name}: shape [{rows}, {width}], allowed is [N, {len(classes)}], a column for each "
            f"of the classes {preview(classes)}"
        )
    if not rows:
        raise TableError(f"{name} has no rows; at least one is needed")


def check_rows(name: str, rows: int, wanted: int | None) -> None:
    """Reject a column without rows, or of another number of rows than `wanted`, if given."""
    if not rows:
        raise TableError(f"{name} has no rows; at least one is needed")
    if wanted is not None and rows != wanted:
        raise TableError(f"{name} has {rows} rows, allowed is one for each of {wanted} samples")


def column_order(name: str, columns: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the position of each class among the columns, which must be the classes."""
    for fault, names in (
        ("unknown class", [c for c in columns if c not in set(classes)]),
        ("two columns for class", [c for c, count in Counter(columns).items() if count > 1]),
        ("no column for class", [c for c in classes if c not in set(columns)]),
    ):
        if names:
            raise TableError(
                f"{name}: {fault} {preview(names)}; allowed is one column for each of the "
                f"{len(classes)} classes {preview(classes)}"
            )
    position = {column: i for i, column in enumerate(columns)}
    return [position[class_] for class_ in classes]


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
