"""NumPy's formats: a header and the bytes of an array, alone or as members of a zip archive."""

import contextlib
import io
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables.table import (
    Rows,
    TableError,
    check_rows,
    check_shape,
    read_exactly,
    split_key,
)

_LONGEST = 4096  # bytes of a class's name: 1024 characters
_LONGEST_HEADER = 10_000  # bytes, NumPy's own limit


def open_numbers(name: str, classes: Sequence[str], scratch: Path | None) -> tuple[int, Rows]:
    """Return the number of rows, and the function that reads them."""
    with open_array(name) as (_, shape, dtype):
        if dtype.kind not in "fiub":
            raise TableError(f"{name} holds {dtype}, allowed are real numbers")
        if len(shape) != 2:
            raise TableError(f"{name}: shape {list(shape)}, allowed is [N, {len(classes)}]")
    rows, width = shape
    check_shape(name, rows, width, classes)

    def read(size: int) -> Iterator[np.ndarray]:
        with open_array(name) as (stream, now, dtype):
            if now != shape:
                raise TableError(f"{name} has changed while it was read")
            for start in range(0, rows, size):
                yield read_exactly(name, stream, dtype, (min(size, rows - start), width), start)

    return rows, read


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
    path: Path, columns: Sequence[str], rows: int, dtype: np.dtype
) -> Iterator[Callable[[np.ndarray], object]]:
    """Yield a function that writes the next rows `[n, K]`."""
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
        yield lambda chunk: file.write(np.ascontiguousarray(chunk, dtype).data)


@contextlib.contextmanager
def open_array(name: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Open an array and check its size; yield the stream behind its header, its shape and dtype."""
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
        if fortran and len(shape) > 1:
            raise TableError(
                f"{name} is in Fortran order, allowed is C order: "
                "np.save(file, np.ascontiguousarray(array))"
            )
        _check_size(name, size - stream.tell(), shape, dtype)
        yield stream, shape, dtype


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
