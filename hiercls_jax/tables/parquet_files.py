"""Parquet files, by pyarrow. It is optional, and so imported only when it is needed."""

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables.columns import Columns
from hiercls_jax.tables.table import (
    Identifiers,
    Opened,
    Rows,
    TableError,
    Write,
    check_rows,
    read_exactly,
)

# A reader holds a page and a dictionary of every column that it reads, and most programs write them
# with 1 MiB each. A thousand columns at once take gigabytes, however few rows are asked for.
GROUP_BYTES = 2**26  # a row group up to this size is read with all its columns at once
BLOCK = 16  # columns that are read at once of a larger row group
WRITTEN_BYTES = 2**25  # of a row group that is written; smaller ones are slow to read


def open_numbers(name: str, columns: Columns, scratch: Path | None) -> Opened:
    """Open a table of numbers, and match its columns."""
    arrow, parquet = import_arrow(name)
    with parquet.ParquetFile(name) as file:
        groups = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        schema = file.schema_arrow
    names, types = schema.names, [field.type for field in schema]
    match = columns.match(name, names, [_is_text(arrow, type_) for type_ in types])
    wanted = [names[i] for i in match.order]
    for i in match.order:
        kinds = arrow.types.is_floating, arrow.types.is_integer, arrow.types.is_boolean
        if not any(is_kind(types[i]) for is_kind in kinds):
            raise TableError(f"{name}: column '{names[i]}' is {types[i]}, allowed are numbers")
    if not sum(groups):
        raise TableError(f"{name} has no rows; at least one is needed")

    def read(size: int) -> Iterator[np.ndarray]:
        # Pre-buffering would read a whole row group ahead.
        with parquet.ParquetFile(name, pre_buffer=False, buffer_size=2**16) as file:
            pieces = (
                piece
                for group, rows in enumerate(groups)
                for piece in _read_group(file, group, rows, wanted, size, scratch)
            )
            yield from _rechunk(pieces, size)

    ids = None
    if match.id is not None:
        dtype = np.dtype(np.int64 if arrow.types.is_integer(types[match.id]) else object)
        ids = Identifiers(match.id_name, dtype, _id_reader(name, names[match.id], dtype))
    return Opened(sum(groups), match.classes, read, ids)


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
    path: Path, columns: Sequence[str], rows: int, dtype: np.dtype, ids: Identifiers | None
) -> Iterator[Write]:
    """Yield a function that writes the next rows `[n, K]`, and their identifiers if asked."""
    arrow, parquet = import_arrow(str(path))
    kind = arrow.string() if dtype.kind == "U" else arrow.from_numpy_dtype(dtype)
    fields = [(column, kind) for column in columns]
    if ids is not None:
        fields.insert(0, (ids.name, arrow.int64() if ids.dtype.kind == "i" else arrow.string()))
    schema = arrow.schema(fields)
    group = max(1, WRITTEN_BYTES // (dtype.itemsize or 32) // len(fields))
    held: list[Any] = []  # record batches

    def write(chunk: np.ndarray, row_ids: np.ndarray | None = None) -> None:
        arrays = [arrow.array(column, kind) for column in chunk.T]
        if row_ids is not None:
            arrays.insert(0, arrow.array(row_ids, fields[0][1]))
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


def _is_text(arrow: ModuleType, type_: Any) -> bool:
    if arrow.types.is_dictionary(type_):
        type_ = type_.value_type
    return arrow.types.is_string(type_) or arrow.types.is_large_string(type_)


def _id_reader(name: str, column: str, dtype: np.dtype) -> Rows:
    """Return the function that reads identifiers: integers, or any other values as text."""
    _, parquet = import_arrow(name)

    def pieces(file: Any, size: int) -> Iterator[np.ndarray]:
        start = 0
        for batch in file.iter_batches(size, columns=[column], use_threads=False):
            values = batch.column(0)
            if values.null_count:
                row = start + values.is_null().to_pylist().index(True)
                raise TableError(f"{name}, row {row} (from 0): no identifier in '{column}'")
            ids = values.to_pylist()
            piece = np.empty(len(ids), dtype)
            piece[:] = ids if dtype.kind == "i" else [str(id_) for id_ in ids]
            yield piece
            start += len(ids)

    def read(size: int) -> Iterator[np.ndarray]:
        with parquet.ParquetFile(name, pre_buffer=False, buffer_size=2**16) as file:
            yield from _rechunk(pieces(file, size), size)

    return read


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
