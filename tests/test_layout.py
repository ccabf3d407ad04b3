"""Functions compute in blocks of samples what they would compute of all samples at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hiercls_jax.adaptation.layout import BLOCK, classes_first


@classes_first
def group_sums(levels, s):
    """Return twice the group sums of the second level, and the second level plus the first."""
    number, x = levels
    return 2 * jax.ops.segment_sum(x, s, 3), x + number


S = np.array([0, 1, 2, 0])


def plain(number, x):
    """Return `group_sums` by NumPy."""
    sums = np.stack([x[..., group == S].sum(-1) for group in range(3)], -1)
    return 2 * sums, x + number


@pytest.mark.parametrize(
    "lead",
    [(), (1,), (BLOCK,), (BLOCK + 1,), (2 * BLOCK,), (1009,), (7, 300), (3, 5, 101), (0,)],
    ids=str,
)
def test_blocks_change_nothing(lead):
    """NumPy gives the same, for part of a block, whole blocks, both, and any leading axes."""
    rng = np.random.default_rng(0)
    number = np.arange(np.prod(lead, dtype=int), dtype=np.float32).reshape(*lead, 1)
    x = rng.integers(100, size=(*lead, 4)).astype(np.float32)  # sums of these are exact
    for found, wanted in zip(group_sums((number, x), S), plain(number, x), strict=True):
        np.testing.assert_array_equal(found, wanted, strict=True)


def test_leading_axes_broadcast():
    """Leading axes that differ are broadcast: 5 numbers and 700 samples give 5 x 700 results."""
    number, x = np.arange(5.0, dtype=np.float32).reshape(5, 1, 1), np.ones((700, 4), np.float32)
    for found, wanted in zip(group_sums((number, x), S), plain(number, x), strict=True):
        np.testing.assert_array_equal(found, np.broadcast_to(wanted, (5, 700, found.shape[-1])))


def test_gradient_and_vmap_through_blocks():
    """The gradient is that of the formula, and under vmap the result scales with the input."""
    x = np.random.default_rng(0).random((1009, 4), np.float32)
    number = np.zeros((1009, 1), np.float32)

    def loss(x):
        sums, _ = group_sums((number, x), S)
        return jnp.sum(sums**2)

    np.testing.assert_allclose(jax.grad(loss)(x), 8 * plain(number, x)[0][:, S] / 2, rtol=1e-6)
    scaled = jax.vmap(lambda factor: group_sums((number, factor * x), S)[0])(np.float32([1, 2]))
    np.testing.assert_allclose(scaled[1], 2 * scaled[0], rtol=1e-6)
