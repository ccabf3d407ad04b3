"""The types that every data source returns, and the validation images held out of them."""

import dataclasses
from typing import ClassVar, Protocol

import numpy as np

from hiercls_jax.errors import UserError
from hiercls_jax.hierarchy import Hierarchy


class DataError(UserError):
    """Images or labels that cannot be used; the message names the file or class at fault."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a config says about its data set: the fields `data.…` and `run.streaming`.

    Args:
      dataset: such as `cifar100` or `tfds:mnist`.
      dir: the folder that holds the data; None for the source's own default.
      hierarchy: a file; None for the data set's own hierarchy.
      label_key: the feature of a TFDS set with the labels of the last level.
      image_size: pixels that images are resized to; None keeps their size.
      streaming: whether images are read when they are needed, instead of held in memory.
    """

    dataset: str
    dir: str | None = None
    hierarchy: str | None = None
    label_key: str = "label"
    image_size: int | None = None
    streaming: bool = False

    @property
    def name(self) -> str:
        """Return the name after the colon, such as `mnist` of `tfds:mnist`."""
        return self.dataset.partition(":")[2]


class Samples(Protocol):
    """Images and labels of a split: a `Split` holds the images in memory, a `Stream` reads them."""

    in_memory: ClassVar[bool]  # if true there is also `images`, uint8 `[N, H, W, 3]`

    @property
    def labels(self) -> np.ndarray:
        """Return the labels of the last level, int32 `[N]`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the (H, W, 3) of every image."""

    @property
    def files(self) -> np.ndarray | None:
        """Return each image's path below the image folder, str `[N]`; None without a folder."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> "Samples":
        """Return the images and labels at `indices`."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 `[n, H, W, 3]`."""

    def sums(self) -> np.ndarray:
        """Return int64 `[2, 3]`: the sum of each channel over all pixels, and of its squares."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Images `uint8 [N, H, W, 3]` and last-level labels `int32 [N]`, in memory."""

    in_memory: ClassVar[bool] = True
    images: np.ndarray
    labels: np.ndarray
    files: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the (H, W, 3) of every image."""
        _, height, width, channels = self.images.shape
        return height, width, channels

    def take(self, indices: np.ndarray) -> "Split":
        """Return the images and labels at `indices`."""
        files = None if self.files is None else self.files[indices]
        return Split(self.images[indices], self.labels[indices], files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 `[n, H, W, 3]`."""
        return self.images[indices]

    def sums(self) -> np.ndarray:
        """Return int64 `[2, 3]`: the sum of each channel over all pixels, and of its squares."""
        counts = np.stack(
            [np.bincount(self.images[..., c].ravel(), minlength=256) for c in range(3)]
        )
        values = np.arange(256)
        return np.stack([counts @ values, counts @ values**2])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A named set of images with its hierarchy; `validation` is None if nothing is held out."""

    name: str
    hierarchy: Hierarchy
    train: Samples
    validation: Samples | None
    test: Samples

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation `float32 [3]` of the training pixels, in [0, 255].

        A deviation is at least 1, so that a constant channel can be divided by it.
        """
        height, width, _ = self.train.image_shape
        mean, square = self.train.sums() / (len(self.train) * height * width)
        variance = square - mean**2
        return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1.0)).astype(np.float32)


def hold_out(train: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Hold out a stratified part of `train` for validation.

    Args:
      train: the images to divide.
      fraction: the share of each class to hold out, in (0, 1); at least one image of each class.
      seed: which images are held out depends on it alone.

    Returns:
      (the rest, the part held out), each in the order of `train`.

    Raises:
      DataError: for a class that would have no training images left.
    """
    rng = np.random.Generator(np.random.PCG64(seed))
    held = np.zeros(len(train), bool)
    for label in np.unique(train.labels):
        members = np.flatnonzero(train.labels == label)
        count = max(1, round(fraction * len(members)))
        if count >= len(members):
            raise DataError(
                f"class {label} has {len(members)} training images: too few to hold out "
                f"{count} for validation; set data.validation lower or data.final=True"
            )
        held[rng.permutation(members)[:count]] = True
    return train.take(np.flatnonzero(~held)), train.take(np.flatnonzero(held))
