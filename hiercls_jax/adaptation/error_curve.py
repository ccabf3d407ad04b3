"""The top-1 error of every level as an exact function of alpha.

The adapted score of class k is affine, (1-α) original_k + α target_k. So the label y of a sample
wins against class k on a half-line of alpha, and against all classes on one interval. The error is
a sum over samples, a step function of alpha. Alphas are float64 numbers, on which every interval is
closed: α > c is α ≥ the next float64 after c.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 1 << 16  # scores to compare at a time: 0.5 MiB of float64 stay in cache
SPLITTER = 2.0**27 + 1  # cuts a float64's 53 bits into two halves (Dekker, 1971)


@dataclasses.dataclass(frozen=True, eq=False)
class StepFunction:
    """The share of samples that are wrong, as a step function of alpha in [0, largest].

    Calling it with alphas of any shape returns float64 errors of that shape. `+` adds the errors of
    two levels on the same samples at every alpha.

    Args:
      breakpoints: float64 `[B]`, increasing from 0: the first alpha of each piece. Piece i is
        `[breakpoints[i], breakpoints[i + 1])`, and the last piece ends with `largest`.
      counts: integer `[B]`, samples that are wrong on each piece.
      total: number of samples, by which counts are divided.
      largest: the largest alpha.

    >>> error = StepFunction(np.array([0, 0.5]), np.array([3, 1]), total=4, largest=2.0)
    >>> error([0, 0.25, 0.5, 2]).tolist()
    [0.75, 0.75, 0.25, 0.25]
    """

    breakpoints: np.ndarray
    counts: np.ndarray
    total: int
    largest: float

    def __call__(self, alphas: ArrayLike) -> np.ndarray:
        return self.count(alphas) / self.total

    def count(self, alphas: ArrayLike) -> np.ndarray:
        """Return how many samples are wrong at each alpha, integers of the shape of `alphas`."""
        alphas = np.asarray(alphas, np.float64)
        if not ((alphas >= 0) & (alphas <= self.largest)).all():
            raise ValueError(f"alpha must lie in [0, {self.largest:g}], got {alphas}")
        return self.counts[np.searchsorted(self.breakpoints, alphas, side="right") - 1]

    def __add__(self, other: "StepFunction") -> "StepFunction":
        if (self.total, self.largest) != (other.total, other.largest):
            raise ValueError(
                f"errors of {self.total} samples up to alpha {self.largest:g} cannot be added to "
                f"those of {other.total} up to {other.largest:g}"
            )
        breakpoints = np.union1d(self.breakpoints, other.breakpoints)
        counts = self.count(breakpoints) + other.count(breakpoints)
        return StepFunction(breakpoints, counts, self.total, self.largest)

    def minimisers(self) -> np.ndarray:
        """Return float64 `[M, 2]`: the closed intervals with the smallest value, increasing."""
        least = self.counts == self.counts.min()
        edges = np.flatnonzero(np.diff(least, prepend=False, append=False))
        last = np.append(np.nextafter(self.breakpoints[1:], -np.inf), self.largest)
        return np.stack([self.breakpoints[edges[::2]], last[edges[1::2] - 1]], axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Outcomes:
    """The pieces on which each sample is right: the error of any weighting of the samples follows.

    Args:
      breakpoints: float64 `[B]`, as in `StepFunction`.
      first, stop: integer `[N]`; sample n is right on the pieces `first[n]` to `stop[n] - 1`.
      largest: the largest alpha.
    """

    breakpoints: np.ndarray
    first: np.ndarray
    stop: np.ndarray
    largest: float

    @classmethod
    def of(
        cls, original: np.ndarray, target: np.ndarray, labels: np.ndarray, largest: float
    ) -> "Outcomes":
        """Compare all scores of one level; the arguments are those of `winning_intervals`."""
        largest = float(largest)
        low, high = winning_intervals(original, target, labels, largest).T
        end = np.nextafter(largest, np.inf)
        after = np.nextafter(high, np.inf).clip(0, end)
        low = np.minimum(low, after)  # an empty interval gets no pieces
        ends = np.concatenate([[0, end], low, after])
        breakpoints, piece = np.unique(ends, return_inverse=True)
        first, stop = np.split(piece[2:], 2)
        return cls(breakpoints[:-1], first, stop, largest)

    def error(self, weights: np.ndarray) -> StepFunction:
        """Return the error against alpha, each sample counted `weights` times, integer `[N]`."""
        pieces = len(self.breakpoints)
        gained = np.bincount(self.first, weights, pieces + 1)
        lost = np.bincount(self.stop, weights, pieces + 1)
        total = int(weights.sum())
        counts = total - np.cumsum(gained - lost)[:-1].astype(np.int64)
        kept = np.append(True, counts[1:] != counts[:-1])
        return StepFunction(self.breakpoints[kept], counts[kept], total, self.largest)


def error_curves(
    original: Sequence[ArrayLike],
    target: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    *,
    largest: float,
) -> tuple[StepFunction, ...]:
    """Return the top-1 error of each level as a function of alpha (the paper's Figures 3 and 4).

    At every float64 alpha it counts as argmax of the scores in exact arithmetic would, with ties to
    the lowest index, if differences of scores are exact in float64. They are for float32
    probabilities that are 0 or at least 2⁻²⁹. Otherwise a breakpoint may be off by a few float64
    roundings.

    Args:
      original: L float arrays `[N, K_l]`, the scores at alpha 0.
      target: L arrays of the same shapes, the scores at alpha 1.
      labels: L integer arrays `[N]`, in `[0, K_l)`.
      largest: the largest alpha, at least 1.

    Raises:
      ValueError: for shapes that disagree, labels out of range, scores that are not finite.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Sections 3.3 and 4.
    """
    levels = check_scores(original, target, labels, largest)
    once = np.ones(len(levels[0][2]), np.int64)
    return tuple(Outcomes.of(*level, largest).error(once) for level in levels)


def curve_of_intervals(intervals: np.ndarray, largest: float) -> StepFunction:
    """Return the error of one level against alpha, from each sample's winning interval.

    Args:
      intervals: float64 `[N, 2]`, as `winning_intervals` returns them: all that the errors of any
        part of the samples need.
      largest: the largest alpha.
    """
    low, high = intervals[intervals[:, 0] <= intervals[:, 1]].T
    after = np.nextafter(high, np.inf)
    breakpoints = np.unique(np.concatenate([[0.0], low, after[after <= largest]]))
    begun = np.searchsorted(np.sort(low), breakpoints, side="right")
    ended = np.searchsorted(np.sort(after), breakpoints, side="right")
    return StepFunction(breakpoints, len(intervals) - begun + ended, len(intervals), largest)


def winning_intervals(
    original: np.ndarray, target: np.ndarray, labels: np.ndarray, largest: float
) -> np.ndarray:
    """Return the alphas at which each sample's label is its prediction, as a closed interval.

    The label has a higher score than every lower class, and at least that of every higher one.

    Args:
      original, target: float `[N, K]`, scores at alpha 0 and 1.
      labels: integer `[N]` in `[0, K)`.
      largest: the largest alpha.

    Returns:
      float64 `[N, 2]`: the first and the last float64 alpha in `[0, largest]`. The interval is
      empty if the first is the larger one.
    """
    rows = max(1, CHUNK // original.shape[1])
    chunks = [slice(start, start + rows) for start in range(0, len(labels), rows)]
    return np.concatenate(
        [_winning_intervals(original[i], target[i], labels[i], largest) for i in chunks]
    )


def _winning_intervals(
    original: np.ndarray, target: np.ndarray, labels: np.ndarray, largest: float
) -> np.ndarray:
    label = labels[:, None]
    lead, lead_at_1 = (
        np.take_along_axis(scores, label, axis=1) - scores
        for scores in (original.astype(np.float64), target.astype(np.float64))
    )
    slope = lead_at_1 - lead
    # A slope other than 0 is at least a rounding of the lead: no crossing overflows.
    crossing = np.divide(lead, -slope, out=np.zeros_like(lead), where=slope != 0)
    product, error = _two_product(slope, crossing)
    lead_there = (lead + product) + error  # at the rounded crossing; its sign is exact
    wins = (lead_there > 0) | ((lead_there == 0) & (np.arange(original.shape[1]) >= label))
    # The exact crossing is within half a unit in the last place of the rounded one. So the last
    # float64 on its winning side is the rounded one or its neighbour.
    after = np.where(slope > 0, np.nextafter(crossing, np.inf), np.inf)
    before = np.nextafter(crossing, -np.inf)
    low = np.where(slope < 0, 0, np.where(wins, crossing, after))
    high = np.where(slope < 0, np.where(wins, crossing, before), largest)
    # Against itself the label wins on all of [0, largest].
    return np.stack([low.max(axis=1), high.min(axis=1)], axis=1)


def _two_product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return fl(a b) and its rounding error, whose sum is a b exactly (Dekker, 1971)."""
    product = a * b
    a_high, b_high = (x * SPLITTER - (x * SPLITTER - x) for x in (a, b))
    a_low, b_low = a - a_high, b - b_high
    error = a_low * b_low - (((product - a_high * b_high) - a_low * b_high) - a_high * b_low)
    return product, error


def check_scores(
    original: Sequence[ArrayLike],
    target: Sequence[ArrayLike],
    labels: Sequence[ArrayLike],
    largest: float,
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Return (original, target, labels) of each level as NumPy arrays, after checking them."""
    if not len(original) == len(target) == len(labels) > 0:
        raise ValueError(
            "original, target and labels have one array per level; got "
            f"{len(original)}, {len(target)} and {len(labels)}"
        )
    if not 1 <= largest < np.inf:
        raise ValueError(f"largest is the largest alpha, a number of at least 1; got {largest}")
    levels = []
    for i, arrays in enumerate(zip(original, target, labels, strict=True)):
        scores, scores_at_1, y = (np.asarray(x) for x in arrays)
        _check_level(f"level {i}", scores, scores_at_1, y)
        levels.append((scores, scores_at_1, y))
    counts = [len(y) for *_, y in levels]
    if min(counts) != max(counts):
        raise ValueError(f"all levels have the same samples; got {counts} of them")
    return levels


def _check_level(level: str, original: np.ndarray, target: np.ndarray, labels: np.ndarray) -> None:
    if (
        original.ndim != 2
        or not original.size
        or target.shape != original.shape
        or labels.shape != original.shape[:1]
    ):
        raise ValueError(
            f"{level}: original and target are [N, K] and labels [N], N and K > 0; got "
            f"{list(original.shape)}, {list(target.shape)} and {list(labels.shape)}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{level}: labels are integers, not {labels.dtype}")
    classes = original.shape[1]
    bad = labels[(labels < 0) | (labels >= classes)]
    if bad.size:
        raise ValueError(f"{level}: label {bad[0]} is out of range, allowed are 0 to {classes - 1}")
    for name, scores in (("original", original), ("target", target)):
        finite = np.isfinite(scores).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"{level}: {name} of sample {np.argmin(finite)} is not finite; every score must be"
            )
