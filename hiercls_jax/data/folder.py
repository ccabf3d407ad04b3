"""Image folders: `root/train/<fine class>/*.png` and `root/test/…`, made one square size."""

import contextlib
import dataclasses
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from hiercls_jax.data.dataset import DataError, Request, Samples, Split, cached
from hiercls_jax.data.stream import (
    Once,
    Stream,
    Survey,
    alone,
    look_at,
    surveys,
)
from hiercls_jax.errors import preview
from hiercls_jax.files import cache_folder
from hiercls_jax.hierarchy import Hierarchy

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_FORMATS = ("PNG", "JPEG", "WEBP")
# Part of the cache's fingerprint: to be raised where the same files give other arrays.
_READER = 1


def load_splits(request: Request, hierarchy: Hierarchy, once: Once) -> Mapping[str, Samples]:
    """Return the splits of `read` or `stream`; see `sources.SourceModule`."""
    if request.streaming:
        return stream(request.dir, hierarchy, request.image_size, once)
    return read(request.dir, hierarchy, request.image_size)


def read(root, hierarchy: Hierarchy, image_size: int) -> dict[str, Split]:
    """Read the splits 'train' and 'test' of an image folder, in sorted order of class and file.

    Images are turned upright by their EXIF orientation, made RGB and resized, without keeping
    their proportions, to `image_size` x `image_size` (bilinear, antialiased). Hidden files are
    ignored. `train` has images of every class; a class may be absent from `test`. How a file system
    or an editor composes the letters of a name (`ü`, or `u` and two dots) makes no difference.

    Args:
      root: the folder that holds `train` and `test`, each with one folder per class.
      hierarchy: its last level names the class folders; labels are indices into it.
      image_size: pixels, positive.

    Returns:
      `{'train': Split, 'test': Split}`, images uint8 `[N, image_size, image_size, 3]`, files below
      `root`.

    Raises:
      DataError: for missing or unknown folders and images that cannot be read, naming them.
    """
    root, files, fingerprint = _listed(root, hierarchy, image_size)

    def build() -> dict[str, Split]:
        count = sum(map(len, files.values()))
        where = cache_folder()
        print(
            f"decoding {count} images of {root}, once; then they are cached in {where}", flush=True
        )
        return {name: _decode(found, image_size) for name, found in files.items()}

    splits = cached("folder", fingerprint, build)
    return {
        name: dataclasses.replace(split, files=_names(root, files[name]))
        for name, split in splits.items()
    }


def stream(
    root,
    hierarchy: Hierarchy,
    image_size: int,
    once: Once = alone,
) -> dict[str, Stream]:
    """Return the splits that `read` returns, the same images in the same order, but none in memory.

    Each image is decoded once at the start, so that one that cannot be read is refused before
    anything is trained; the sums that this gives are cached as long as no file changes. A file that
    breaks later raises the same error when it is read; once it is mended, the run goes on from its
    newest checkpoint.

    Args:
      root, hierarchy, image_size: as in `read`.
      once: as in `stream.surveys`.

    Raises:
      DataError: as `read` does, and where processes do not find the same files.
    """
    quiet_pillow()
    root, files, fingerprint = _listed(root, hierarchy, image_size)
    shape = (image_size, image_size)
    decoders = {name: _Decoder(root, found, shape) for name, found in files.items()}

    def look() -> dict[str, Survey]:
        count = sum(map(len, files.values()))
        print(f"looking at {count} images of {root}, once", flush=True)
        return {
            name: Survey(*look_at(len(files[name]), lambda i, d=decode: (d(i), d.labels[i])))
            for name, decode in decoders.items()
        }

    names = {k: [file for file, *_ in found] for k, found in fingerprint["files"].items()}
    shared = [fingerprint["classes"], names]
    found = surveys("folder-survey", fingerprint, shared, look, once)
    return {
        name: Stream(decode, np.arange(len(files[name])), found[name], (*shape, 3), decode.names)
        for name, decode in decoders.items()
    }


def read_files(paths: Sequence, shape: tuple[int, int]) -> np.ndarray:
    """Read image files as `read` does: upright, RGB, resized; each is named by its path.

    Args:
      paths: N files.
      shape: the height and width to resize to, pixels.

    Returns:
      uint8 `[N, *shape, 3]`.

    Raises:
      DataError: for a file that is not there or cannot be read, naming it.
    """
    images = np.empty((len(paths), *shape, 3), np.uint8)
    with strict_pillow():
        for i, path in enumerate(paths):
            if Path(path).is_dir():
                files = Path(path) / "*.png"
                raise DataError(f"{path} is a folder; name the image files in it, such as {files}")
            if not Path(path).is_file():
                raise DataError(f"there is no image file {path}")
            images[i] = rgb_array(path, path, shape, _FORMATS)
    return images


def check_image_size(image_size) -> None:
    """Raise a DataError unless `image_size` is a positive integer."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise DataError(
            f"the image size is a positive number of pixels, got {image_size!r}; "
            "set --config.data.image_size"
        )


def quiet_pillow() -> None:
    """Silence Pillow's warnings for good, where threads decode: filters are the whole process's.

    They are of broken metadata, and of many pixels, which `rgb_array` refuses by itself.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextlib.contextmanager
def strict_pillow():
    """Turn Pillow's warning of a decompression bomb into an error, and silence its others.

    The others are of broken metadata, such as EXIF, beside pixels that can be read.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def rgb_array(
    source, what, shape: tuple[int, int] | None, formats, upright: bool = True
) -> np.ndarray:
    """Decode one image to uint8 `[H, W, 3]`; call it where Pillow's warnings are filtered.

    Args:
      source: a path or a binary file.
      what: the image's name in errors.
      shape: the height and width to resize to; None keeps the image's own.
      formats: the formats of Pillow that are allowed.
      upright: whether to apply the EXIF orientation.
    """
    try:
        with Image.open(source, formats=formats) as opened:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                raise Image.DecompressionBombError  # where Pillow only warns
            image = ImageOps.exif_transpose(opened) if upright else opened
            if image.mode[0] in "IF":
                raise DataError(
                    f"{what} has {image.mode} pixels, more than 8 bits of one channel; "
                    "convert it to 8 bits"
                )
            if image.mode != "RGB":
                image = image.convert("RGB")
            if shape is not None and image.size != shape[::-1]:
                image = image.resize(shape[::-1], Image.Resampling.BILINEAR)
            return np.asarray(image)
    except DataError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(
            f"{what} has more pixels than the limit of {Image.MAX_IMAGE_PIXELS} "
            "(a decompression bomb?); remove it, or make it smaller"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes.
        raise DataError(
            f"{what} cannot be read as an image, {' or '.join(formats)} ({error}); repair it, "
            "convert it or remove it"
        ) from error


class _Decoder:
    """Decodes files of a split by their numbers; threads may call it together."""

    def __init__(self, root: Path, found: list[tuple[Path, int]], shape: tuple[int, int]):
        self._root, self._shape = root, shape
        self.names = _names(root, found)
        self.labels = np.array([label for _, label in found], np.int32)

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        paths = (self._root / name for name in self.names[numbers])
        return np.stack([rgb_array(path, path, self._shape, _FORMATS) for path in paths])


def _listed(root, hierarchy: Hierarchy, image_size: int) -> tuple[Path, dict[str, list], dict]:
    """Return (root, each split's (file, label) in order, what determines the images)."""
    root = Path(root).expanduser()
    check_image_size(image_size)
    if not root.is_dir():
        raise DataError(f"there is no image folder {root}; it should hold train/ and test/")
    classes = hierarchy.names[-1]
    files = {name: _find(root, name, classes, whole=name == "train") for name in ("train", "test")}
    stats = {name: [(path, path.stat()) for path, _ in found] for name, found in files.items()}
    return (
        root,
        files,
        {
            "reader": _READER,
            "image_size": image_size,
            "classes": classes,
            "files": {
                name: [(str(p.relative_to(root)), s.st_size, s.st_mtime_ns) for p, s in found]
                for name, found in stats.items()
            },
        },
    )


def _find(root: Path, split: str, classes, whole: bool) -> list[tuple[Path, int]]:
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; {root} should hold train/ and test/")
    index = {_composed(name): i for i, name in enumerate(classes)}
    found = []
    for entry in _visible(folder):
        if not entry.is_dir():
            if entry.suffix.lower() in SUFFIXES:
                raise DataError(f"{entry} is outside a class folder; move it into one, or away")
            continue
        label = index.get(_composed(entry.name))
        if label is None:
            raise DataError(_unknown(entry, classes))
        for path in _visible(entry):
            if path.suffix.lower() not in SUFFIXES or not path.is_file():
                raise DataError(
                    f"{path} is not an image file ({', '.join(SUFFIXES)}); convert it or remove it"
                )
            found.append((path, label))
    present = {label for _, label in found}
    missing = [name for i, name in enumerate(classes) if i not in present]
    if whole and missing:
        raise DataError(
            f"{folder} has no images of {len(missing)} of the hierarchy's classes: "
            f"{preview(missing)}; add images in {folder / missing[0]}, or remove the class"
        )
    if not found:
        raise DataError(f"{folder} has no images; it should hold a folder of images per class")
    return found


def _unknown(entry: Path, classes) -> str:
    """Return what is wrong with a class folder: the class that it may be meant for has none."""
    there = {_composed(path.name) for path in entry.parent.iterdir()}
    absent = [name for name in classes if _composed(name) not in there]
    close = get_close_matches(entry.name, absent, n=1)
    meant = f"; did you mean '{close[0]}'? Rename one of them" if close else "; rename it"
    return (
        f"the folder '{entry}' is no class of the hierarchy's last level "
        f"({len(classes)} classes: {preview(classes)}){meant}, or add the class"
    )


def _composed(name: str) -> str:
    """Return a name with its letters composed: some systems write `ü` as `u` and two dots."""
    return unicodedata.normalize("NFC", name)


def _names(root: Path, found: list[tuple[Path, int]]) -> np.ndarray:
    return np.array([path.relative_to(root).as_posix() for path, _ in found], object)


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _decode(files: list[tuple[Path, int]], image_size: int) -> Split:
    images = read_files([path for path, _ in files], (image_size, image_size))
    return Split(images, np.array([label for _, label in files], np.int32))
