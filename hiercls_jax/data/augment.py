"""Standardisation and augmentation inside the compiled step: pure functions of images and keys."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

PAD = 4  # pixels on each side before the random crop (Section 4 of the paper)
_OF_MIRRORS = 2**31  # folded into a run's key instead of a step, which is smaller


def standardise(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Return (images - mean) / std, float32 `[N, H, W, 3]`.

    Args:
      images: `[N, H, W, 3]`, with values in [0, 255].
      mean, std: float `[3]`, of each channel over the training images.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    images = jnp.asarray(images, jnp.float32)
    return (images - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


def augment(
    images: jax.Array, keys: jax.Array, reflect: bool = False, mirrored: jax.Array | None = None
) -> jax.Array:
    """Mirror each image with probability ½, pad it by 4 pixels, and crop it back at random.

    Args:
      images: float `[N, H, W, 3]`, standardised, so that the padding has the mean colour.
      keys: `[N]` random keys, one for each image; its augmentation depends on nothing else.
      reflect: whether the padding mirrors the image at its border (Jordan, 2024), instead of zeros.
      mirrored: bool `[N]`, which images to mirror, if it is not left to chance.

    Returns:
      float `[N, H, W, 3]`.
    """
    if mirrored is None:
        return jax.vmap(partial(_augment_one, reflect))(images, keys)
    return jax.vmap(partial(_augment_one, reflect))(images, keys, mirrored)


def alternately(key: jax.Array, indices: ArrayLike, epoch: ArrayLike) -> jax.Array:
    """Return which images to mirror in an epoch, bool `[N]`: each of them in every other epoch.

    So two epochs show each image and its mirror image once (Jordan, 2024). The first epoch mirrors
    each image with probability ½.

    Args:
      key: of the run.
      indices: int `[N]`, each image's index in its split.
      epoch: int scalar, from 0.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, _OF_MIRRORS), indices)
    first = jax.vmap(lambda key: jax.random.bits(key, (), jnp.uint32))(keys) % 2
    return (first + jnp.asarray(epoch).astype(jnp.uint32)) % 2 == 1


def resize(images: jax.Array, size: int) -> jax.Array:
    """Return images `[N, H, W, 3]` with `size` pixels on the shorter side, by linear interpolation.

    Smaller images have the mean over the pixels of each triangle (antialiasing).
    """
    count, height, width, channels = images.shape
    scale = size / min(height, width)
    shape = (count, round(height * scale), round(width * scale), channels)
    return jax.image.resize(images, shape, "linear")


def sample_keys(key: jax.Array, step: ArrayLike, positions: ArrayLike) -> jax.Array:
    """Return one random key per image, `[N]`, of the step and the image's place in its batch.

    Args:
      key: of the run.
      step: int scalar.
      positions: int `[N]`, each image's index in the global batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), positions)


def _augment_one(
    reflect: bool, image: jax.Array, key: jax.Array, mirrored: jax.Array | None = None
) -> jax.Array:
    chance, top, left = jax.random.bits(key, (3,), jnp.uint32)
    image = jnp.where(chance % 2 == 1 if mirrored is None else mirrored, image[:, ::-1], image)
    mode = "reflect" if reflect else "constant"
    padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), mode)
    offsets = [(bits % (2 * PAD + 1)).astype(jnp.int32) for bits in (top, left)]
    return lax.dynamic_slice(padded, (*offsets, jnp.int32(0)), image.shape)
