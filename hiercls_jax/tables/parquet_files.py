"""Parquet, by pyarrow, which is imported where it is needed: it is an optional dependency."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables.table import (
    TableError,
    check_rows,
    check_shape,
    column_order,
    read_exactly,
)

# A reader holds a page and a dictionary of every column it reads, 1 MiB each as most programs
# write them: a thousand columns at once take gigabytes, whatever the number of rows asked for.
GROUP_BYTES = 2**26  # a row group up to this size is read with all its columns at once
BLOCK = 16  # columns of a larger one that are read at once
WRITTEN_BYTES = 2**25  # of a row group as it is written; smaller ones are slow to read


def open_numbers(name: str, classes: Sequence[str], scratch: Path | None) -> tuple[int, Callable]:
    """Return the number of rows, and the function that reads them."""
    arrow, parquet = _import(name)
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


def read_column(name: str, classes, rows: int | None) -> np.ndarray | list[str]:
    """Return integers or names `[N]`."""
    arrow, parquet = _import(name)
    with parquet.ParquetFile(name) as file:
        check_rows(name, file.metadata.num_rows, rows)
        field, *more = schema = file.schema_arrow
        if more:
            raise TableError(f"{name}: columns {preview(schema.names)}, allowed is one")
        column = file.read().column(0)
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise TableError(f"{name}, row {row} (from 0): no value, allowed are classes")
    values = column.to_pylist()
    if all(isinstance(value, str) for value in values):
        return values
    if not arrow.types.is_integer(field.type):
        raise TableError(f"{name}: {field.type}, allowed are integers or class names")
    return np.array(values)


@contextlib.contextmanager
def write_rows(path: Path, columns: Sequence[str], rows: int, dtype: np.dtype):
    """Yield a function that writes the next rows `[n, K]`."""
    arrow, parquet = _import(path)
    kind = arrow.string() if dtype.kind == "U" else arrow.from_numpy_dtype(dtype)
    schema = arrow.schema([(column, kind) for column in columns])
    group = max(1, WRITTEN_BYTES // (dtype.itemsize or 32) // len(columns))
    held = []

    def write(chunk):
        arrays = [arrow.array(column, kind) for column in chunk.T]
        held.append(arrow.record_batch(arrays, schema=schema))
        if sum(map(len, held)) >= group:
            flush()

    def flush():
        writer.write_table(arrow.Table.from_batches(held, schema), group)
        held.clear()

    # Probabilities hardly repeat: dictionaries of them would cost time and space.
    with parquet.ParquetWriter(path, schema, use_dictionary=dtype.kind == "U") as writer:
        yield write
        flush()


def _import(name):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise TableError(
            f"{name}: Parquet needs pyarrow, which is not installed; run pip install "
            "'hiercls_jax[parquet]', or use .npy"
        ) from error
    return pyarrow, pyarrow.parquet


def _read_group(file, group: int, rows: int, classes, size: int, scratch) -> Iterator[np.ndarray]:
    """Read a row group, a large one by way of a file that has it in blocks of columns."""

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
            count, parts, column = min(size, rows - start), [], 0
            for block in blocks:
                store.seek(4 * (rows * column + start * len(block)))
                shape = count, len(block)
                parts.append(read_exactly(store.name, store, np.dtype(np.float32), shape))
                column += len(block)
            yield np.concatenate(parts, axis=1)


def _rechunk(pieces: Iterator[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """Cut arrays of any numbers of rows into arrays of `size` rows, and a last of what is left."""
    held, count = [], 0
    for piece in pieces:
        while count + len(piece) >= size:
            head, piece = piece[: size - count], piece[size - count :]
            yield np.concatenate([*held, head]) if held else head
            held, count = [], 0
        if len(piece):
            held, count = [*held, piece], count + len(piece)
    if held:
        yield np.concatenate(held)
