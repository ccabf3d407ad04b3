"""Parquet files, by pyarrow. It is optional, and so imported only when it is needed."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables.table import (
    Rows,
    TableError,
    check_rows,
    check_shape,
    column_order,
    read_exactly,
)

# A reader holds a page and a dictionary of every column that it reads, and most programs write them
# with 1 MiB each. A thousand columns at once take gigabytes, however few rows are asked for.
GROUP_BYTES = 2**26  # a row group up to this size is read with all its columns at once
BLOCK = 16  # columns that are read at once of a larger row group
WRITTEN_BYTES = 2**25  # of a row group that is written; smaller ones are slow to read


def open_numbers(name: str, classes: Sequence[str], scratch: Path | None) -> tuple[int, Rows]:
    """Return the number of rows, and the function that reads them."""
    arrow, parquet = import_arrow(name)
    with parquet.ParquetFile(name) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        schema = file.schema_arrow
    column_order(name, schema.names, classes)
    for field in schema:
        kinds = arrow.types.is_floating, arrow.types.is_integer, arrow.types.is_boolean
        if not any(is_kind(field.type) for is_kind in kinds):
            raise TableError(f"{name}: column '{field.name}' is {field.type}, allowed are numbers")
    check_shape(name, sum(groups), len(schema), classes)

    def read(size: int) -> Iterator[np.ndarray]:
        # Pre-buffering would read a whole row group ahead.
        with parquet.ParquetFile(name, pre_buffer=False, buffer_size=2**16) as file:
            pieces = (
                piece
                for group, rows in enumerate(groups)
                for piece in _read_group(file, group, rows, classes, size, scratch)
            )
            yield from _rechunk(pieces, size)

    return sum(groups), read


def read_column(name: str, classes: Sequence[str], rows: int | None) -> np.ndarray | list[str]:
    """Return integers or names `[N]`; for null -1, or an empty name."""
    arrow, parquet = import_arrow(name)
    with parquet.ParquetFile(name) as file:
        check_rows(name, file.metadata.num_rows, rows)
        field, *more = schema = file.schema_arrow
        if more:
            raise TableError(f"{name}: columns {preview(schema.names)}, allowed is one")
        column = file.read().column(0)
    values = column.to_pylist()
    if all(value is None or isinstance(value, str) for value in values):
        return [value or "" for value in values]
    if not arrow.types.is_integer(field.type):
        raise TableError(f"{name}: {field.type}, allowed are integers or class names")
    return np.array([-1 if value is None else value for value in values])


@contextlib.contextmanager
def write_rows(
    path: Path, columns: Sequence[str], rows: int, dtype: np.dtype
) -> Iterator[Callable[[np.ndarray], object]]:
    """Yield a function that writes the next rows `[n, K]`."""
    arrow, parquet = import_arrow(str(path))
    kind = arrow.string() if dtype.kind == "U" else arrow.from_numpy_dtype(dtype)
    schema = arrow.schema([(column, kind) for column in columns])
    group = max(1, WRITTEN_BYTES // (dtype.itemsize or 32) // len(columns))
    held: list[Any] = []  # record batches

    def write(chunk: np.ndarray) -> None:
        arrays = [arrow.array(column, kind) for column in chunk.T]
        held.append(arrow.record_batch(arrays, schema=schema))
        if sum(map(len, held)) >= group:
            flush()

    def flush() -> None:
        writer.write_table(arrow.Table.from_batches(held, schema), group)
        held.clear()

    # No dictionaries of probabilities: they hardly repeat, and would cost time and space.
    with parquet.ParquetWriter(path, schema, use_dictionary=dtype.kind == "U") as writer:
        yield write
        flush()


def import_arrow(name: str) -> tuple[ModuleType, ModuleType]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TableError(
            f"{name}: Parquet needs pyarrow, which is not installed; run pip install "
            "'hiercls_jax[parquet]', or use .npy"
        ) from error
    return pyarrow, pyarrow.parquet


def _read_group(
    file: Any, group: int, rows: int, classes: Sequence[str], size: int, scratch: Path | None
) -> Iterator[np.ndarray]:
    """Read a row group of a ParquetFile; a large one through a file with blocks of its columns."""

    def read(columns: Sequence[str]) -> Iterator[np.ndarray]:
        for batch in file.iter_batches(size, [group], list(columns), use_threads=False):
            piece = np.empty((len(batch), len(columns)), np.float32)
            with np.errstate(over="ignore"):
                for i, column in enumerate(columns):
                    piece[:, i] = batch.column(column).to_numpy(zero_copy_only=False)
            yield piece

    if 4 * rows * len(classes) <= GROUP_BYTES:
        yield from read(classes)
        return
    blocks = [classes[i : i + BLOCK] for i in range(0, len(classes), BLOCK)]
    with tempfile.TemporaryFile(dir=scratch) as store:
        for block in blocks:
            for piece in read(block):
                store.write(piece.data)
        for start in range(0, rows, size):
            count, column = min(size, rows - start), 0
            parts: list[np.ndarray] = []
            for block in blocks:
                store.seek(4 * (rows * column + start * len(block)))
                shape = count, len(block)
                parts.append(read_exactly(store.name, store, np.dtype(np.float32), shape))
                column += len(block)
            yield np.concatenate(parts, axis=1)


def _rechunk(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut arrays of any numbers of rows into arrays of `size` rows; the last has the rest."""
    held: list[np.ndarray] = []
    count = 0
    for piece in pieces:
        while count + len(piece) >= size:
            head, piece = piece[: size - count], piece[size - count :]
            yield np.concatenate([*held, head]) if held else head
            held, count = [], 0
        if len(piece):
            held, count = [*held, piece], count + len(piece)
    if held:
        yield np.concatenate(held)
