"""Ensembles: their members, their averages, and the alphas at which each image is right."""

import math

import numpy as np
import pytest
from made_up_runs import made_up

from hiercls_jax import metrics
from hiercls_jax.adaptation.tree import adjust_tree
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import Hierarchy, cifar100
from hiercls_jax.study import ensembles
from hiercls_jax.study.ensembles import Scores
from hiercls_jax.study.summary import alpha_grid

CIFAR = cifar100()
ALPHAS = alpha_grid(CIFAR)


@pytest.fixture(scope="module")
def networks():
    """Three networks' predictions of the same 150 images."""
    return [made_up(CIFAR, 150, seed, data=0) for seed in range(3)]


@pytest.mark.parametrize(("count", "size"), [(5, 1), (5, 2), (5, 4), (5, 5), (3, 4)])
def test_every_set_is_there_once(count, size):
    """There are (count choose size) different sets, and none has an instance twice."""
    sets = ensembles.members(count, size)
    assert len(sets) == len({frozenset(s) for s in sets}) == math.comb(count, size)
    assert all(len(set(s)) == size for s in sets)


def test_the_coarse_level_is_the_same_in_both_orders(networks):
    """To adapt after averaging, not before, changes fine scores, and coarse ones by rounding."""
    before = ensembles.scores(ensembles.average(networks), CIFAR)
    after = ensembles.average_scores([ensembles.scores(n, CIFAR) for n in networks])
    np.testing.assert_allclose(before.target[0], after.target[0], atol=2e-7)
    np.testing.assert_array_equal(before.original[1], after.original[1])
    assert np.abs(before.target[1] - after.target[1]).max() > 1e-3


def test_an_ensemble_of_copies_is_the_network(networks):
    """The mean of three equal predictions is that prediction, bit for bit."""
    same = ensembles.average([networks[0]] * 3)
    for level, p in networks[0].probs.items():
        np.testing.assert_array_equal(same.probs[level], p)


def test_an_image_is_right_at_the_alphas_whose_argmax_is_its_label(networks):
    """Intervals agree with the argmax of float64 scores at every alpha of the grid."""
    scores = ensembles.scores(networks[0], CIFAR)
    right = ensembles.right_alphas(scores, ALPHAS)
    for level in range(2):
        first, stop = right[level].T
        for i, alpha in enumerate(ALPHAS):
            mixed = (1 - alpha) * scores.original[level].astype(np.float64)
            mixed += alpha * scores.target[level].astype(np.float64)
            expected = mixed.argmax(axis=1) == scores.labels[level]
            found = (first <= i) & (i < stop)
            assert (found != expected).sum() == 0, (level, alpha)
    assert 0 < np.mean(right[..., 1] == 0) < 1


def test_a_sample_that_is_never_right_has_no_alphas():
    """An interval that is empty, or lies between two alphas of the grid, becomes (0, 0)."""
    original = np.float32([[0.2, 0.8, 0], [0.4, 0.6, 0]])
    target = np.float32([[0.2, 0.8, 0], [0.39, 0, 0.61]])
    scores = Scores([original], [target], [np.array([0, 0])])
    assert ensembles.right_alphas(scores, np.array([0, 1.0, 2.0])).tolist() == [[[0, 0], [0, 0]]]


def test_counts_follow_from_the_intervals():
    """Counts equal those made image by image and alpha by alpha, for any leading axes."""
    rng = np.random.default_rng(3)
    right = np.sort(rng.integers(0, 8, size=(2, 3, 40, 2)), axis=-1)
    columns = np.arange(7)
    within = (right[..., :1] <= columns) & (columns < right[..., 1:])
    np.testing.assert_array_equal(ensembles.wrong_counts(right, 7), 40 - within.sum(axis=2))


def test_calibration_fits_validation_and_keeps_the_order_of_classes(networks):
    """Calibration raises each level's likelihood on validation and changes no prediction."""
    (calibrated,) = ensembles.calibrate(networks[0], [networks[0]])
    for level, p in networks[0].probs.items():
        labels = networks[0].labels[level]
        before, after = (
            metrics.negative_log_likelihood(x, labels) for x in (p, calibrated.probs[level])
        )
        assert after < before - 0.01
        np.testing.assert_array_equal(p.argmax(axis=1), calibrated.probs[level].argmax(axis=1))


def test_alpha_is_the_exact_choice_to_two_decimals():
    """If the best alphas are one interval, the index is that of its midpoint."""
    original = np.float32([[0.6, 0.4], [0.6, 0.4]])
    target = np.float32([[0.4, 0.6], [0.4, 0.6]])
    scores = Scores([original], [target], [np.array([1, 1])])
    # Right from the crossing at 0.5 to 2: the midpoint is 1.25.
    assert ALPHAS[ensembles.tuned_alpha(scores, ALPHAS)] == pytest.approx(1.25, abs=0.01)


def test_three_levels():
    """Scores and counts cover all levels, up to the largest alpha of the hierarchy."""
    tree = Hierarchy(
        ("a", "b", "c"),
        (("x", "y"), ("p", "q", "r"), ("1", "2", "3", "4")),
        ((0, 0, 1), (0, 1, 2, 2)),
    )
    alphas = alpha_grid(tree)
    assert alphas[-1] == 1.5
    rng = np.random.default_rng(0)
    probs = {v: rng.dirichlet(np.ones(n), 20).astype(np.float32) for v, n in zip(
        tree.levels, tree.sizes, strict=True)}  # fmt: skip
    labels = dict(zip(tree.levels, tree.labels(rng.integers(4, size=20)), strict=True))
    scores = ensembles.scores(Predictions(probs, labels), tree)
    counts = ensembles.wrong_counts(ensembles.right_alphas(scores, alphas), len(alphas))
    adapted = adjust_tree(list(probs.values()), tree, 1.5)
    expected = [(np.asarray(p).argmax(axis=1) != y).sum() for p, y in zip(
        adapted, labels.values(), strict=True)]  # fmt: skip
    np.testing.assert_array_equal(counts[:, -1], expected)
