"""What every source of images returns, how validation is held out, and what is kept on disk."""

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

import numpy as np

from hiercls_jax.errors import UserError
from hiercls_jax.files import cache_folder
from hiercls_jax.hierarchy import Hierarchy

T = TypeVar("T")


class DataError(UserError):
    """Images or labels that cannot be used, with the file or class at fault in its message."""


@dataclasses.dataclass(frozen=True)
class Request:
    """What a config says of its data set: its fields `data.…`, and `run.streaming`.

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

    in_memory: ClassVar[bool]  # whether there are `images` uint8 `[N, H, W, 3]` beside the labels

    @property
    def labels(self) -> np.ndarray:
        """Return the labels of the last level, int32 `[N]`."""

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Return the (H, W, 3) of every image."""

    @property
    def files(self) -> np.ndarray | None:
        """Return each image's file in the image folder, str `[N]`; None without a folder."""

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> "Samples":
        """Return the images and labels at `indices`."""

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 `[n, H, W, 3]`."""

    def sums(self) -> np.ndarray:
        """Return int64 `[2, 3]`: each channel's sum, and that of its squares, over all pixels."""


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
        return self.images.shape[1:]

    def take(self, indices: np.ndarray) -> "Split":
        """Return the images and labels at `indices`."""
        files = None if self.files is None else self.files[indices]
        return Split(self.images[indices], self.labels[indices], files)

    def read(self, indices: np.ndarray) -> np.ndarray:
        """Return the images at `indices`, uint8 `[n, H, W, 3]`."""
        return self.images[indices]

    def sums(self) -> np.ndarray:
        """Return int64 `[2, 3]`: each channel's sum, and that of its squares, over all pixels."""
        counts = np.stack(
            [np.bincount(self.images[..., c].ravel(), minlength=256) for c in range(3)]
        )
        values = np.arange(256)
        return np.stack([counts @ values, counts @ values**2])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A named set of images with its hierarchy; `validation` is None where none is held out."""

    name: str
    hierarchy: Hierarchy
    train: Samples
    validation: Samples | None
    test: Samples

    def channel_statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Return mean and standard deviation `float32 [3]` of the training images in [0, 255]."""
        height, width, _ = self.train.image_shape
        mean, square = self.train.sums() / (len(self.train) * height * width)
        variance = square - mean**2
        return mean.astype(np.float32), np.sqrt(np.maximum(variance, 1.0)).astype(np.float32)


def hold_out(train: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Split off a stratified part of `train`: `fraction` of each class, at least one image of it.

    Returns:
      (what is left of train, what was held out), each in the order of `train`.
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


def cached(
    name: str, fingerprint: dict, build: Callable[[], dict[str, T]], kind: type[T] = Split
) -> dict[str, T]:
    """Return what `build()` makes of each split, made once and kept as arrays on disk.

    Args:
      name: what the cache entry is called.
      fingerprint: JSON values that together determine the result; another value is another entry.
      build: makes the splits; called only where no whole entry exists.
      kind: what `build()` makes, a dataclass of arrays; fields with a default are not kept.

    An entry is written to a temporary folder and renamed, so that a half-written one is never
    read; one whose bytes do not match the sums written beside them is built anew.
    """
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "data" / f"{name}-{digest}"
    splits = _read(folder, kind)
    if splits is not None:
        return splits
    splits = build()
    try:
        _write(folder, splits)
    except OSError as error:
        print(f"note: the decoded images could not be cached in {folder}: {error}", flush=True)
    return splits


def _read(folder: Path, kind: type) -> dict | None:
    try:
        sums = json.loads((folder / "sums.json").read_text())
        arrays = {}
        for file, digest in sums.items():
            path = folder / file
            with open(path, "rb") as handle:
                if hashlib.file_digest(handle, "sha256").hexdigest() != digest:
                    return None
            arrays[file] = np.load(path, allow_pickle=False)
        names = sorted({file.split(".")[0] for file in sums})
        parts = _kept(kind)
        return {n: kind(*(arrays[f"{n}.{part}.npy"] for part in parts)) for n in names} or None
    except (OSError, ValueError, KeyError, EOFError, AttributeError):
        return None


def _kept(kind: type) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]


def _write(folder: Path, splits: dict) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        sums = {}
        for name, split in splits.items():
            for part in _kept(type(split)):
                path = temporary / f"{name}.{part}.npy"
                np.save(path, getattr(split, part), allow_pickle=False)
                with open(path, "rb") as handle:
                    sums[path.name] = hashlib.file_digest(handle, "sha256").hexdigest()
        (temporary / "sums.json").write_text(json.dumps(sums))
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
