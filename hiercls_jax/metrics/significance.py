"""Tests whether a difference is real: over seeds and over test images.

There are two sources of chance: the seeds of the networks and the sample of test images. Student's
paired t-test covers the first, as in the paper's Section 4. The bootstrap and McNemar's test cover
the second, for the given networks. A large p-value never shows "no difference"; an interval of the
difference within a margin does.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

CONFIDENCE = 0.95
LEVEL = 0.05  # of significance
RESAMPLES = 1000  # of the test images
NOISE = 1e-9  # percentage points, or of alpha: the rounding error of equal numbers in float64


@dataclasses.dataclass(frozen=True)
class Evidence:
    """A mean difference with its intervals and p-value.

    Args:
      mean: the difference.
      low, high: the ends of its 95 % interval.
      narrow_low, narrow_high: the ends of its 90 % interval, which is equivalent to two one-sided
        tests at 5 % (Schuirmann, 1987).
      p: two-sided p-value of the hypothesis that the difference is 0; NaN without evidence.
    """

    mean: float
    low: float
    high: float
    narrow_low: float
    narrow_high: float
    p: float

    def within(self, margin: float) -> bool:
        """Return whether it is equivalent to 0 within `margin`, at the 5 % level."""
        return -margin < self.narrow_low and self.narrow_high < margin


def paired_t(differences: ArrayLike) -> Evidence:
    """Return Student's t-test of the hypothesis that paired differences have the mean 0.

    Args:
      differences: float `[n]`. Fewer than two give infinite intervals; equal ones give intervals
        of width 0.

    >>> round(paired_t([1.0, 2.0, 3.0]).p, 4)
    0.0742
    """
    differences = np.asarray(differences, np.float64)
    if not len(differences):
        return Evidence(np.nan, -np.inf, np.inf, -np.inf, np.inf, np.nan)
    mean = float(differences.mean())
    if len(differences) < 2:
        return Evidence(mean, -np.inf, np.inf, -np.inf, np.inf, np.nan)
    if np.ptp(differences) <= NOISE:
        return Evidence(mean, mean, mean, mean, mean, float(abs(mean) <= NOISE))
    test = stats.ttest_1samp(differences, 0)
    low, high = map(float, test.confidence_interval(CONFIDENCE))
    narrow_low, narrow_high = map(float, test.confidence_interval(2 * CONFIDENCE - 1))
    return Evidence(mean, low, high, narrow_low, narrow_high, float(test.pvalue))


def bootstrap(mean: float, resampled: ArrayLike) -> Evidence:
    """Return percentile intervals of a statistic, and its p-value by a normal approximation.

    The share of resamples beyond 0 is unusable as a p-value: it cannot be between 0 and 1 / B, so
    no small one would survive a correction for many tests.

    Args:
      mean: the statistic of the images themselves.
      resampled: float `[B]`, the statistic of B resamples.
    """
    resampled = np.asarray(resampled, np.float64)
    tail = (1 - CONFIDENCE) / 2
    low, narrow_low, narrow_high, high = np.quantile(
        resampled, [tail, 2 * tail, 1 - 2 * tail, 1 - tail]
    )
    error = resampled.std(ddof=1)
    same = abs(mean) <= NOISE
    p = float(same) if error <= NOISE else float(2 * stats.norm.sf(abs(mean) / error))
    return Evidence(float(mean), float(low), float(high), float(narrow_low), float(narrow_high), p)


def resample_weights(count: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Return how often each of `count` images is drawn in each resample, float32 `[B, count]`."""
    rng = np.random.default_rng(seed)
    drawn = (
        np.bincount(rng.integers(count, size=count), minlength=count) for _ in range(resamples)
    )
    return np.array(list(drawn), np.float32)


def mcnemar(first: ArrayLike, second: ArrayLike) -> float:
    """Return the p-value of McNemar's exact test that two classifiers are equally often right.

    Args:
      first, second: bool `[N]`, whether each classifier is right on each image.

    Returns:
      The two-sided binomial p-value over the images that only one of them gets right.

    >>> mcnemar([True] * 5, [False] * 5)
    0.0625
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    ahead, behind = int((first & ~second).sum()), int((second & ~first).sum())
    if not ahead + behind:
        return 1.0
    return float(stats.binomtest(ahead, ahead + behind).pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values corrected for multiple tests (Holm, 1979); NaN stays, and is not counted.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected
