"""What the readers of every format share: the opened table, its checks, its errors."""

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

import numpy as np

from hiercls_jax.errors import UserError, preview


class TableError(UserError):
    """A file that is not the table it should be, with the file and row at fault in its message."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table in a file, checked as far as its size and columns.

    Args:
      name: the file, as messages call it.
      format: its suffix.
      rows: number of rows N.
      read: function of a number of rows that reads the table in arrays of so many, the last of
        what is left.
    """

    name: str
    format: str
    rows: int
    read: Callable[[int], Iterator[np.ndarray]]

    def chunks(self, size: int) -> Iterator[np.ndarray]:
        """Read from the start: float32 `[n, K]`, n = `size` but in the last, columns by class."""
        with as_table_error(self.name):
            for chunk in self.read(size):
                with np.errstate(over="ignore"):  # to an infinity, which its reader will refuse
                    chunk = chunk.astype(np.float32, copy=False)
                yield chunk


@contextlib.contextmanager
def as_table_error(name: str):
    """Turn what reading a damaged file raises into one line that names it."""
    try:
        yield
    except TableError:
        raise
    except UnicodeDecodeError as error:
        raise TableError(f"{name} is not UTF-8 text: {error}") from error
    except (
        OSError, ValueError, EOFError, NotImplementedError, OverflowError, MemoryError,
        zipfile.BadZipFile, zlib.error, struct.error, csv.Error,
        tokenize.TokenError, SyntaxError,  # NumPy parses a broken header as Python of old
    ) as error:  # fmt: skip
        # Arrow's errors are OSErrors and ValueErrors. The text of an OSError repeats the file.
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise TableError(f"{name} cannot be read: {text or type(error).__name__}") from error


def check_shape(name: str, rows: int, width: int, classes: Sequence[str]) -> None:
    """Refuse a table that has not one column per class, or no rows."""
    if width != len(classes):
        raise TableError(
            f"{name}: shape [{rows}, {width}], allowed is [N, {len(classes)}], a column for each "
            f"of the classes {preview(classes)}"
        )
    if not rows:
        raise TableError(f"{name} has no rows; at least one is needed")


def check_rows(name: str, rows: int, wanted: int | None) -> None:
    """Refuse a column that has not the rows that are wanted, or where None are, no rows."""
    if not rows:
        raise TableError(f"{name} has no rows; at least one is needed")
    if wanted is not None and rows != wanted:
        raise TableError(f"{name} has {rows} rows, allowed is one for each of {wanted} samples")


def column_order(name: str, columns: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the position of each class among the columns, which must be the classes."""
    for what, found in (
        ("unknown class", [c for c in columns if c not in set(classes)]),
        ("two columns for class", [c for c, count in Counter(columns).items() if count > 1]),
        ("no column for class", [c for c in classes if c not in set(columns)]),
    ):
        if found:
            raise TableError(
                f"{name}: {what} {preview(found)}; allowed is one column for each of the "
                f"{len(classes)} classes {preview(classes)}"
            )
    position = {column: i for i, column in enumerate(columns)}
    return [position[class_] for class_ in classes]


def split_key(name: str) -> tuple[str, str | None]:
    """Return the file and the key of `file.npz:key`; the key is None where there is none."""
    match = re.fullmatch(r"(.+\.npz):(.+)", name, re.IGNORECASE)
    return match.groups() if match else (name, None)


def read_exactly(name: str, stream, dtype: np.dtype, shape, start: int = 0) -> np.ndarray:
    """Return the next `shape` of a stream; `start` is its first row, for the message."""
    array = np.empty(shape, dtype)
    rest = memoryview(array.reshape(-1).view(np.uint8))
    while rest:
        count = stream.readinto(rest)
        if not count:
            row = start + (array.nbytes - len(rest)) * len(array) // array.nbytes
            raise TableError(f"{name} is truncated: it ends in row {row} (from 0)")
        rest = rest[count:]
    return array
