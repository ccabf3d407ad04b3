"""NumPy's formats: a header and the bytes of an array, alone or as members of a zip archive."""

import contextlib
import io
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables.columns import Columns
from hiercls_jax.tables.table import (
    Identifiers,
    Opened,
    TableError,
    Write,
    check_rows,
    read_exactly,
    split_key,
)

BLOCK_BYTES = 2**25  # of an array in Fortran order that are read at once
_LONGEST = 4096  # bytes of a class's name: 1024 characters
_LONGEST_HEADER = 10_000  # bytes, NumPy's own limit


def open_numbers(name: str, columns: Columns, scratch: Path | None) -> Opened:
    """Open a table of numbers, and match its columns, which have no names."""
    with _open(name) as (_, shape, fortran, dtype):
        if dtype.kind not in "fiub":
            raise TableError(f"{name} holds {dtype}, allowed are real numbers")
        if len(shape) != 2:
            raise TableError(f"{name}: shape {list(shape)}, allowed is [N, {len(columns.classes)}]")
    rows, width = shape
    match = columns.match_unnamed(name, width, rows)
    if not rows:
        raise TableError(f"{name} has no rows; at least one is needed")

    def read(size: int) -> Iterator[np.ndarray]:
        with _open(name) as (stream, now, _, dtype):
            if now != shape:
                raise TableError(f"{name} has changed while it was read")
            if fortran:
                yield from _read_columns(name, stream, dtype, shape, match.order, size, scratch)
                return
            for start in range(0, rows, size):
                chunk = read_exactly(name, stream, dtype, (min(size, rows - start), width), start)
                yield chunk if match.order == list(range(width)) else chunk[:, match.order]

    return Opened(rows, match.classes, read)


def read_column(name: str, classes: Sequence[str], rows: int | None) -> np.ndarray | list[str]:
    """Return integers or names `[N]`."""
    with open_array(name) as (stream, shape, dtype):
        if len(shape) != 1 or dtype.kind not in "iuU":
            raise TableError(
                f"{name}: {dtype} {list(shape)}, allowed are integers or class names [N]"
            )
        if dtype.itemsize > _LONGEST:
            raise TableError(f"{name}: {dtype}, allowed are names of {_LONGEST // 4:,} characters")
        check_rows(name, shape[0], rows)
        values = read_exactly(name, stream, dtype, shape)
        return values.tolist() if dtype.kind == "U" else values


@contextlib.contextmanager
def write_rows(
    path: Path, columns: Sequence[str], rows: int, dtype: np.dtype, ids: Identifiers | None
) -> Iterator[Write]:
    """Yield a function that writes the next rows `[n, K]`; an array has no room for identifiers."""
    with contextlib.ExitStack() as stack:
        if path.suffix == ".npy":
            file: IO[bytes] = stack.enter_context(open(path, "wb"))
        else:
            archive = stack.enter_context(zipfile.ZipFile(path, "w"))
            file = stack.enter_context(archive.open(f"{path.stem}.npy", "w", force_zip64=True))
        header = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (rows, len(columns)),
        }
        np.lib.format.write_array_header_1_0(file, header)
        yield lambda chunk, _=None: file.write(np.ascontiguousarray(chunk, dtype).data)


@contextlib.contextmanager
def open_array(name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Open an array in C order; yield the stream behind its header, its shape and dtype."""
    with _open(name) as (stream, shape, fortran, dtype):
        if fortran:
            raise TableError(
                f"{name} is in Fortran order, allowed is C order: "
                "np.save(file, np.ascontiguousarray(array))"
            )
        yield stream, shape, dtype


@contextlib.contextmanager
def _open(name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], bool, np.dtype]]:
    """Open an array and check its size; yield `open_array`'s and whether columns come first."""
    with contextlib.ExitStack() as stack:
        path, key = split_key(name)
        if Path(path).suffix.lower() == ".npy":
            stream: IO[bytes] = stack.enter_context(open(path, "rb"))
            size = stream.seek(0, io.SEEK_END)
            stream.seek(0)
        else:
            archive = stack.enter_context(zipfile.ZipFile(path))
            member = archive.getinfo(_choose(path, archive.namelist(), key))
            stream = stack.enter_context(archive.open(member))
            size = member.file_size
        shape, fortran, dtype = _read_header(name, stream)
        if dtype.hasobject:
            raise TableError(
                f"{name} holds Python objects, which are never unpickled; allowed are numbers: "
                "np.save(file, array.astype(np.float32))"
            )
        _check_size(name, size - stream.tell(), shape, dtype)
        yield stream, shape, fortran and len(shape) > 1, dtype


def _read_columns(
    name: str,
    stream: IO[bytes],
    dtype: np.dtype,
    shape: tuple[int, int],
    order: Sequence[int],
    size: int,
    scratch: Path | None,
) -> Iterator[np.ndarray]:
    """Read rows of an array whose columns lie one after the other, as np.save writes `p[:, order]`.

    Args:
      name: the file, for errors.
      stream: the array's bytes. Those of an archive are copied to a temporary file, because every
        step back would unpack them anew.
      dtype: of the array.
      shape: [N, K].
      order: the columns to read.
      size: number of rows at a time; many times as many are read at once.
      scratch: folder for the temporary file.
    """
    rows, _ = shape
    with contextlib.ExitStack() as stack:
        if isinstance(stream, zipfile.ZipExtFile):
            copy = stack.enter_context(tempfile.TemporaryFile(dir=scratch))
            shutil.copyfileobj(stream, copy)
            stream, origin = copy, 0
        else:
            origin = stream.tell()
        row_bytes = dtype.itemsize * len(order)
        block = size * max(1, BLOCK_BYTES // (row_bytes * size))
        for first in range(0, rows, block):
            count = min(block, rows - first)
            columns = np.empty((len(order), count), dtype)
            for into, column in zip(columns, order, strict=True):
                stream.seek(origin + dtype.itemsize * (rows * column + first))
                into[:] = read_exactly(name, stream, dtype, (count,), first)
            for start in range(0, count, size):
                yield columns[:, start : start + size].T


def _choose(path: str, members: list[str], key: str | None) -> str:
    keys = [member.removesuffix(".npy") for member in members]
    if key is None and len(keys) == 1:
        return members[0]
    if key not in keys:
        what = f"has {len(keys)} arrays, choose one" if key is None else f"has no array '{key}'"
        raise TableError(f"{path} {what}; allowed are {preview([f'{path}:{k}' for k in keys])}")
    return members[keys.index(key)]


class _Bounded:
    """A stream from which NumPy cannot read too long a header: a header may claim 4 GB."""

    def __init__(self, name: str, stream: IO[bytes]) -> None:
        self._name, self._stream = name, stream

    def read(self, size: int = 0, /) -> bytes:
        if size > _LONGEST_HEADER:
            raise TableError(
                f"{self._name} is damaged: a header of {size:,} bytes, allowed are "
                f"{_LONGEST_HEADER:,}"
            )
        return self._stream.read(size)


def _read_header(name: str, stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    bounded = _Bounded(name, stream)
    version = np.lib.format.read_magic(bounded)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(bounded)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(bounded)
    raise TableError(f"{name} is of .npy version {version}, allowed are (1, 0) and (2, 0)")


def _check_size(name: str, size: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
    row = dtype.itemsize
    for length in shape[1:]:
        row *= length
    wanted = row * (shape[0] if shape else 1)
    if size < wanted:
        raise TableError(
            f"{name} is truncated: it ends in row {size // row} (from 0), with {size:,} bytes of "
            f"the {wanted:,} of its header's {dtype} {list(shape)}"
        )
    if size > wanted:
        raise TableError(
            f"{name} is damaged: it has {size:,} bytes, but its header's {dtype} {list(shape)} "
            f"allows {wanted:,}"
        )
