"""The images held out for validation, and the statistics that standardise images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import HIERARCHY

from hiercls_jax.data.dataset import DataError, Dataset, Split, hold_out


def numbered(labels) -> Split:
    """Images of 1 x 1 pixel whose red and green are their index, low byte first."""
    index = np.arange(len(labels))
    pixels = np.stack([index % 256, index // 256, 0 * index], axis=-1).astype(np.uint8)
    return Split(pixels.reshape(-1, 1, 1, 3), np.asarray(labels, np.int32))


def indices(split: Split) -> list[int]:
    """The indices of numbered images."""
    return (split.images[:, 0, 0, :2] @ np.array([1, 256])).tolist()


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=6),
    st.floats(0.01, 0.5),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_hold_out_is_a_stratified_partition(sizes, fraction, seed, random):
    """Every image is in one part, once, in order; each class loses the fraction, at least one."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(labels)
    train = numbered(labels)
    left, held = hold_out(train, fraction, seed)
    for part in (left, held):
        assert indices(part) == sorted(indices(part))
        np.testing.assert_array_equal(part.labels, train.labels[indices(part)])
    assert sorted(indices(left) + indices(held)) == list(range(len(train)))
    counts = np.bincount(held.labels, minlength=len(sizes)).tolist()
    assert counts == [max(1, round(fraction * size)) for size in sizes]


def test_what_is_held_out_is_a_function_of_the_seed():
    """A seed always holds out the same images, another seed others, and not the first ones."""
    train = numbered(np.arange(200) % 4)
    held = [indices(hold_out(train, 0.1, seed)[1]) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert max(held[0]) > 100


def test_too_few_images_to_hold_out():
    """The error names a class that would lose all its images."""
    with pytest.raises(DataError, match="class 2 has 1 training images.*data.final=True"):
        hold_out(numbered([0, 0, 1, 1, 2]), 0.1, 0)
    with pytest.raises(DataError, match="class 0 has 3 training images.*hold out 3.*lower"):
        hold_out(numbered([0, 0, 0]), 0.9, 0)


def test_channel_statistics_are_those_of_the_training_images():
    """They are NumPy's mean and deviation of each channel over all training pixels, in float64."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, [[[[20, 130, 256]]]], (50, 6, 5, 3), np.uint8)
    train, test = Split(images, np.zeros(50, np.int32)), numbered([0])
    mean, std = Dataset("x", HIERARCHY, train, test, test).channel_statistics()
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-6)


def test_a_channel_of_one_value_can_be_standardised():
    """If all pixels have the same value, the deviation is 1 instead of 0."""
    train = Split(np.full((4, 2, 2, 3), 255, np.uint8), np.zeros(4, np.int32))
    mean, std = Dataset("grey", HIERARCHY, train, None, train).channel_statistics()
    assert (mean.tolist(), std.tolist()) == ([255.0] * 3, [1.0] * 3)
