"""Images too many to hold: looked at once, then decoded each time that they are needed."""

import dataclasses
import functools
import hashlib
import io
import json
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np

from hiercls_jax.data.dataset import DataError, cached

# Pillow decodes outside Python's lock, so that threads are enough; more of them than cores, as some
# wait for a file.
THREADS = min(32, (os.cpu_count() or 1) + 4)
_CHUNK = 16  # images that a thread looks at before it takes others

Decode = Callable[[np.ndarray], np.ndarray]
Once = Callable[[Callable[[], bytes]], bytes]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What must be known of a source's images before any is used.

    Args:
      image_sums: int64 `[N, 2, 3]`, the sum of each image's channels and of their squares, which
        give the channel statistics of any part of the images.
      labels: int32 `[N]` of the last level.
    """

    image_sums: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class Stream:
    """Images of which none is in memory, and their labels; satisfies `dataset.Samples`.

    Args:
      decode: returns uint8 `[n, H, W, 3]` for numbers `[n]` of images; threads call it.
      numbers: int64 `[N]`, by which `decode` knows the images.
      survey: what was found of these images.
      image_shape: (H, W, 3) of every image.
      files: str `[N]`, each image's file in the image folder; None where images are no files.
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
        """Return the labels, int32 `[N]` of the last level."""
        return self.survey.labels

    def take(self, indices: np.ndarray) -> "Stream":
        """Return the images and labels at `indices`."""
        found = Survey(self.survey.image_sums[indices], self.labels[indices])
        files = None if self.files is None else self.files[indices]
        return dataclasses.replace(self, numbers=self.numbers[indices], survey=found, files=files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 `[n, H, W, 3]`, decoded by all threads."""
        parts = np.array_split(self.numbers[indices], min(THREADS, len(indices)))
        return np.concatenate(list(_threads().map(self.decode, parts)))

    def sums(self) -> np.ndarray:
        """Return int64 `[2, 3]`: each channel's sum, and that of its squares, over all pixels."""
        return self.survey.image_sums.sum(axis=0)


def surveys(
    name: str, fingerprint: dict, shared: list, build: Callable[[], dict[str, Survey]], once: Once
) -> dict[str, Survey]:
    """Return what `build()` finds, in one process for all, and only where it is not cached.

    Args:
      name, fingerprint: of the cache entry, as in `dataset.cached`.
      shared: JSON values that must be alike in all processes, as file times need not be.
      build: looks at all images of each split.
      once: calls its argument in one of several processes, and returns what that returned in all.

    Raises:
      DataError: in processes that do not share what the first one has.
    """
    digest = hashlib.sha256(json.dumps(shared).encode()).digest()

    def packed() -> bytes:
        found, file = cached(name, fingerprint, build, Survey), io.BytesIO()
        arrays = {f"{k}.{part}": a for k, v in found.items() for part, a in vars(v).items()}
        np.savez(file, **arrays)
        return digest + file.getvalue()

    found = once(packed)
    if not found.startswith(digest):
        raise DataError(
            "this process finds other images than the first one; all processes need the same data"
        )
    with np.load(io.BytesIO(found[len(digest) :]), allow_pickle=False) as file:
        splits = dict.fromkeys(key.split(".")[0] for key in file.files)
        return {k: Survey(file[f"{k}.image_sums"], file[f"{k}.labels"]) for k in splits}


def look_at(count: int, look: Callable[[np.ndarray], tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Look at `count` images, a few at a time.

    Args:
      count: at least 1.
      look: returns images uint8 `[n, H, W, 3]` and labels `[n, …]` for numbers `[n]`; threads call
        it together.

    Returns:
      (sums of a `Survey`, int64 `[N, 2, 3]`; labels `[N, …]`).

    Raises:
      DataError: of the first image that cannot be read, as `look` says it.
    """

    def part(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images, labels = look(numbers)
        return np.stack([_sums(image) for image in images]), labels

    parts = _threads().map(part, np.array_split(np.arange(count), -(-count // _CHUNK)))
    sums, labels = zip(*parts, strict=True)
    return np.concatenate(sums), np.concatenate(labels)


def _sums(image: np.ndarray) -> np.ndarray:
    rows = image.reshape(len(image), -1)  # to sum columns first is 20 times as fast
    columns = [
        part.sum(axis=0, dtype=np.int64) for part in (rows, np.square(rows, dtype=np.uint16))
    ]
    return np.stack(columns).reshape(2, -1, 3).sum(axis=1)


def alone(compute: Callable[[], bytes]) -> bytes:
    """Return `compute()`: the `once` of a process that has no others beside it."""
    return compute()


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
