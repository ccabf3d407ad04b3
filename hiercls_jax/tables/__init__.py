"""Files with a row per sample and a column per class: .npy, .npz, CSV and Parquet.

Every format is read and written in chunks of rows, so that memory does not grow with the number of
rows. Reads and writes are plain, without memory maps, so that the kernel's cache of a file does not
count as memory of the process. Nothing is ever unpickled. Rows count from 0; a header is no row.

CSV and Parquet name their columns, so that columns may have any order. One further column may
identify the rows.
"""

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from reprlib import repr as shortened
from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from hiercls_jax.errors import preview
from hiercls_jax.tables import csv_files, numpy_files, parquet_files
from hiercls_jax.tables.columns import Columns
from hiercls_jax.tables.table import (
    Identifiers,
    Opened,
    Table,
    TableError,
    Write,
    as_table_error,
    check_rows,
    split_key,
)

__all__ = [
    "FORMATS",
    "NO_CLASS",
    "Columns",
    "Table",
    "TableError",
    "label_ids",
    "open_table",
    "read_labels",
    "write_table",
]


class Format(Protocol):
    """The module of a file format."""

    def open_numbers(self, name: str, columns: Columns, scratch: Path | None, /) -> Opened:
        """Open a table of numbers, and match its columns."""

    def read_column(
        self, name: str, classes: Sequence[str], rows: int | None, /
    ) -> np.ndarray | list[str]:
        """Return a table's only column: integers or names `[N]`."""

    def write_rows(
        self,
        path: Path,
        columns: Sequence[str],
        rows: int,
        dtype: np.dtype,
        ids: Identifiers | None,
        /,
    ) -> AbstractContextManager[Write]:
        """Yield a function that writes the next rows `[n, K]`, and their identifiers if asked."""


_MODULES: dict[str, Format] = {
    "npy": numpy_files, "npz": numpy_files, "csv": csv_files, "parquet": parquet_files,
}  # fmt: skip
FORMATS = tuple(_MODULES)
NO_CLASS = -1


def open_table(name: str, columns: Columns | Sequence[str], scratch: Path | None = None) -> Table:
    """Open a table of numbers with one column for each class.

    Args:
      name: a file; its suffix tells the format. If an `.npz` file has several arrays, name one:
        `file.npz:key`, such as `predictions.npz:test/p_fine`.
      columns: which columns the table may have; or only the names of the K classes, in the order in
        which the columns are wanted, if that is also the order of columns without names.
      scratch: folder for an unnamed temporary file of the size of the largest row group, needed if
        a Parquet file has row groups too large for memory, or of an array in Fortran order in an
        `.npz` file. Default: the system's own.

    Returns:
      The table. Its size and columns are checked here; reading checks the rest.

    Raises:
      TableError: if the file is missing or damaged, has another kind or shape, or its columns are
        not the classes.
    """
    if not isinstance(columns, Columns):
        columns = Columns(tuple(columns))
    format_ = _format_of(name)
    with as_table_error(name):
        opened = _MODULES[format_].open_numbers(name, columns, scratch)
    return Table(name, format_, *opened)


def read_labels(name: str, classes: Sequence[str], rows: int | None = None) -> np.ndarray:
    """Read one class per sample, or none: -1, an empty cell, or null in Parquet.

    Args:
      name: a file as in `open_table`, with one column or a one-dimensional array: indices in
        `[0, K)`, or names of classes.
      classes: names of the K classes.
      rows: the number of rows, if it is known: a compressed file of another number is not read.

    Returns:
      int32 `[N]` in `[0, K)`; `NO_CLASS` for a sample without one.

    Raises:
      TableError: as `open_table`, and for an unknown class, with its row.
    """
    format_ = _format_of(name)
    with as_table_error(name):
        values = _MODULES[format_].read_column(name, classes, rows)
    check_rows(name, len(values), rows)
    return label_ids(name, values, classes)


def label_ids(name: str, values: np.ndarray | list[str], classes: Sequence[str]) -> np.ndarray:
    """Return int32 `[N]` in `[0, K)` for indices or names of classes; `NO_CLASS` for none.

    Raises:
      TableError: for an unknown class, with its row.
    """
    index = {"": NO_CLASS} | {class_: i for i, class_ in enumerate(classes)}
    ids = (
        np.array([index.get(value, len(classes)) for value in values])
        if isinstance(values, list)
        else values
    )
    bad = np.flatnonzero((ids < NO_CLASS) | (ids >= len(classes)))
    if bad.size:
        value = values[bad[0]] if isinstance(values, list) else int(values[bad[0]])
        raise TableError(
            f"{name}, row {bad[0]} (from 0): unknown class {shortened(value)}; allowed "
            f"are 0 to {len(classes) - 1}, or the names {preview(classes)}; -1 or an empty cell "
            "for a sample without a class"
        )
    return ids.astype(np.int32)


@contextlib.contextmanager
def write_table(
    path: Path,
    columns: Sequence[str],
    rows: int,
    dtype: DTypeLike = np.float32,
    ids: Identifiers | None = None,
) -> Iterator[Write]:
    """Write a table to a new file, chunk by chunk.

    Args:
      path: the file; its suffix tells the format. The array in an `.npz` file gets the file's
        name without the suffix.
      columns: names of the K columns; CSV and Parquet keep them.
      rows: number of rows in all.
      dtype: a type of numbers; in CSV and Parquet also `str`.
      ids: a column of identifiers to write before the others, in CSV and Parquet; arrays have none.

    Yields:
      A function that writes the next chunk, `[n, K]` of `dtype`, with its identifiers `[n]`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "p.csv"
    ...     with write_table(path, ("cat", "dog"), rows=1) as write:
    ...         write(np.float32([[0.25, 0.75]]))
    ...     [chunk.tolist() for chunk in open_table(str(path), ("dog", "cat")).chunks(10)]
    [[[0.75, 0.25]]]
    """
    module = _MODULES[_format_of(str(path))]
    with module.write_rows(path, columns, rows, np.dtype(dtype), ids) as write:
        yield write


def _format_of(name: str) -> str:
    suffix = Path(split_key(name)[0]).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise TableError(f"{name}: allowed are files that end in .{', .'.join(FORMATS)}")
    return suffix
