"""Is a difference there, or is it not? Tests over seeds and over test images.

Two sources of chance: which networks one happened to train (seeds), and which images one happened
to test on. Student's paired t-test speaks of the first, as in the paper's Section 4; the bootstrap
and McNemar's test speak of the second, for the networks that there are. "No difference" is never
read off a large p-value: it is claimed where the interval of the difference lies within a margin.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
LEVEL = 0.05  # of significance
RESAMPLES = 1000  # of the test images
NOISE = 1e-9  # percentage points, or of alpha: what float64 leaves where numbers are the same


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is known of a mean difference.

    Args:
      mean: the difference.
      low, high: the ends of its 95 % interval.
      narrow_low, narrow_high: of its 90 % interval, which two one-sided tests at 5 % amount to
        (Schuirmann, 1987).
      p: two-sided, that it is not 0; NaN where nothing can be said.
    """

    mean: float
    low: float
    high: float
    narrow_low: float
    narrow_high: float
    p: float

    def within(self, margin: float) -> bool:
        """Return whether it is equivalent to 0, as far as `margin` at the 5 % level."""
        return -margin < self.narrow_low and self.narrow_high < margin


def paired_t(differences) -> Evidence:
    """Student's t-test that a mean of paired differences is 0.

    Args:
      differences: float `[n]`. With fewer than two nothing can be said; where all are the same
        number, nothing is left to chance.

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
    found = stats.ttest_1samp(differences, 0)
    wide, narrow = (found.confidence_interval(c) for c in (CONFIDENCE, 2 * CONFIDENCE - 1))
    return Evidence(mean, *map(float, (*wide, *narrow)), float(found.pvalue))


def bootstrap(mean: float, resampled) -> Evidence:
    """Percentile intervals of a statistic, and the p-value of mean / standard error if normal.

    A share of resamples would not do as a p-value: it cannot be smaller than 1 / B, and would be
    lost in any correction for many tests.

    Args:
      mean: the statistic of the images themselves.
      resampled: float `[B]`, of B resamples.
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


def mcnemar(first, second) -> float:
    """McNemar's exact test: are two classifiers wrong equally often on the same images?

    Args:
      first, second: bool `[N]`, whether each is right.

    Returns:
      The two-sided p-value: binomial, of the images that one of them alone gets right.

    >>> mcnemar([True] * 5, [False] * 5)
    0.0625
    """
    first, second = np.asarray(first, bool), np.asarray(second, bool)
    ahead, behind = int((first & ~second).sum()), int((second & ~first).sum())
    if not ahead + behind:
        return 1.0
    return float(stats.binomtest(ahead, ahead + behind).pvalue)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Return p-values corrected for being a family (Holm, 1979); NaN stays, and does not count.

    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    corrected = np.full(len(p), np.nan)
    order = np.argsort(p)[: np.isfinite(p).sum()]
    steps = p[order] * np.arange(len(order), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return corrected
