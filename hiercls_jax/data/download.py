"""Download a file and verify it; it appears under its name only if it is complete and right."""

import contextlib
import hashlib
import http.client
import urllib.request
from collections.abc import Generator
from pathlib import Path

from tqdm import tqdm

from hiercls_jax.data.dataset import DataError
from hiercls_jax.files import atomic_write

_TIMEOUT = 30  # seconds without a byte from the server
_BLOCK = 1 << 18  # bytes


def download(url: str, path: Path, name: str, checksum: str, size: int) -> None:
    """Download `url` to `path` and verify its size and checksum.

    Args:
      url: the address.
      path: the file's name at the end; its folder must exist.
      name: the data set that the file belongs to, for messages.
      checksum: SHA-256 in hexadecimal digits.
      size: bytes.

    Raises:
      DataError: if the download fails, or has another size or checksum.
      OSError: if the file cannot be written.
      KeyboardInterrupt: with what to do next, if the download is interrupted.
    """
    print(f"downloading {name} ({size / 1e6:.0f} MB) from {url}", flush=True)
    advice = f"try again, or download {url} in another way and put it at {path}"
    digest, received = hashlib.sha256(), 0
    try:
        with atomic_write(path) as temporary:
            with (
                open(temporary, "wb") as file,
                progress_bar(size, "B", "downloading") as bar,
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
                    f"{min(received, size)} bytes, but {name}'s archive has {size}; {advice}"
                )
            if digest.hexdigest() != checksum:
                raise DataError(
                    f"the download of {url} has the SHA-256 {digest.hexdigest()}, but {name}'s "
                    f"archive has {checksum}; {advice}"
                )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"while {name} was downloaded, at {received / 1e6:.0f} of {size / 1e6:.0f} MB; the "
            "same command downloads it again"
        ) from None


def verify(path: Path, name: str, checksum: str, size: int) -> None:
    """Raise a DataError unless the file at `path` has this SHA-256 and this size in bytes."""
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    actual = path.stat().st_size
    if (digest, actual) != (checksum, size):
        raise DataError(
            f"{path} is not {name}'s archive: {actual} bytes with SHA-256 {digest} instead "
            f"of {size} bytes with {checksum}; delete it, and it is downloaded again"
        )


def progress_bar(total: int, unit: str, description: str) -> tqdm:
    """Return a progress bar, which stays silent without a terminal.

    A log would get a new line for every update.
    """
    return tqdm(total=total, unit=unit, unit_scale=True, desc=description, disable=None)


def _blocks(url: str, advice: str) -> Generator[bytes, None, None]:
    # Errors of the network are caught here, apart from those of the disk: both are OSErrors.
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
            while block := response.read(_BLOCK):
                yield block
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DataError(f"{url} cannot be downloaded ({error}); {advice}") from error
