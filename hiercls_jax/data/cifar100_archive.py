"""CIFAR-100's binary archive, read into memory and checked."""

import gzip
import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath

import numpy as np

from hiercls_jax.data.dataset import DataError
from hiercls_jax.hierarchy import cifar100

PREFIX = "cifar-100-binary"  # the archive's folder
_RECORD = 2 + 3 * 32 * 32  # bytes: coarse label, fine label, then planes of red, green and blue
_NAMES_LIMIT = 1 << 16  # bytes of a file of class names; the real ones have under 1 KiB
_EXTRA = 1 << 20  # bytes that the archive may have beside the four files


def read_archive(archive: Path, counts: dict[str, int]) -> dict[str, bytes]:
    """Read the archive's four files and check them against each other and the hierarchy.

    Args:
      archive: a .tar.gz file.
      counts: the number of images in each split.

    Returns:
      The contents of `<split>.bin`, `fine_label_names.txt` and `coarse_label_names.txt`.

    Raises:
      DataError: for anything that differs from CIFAR-100's archive.
    """
    sizes = {f"{split}.bin": count * _RECORD for split, count in counts.items()}
    limits = sizes | {"fine_label_names.txt": _NAMES_LIMIT, "coarse_label_names.txt": _NAMES_LIMIT}
    try:
        contents = _members(archive, limits)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} cannot be read as .tar.gz ({error}); delete it") from error
    missing = sorted(set(limits) - set(contents))
    if missing:
        raise DataError(f"{archive} lacks {', '.join(f'{PREFIX}/{m}' for m in missing)}; delete it")
    for name, size in sizes.items():
        if len(contents[name]) != size:
            raise DataError(
                f"{archive}: {name} has {len(contents[name])} bytes instead of {size} "
                f"({size // _RECORD} records of {_RECORD}); delete the archive"
            )
    coarse, fine = cifar100().names
    for name, expected in (("coarse_label_names.txt", coarse), ("fine_label_names.txt", fine)):
        if tuple(contents[name].decode("utf-8", "replace").split()) != expected:
            raise DataError(
                f"{archive}: {name} does not contain CIFAR-100's classes; delete the archive"
            )
    for name in sizes:
        _check_labels(archive, name, contents[name])
    return contents


def records(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return labels `[N, 2]` (coarse, fine) and images `[N, 32, 32, 3]`, uint8, of a .bin file."""
    rows = np.frombuffer(content, np.uint8).reshape(-1, _RECORD)
    return rows[:, :2], rows[:, 2:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _check_labels(archive: Path, name: str, content: bytes) -> None:
    """Raise a DataError for labels out of range, or a coarse label that is not the parent."""
    labels, _ = records(content)
    parents = cifar100().fine_to_coarse
    wrong = np.flatnonzero(labels[:, 1] >= len(parents))
    if not wrong.size:
        wrong = np.flatnonzero(parents[labels[:, 1]] != labels[:, 0])
    if wrong.size:
        coarse, fine = labels[wrong[0]]
        raise DataError(
            f"{archive}: record {wrong[0]} of {name} has the coarse label {coarse} and the fine "
            f"label {fine}, which do not go together in CIFAR-100; delete the archive"
        )


def _members(archive: Path, limits: dict[str, int]) -> dict[str, bytes]:
    """Return the files named in `limits`, each at most so many bytes; extract nothing to disk."""
    contents: dict[str, bytes] = {}
    # An archive states the length of each file, name and attribute, which may be longer than the
    # memory. Never decompress more than the wanted files need.
    limit = sum(limits.values()) + _EXTRA
    with _Bounded(archive, limit) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise DataError(
                    f"{archive} has the member '{member.name}', a link or a path outside the "
                    "archive; CIFAR-100's archive has none; delete it"
                )
            name = path.name
            if path.parent != PurePosixPath(PREFIX) or name not in limits or member.isdir():
                continue
            if name in contents:
                raise DataError(f"{archive} has '{member.name}' more than once; delete it")
            if member.size > limits[name]:
                raise DataError(
                    f"{archive}: {name} has {member.size} bytes, more than {limits[name]}; "
                    "delete the archive"
                )
            content = tar.extractfile(member)
            assert content is not None  # only for members that are no files
            contents[name] = content.read()
    return contents


class _Bounded(gzip.GzipFile):
    """A compressed file that never decompresses more than `limit` bytes."""

    def __init__(self, path: Path, limit: int):
        super().__init__(path)
        self._limit = limit

    def read(self, size: int | None = -1) -> bytes:
        if size is None or size < 0:
            size = self._limit - self.tell()
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > self._limit:
            raise DataError(
                f"{self.name} claims to have {end} bytes or more when it is decompressed; "
                f"CIFAR-100's archive has less than {self._limit}; delete it"
            )
