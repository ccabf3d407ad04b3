"""Image arrays: `root/train*.npz` and `root/test*.npz`, each with `images` and `labels`.

A split may be in several files, so that each is small enough to send. They are joined in the order
of their names.
"""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from hiercls_jax.data.dataset import DataError, Request, Split
from hiercls_jax.data.stream import Broadcast
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy


def load_splits(request: Request, hierarchy: Hierarchy, broadcast: Broadcast) -> dict[str, Split]:
    """Return the splits of `read`; see `sources.SourceModule`."""
    splits = read(request.dir or "", hierarchy)
    height, width, _ = splits["train"].image_shape
    if request.image_size not in (None, height) or height != width:
        raise DataError(
            f"the images of {request.dir} have {height}x{width} pixels, and are not resized; "
            f"data.image_size is {request.image_size}, and can only be the side of square images"
        )
    return splits


def read(root: str | os.PathLike, hierarchy: Hierarchy) -> dict[str, Split]:
    """Read the splits 'train' and 'test' of a folder of arrays.

    Args:
      root: holds `train*.npz` and `test*.npz`, at least one of each. Each file has `images` uint8
        `[N, H, W, 3]`, all of one size, and `labels` integer `[N]`.
      hierarchy: labels are classes of its last level.

    Returns:
      `{'train': Split, 'test': Split}`.

    Raises:
      DataError: for missing or damaged files and for wrong arrays, with the file's name.
    """
    splits = {name: _read_split(Path(root), name, hierarchy) for name in ("train", "test")}
    shapes = {name: split.image_shape for name, split in splits.items()}
    if shapes["train"] != shapes["test"]:
        raise DataError(
            f"{root} has training images {shapes['train']} and test images {shapes['test']}; all "
            "images must have one size"
        )
    return splits


def write(root: str | os.PathLike, name: str, split: Split, limit: int) -> list[Path]:
    """Write a split for `read`, in files of at most `limit` bytes each; return their paths.

    Args:
      root: a folder; it is made if it is missing.
      name: 'train' or 'test'.
      split: images and labels.
      limit: more than an image and the file's names, about 1 KiB, take.
    """
    folder = Path(root)
    folder.mkdir(parents=True, exist_ok=True)
    per_image = split.images[0].nbytes + split.labels.itemsize
    count = -(-len(split) * per_image // (limit - 1024))
    paths = []
    for i, rows in enumerate(np.array_split(np.arange(len(split)), count)):
        path = folder / f"{name}-{i:03}.npz"
        with atomic_write(path) as file:
            np.savez(file, images=split.images[rows], labels=split.labels[rows])
        paths.append(path)
    return paths


def _read_split(root: Path, name: str, hierarchy: Hierarchy) -> Split:
    files = sorted(root.glob(f"{name}*.npz"))
    if not files:
        raise DataError(f"{root} has no {name}*.npz; give the folder of the arrays (data.dir)")
    parts = [_read_file(file, hierarchy) for file in files]
    shape = parts[0].image_shape
    for file, part in zip(files, parts, strict=True):
        if part.image_shape != shape:
            raise DataError(
                f"{file}: images {part.image_shape} instead of {shape}, as {files[0].name} has"
            )
    images = np.concatenate([part.images for part in parts])
    return Split(images, np.concatenate([part.labels for part in parts]))


def _read_file(file: Path, hierarchy: Hierarchy) -> Split:
    try:
        with open(file, "rb") as opened, np.load(opened, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except KeyError as error:
        raise DataError(f"{file} has no array {error.args[0]}; it needs images, labels") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{file} cannot be read as .npz ({error})") from error
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise DataError(
            f"{file}: images are {images.dtype} {list(images.shape)}; allowed is uint8 [N, H, W, 3]"
        )
    if labels.dtype.kind not in "iu" or labels.shape != images.shape[:1]:
        raise DataError(
            f"{file}: labels are {labels.dtype} {list(labels.shape)}; allowed are integers "
            f"[{len(images)}], one for each image"
        )
    classes = hierarchy.sizes[-1]
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{file}: labels from {labels.min()} to {labels.max()}; allowed are 0 to "
            f"{classes - 1}, the classes of level {hierarchy.levels[-1]}"
        )
    return Split(images, labels.astype(np.int32))
