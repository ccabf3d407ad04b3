"""Standardisation and augmentation inside the compiled step: pure functions of images and keys."""

import jax
import jax.numpy as jnp
from jax import lax

PAD = 4  # pixels on each side before the random crop (Section 4 of the paper)


def standardise(images, mean, std):
    """Map uint8 images `[N, H, W, 3]` to float32 of mean 0 and deviation 1 per channel `[3]`."""
    mean, std = jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32)
    return (images.astype(jnp.float32) - mean.reshape(1, 1, 1, -1)) / std.reshape(1, 1, 1, -1)


def augment(images, keys):
    """Flip each image with probability ½, pad it by 4 zeros, and crop it back at random.

    Args:
      images: float `[N, H, W, 3]`, standardised, so that the padding has the mean colour.
      keys: `[N]` random keys, one for each image: its augmentation depends on nothing else.

    Returns:
      float `[N, H, W, 3]`.
    """
    return jax.vmap(_augment_one)(images, keys)


def sample_keys(key, step, positions):
    """Return one key per image from (seed's key, step, index in the global batch) `[N]`."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.fold_in(key, step), positions)


def _augment_one(image, key):
    flip, top, left = jax.random.bits(key, (3,), jnp.uint32)
    image = jnp.where(flip % 2 == 0, image, image[:, ::-1])
    padded = jnp.pad(image, ((PAD, PAD), (PAD, PAD), (0, 0)))
    offsets = [(bits % (2 * PAD + 1)).astype(jnp.int32) for bits in (top, left)]
    return lax.dynamic_slice(padded, (*offsets, jnp.int32(0)), image.shape)
