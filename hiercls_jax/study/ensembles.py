"""Ensembles of networks: the mean of their probabilities, before adaptation or after.

Section 4 of the paper: "ensemble-n corresponds to the averaging of the predictions from n different
instances of the same architecture". It does not say whether adaptation comes before or after. Both
orders give the same coarse level, because Algorithm 1 is linear there, and different fine levels.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from hiercls_jax.adaptation.alpha import alpha_search
from hiercls_jax.adaptation.error_curve import winning_intervals
from hiercls_jax.adaptation.rules import RULES, Rule
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics.calibration import apply_temperature, fit_temperature, log_probs


@dataclasses.dataclass(frozen=True, eq=False)
class Scores:
    """A split's scores at alpha 0 and at alpha 1, between which they are affine, and its labels.

    Args:
      original, target: float32 `[N, K_l]` of each level, coarsest first.
      labels: integer `[N]` of each level.
    """

    original: list[np.ndarray]
    target: list[np.ndarray]
    labels: list[np.ndarray]


def members(count: int, size: int) -> list[tuple[int, ...]]:
    """Return all sets of `size` of the instances 0 to `count - 1`, in lexicographic order.

    >>> members(3, 2)
    [(0, 1), (0, 2), (1, 2)]
    """
    return list(itertools.combinations(range(count), size))


def scores(predictions: Predictions, hierarchy: Hierarchy, rule: Rule = RULES["kl"]) -> Scores:
    """Return the scores of a network, or of an averaged ensemble, under a rule."""
    original = list(predictions.probs.values())
    target = [np.asarray(p) for p in rule.target(original, hierarchy)]
    return Scores(original, target, list(predictions.labels.values()))


def average(instances: Sequence[Predictions]) -> Predictions:
    """Return the mean of several networks' probabilities, rounded once to float32."""
    probs = {level: _mean([p.probs[level] for p in instances]) for level in instances[0].probs}
    return Predictions(probs, instances[0].labels)


def average_scores(instances: Sequence[Scores]) -> Scores:
    """Return the mean of the scores of networks that were adapted each by itself."""
    return Scores(
        [_mean(level) for level in zip(*(s.original for s in instances), strict=True)],
        [_mean(level) for level in zip(*(s.target for s in instances), strict=True)],
        instances[0].labels,
    )


def calibrate(validation: Predictions, splits: Sequence[Predictions]) -> tuple[Predictions, ...]:
    """Return splits after temperature scaling, fitted on validation level by level.

    Args:
      validation: predictions that the temperatures are fitted on.
      splits: predictions of the same network that they are applied to.
    """
    temperatures = {
        level: fit_temperature(log_probs(p), validation.labels[level])
        for level, p in validation.probs.items()
    }
    return tuple(
        Predictions(
            {
                level: apply_temperature(log_probs(p), temperatures[level]).astype(np.float32)
                for level, p in split.probs.items()
            },
            split.labels,
        )
        for split in splits
    )


def tuned_alpha(validation: Scores, alphas: np.ndarray) -> int:
    """Return the index of the alpha that is nearest to the exact choice on validation data."""
    search = alpha_search(
        validation.original, validation.target, validation.labels, largest=alphas[-1]
    )
    return int(np.abs(alphas - search.alpha).argmin())


def right_alphas(scores: Scores, alphas: np.ndarray) -> np.ndarray:
    """Return the interval of alphas at which each sample is right, for each level.

    Args:
      scores: of N samples and L levels.
      alphas: float64 `[A]`, increasing, from 0 to the largest.

    Returns:
      integer `[L, N, 2]`: `(first, stop)` of `alphas[first:stop]`; `(0, 0)` if it is never right.
    """
    intervals = []
    for original, target, labels in zip(scores.original, scores.target, scores.labels, strict=True):
        low, high = winning_intervals(original, target, labels, alphas[-1]).T
        first = np.searchsorted(alphas, low, side="left")
        stop = np.searchsorted(alphas, high, side="right")
        intervals.append(np.where((first < stop)[:, None], np.stack([first, stop], axis=1), 0))
    return np.stack(intervals)


def wrong_counts(right: np.ndarray, count: int) -> np.ndarray:
    """Return how many samples are wrong at each alpha.

    Args:
      right: integer `[..., N, 2]`, as `right_alphas` returns it.
      count: A, the number of alphas.

    Returns:
      integer `[..., A]`.
    """
    flat = right.reshape(-1, *right.shape[-2:]).astype(np.int64)
    counts = np.empty((len(flat), count), np.int64)
    for row, ends in enumerate(flat):
        gained, lost = (np.bincount(end, minlength=count + 1)[:count] for end in ends.T)
        counts[row] = len(ends) - np.cumsum(gained - lost)
    return counts.reshape(*right.shape[:-2], count)


def _mean(arrays: Sequence[np.ndarray]) -> np.ndarray:
    return np.asarray(np.mean(arrays, axis=0, dtype=np.float64), np.float32)
