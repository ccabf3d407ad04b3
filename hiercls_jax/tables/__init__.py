"""Tables with a row per sample and a column per class, in files: .npy, .npz, CSV and Parquet.

Every format is read and written a chunk of rows at a time, so that memory does not grow with the
number of rows. Plain reads and writes, no memory maps: what the kernel caches of a file is not
memory of the process. Nothing is ever unpickled. Rows are counted from 0, a header not among them.

CSV and Parquet name their columns, which may then stand in any order.
"""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shortened

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables import csv_files, numpy_files, parquet_files
from hiercls_jax.tables.table import (
    Table,
    TableError,
    as_table_error,
    check_rows,
    split_key,
)

__all__ = ["FORMATS", "Table", "TableError", "open_table", "read_labels", "write_table"]

_MODULES = {
    "npy": numpy_files, "npz": numpy_files, "csv": csv_files, "parquet": parquet_files,
}  # fmt: skip
FORMATS = tuple(_MODULES)


def open_table(name: str, classes: Sequence[str], scratch: Path | None = None) -> Table:
    """Open a table of numbers with one column for each class.

    Args:
      name: a file; its suffix tells the format. One array of several in an `.npz` file is
        `file.npz:key`, such as `predictions.npz:test/p_fine`.
      classes: names of the K classes, in the order in which the columns are wanted.
      scratch: folder for an unnamed temporary file of the size of the largest row group, made
        where a Parquet file has row groups too large for memory; the system's own by default.

    Returns:
      The table, checked as far as its size and columns; reading checks the rest.

    Raises:
      TableError: where the file is missing, damaged, of another kind or shape, or has columns
        that are not the classes.
    """
    format_ = _format_of(name)
    with as_table_error(name):
        rows, read = _MODULES[format_].open_numbers(name, tuple(classes), scratch)
    return Table(name, format_, rows, read)


def read_labels(name: str, classes: Sequence[str], rows: int | None = None) -> np.ndarray:
    """Read one class per sample.

    Args:
      name: a file as in `open_table`, with one column or a one-dimensional array: indices in
        `[0, K)`, or names of classes.
      classes: names of the K classes.
      rows: how many there must be, where that is known: a compressed file of others is not read.

    Returns:
      int32 `[N]` in `[0, K)`.

    Raises:
      TableError: as `open_table` does, and for a class that there is not, with its row.
    """
    format_ = _format_of(name)
    with as_table_error(name):
        values = _MODULES[format_].read_column(name, classes, rows)
    check_rows(name, len(values), rows)
    if isinstance(values, list):
        index = {class_: i for i, class_ in enumerate(classes)}
        ids = np.array([index.get(value, -1) for value in values])
    else:
        ids = values
    bad = np.flatnonzero((ids < 0) | (ids >= len(classes)))
    if bad.size:
        value = values[bad[0]]
        value = value if isinstance(value, str) else int(value)
        raise TableError(
            f"{name}, row {bad[0]} (from 0): unknown class {shortened(value)}; allowed "
            f"are 0 to {len(classes) - 1}, or the names {preview(classes)}"
        )
    return ids.astype(np.int32)


@contextlib.contextmanager
def write_table(path: Path, columns: Sequence[str], rows: int, dtype=np.float32):
    """Write a table to a new file, chunk by chunk.

    Args:
      path: the file; its suffix tells the format. The array in an `.npz` file is called as the
        file is without its suffix.
      columns: names of the K columns; CSV and Parquet keep them.
      rows: how many rows will be written in all.
      dtype: of numbers, or `str` in CSV and Parquet.

    Yields:
      A function that takes the next chunk, `[n, K]` of `dtype`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "p.csv"
    ...     with write_table(path, ("cat", "dog"), rows=1) as write:
    ...         write(np.float32([[0.25, 0.75]]))
    ...     [chunk.tolist() for chunk in open_table(str(path), ("dog", "cat")).chunks(10)]
    [[[0.75, 0.25]]]
    """
    module = _MODULES[_format_of(str(path))]
    with module.write_rows(path, columns, rows, np.dtype(dtype)) as write:
        yield write


def _format_of(name: str) -> str:
    suffix = Path(split_key(name)[0]).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise TableError(f"{name}: allowed are files that end in .{', .'.join(FORMATS)}")
    return suffix
