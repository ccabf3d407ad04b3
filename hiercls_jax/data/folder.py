"""Image folders: `root/train/<class>/*.png` and `root/test/<class>/*.png`."""

import dataclasses
import os
import unicodedata
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from hiercls_jax.data.cache import cached
from hiercls_jax.data.dataset import DataError, Request, Samples, Split
from hiercls_jax.data.image_files import (
    FORMATS,
    SUFFIXES,
    check_image_size,
    decode_image,
    quiet_pillow,
    read_files,
)
from hiercls_jax.data.stream import (
    OnPrimary,
    Stream,
    Survey,
    in_this_process,
    load_surveys,
    survey_images,
)
from hiercls_jax.errors import preview
from hiercls_jax.files import cache_folder
from hiercls_jax.hierarchy import Hierarchy

# Part of the cache's fingerprint: raise it if the same files begin to give other arrays.
_READER = 1


def load_splits(
    request: Request, hierarchy: Hierarchy, on_primary: OnPrimary
) -> Mapping[str, Samples]:
    """Return the splits of `read` or `stream`; see `sources.SourceModule`."""
    root, image_size = request.dir or "", check_image_size(request.image_size)
    if request.streaming:
        return stream(root, hierarchy, image_size, on_primary)
    return read(root, hierarchy, image_size)


def read(root: str | os.PathLike, hierarchy: Hierarchy, image_size: int) -> dict[str, Split]:
    """Read the splits 'train' and 'test' of an image folder, in sorted order of class and file.

    Images are turned upright by their EXIF orientation, converted to RGB, and resized to a square
    (bilinear, antialiased; their proportions are not kept). Hidden files are ignored. `train` needs
    images of every class; `test` may lack some. Unicode composition makes no difference to names:
    `ü` is the same as `u` with two dots.

    Args:
      root: the folder that holds `train` and `test`, each with one folder per class.
      hierarchy: its last level names the class folders; labels are indices into it.
      image_size: height and width to resize to, pixels, positive.

    Returns:
      `{'train': Split, 'test': Split}`: images uint8 `[N, image_size, image_size, 3]`, labels int32
      `[N]`, and files as paths below `root`.

    Raises:
      DataError: for missing or unknown folders and for images that cannot be read, with their path.
    """
    listing = _Listing.of(root, hierarchy, image_size)

    def build() -> dict[str, Split]:
        print(
            f"decoding {listing.count} images of {listing.root}, once; then they are cached in "
            f"{cache_folder()}",
            flush=True,
        )
        return {name: _decode(files, image_size) for name, files in listing.files.items()}

    splits = cached("folder", listing.fingerprint, Split, build)
    return {
        name: dataclasses.replace(split, files=listing.names(name))
        for name, split in splits.items()
    }


def stream(
    root: str | os.PathLike,
    hierarchy: Hierarchy,
    image_size: int,
    on_primary: OnPrimary = in_this_process,
) -> dict[str, Stream]:
    """Return the same splits as `read`, with images that are decoded on demand.

    Every image is decoded once at the start, so that a broken one is refused before training. Their
    channel sums are cached until a file changes. If a file breaks later, reading it raises the same
    error; once it is repaired, the run goes on from its newest checkpoint.

    Args:
      root, hierarchy, image_size: as in `read`.
      on_primary: as in `stream.load_surveys`.

    Raises:
      DataError: as in `read`, and if the processes see different files.
    """
    quiet_pillow()
    listing = _Listing.of(root, hierarchy, image_size)
    decoders = {name: _Decoder(listing, name, image_size) for name in listing.files}

    def build() -> dict[str, Survey]:
        print(f"looking at {listing.count} images of {listing.root}, once", flush=True)
        return {
            name: Survey(*survey_images(len(decoder.labels), decoder.images_and_labels))
            for name, decoder in decoders.items()
        }

    names = {
        split: [file for file, *_ in stats] for split, stats in listing.fingerprint["files"].items()
    }
    shared = [listing.fingerprint["classes"], names]
    surveys = load_surveys("folder-survey", listing.fingerprint, shared, build, on_primary)
    return {
        name: Stream(
            decoder,
            np.arange(len(decoder.labels)),
            surveys[name],
            (image_size, image_size, 3),
            decoder.names,
        )
        for name, decoder in decoders.items()
    }


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The files of an image folder.

    Args:
      root: the folder.
      files: each split's (path, label), in the order of its images.
      fingerprint: determines the decoded images, as JSON values.
    """

    root: Path
    files: dict[str, list[tuple[Path, int]]]
    fingerprint: dict[str, Any]

    @classmethod
    def of(cls, root: str | os.PathLike, hierarchy: Hierarchy, image_size: int) -> "_Listing":
        """List the files of `root`, and check all that can be checked without reading them."""
        root = Path(root).expanduser()
        check_image_size(image_size)
        if not root.is_dir():
            raise DataError(f"there is no image folder {root}; it should hold train/ and test/")
        classes = hierarchy.names[-1]
        files = {
            name: _find(root, name, classes, need_all=name == "train") for name in ("train", "test")
        }
        stats = {name: [(path, path.stat()) for path, _ in found] for name, found in files.items()}
        fingerprint = {
            "reader": _READER,
            "image_size": image_size,
            "classes": classes,
            "files": {
                name: [(str(p.relative_to(root)), s.st_size, s.st_mtime_ns) for p, s in found]
                for name, found in stats.items()
            },
        }
        return cls(root, files, fingerprint)

    @property
    def count(self) -> int:
        """Return the number of images in all splits."""
        return sum(map(len, self.files.values()))

    def names(self, split: str) -> np.ndarray:
        """Return the paths of a split's files below the root, str objects `[N]`."""
        paths = [path.relative_to(self.root).as_posix() for path, _ in self.files[split]]
        return np.array(paths, object)


class _Decoder:
    """Decodes the files of a split by their numbers; several threads may call it."""

    def __init__(self, listing: _Listing, split: str, image_size: int):
        self._root, self._shape = listing.root, (image_size, image_size)
        self.names = listing.names(split)
        self.labels = np.array([label for _, label in listing.files[split]], np.int32)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        paths = [self._root / name for name in self.names[numbers]]
        return np.stack([decode_image(path, str(path), self._shape, FORMATS) for path in paths])

    def images_and_labels(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self(numbers), self.labels[numbers]


def _find(root: Path, split: str, classes: Sequence[str], need_all: bool) -> list[tuple[Path, int]]:
    """Return the (path, label) of a split's images, sorted by class folder and file.

    Args:
      root: the image folder.
      split: the name of the split's folder.
      classes: names of the class folders, in the order of the labels.
      need_all: whether every class must have an image.
    """
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; {root} should hold train/ and test/")
    label_of = {_composed(name): label for label, name in enumerate(classes)}
    files = []
    for entry in _visible(folder):
        if not entry.is_dir():
            if entry.suffix.lower() in SUFFIXES:
                raise DataError(f"{entry} is outside a class folder; move it into one, or away")
            continue
        label = label_of.get(_composed(entry.name))
        if label is None:
            raise DataError(_unknown_class(entry, classes))
        for path in _visible(entry):
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise DataError(
                    f"{path} is not an image file ({', '.join(SUFFIXES)}); convert it or remove it"
                )
            files.append((path, label))
    present = {label for _, label in files}
    missing = [name for label, name in enumerate(classes) if label not in present]
    if need_all and missing:
        raise DataError(
            f"{folder} has no images of {len(missing)} of the hierarchy's classes: "
            f"{preview(missing)}; add images in {folder / missing[0]}, or remove the class"
        )
    if not files:
        raise DataError(f"{folder} has no images; it should hold a folder of images per class")
    return files


def _unknown_class(entry: Path, classes: Sequence[str]) -> str:
    """Return the error for a folder that is not a class, with the class that it may stand for."""
    present = {_composed(path.name) for path in entry.parent.iterdir()}
    without_folder = [name for name in classes if _composed(name) not in present]
    close = get_close_matches(entry.name, without_folder, n=1)
    advice = f"; did you mean '{close[0]}'? Rename one of them" if close else "; rename it"
    return (
        f"the folder '{entry}' is no class of the hierarchy's last level "
        f"({len(classes)} classes: {preview(classes)}){advice}, or add the class"
    )


def _composed(name: str) -> str:
    """Return a name with composed letters, because some systems write `ü` as `u` and two dots."""
    return unicodedata.normalize("NFC", name)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _decode(files: list[tuple[Path, int]], image_size: int) -> Split:
    images = read_files([path for path, _ in files], (image_size, image_size))
    return Split(images, np.array([label for _, label in files], np.int32))
