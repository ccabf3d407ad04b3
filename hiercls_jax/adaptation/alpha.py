"""The choice of alpha on validation data: exact search, cross-validation and bootstrap."""

import dataclasses
import operator
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar

from hiercls_jax.adaptation.error_curve import Outcomes, StepFunction, check_scores

# The least probability in a log-likelihood: the smallest normal float32, below which `adjust` takes
# a mass as 0. The log-likelihood of a sample is at least -87.3.
FLOOR = float(np.finfo(np.float32).tiny)
# Lengths that differ by less are equal, because they are differences of rounded numbers up to 2.
TOLERANCE = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class AlphaSearch:
    """The result of `alpha_search`.

    Args:
      alpha: the chosen alpha.
      value: the objective at `alpha`.
      minimisers: float64 `[M, 2]`, all alphas with the smallest value: increasing closed intervals
        of float64 numbers. An open end of an interval is replaced by the next float64 inside.
      curves: the error of each level against alpha.
    """

    alpha: float
    value: float
    minimisers: np.ndarray
    curves: tuple[StepFunction, ...]


def alpha_search(
    original: Sequence[ArrayLike],
    target: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    *,
    largest: float,
    objective: str | int = "sum",
) -> AlphaSearch:
    """Choose the alpha in [0, largest] that minimises an objective on validation data.

    Errors are piecewise constant in alpha, so the search finds all their minimisers. It chooses the
    midpoint of the widest minimising interval. Ties go to the midpoint nearest to 1, where the
    levels agree, then to the lower one.

    The negative log-likelihood is convex in alpha (if no probability is below `FLOOR`), and a
    bounded search finds its minimum to about 1e-6. For Algorithm 1 on two levels the minimum is at
    alpha = 1 for all data, because coarse′_y fine′_y = (f_y / Q) ((1-β) P + β Q) ((1-β) Q + β P) is
    symmetric about β = 1/2. So use 'nll' for deeper trees and other targets only.

    Args:
      original: L float arrays `[N, K_l]`, probabilities before adaptation, coarsest level first.
      target: L arrays of the same shapes, probabilities at alpha = 1. The score of a class at
        alpha is (1-α) original + α target; ties go to the lowest index, as in argmax.
      labels: L integer arrays `[N]` in `[0, K_l)`.
      largest: the largest admissible alpha, at least 1 (2 for two levels).
      objective: 'sum', the sum of the levels' top-1 errors; an integer in `[0, L)`, the error of
        that level; or 'nll', the sum over levels of the mean of -log max(p, `FLOOR`), p the
        label's probability.

    Raises:
      ValueError: for shapes that disagree, labels out of range, scores that are not finite, an
        unknown objective.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Section 3.3: alpha "can be tuned using a
    validation set".

    >>> p, target = [[0.75, 0.25], [0.75, 0.25]], [[0.25, 0.75], [0.5, 0.5]]
    >>> search = alpha_search([p], [target], [[1, 0]], largest=2)
    >>> round(search.alpha, 9), search.value
    (0.75, 0.0)
    >>> search.curves[0]([0, 0.5, 0.75, 1, 2]).tolist()
    [0.5, 0.5, 0.0, 0.0, 0.5]
    """
    evidence = _Evidence.of(original, target, labels, largest, objective)
    return evidence.search(np.ones(evidence.samples, np.int64))


@dataclasses.dataclass(frozen=True, eq=False)
class CrossValidation:
    """The result of `cross_validate`.

    Args:
      fold: integer `[N]`, the fold in which each sample was held out.
      alphas: float64 `[folds]`, the choice of each fold, made without its own samples.
      error: float64 `[L]`, top-1 error of each level over all samples, each sample adapted with
        the alpha of its fold.
      error_at_0, error_at_1: float64 `[L]`, the same with alpha 0 and 1 for all samples.
    """

    fold: np.ndarray
    alphas: np.ndarray
    error: np.ndarray
    error_at_0: np.ndarray
    error_at_1: np.ndarray


def cross_validate(
    original: Sequence[ArrayLike],
    target: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    *,
    largest: float,
    objective: str | int = "sum",
    folds: int = 5,
    seed: int = 0,
) -> CrossValidation:
    """Measure the effect of choosing alpha, on samples that had no part in the choice.

    Args:
      original, target, labels, largest, objective: as for `alpha_search`.
      folds: number of folds, in `[2, N]`; their sizes differ by at most one.
      seed: of the random partition into folds.

    Raises:
      ValueError: as `alpha_search`, and for a number of folds out of range.
    """
    evidence = _Evidence.of(original, target, labels, largest, objective)
    if not 2 <= folds <= evidence.samples:
        raise ValueError(f"folds must lie in [2, {evidence.samples}] (the samples), got {folds}")
    fold = np.random.default_rng(seed).permutation(np.arange(evidence.samples) % folds)
    alphas: list[float] = []
    wrong = np.zeros((len(evidence.outcomes), 3), np.int64)  # at the fold's alpha, 0 and 1
    for i in range(folds):
        alphas.append(evidence.search((fold != i).astype(np.int64)).alpha)
        held_out = evidence.curves((fold == i).astype(np.int64))
        wrong += np.array([curve.count([alphas[-1], 0, 1]) for curve in held_out])
    error, error_at_0, error_at_1 = (wrong / evidence.samples).T
    return CrossValidation(fold, np.array(alphas), error, error_at_0, error_at_1)


def bootstrap_interval(
    original: Sequence[ArrayLike],
    target: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    *,
    largest: float,
    objective: str | int = "sum",
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the choice of alpha over samples.

    It lies between the (1 ± confidence) / 2 quantiles of the alphas chosen on resamples of N
    samples drawn with replacement.

    Args:
      original, target, labels, largest, objective: as for `alpha_search`.
      resamples: number of resamples, at least 1.
      confidence: in (0, 1).
      seed: of the resamples.

    Raises:
      ValueError: as `alpha_search`, and for `resamples` or `confidence` out of range.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), Section 13.3.
    """
    if resamples < 1:
        raise ValueError(f"resamples must be at least 1, got {resamples}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence}")
    evidence = _Evidence.of(original, target, labels, largest, objective)
    rng, n = np.random.default_rng(seed), evidence.samples
    drawn = (np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(resamples))
    alphas = [evidence.search(weights).alpha for weights in drawn]
    low, high = np.quantile(alphas, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def widest_midpoint(intervals: np.ndarray) -> float:
    """Return the midpoint of the widest interval; ties go to the nearest to 1, then to the lower.

    Args:
      intervals: float `[M, 2]`, increasing, M > 0.
    """
    width = intervals[:, 1] - intervals[:, 0]
    middle = intervals.mean(axis=1)[width >= width.max() - TOLERANCE]
    distance = np.abs(middle - 1)
    return float(middle[distance <= distance.min() + TOLERANCE][0])


@dataclasses.dataclass(frozen=True, eq=False)
class _Evidence:
    """The data of the choice on any weighting of the samples, without arrays of size N × K.

    Args:
      outcomes: the alphas at which each sample is right, by level.
      p_original, p_target: float64 `[L, N]`, the label's probability at alpha 0 and 1.
      largest, objective: as for `alpha_search`.
    """

    outcomes: tuple[Outcomes, ...]
    p_original: np.ndarray
    p_target: np.ndarray
    largest: float
    objective: str | int

    @classmethod
    def of(
        cls,
        original: Sequence[ArrayLike],
        target: Sequence[ArrayLike],
        labels: Sequence[ArrayLike],
        largest: float,
        objective: str | int,
    ) -> "_Evidence":
        levels = check_scores(original, target, labels, largest)
        objective = _check_objective(objective, len(levels))
        largest = float(largest)
        samples = np.arange(len(levels[0][2]))
        p_original = np.array([p[samples, y] for p, _, y in levels], np.float64)
        p_target = np.array([t[samples, y] for _, t, y in levels], np.float64)
        outcomes = tuple(Outcomes.of(*level, largest) for level in levels)
        return cls(outcomes, p_original, p_target, largest, objective)

    @property
    def samples(self) -> int:
        return self.p_original.shape[1]

    def curves(self, weights: np.ndarray) -> tuple[StepFunction, ...]:
        """Return the error of each level with each sample counted `weights` times, integer [N]."""
        return tuple(outcomes.error(weights) for outcomes in self.outcomes)

    def search(self, weights: np.ndarray) -> AlphaSearch:
        """Return the choice with each sample counted `weights` times, integer [N]."""
        curves = self.curves(weights)
        if self.objective == "nll":
            alpha, value = self._least_nll(weights)
            return AlphaSearch(alpha, value, np.array([[alpha, alpha]]), curves)
        if isinstance(self.objective, int):
            total = curves[self.objective]
        else:
            total = sum(curves[1:], curves[0])
        minimisers = total.minimisers()
        alpha = widest_midpoint(minimisers)
        return AlphaSearch(alpha, float(total(alpha)), minimisers, curves)

    def _least_nll(self, weights: np.ndarray) -> tuple[float, float]:
        share = weights / weights.sum()

        def nll(alpha: float) -> float:
            p = (1 - alpha) * self.p_original + alpha * self.p_target
            return -float(np.sum(np.log(np.maximum(p, FLOOR)) @ share))

        result = minimize_scalar(
            nll, bounds=(0, self.largest), method="bounded", options={"xatol": 1e-8}
        )
        best = min((float(result.x), 0.0, self.largest), key=nll)  # it never tries its bounds
        if nll(1.0) <= nll(best) + TOLERANCE:  # as when nothing depends on alpha
            best = 1.0
        return best, nll(best)


def _check_objective(objective: str | int, levels: int) -> str | int:
    if isinstance(objective, str) and objective in ("sum", "nll"):
        return objective
    try:
        level = operator.index(objective)  # type: ignore[arg-type]  # a text raises the TypeError
    except TypeError:
        level = -1
    if not 0 <= level < levels:
        raise ValueError(
            f"objective={objective!r}: allowed are 'sum', 'nll' and the number of a level, "
            f"0 to {levels - 1}"
        )
    return level
