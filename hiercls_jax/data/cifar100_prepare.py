"""CIFAR-100, downloaded and prepared as TFDS prepares it, but without TensorFlow."""

import contextlib
import io
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from hiercls_jax.data import tfds_source
from hiercls_jax.data.cifar100_archive import PREFIX, read_archive, records
from hiercls_jax.data.dataset import DataError
from hiercls_jax.data.download import download, verify

COUNTS = {"train": 50_000, "test": 10_000}  # images


def prepare(
    data_dir: str | os.PathLike | None = None,
    url: str | None = None,
    checksum: str | None = None,
    size: int | None = None,
    counts: dict[str, int] | None = None,
) -> Path:
    """Download CIFAR-100's binary archive, verify it, and prepare it as TFDS's data set `cifar100`.

    An archive that was put into `<data_dir>/downloads` by hand is verified and used.

    Args:
      data_dir: the folder of TFDS's data sets; None: `$TFDS_DATA_DIR`, or TFDS's own default.
      url: the archive's address; None: the one in TFDS's table of checksums.
      checksum: the archive's SHA-256 in hexadecimal digits; None: the one in TFDS's table.
      size: the archive's bytes; None: those in TFDS's table.
      counts: the images of each split; None: those of CIFAR-100.

    Returns:
      The folder of the prepared set. It and the archive appear only when they are complete.

    Raises:
      DataError: for a failed download, a wrong archive or a folder that cannot be written.
    """
    builder_cls = tfds.builder_cls("cifar100")
    ((own_url, own),) = builder_cls.url_infos.items()
    url, checksum, size = url or own_url, checksum or own.checksum, size or int(own.size)
    folder = tfds_source.data_folder(data_dir)
    archive = folder / "downloads" / f"{PREFIX}.tar.gz"
    with _explained_disk_errors(folder):
        archive.parent.mkdir(parents=True, exist_ok=True)
        if archive.exists():
            verify(archive, "CIFAR-100", checksum, size)
        else:
            _check_space(folder, 2 * size)  # the archive, and the prepared set, which is smaller
            download(url, archive, "CIFAR-100", checksum, size)
        contents = read_archive(archive, counts or COUNTS)
        return _write(builder_cls, folder, contents)


@contextlib.contextmanager
def _explained_disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError into a DataError that says what to do."""
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


def _write(
    builder_cls: type[tfds.core.GeneratorBasedBuilder], folder: Path, contents: dict[str, bytes]
) -> Path:
    """Write the data set as TFDS's own builder would, and return its folder.

    TFDS renames the folder when it is complete.
    """

    # TFDS's own builder opens files and encodes images with TensorFlow; the rest of it needs none.
    # Not registered, because it would replace TFDS's own under the same name.
    class Cifar100(builder_cls, skip_registration=True):  # type: ignore[call-arg]
        name = "cifar100"
        __module__ = builder_cls.__module__  # appears in dataset_info.json

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            for key, file in (("coarse_label", "coarse"), ("label", "fine")):
                names = contents[f"{file}_label_names.txt"].decode().split()
                self.info.features[key].names = names
            return {split: self._generate_examples(split) for split in COUNTS}

        def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
            labels, images = records(contents[f"{split}.bin"])
            for index, ((coarse, fine), image) in enumerate(zip(labels, images, strict=True)):
                yield (
                    index,
                    {
                        "id": f"{split}_{index:05d}",
                        "image": _png(image),
                        "label": int(fine),
                        "coarse_label": int(coarse),
                    },
                )

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    print(f"preparing CIFAR-100 in {folder}", flush=True)
    builder = Cifar100(data_dir=folder)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"while CIFAR-100 was prepared in {folder}; the archive is kept, and the same command "
            "prepares it again"
        ) from None
    except OSError:
        # If another process was faster, its folder is complete and just as good.
        if tfds_source.find("cifar100", folder) is None:
            raise
    return Path(builder.data_dir)


def _png(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    return file.getvalue()
