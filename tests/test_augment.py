"""Augmentation and standardisation."""

from functools import partial

import jax
import numpy as np
import pytest

from hiercls_jax.data.augment import (
    PAD,
    alternately,
    augment,
    resize,
    sample_keys,
    standardise,
)

KEY = jax.random.key(0)


@pytest.mark.parametrize("reflect", [False, True])
def test_each_result_is_a_crop_of_the_padded_image_or_of_its_mirror_image(reflect):
    """All possible results (9 x 9 crops, flipped or not) occur, and no others.

    With zeros these are 162; with reflections 90, as some crops of both images are the same.
    """
    size, count = 6, 3000
    image = np.arange(1, size * size * 3 + 1, dtype=np.float32).reshape(size, size, 3)
    possible = set()
    for flipped in (image, image[:, ::-1]):
        padding = ((PAD, PAD), (PAD, PAD), (0, 0))
        padded = np.pad(flipped, padding, "reflect" if reflect else "constant")
        for top in range(2 * PAD + 1):
            for left in range(2 * PAD + 1):
                possible.add(padded[top : top + size, left : left + size].tobytes())
    keys = sample_keys(KEY, 0, np.arange(count))
    augmented = jax.jit(partial(augment, reflect=reflect))
    images = np.broadcast_to(image, (count, *image.shape))
    results = {x.tobytes() for x in np.asarray(augmented(images, keys))}
    assert results == possible
    assert len(possible) == (90 if reflect else 162)


def test_half_of_the_images_are_flipped():
    """The share of flipped images is ½ within four standard deviations."""
    count = 4000
    image = np.zeros((16, 16, 1), np.float32)
    image[4:12, 4:8] = 1  # left of the middle, whatever the crop: mass on one side
    image[4:12, 8:12] = 2
    keys = sample_keys(KEY, 1, np.arange(count))
    out = np.asarray(jax.jit(augment)(np.broadcast_to(image, (count, 16, 16, 1)), keys))
    columns = out.sum(axis=(1, 3))
    flipped = sum(row[np.flatnonzero(row)[0]] > row[np.flatnonzero(row)[-1]] for row in columns)
    assert abs(flipped - count / 2) < 4 * np.sqrt(count / 4)


def test_randomness_depends_on_seed_step_and_position_alone():
    """An image's augmentation does not depend on the batch around it, and differs by step, by
    position and by seed."""
    rng = np.random.default_rng(0)
    images = rng.random((8, 8, 8, 3)).astype(np.float32)
    positions = np.arange(8)
    augmented = jax.jit(lambda x, at: augment(x, sample_keys(KEY, 3, at)))
    whole, part = augmented(images, positions), augmented(images[4:], positions[4:])
    np.testing.assert_array_equal(whole[4:], part)
    keys = [
        sample_keys(KEY, 3, positions),
        sample_keys(KEY, 4, positions),
        sample_keys(jax.random.key(1), 3, positions),
    ]
    data = np.concatenate([np.asarray(jax.random.key_data(k)) for k in keys])
    assert len(np.unique(data, axis=0)) == 24


def test_each_image_is_mirrored_in_every_other_epoch():
    """Half of the images are mirrored in the first epoch, the others in the next, and so on.

    Which ones depends on the key and the image's index alone.
    """
    count = 4000
    epochs = [np.asarray(alternately(KEY, np.arange(count), epoch)) for epoch in range(3)]
    np.testing.assert_array_equal(epochs[1], ~epochs[0])
    np.testing.assert_array_equal(epochs[2], epochs[0])
    assert abs(epochs[0].sum() - count / 2) < 4 * np.sqrt(count / 4)
    np.testing.assert_array_equal(alternately(KEY, np.arange(50, 10, -1), 0), epochs[0][50:10:-1])
    other = np.asarray(alternately(jax.random.key(1), np.arange(count), 0))
    assert 0.4 < np.mean(other == epochs[0]) < 0.6


def test_mirrored_images_are_those_that_were_asked_for():
    """With `mirrored`, an image is a crop of the mirror image if and only if it says so."""
    image = np.zeros((16, 16, 1), np.float32)
    image[4:12, 4:8], image[4:12, 8:12] = 1, 2
    mirrored = np.arange(60) % 3 == 0
    keys = sample_keys(KEY, 1, np.arange(60))
    out = np.asarray(augment(np.broadcast_to(image, (60, 16, 16, 1)), keys, mirrored=mirrored))
    rows = [row[row > 0] for row in out.sum(axis=(1, 3))]
    np.testing.assert_array_equal([row[0] > row[-1] for row in rows], mirrored)


def test_a_smaller_image_averages_a_larger_one():
    """The shorter side gets the size; a constant stays; a linear slope keeps its values.

    A chessboard of single pixels becomes gray, as no pixel is left out.
    """
    slope = np.broadcast_to(np.arange(24.0)[:, None, None], (24, 32, 3))
    board = np.broadcast_to((np.indices((24, 32)).sum(0) % 2)[..., None], (24, 32, 3))
    images = np.stack([np.full((24, 32, 3), 7.0), slope, board]).astype(np.float32)
    constant, smaller, gray = np.asarray(resize(images, 12))
    assert constant.shape == (12, 16, 3)
    np.testing.assert_allclose(constant, 7, rtol=1e-6)
    inside = slice(1, -1)  # at the border a triangle is cut off
    wanted = np.repeat(np.arange(0.5, 24, 2)[inside, None], 16, axis=1)
    np.testing.assert_allclose(smaller[inside, :, 0], wanted, rtol=1e-5)
    np.testing.assert_allclose(gray[inside, inside], 0.5, atol=0.01)


def test_standardised_channels_have_mean_0_and_deviation_1():
    """Images standardised by their own statistics have mean 0 and standard deviation 1."""
    rng = np.random.default_rng(1)
    images = (rng.integers(0, 120, (50, 8, 8, 3)) + np.array([0, 60, 130])).astype(np.uint8)
    pixels = images.reshape(-1, 3).astype(np.float64)
    out = np.asarray(standardise(images, pixels.mean(0), pixels.std(0)), np.float64)
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)
