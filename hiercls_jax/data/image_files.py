"""Image files, decoded by Pillow to uint8 RGB."""

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps

from hiercls_jax.data.dataset import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
FORMATS = ("PNG", "JPEG", "WEBP")  # Pillow's names of the formats with these suffixes


def read_files(paths: Sequence[str | os.PathLike], shape: tuple[int, int]) -> np.ndarray:
    """Read image files: upright by their EXIF orientation, RGB, resized.

    Args:
      paths: N files.
      shape: the height and width to resize to, pixels.

    Returns:
      uint8 `[N, *shape, 3]`.

    Raises:
      DataError: for a file that is missing or cannot be decoded, with its path.
    """
    images = np.empty((len(paths), *shape, 3), np.uint8)
    with strict_pillow():
        for i, path in enumerate(paths):
            if Path(path).is_dir():
                files = Path(path) / "*.png"
                raise DataError(f"{path} is a folder; name the image files in it, such as {files}")
            if not Path(path).is_file():
                raise DataError(f"there is no image file {path}")
            images[i] = decode_image(path, str(path), shape, FORMATS)
    return images


def check_image_size(image_size: int | None) -> int:
    """Return `image_size`; raise a DataError unless it is a positive integer."""
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise DataError(
            f"the image size is a positive number of pixels, got {image_size!r}; "
            "set --config.data.image_size"
        )
    return image_size


def quiet_pillow() -> None:
    """Ignore Pillow's warnings in this process from now on.

    For decoding in threads: warning filters belong to the whole process, so `strict_pillow` cannot
    be used there. The warnings are about broken metadata, and about too many pixels, which
    `decode_image` refuses itself.
    """
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextlib.contextmanager
def strict_pillow() -> Iterator[None]:
    """Turn Pillow's warning about decompression bombs into an error, and ignore its others.

    The others are about broken metadata, such as EXIF; the pixels can be read all the same.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_image(
    source: str | os.PathLike | BinaryIO,
    name: str,
    shape: tuple[int, int] | None,
    formats: tuple[str, ...],
    upright: bool = True,
) -> np.ndarray:
    """Decode one image; call it inside `strict_pillow` or after `quiet_pillow`.

    Args:
      source: a path or a binary file.
      name: what errors call the image.
      shape: the height and width to resize to (bilinear, antialiased); None keeps the image's own.
      formats: the formats of Pillow that are allowed.
      upright: whether to apply the EXIF orientation.

    Returns:
      uint8 `[H, W, 3]`.

    Raises:
      DataError: for an image that is broken, too large, or has more than 8 bits per channel.
    """
    try:
        with Image.open(source, formats=formats) as opened:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and opened.width * opened.height > limit:
                # Up to twice the limit, Pillow only warns.
                raise Image.DecompressionBombError
            image: Image.Image = ImageOps.exif_transpose(opened) if upright else opened
            if image.mode[0] in "IF":
                raise DataError(
                    f"{name} has {image.mode} pixels, more than 8 bits per channel; "
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
            f"{name} has more pixels than the limit of {Image.MAX_IMAGE_PIXELS} "
            "(a decompression bomb?); remove it, or make it smaller"
        ) from error
    except Exception as error:  # Pillow's decoders raise nearly anything on broken bytes.
        raise DataError(
            f"{name} cannot be read as an image, {' or '.join(formats)} ({error}); repair it, "
            "convert it or remove it"
        ) from error
