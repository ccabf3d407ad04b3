"""At which alphas each sample is right: the exact basis of every count in the report."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from hiercls_jax.adaptation.error_curve import StepFunction, curve_of_intervals, winning_intervals
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.evaluation.evaluate import adapted
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import Hierarchy

SCORE_BYTES = 2**26  # of float64 scores that are kept at most; more rows are sampled
SEED = 0  # of the sample


@dataclasses.dataclass(frozen=True, eq=False)
class SampleOutcomes:
    """At which alphas each of N samples is right, and the scores of M of them.

    Args:
      intervals: float64 `[L, N, 2]`, the alphas at which the label is the prediction, by level, as
        `winning_intervals` returns them.
      leaf_ids: integer `[N]`, the labels: positions in the last level's cut.
      rows: integer `[M]` in `[0, N)`, increasing: the samples that have scores.
      before, target: L arrays `[M, K_l]` over the levels' cuts, the scores at alpha 0 and 1.
      largest: the largest alpha.
      numbers: integer `[N]`, the number by which each sample is shown; None for 0 to N - 1.
      labelled: False if the samples have no labels. The predictions at alpha 0 then stand in for
        them, so that a changed prediction counts as an error.
      files: str `[N]`, the file of each sample, shown instead of its number; None without files.
    """

    intervals: np.ndarray
    leaf_ids: np.ndarray
    rows: np.ndarray
    before: Sequence[np.ndarray]
    target: Sequence[np.ndarray]
    largest: float
    numbers: np.ndarray | None = None
    labelled: bool = True
    files: np.ndarray | None = None

    @classmethod
    def of(
        cls, predictions: Predictions, hierarchy: Hierarchy, rule: str = "kl"
    ) -> "SampleOutcomes":
        """Adapt a split's predictions by a rule of `RULES`; all samples have scores."""
        before, target = adapted(predictions, hierarchy, 1.0, rule)
        labels = list(predictions.labels.values())
        largest = min(RULES[rule].largest_alpha(hierarchy))
        levels = zip(before, target, labels, strict=True)
        intervals = np.stack([winning_intervals(*level, largest) for level in levels])
        rows = np.arange(len(labels[-1]))
        return cls(intervals, labels[-1], rows, before, target, largest, files=predictions.files)

    def curves(self) -> tuple[StepFunction, ...]:
        """Return the error of each level against alpha."""
        return tuple(curve_of_intervals(of_level, self.largest) for of_level in self.intervals)

    def right(self, alpha: float) -> np.ndarray:
        """Return bool `[L, N]`: whether the label is the prediction."""
        return (self.intervals[..., 0] <= alpha) & (alpha <= self.intervals[..., 1])


def sample_rows(rows: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    """Return the rows to keep scores of: as many as fit in `SCORE_BYTES`, drawn at random.

    Args:
      rows: integer `[N]`, increasing.
      hierarchy: the levels, whose cuts have scores.
    """
    row_bytes = 8 * sum(len(hierarchy.cut(level)) for level in range(hierarchy.num_levels))
    return draw(rows, max(1, SCORE_BYTES // row_bytes), np.random.default_rng(SEED))


def draw(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` of the rows at random, in order; all rows if there are no more."""
    return rows if len(rows) <= count else np.sort(rng.choice(rows, count, replace=False))
