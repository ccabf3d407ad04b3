"""CIFAR-100 (Krizhevsky, 2009), downloaded and prepared where it is not: without TensorFlow."""

import contextlib
import gzip
import hashlib
import http.client
import io
import os
import shutil
import sys
import tarfile
import tempfile
import urllib.request
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from hiercls_jax.data import tfds_source
from hiercls_jax.data.dataset import DataError, Request, Split
from hiercls_jax.data.stream import Once
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy import cifar100 as hierarchy

COUNTS = {"train": 50_000, "test": 10_000}
_PREFIX = "cifar-100-binary"
_RECORD = 2 + 3 * 32 * 32  # bytes: coarse label, fine label, then planes of red, green and blue
_NAMES_LIMIT = 1 << 16  # bytes of a file of class names; the real ones have under 1 KiB
_EXTRA = 1 << 20  # bytes of the archive beside the files that are wanted
_TIMEOUT = 30  # seconds without a byte from the server
_BLOCK = 1 << 18  # bytes


def load_splits(request: Request, hierarchy: Hierarchy, once: Once) -> dict[str, Split]:
    """Return the splits of `load`; see `sources.SourceModule`."""
    return load(request.dir)


def load(data_dir=None) -> dict[str, Split]:
    """Read CIFAR-100, downloading and preparing it first where TFDS has no prepared copy.

    Args:
      data_dir: the folder that holds TFDS's sets; None: `$TFDS_DATA_DIR`, or TFDS's own default.

    Returns:
      `{'train': Split, 'test': Split}` of 50,000 and 10,000 images uint8 `[N, 32, 32, 3]`, with
      fine labels int32 `[N]` in the order of `hierarchy()`.

    Raises:
      DataError: for anything that stops it, with what to do.
    """
    if tfds_source.find("cifar100", data_dir) is None:
        prepare(data_dir)
    return tfds_source.read("cifar100", data_dir, "label", hierarchy())


def prepare(
    data_dir=None,
    url: str | None = None,
    checksum: str | None = None,
    size: int | None = None,
    counts: dict[str, int] | None = None,
) -> Path:
    """Download CIFAR-100's binary archive, verify it, and prepare it as TFDS's own set `cifar100`.

    An archive that was put into `<data_dir>/downloads` by hand is verified and used as it is.

    Args:
      data_dir: the folder that holds TFDS's sets; None: `$TFDS_DATA_DIR`, or TFDS's own default.
      url: the archive's address; None: the one in TFDS's table of checksums.
      checksum: the archive's SHA-256 in hexadecimal digits; None: the one in TFDS's table.
      size: the archive's bytes; None: those in TFDS's table.
      counts: the images of each split; None: those of CIFAR-100.

    Returns:
      The folder of the prepared set. It and the archive get their names only when whole.

    Raises:
      DataError: for a failed download, a wrong archive or a folder that cannot be written.
    """
    builder_cls = tfds.builder_cls("cifar100")
    ((own_url, own),) = builder_cls.url_infos.items()
    url, checksum, size = url or own_url, checksum or own.checksum, size or int(own.size)
    counts = counts or COUNTS
    folder = tfds_source.data_folder(data_dir)
    archive = folder / "downloads" / f"{_PREFIX}.tar.gz"
    with _disk_errors(folder):
        archive.parent.mkdir(parents=True, exist_ok=True)
        if archive.exists():
            _verify(archive, checksum, size)
        else:
            _check_space(folder, 2 * size)  # the archive, and the set, which is smaller
            _download(url, archive, checksum, size)
        contents = _read_archive(archive, counts)
        return _write(builder_cls, folder, contents)


@contextlib.contextmanager
def _disk_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"CIFAR-100 cannot be prepared in {folder}: {error}; free or unlock it, or name "
            "another folder by --config.data.dir or the environment variable TFDS_DATA_DIR"
        ) from error


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {free / 1e6:.0f} MB of free space, and CIFAR-100 needs "
            f"{needed / 1e6:.0f} MB; free some, or name another folder by --config.data.dir "
            "or the environment variable TFDS_DATA_DIR"
        )


def _download(url: str, archive: Path, checksum: str, size: int) -> None:
    """Stream `url` into a temporary file and rename it to `archive` once its sum is right."""
    print(f"downloading CIFAR-100 ({size / 1e6:.0f} MB) from {url}", flush=True)
    advice = f"try again, or download {url} in another way and put it at {archive}"
    handle, temporary = tempfile.mkstemp(prefix=f".{archive.name}-", dir=archive.parent)
    digest, received = hashlib.sha256(), 0
    try:
        with (
            open(handle, "wb") as file,
            _bar(size, "B", "downloading") as bar,
            contextlib.closing(_blocks(url, advice)) as blocks,
        ):
            for block in blocks:
                received += len(block)
                if received > size:
                    break
                digest.update(block)
                file.write(block)
                bar.update(len(block))
        if received != size:
            raise DataError(
                f"the download of {url} has {'more than ' * (received > size)}"
                f"{min(received, size)} bytes, but CIFAR-100's archive has {size}; {advice}"
            )
        if digest.hexdigest() != checksum:
            raise DataError(
                f"the download of {url} has the SHA-256 {digest.hexdigest()}, but CIFAR-100's "
                f"archive has {checksum}; {advice}"
            )
        os.replace(temporary, archive)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"while CIFAR-100 was downloaded, at {received / 1e6:.0f} of {size / 1e6:.0f} MB; the "
            "same command downloads it anew"
        ) from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)


def _blocks(url: str, advice: str) -> Iterator[bytes]:
    # Errors of the network are caught here, apart from those of the disk: both are OSErrors.
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            while block := response.read(_BLOCK):
                yield block
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{url} cannot be downloaded ({error}); {advice}") from error


def _bar(total: int, unit: str, what: str) -> tqdm:
    # Without a terminal there is no bar: a log would get a line for each of its steps.
    return tqdm(total=total, unit=unit, unit_scale=True, desc=what, disable=None)


def _verify(archive: Path, checksum: str, size: int) -> None:
    with open(archive, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    actual = archive.stat().st_size
    if (digest, actual) != (checksum, size):
        raise DataError(
            f"{archive} is not CIFAR-100's archive: {actual} bytes with SHA-256 {digest} instead "
            f"of {size} bytes with {checksum}; delete it, and it is downloaded again"
        )


def _read_archive(archive: Path, counts: dict[str, int]) -> dict[str, bytes]:
    """Return the archive's four files, checked against each other and CIFAR-100's hierarchy."""
    sizes = {f"{split}.bin": count * _RECORD for split, count in counts.items()}
    limits = sizes | {"fine_label_names.txt": _NAMES_LIMIT, "coarse_label_names.txt": _NAMES_LIMIT}
    try:
        contents = _members(archive, limits)
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise DataError(f"{archive} cannot be read as .tar.gz ({error}); delete it") from error
    missing = sorted(set(limits) - set(contents))
    if missing:
        raise DataError(
            f"{archive} lacks {', '.join(f'{_PREFIX}/{m}' for m in missing)}; delete it"
        )
    for name, size in sizes.items():
        if len(contents[name]) != size:
            raise DataError(
                f"{archive}: {name} has {len(contents[name])} bytes instead of {size} "
                f"({size // _RECORD} records of {_RECORD}); delete the archive"
            )
    coarse, fine = hierarchy().names
    for name, expected in (("coarse_label_names.txt", coarse), ("fine_label_names.txt", fine)):
        if tuple(contents[name].decode("utf-8", "replace").split()) != expected:
            raise DataError(f"{archive}: {name} has not CIFAR-100's classes; delete the archive")
    for name in sizes:
        labels = _records(contents[name])[:, :2]
        wrong = np.flatnonzero(~np.isin(labels[:, 1], np.arange(len(fine))))
        if not wrong.size:
            wrong = np.flatnonzero(hierarchy().fine_to_coarse[labels[:, 1]] != labels[:, 0])
        if wrong.size:
            raise DataError(
                f"{archive}: record {wrong[0]} of {name} has the coarse label "
                f"{labels[wrong[0], 0]} and the fine label {labels[wrong[0], 1]}, which is not so "
                "in CIFAR-100; delete the archive"
            )
    return contents


def _members(archive: Path, limits: dict[str, int]) -> dict[str, bytes]:
    """Return the wanted files in memory: nothing is extracted, so nothing is written anywhere."""
    contents: dict[str, bytes] = {}
    # A tape archive says of each file, name and attribute how long it is: too long for memory, or
    # for anyone's patience.
    whole = sum(limits.values()) + _EXTRA
    with _Bounded(archive, whole) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise DataError(
                    f"{archive} has the member '{member.name}', a link or a path outside the "
                    "archive, which CIFAR-100's has not; delete it"
                )
            name = path.name
            if path.parent != PurePosixPath(_PREFIX) or name not in limits or member.isdir():
                continue
            if name in contents:
                raise DataError(f"{archive} has '{member.name}' more than once; delete it")
            if member.size > limits[name]:
                raise DataError(
                    f"{archive}: {name} has {member.size} bytes, more than {limits[name]}; "
                    "delete the archive"
                )
            contents[name] = tar.extractfile(member).read()
    return contents


class _Bounded(gzip.GzipFile):
    """A compressed file of which no more than `limit` bytes are ever decompressed."""

    def __init__(self, path: Path, limit: int):
        super().__init__(path)
        self._limit = limit

    def read(self, size: int) -> bytes:
        self._check(self.tell() + size)
        return super().read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._check(offset)
        return super().seek(offset, whence)

    def _check(self, end: int) -> None:
        if end > self._limit:
            raise DataError(
                f"{self.name} is said to have {end} bytes or more when it is decompressed; "
                f"CIFAR-100's archive has less than {self._limit}; delete it"
            )


def _records(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8).reshape(-1, _RECORD)


def _write(builder_cls, folder: Path, contents: dict[str, bytes]) -> Path:
    """Write the set as TFDS's own builder would; TFDS renames its folder when it is whole."""

    # TFDS's builder opens files and encodes images with TensorFlow; the rest of it needs none.
    # Not registered, or it would stand in for TFDS's own under the same name.
    class Cifar100(builder_cls, skip_registration=True):
        name = "cifar100"
        __module__ = builder_cls.__module__  # is written into dataset_info.json

        def _split_generators(self, dl_manager):
            for key, file in (("coarse_label", "coarse"), ("label", "fine")):
                names = contents[f"{file}_label_names.txt"].decode().split()
                self.info.features[key].names = names
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split):
            for index, record in enumerate(_records(contents[f"{split}.bin"])):
                yield (
                    index,
                    {
                        "id": f"{split}_{index:05d}",
                        "image": _png(record[2:].reshape(3, 32, 32).transpose(1, 2, 0)),
                        "label": int(record[1]),
                        "coarse_label": int(record[0]),
                    },
                )

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    print(f"preparing CIFAR-100 in {folder}", flush=True)
    builder = Cifar100(data_dir=folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS says that it downloads
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"while CIFAR-100 was prepared in {folder}; the archive is kept, and the same command "
            "prepares it anew"
        ) from None
    except OSError:
        # Another process may have been first; its folder is as good, and whole.
        if tfds_source.find("cifar100", folder) is None:
            raise
    return Path(builder.data_dir)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
