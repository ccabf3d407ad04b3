"""Tests over seeds and over images agree with scipy and with the definitions."""

import itertools

import numpy as np
import pytest
from scipy import stats

from hiercls_jax.metrics import significance


def test_the_paired_t_test_is_scipys():
    """Of two paired samples: p-value and interval of `ttest_rel`, and of the means' difference."""
    first, second = np.random.default_rng(0).normal(size=(2, 7)) + [[0.8], [0]]
    found = significance.paired_t(first - second)
    expected = stats.ttest_rel(first, second)
    assert found.p == pytest.approx(expected.pvalue, rel=1e-12)
    assert found.mean == pytest.approx(first.mean() - second.mean(), rel=1e-12)
    assert (found.low, found.high) == pytest.approx(expected.confidence_interval(0.95), rel=1e-12)


@pytest.mark.parametrize("margin", [0.2, 0.35, 0.5, 0.8, None])
def test_equivalence_is_two_one_sided_tests(margin):
    """Within the margin means: both one-sided t-tests against its ends have p < 0.05."""
    differences = np.random.default_rng(1).normal(0.1, 0.3, size=6)
    if margin is None:  # between the ends of the 95 % interval and those of the 90 % one
        wide, narrow = (
            max(map(abs, stats.ttest_1samp(differences, 0).confidence_interval(c)))
            for c in (0.95, 0.9)
        )
        margin = (wide + narrow) / 2
    above = stats.ttest_1samp(differences, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(differences, margin, alternative="less").pvalue
    assert significance.paired_t(differences).within(margin) == (max(above, below) < 0.05)


def test_what_cannot_vary_is_certain_and_one_number_says_nothing():
    """Equal differences have p = 0 (1 if all are 0) and width 0; a single one has no p-value."""
    same = significance.paired_t([0.5, 0.5, 0.5])
    assert (same.p, same.low, same.high) == (0, 0.5, 0.5)
    assert significance.paired_t([0.0, 0.0]).p == 1
    assert significance.paired_t([2e-16, 2e-16, 3e-16]).p == 1  # what rounding leaves
    assert np.isnan(significance.paired_t([]).p)
    one = significance.paired_t([3.0])
    assert np.isnan(one.p)
    assert not one.within(100)


def test_mcnemar_is_the_binomial_of_the_images_that_differ():
    """p is twice the smaller binomial tail at 1/2 of 6 and 14; symmetric; 1 if none differ."""
    first = np.array([1] * 30 + [1] * 6 + [0] * 14, bool)
    second = np.array([1] * 30 + [0] * 6 + [1] * 14, bool)
    expected = 2 * stats.binom.cdf(6, 20, 0.5)
    assert significance.mcnemar(first, second) == pytest.approx(expected, rel=1e-12)
    assert significance.mcnemar(second, first) == significance.mcnemar(first, second)
    assert significance.mcnemar(first, first) == 1


@pytest.mark.parametrize(
    "p", [np.random.default_rng(2).uniform(0, 0.1, size=8), [0.01, 0.04, 0.03]]
)
def test_holm_rejects_step_by_step(p):
    """Corrected p < level exactly for what Holm's procedure rejects at it, at every level."""
    corrected = significance.holm(p)
    for level in (0.01, 0.03, 0.05, 0.2):
        rejected = set()
        for i, j in enumerate(np.argsort(p)):
            if p[j] > level / (len(p) - i):
                break
            rejected.add(int(j))
        assert set(np.flatnonzero(corrected <= level)) == rejected


def test_holm_does_not_count_what_is_no_test():
    """NaN stays NaN, and the others are corrected for their own number."""
    found = significance.holm([np.nan, 0.02, 0.01])
    assert np.isnan(found[0])
    assert found[1:].tolist() == [0.02, 0.02]


def test_resamples_draw_every_image_count_times_and_the_same_again():
    """Each resample has as many images as there are; counts scatter; one seed, one draw."""
    weights = significance.resample_weights(500, 300)
    assert (weights.sum(axis=1) == 500).all()
    assert weights.mean() == 1
    assert weights.var() == pytest.approx(1 - 1 / 500, abs=0.02)
    assert np.array_equal(weights, significance.resample_weights(500, 300))


def test_the_bootstrap_of_a_share_has_its_binomial_error():
    """Interval and p-value of a mean of 0 and 1 against the normal theory of it."""
    right = np.arange(2000) % 10 < 3
    resampled = significance.resample_weights(2000) @ right / 2000 - 0.28
    found = significance.bootstrap(0.02, resampled)
    error = np.sqrt(0.3 * 0.7 / 2000)
    assert found.high - found.low == pytest.approx(2 * 1.96 * error, rel=0.1)
    assert found.narrow_high - found.narrow_low == pytest.approx(2 * 1.645 * error, rel=0.1)
    assert found.p == pytest.approx(2 * stats.norm.sf(0.02 / error), rel=0.2)


def test_a_bootstrap_without_spread_is_certain():
    """If all resamples are equal, p is 0, or 1 if their difference is 0."""
    assert significance.bootstrap(1.0, np.ones(9)).p == 0
    assert significance.bootstrap(0.0, np.zeros(9)).p == 1
    assert significance.bootstrap(1e-15, np.zeros(9)).p == 1


@pytest.mark.parametrize("sign", list(itertools.product((1, -1), repeat=2)))
def test_evidence_is_within_only_where_both_ends_are(sign):
    """An interval that reaches over either end of the margin is not within it."""
    low, high = sorted((0.4 * sign[0], 0.6 * sign[1]))
    evidence = significance.Evidence(0, 0, 0, low, high, 1.0)
    assert evidence.within(0.61)
    assert not evidence.within(0.59)
