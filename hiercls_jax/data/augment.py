"""Standardisation and augmentation inside the compiled step: pure functions of images and keys."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

PAD = 4  # pixels on each side before the random crop (Section 4 of the paper)


def standardise(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Return (images - mean) / std, float32 `[N, H, W, 3]`.

    Args:
      images: `[N, H, W, 3]`, with values in [0, 255].
      mean, std: float `[3]`, of each channel over the training images.
    """
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    images = jnp.asarray(images, jnp.float32)
    return (images - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


def augment(images: jax.Array, keys: jax.Array, reflect: bool = False) -> jax.Array:
    """Flip each image with probability ½, pad it by 4 pixels, and crop it back at random.

    Args:
      images: float `[N, H, W, 3]`, standardised, so that the padding has the mean colour.
      keys: `[N]` random keys, one for each image; its augmentation depends on nothing else.
      reflect: whether the padding mirrors the image at its border (Jordan, 2024), instead of zeros.

    Returns:
      float `[N, H, W, 3]`.
    """
    return jax.vmap(partial(_augment_one, reflect))(images, keys)


def sample_keys(key: jax.Array, step: ArrayLike, positions: ArrayLike) -> jax.Array:
    """Return one random key per image, `[N]`, of the step and the image's place in its batch.

    Args:
      key: of the run.
      step: int scalar.
      positions: int `[N]`, each image's index in the global batch.
    """
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), positions)


def _augment_one(reflect: bool, image: jax.Array, key: jax.Array) -> jax.Array:
    flip, top, left = jax.random.bits(key, (3,), jnp.uint32)
    image = jnp.where(flip % 2 == 0, image, image[:, ::-1])
    mode = "reflect" if reflect else "constant"
    padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)), mode)
    offsets = [(bits % (2 * PAD + 1)).astype(jnp.int32) for bits in (top, left)]
    return lax.dynamic_slice(padded, (*offsets, jnp.int32(0)), image.shape)
