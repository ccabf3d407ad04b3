"""Images too many to hold: looked at once, then decoded each time that they are needed."""

import dataclasses
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np

# Pillow decodes outside Python's lock, so that threads are enough; more of them than cores, as some
# wait for a file.
THREADS = min(32, (os.cpu_count() or 1) + 4)
_CHUNK = 16  # images that a thread looks at before it takes others

Decode = Callable[[np.ndarray], np.ndarray]


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
    """

    in_memory: ClassVar[bool] = False
    decode: Decode
    numbers: np.ndarray
    survey: Survey
    image_shape: tuple[int, int, int]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> np.ndarray:
        """Return the labels, int32 `[N]` of the last level."""
        return self.survey.labels

    def take(self, indices: np.ndarray) -> "Stream":
        """Return the images and labels at `indices`."""
        found = Survey(self.survey.image_sums[indices], self.labels[indices])
        return dataclasses.replace(self, numbers=self.numbers[indices], survey=found)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 `[n, H, W, 3]`, decoded by all threads."""
        parts = np.array_split(self.numbers[indices], min(THREADS, len(indices)))
        return np.concatenate(list(_threads().map(self.decode, parts)))

    def sums(self) -> np.ndarray:
        """Return int64 `[2, 3]`: each channel's sum, and that of its squares, over all pixels."""
        return self.survey.image_sums.sum(axis=0)


def image_sums(decode: Decode, count: int) -> np.ndarray:
    """Decode `count` images, a few at a time, and return a `Survey`'s sums, int64 `[N, 2, 3]`.

    Raises:
      DataError: of the first image that cannot be read, as `decode` says it.
    """

    def look(numbers: np.ndarray) -> list[np.ndarray]:
        return [_sums(image) for image in decode(numbers)]

    chunks = np.array_split(np.arange(count), -(-count // _CHUNK))
    found = [sums for part in _threads().map(look, chunks) for sums in part]
    return np.array(found, np.int64)


def _sums(image: np.ndarray) -> np.ndarray:
    rows = image.reshape(len(image), -1)  # to sum columns first is 20 times as fast
    columns = [
        part.sum(axis=0, dtype=np.int64) for part in (rows, np.square(rows, dtype=np.uint16))
    ]
    return np.stack(columns).reshape(2, -1, 3).sum(axis=1)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, thread_name_prefix="decode")
