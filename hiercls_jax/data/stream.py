"""Images that are too many to hold in memory: decoded whenever they are needed.

Each image is decoded once at the start (a survey), so that a broken one is reported before training
begins. The survey gives labels and channel statistics, and is cached on disk.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np

from hiercls_jax.data.cache import cached
from hiercls_jax.data.dataset import DataError

# Threads suffice, because Pillow releases Python's lock while it decodes. There are more of them
# than cores, because some wait for a file.
THREADS = min(32, (os.cpu_count() or 1) + 4)
_CHUNK = 16  # images that a thread surveys at a time

Decode = Callable[[np.ndarray], np.ndarray]
OnPrimary = Callable[[Callable[[], bytes]], bytes]


@dataclasses.dataclass(frozen=True)
class Survey:
    """Facts about images that are known before training begins.

    Args:
      image_sums: int64 `[N, 2, 3]`, each image's channel sums and sums of squares. They give the
        channel statistics of any part of the images.
      labels: int32 `[N]` of the last level.
    """

    image_sums: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stream:
    """Labels in memory and images that are decoded on demand; satisfies `dataset.Samples`.

    Args:
      decode: returns uint8 `[n, H, W, 3]` for image numbers `[n]`; called from several threads.
      numbers: int64 `[N]`, the images' numbers for `decode`.
      survey: of these images.
      image_shape: (H, W, 3) of every image.
      files: str `[N]`, each image's path below the image folder; None without a folder.
    """

    in_memory: ClassVar[bool] = False
    decode: Decode
    numbers: np.ndarray
    survey: Survey
    image_shape: tuple[int, int, int]
    files: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> np.ndarray:
        """Return the labels of the last level, int32 `[N]`."""
        return self.survey.labels

    def take(self, indices: np.ndarray) -> "Stream":
        """Return the images and labels at `indices`."""
        survey = Survey(self.survey.image_sums[indices], self.labels[indices])
        files = None if self.files is None else self.files[indices]
        return dataclasses.replace(self, numbers=self.numbers[indices], survey=survey, files=files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 `[n, H, W, 3]`; all threads decode."""
        parts = np.array_split(self.numbers[indices], min(THREADS, len(indices)))
        return np.concatenate(list(_pool().map(self.decode, parts)))

    def sums(self) -> np.ndarray:
        """Return int64 `[2, 3]`: the sum of each channel over all pixels, and of its squares."""
        return self.survey.image_sums.sum(axis=0)


def load_surveys(
    name: str,
    fingerprint: dict[str, Any],
    shared: list,
    build: Callable[[], dict[str, Survey]],
    on_primary: OnPrimary,
) -> dict[str, Survey]:
    """Return the surveys of a source's splits, from the cache or from `build()`.

    Only the primary process reads the cache or builds; it sends the result to the others.

    Args:
      name, fingerprint: of the cache entry, as in `cache.cached`.
      shared: the JSON values of the fingerprint that must agree in all processes. Times of files
        need not.
      build: surveys all images of each split.
      on_primary: calls its argument on the primary process and returns the result on all.

    Raises:
      DataError: in a process whose `shared` differs from the primary's.
    """
    digest = hashlib.sha256(json.dumps(shared).encode()).digest()

    def packed() -> bytes:
        splits, file = cached(name, fingerprint, Survey, build), io.BytesIO()
        arrays = {
            f"{k}.{part}": a for k, split in splits.items() for part, a in vars(split).items()
        }
        np.savez(file, **arrays)
        return digest + file.getvalue()

    content = on_primary(packed)
    if not content.startswith(digest):
        raise DataError(
            "this process finds other images than the first one; all processes need the same data"
        )
    with np.load(io.BytesIO(content[len(digest) :]), allow_pickle=False) as file:
        splits = dict.fromkeys(key.split(".")[0] for key in file.files)
        return {k: Survey(file[f"{k}.image_sums"], file[f"{k}.labels"]) for k in splits}


def survey_images(
    count: int, decode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray]:
    """Decode every image once, a few at a time.

    Args:
      count: number of images, at least 1.
      decode: returns images uint8 `[n, H, W, 3]` and labels `[n, …]` for image numbers `[n]`;
        called from several threads.

    Returns:
      (`image_sums` of a `Survey`, int64 `[N, 2, 3]`; labels `[N, …]`).

    Raises:
      DataError: for the first image that cannot be decoded, as `decode` raises it.
    """

    def survey(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = decode(numbers)
        return np.stack([_channel_sums(image) for image in images]), labels

    parts = _pool().map(survey, np.array_split(np.arange(count), -(-count // _CHUNK)))
    sums, labels = zip(*parts, strict=True)
    return np.concatenate(sums), np.concatenate(labels)


def in_this_process(compute: Callable[[], bytes]) -> bytes:
    """Return `compute()`: the `on_primary` of a process that runs alone."""
    return compute()


def _channel_sums(image: np.ndarray) -> np.ndarray:
    """Return int64 `[2, 3]`: the sums of an image's channels, and of their squares."""
    rows = image.reshape(len(image), -1)  # summing columns first is 20 times as fast
    columns = [
        part.sum(axis=0, dtype=np.int64) for part in (rows, np.square(rows, dtype=np.uint16))
    ]
    return np.stack(columns).reshape(2, -1, 3).sum(axis=1)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
