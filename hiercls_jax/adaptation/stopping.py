"""Stop where sure: answer with a class higher up instead of with a wrong leaf.

From the most probable leaf, climb to the first node whose probability is at least a threshold θ;
the root has 1. At a larger θ the answer is the same node or one above it, so that a right answer
stays right. Each labelled sample therefore has one critical value,

    c = the probability of the highest wrong node on the path of its most probable leaf,

or -∞ if the leaf is right, and its answer is right exactly if θ > c. An answer is right if it is
the label or a node above it. Thresholds with guarantees are order statistics of c over calibration
samples, for any probabilities, well calibrated or not:

    the k-th smallest, k =                     the accuracy of new answers is at least t
    -----------------------------------------  --------------------------------------------------
    ⌈(n + 1) t⌉                                on average over calibration sets
    the smallest with P(Bin(n, t) ≥ k) ≤ δ     with probability 1 - δ over calibration sets

and θ is the next number above it. Both need new samples that are drawn as the calibration samples
are, and probabilities that do not depend on these: neither the classifiers nor alpha may have been
fitted to them.

Climbing is that of Goren, Galil and El-Yaniv, Hierarchical Selective Classification (NeurIPS 2024);
the first order statistic is split conformal prediction (Vovk, Gammerman and Shafer, Algorithmic
Learning in a Random World, 2005), the second a tolerance limit (Wilks, Annals of Mathematical
Statistics, 1941).

The levels must agree: alpha = 1, or the target of a rule. Otherwise a class may be less probable
than one below it, and the probability of an answer is not one number.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from hiercls_jax.adaptation.answers import Probs, arrays, most_probable_leaf
from hiercls_jax.adaptation.checks import SUM_TOLERANCE
from hiercls_jax.errors import UserError
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import node_numbers, nodes_of

BLOCK = 2**22  # numbers that are checked at once


class StoppingError(UserError):
    """Levels that do not agree, or labels too few for a guarantee."""


class Answers(NamedTuple):
    """Where each sample stops.

    Args:
      node: int32 `[..., 2]`, (level, class) of each answer; (-1, 0) for the root.
      path: int32 `[..., L]`, rows of each level's cut as in `Hierarchy.labels`, -1 below the
        answer if it has children; as the decisions of `hiercls_jax.adaptation.answers`.
      probability: float `[...]`, of the answer; the root's is 1.
    """

    node: Any
    path: Any
    probability: Any


def stop(probs: Probs, hierarchy: Hierarchy, threshold: float) -> Answers:
    """Climb from the most probable leaf to the first node with a probability of at least θ.

    At θ = 0 every answer is a leaf; above 1, every answer is the root. Takes NumPy and JAX arrays,
    also under `jit`, where values are not checked.

    Args:
      probs: L coherent arrays `[..., N_l]`, coarsest level first: every class has the mass of its
        children, and the first level sums to 1, both within 0.001.
      hierarchy: L levels of N_l classes.
      threshold: θ, not negative.

    Returns:
      The answers, arrays of the kind and dtype of `probs`.

    Raises:
      StoppingError: for levels that do not agree, or that are no probabilities.
      ValueError: for a wrong number or shape of arrays, and a negative threshold.

    Source: Goren et al. (NeurIPS 2024), Section 3.

    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> probs = np.array([[0.75, 0.25]]), np.array([[0.5, 0.25, 0.25]])
    >>> [stop(probs, pets, threshold).node.tolist() for threshold in (0.5, 0.6, 0.8)]
    [[[1, 0]], [[0, 0]], [[-1, 0]]]
    """
    climb = climb_paths(probs, hierarchy)
    return stop_climb(climb, hierarchy, threshold)


class Climb(NamedTuple):
    """The path of each sample's most probable leaf, which has all that stopping depends on.

    Args:
      leaf: integer `[...]`, the leaf's id.
      probability: float `[..., L]`, of the path's class on each level, and below a leaf that of the
        leaf. It does not increase from level to level: where rounding makes a class less probable
        than one below it, it has that one's probability.
    """

    leaf: Any
    probability: Any


def climb_paths(probs: Probs, hierarchy: Hierarchy) -> Climb:
    """Return the path of the most probable leaf and its probabilities.

    Arguments and errors are those of `stop`.
    """
    levels, xp = arrays(probs, hierarchy)
    levels = [p.astype(xp.promote_types(p.dtype, np.float32)) for p in levels]
    if not any(isinstance(p, jax.core.Tracer) for p in levels):
        check_coherent([np.asarray(p) for p in levels], hierarchy)
    nodes = nodes_of(hierarchy)
    leaf = most_probable_leaf(levels, hierarchy, xp)
    pairs = xp.asarray(nodes.pairs[nodes.paths[nodes.leaves]])[leaf]  # [..., L, 2]
    path: list[Any] = []
    for level, p in enumerate(levels):
        own = xp.where(pairs[..., level, 0] == level, pairs[..., level, 1], 0)
        of_level = xp.take_along_axis(p, own[..., None], axis=-1)[..., 0]
        # A leaf of a level above stands for itself below.
        path.append(xp.where(pairs[..., level, 0] == level, of_level, path[-1] if path else 0))
    for level in reversed(range(len(path) - 1)):
        path[level] = xp.maximum(path[level], path[level + 1])
    return Climb(leaf, xp.stack(path, axis=-1))


def stop_climb(climb: Climb, hierarchy: Hierarchy, threshold: float) -> Answers:
    """Return the answers at a threshold; see `stop`."""
    if not threshold >= 0:
        raise ValueError(f"a threshold is not negative; got {threshold}")
    nodes, p = nodes_of(hierarchy), climb.probability
    xp = np if isinstance(p, np.ndarray) else jax.numpy
    sure = p >= round_up(threshold, p.dtype)
    depth = sure.sum(axis=-1)  # levels of the path above and at the answer, from the top
    # The path of a leaf, with the root before its first level.
    paths = np.concatenate([np.full((len(nodes.leaves), 1), -1), nodes.paths[nodes.leaves]], axis=1)
    answer = xp.asarray(paths)[climb.leaf, depth]
    from_top = xp.concatenate([xp.ones_like(p[..., :1]), p], axis=-1)
    probability = xp.take_along_axis(from_top, depth[..., None], axis=-1)[..., 0]
    return Answers(xp.asarray(nodes.pairs)[answer], xp.asarray(nodes.rows)[answer], probability)


def critical_values(climb: Climb, labels: ArrayLike, hierarchy: Hierarchy) -> np.ndarray:
    """Return c, float `[N]`: an answer is right exactly if the threshold is greater.

    Args:
      climb: N paths.
      labels: integer `[N]`, leaf ids, or `[N, 2]`, nodes (level, class) for samples whose leaf is
        not known. An answer below such a label counts as wrong, though it may be right.
      hierarchy: the tree.
    """
    p = np.asarray(climb.probability)
    wrong = wrong_nodes(climb, labels, hierarchy)
    return np.where(wrong, p, -np.inf).max(axis=-1).astype(p.dtype)


def wrong_nodes(climb: Climb, labels: ArrayLike, hierarchy: Hierarchy) -> np.ndarray:
    """Return bool `[N, L]`: which nodes of the paths are neither the label nor above it."""
    nodes = nodes_of(hierarchy)
    path, truth = nodes.paths[nodes.leaves][np.asarray(climb.leaf)], node_numbers(labels, hierarchy)
    if len(truth) != len(path):
        raise ValueError(f"{len(path)} samples take as many labels; got {len(truth)}")
    return path != nodes.paths[truth]


def calibrate_threshold(
    probs: Probs,
    labels: ArrayLike,
    hierarchy: Hierarchy,
    accuracy: float,
    confidence: float | None = None,
) -> float:
    """Choose the smallest threshold at which new answers are right as often as asked.

    Without `confidence`, the accuracy of new answers is at least `accuracy` on average over
    calibration sets: some sets give less, others more. With it, all but a share 1 - `confidence` of
    the calibration sets give at least `accuracy`. Labels at inner nodes make it a lower bound.

    Args:
      probs: L coherent arrays `[N, N_l]`, as for `stop`, of samples to which neither the
        classifiers nor alpha was fitted.
      labels: integer `[N]`, leaf ids, or `[N, 2]`, nodes (level, class).
      hierarchy: L levels of N_l classes.
      accuracy: t, in (0, 1).
      confidence: 1 - δ, in (0, 1), or None.

    Returns:
      θ for `stop`: 0, or the next number above a critical value in the dtype of `probs`, at least
      float32. It may be above 1, where every answer is the root.

    Raises:
      StoppingError: if N is too small for the guarantee, and for levels that do not agree.
      ValueError: for wrong shapes, and numbers out of range.

    >>> flat = Hierarchy(("class",), (("a", "b"),), ())
    >>> probs = [np.array([[0.6, 0.4], [0.7, 0.3], [0.8, 0.2], [0.9, 0.1]])]
    >>> round(calibrate_threshold(probs, [1, 1, 0, 0], flat, accuracy=0.6), 9)
    0.6
    """
    climb = climb_paths(probs, hierarchy)
    return threshold_above(critical_values(climb, labels, hierarchy), accuracy, confidence)


def threshold_above(
    critical: np.ndarray, accuracy: float, confidence: float | None = None
) -> float:
    """Return the next number above the order statistic of critical values, float `[N]`; or 0."""
    k = order_statistic(len(critical), accuracy, confidence)
    value = np.partition(critical, k - 1)[k - 1]
    return 0.0 if np.isneginf(value) else float(np.nextafter(value, value.dtype.type(np.inf)))


def order_statistic(samples: int, accuracy: float, confidence: float | None = None) -> int:
    """Return which of the sorted critical values the threshold exceeds, from 1 to `samples`.

    Raises:
      StoppingError: if there are too few samples for any.
      ValueError: for an accuracy or a confidence outside (0, 1).

    >>> order_statistic(500, 0.9), order_statistic(500, 0.9, 0.95)
    (451, 462)
    """
    for name, value in (("accuracy", accuracy), ("confidence", confidence)):
        if value is not None and not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1, both excluded; got {value}")
    if confidence is None:
        k = math.ceil(round((samples + 1) * accuracy, 9))  # 10 · 0.7 is 7
        if k > samples:
            needed = math.ceil(round(accuracy / (1 - accuracy), 9))
            raise _too_few(samples, needed, f"a target accuracy of {accuracy:g}")
        return k
    delta = 1 - confidence
    tail = stats.binom.sf(np.arange(samples), samples, accuracy)  # P(Bin ≥ k) of k = 1, 2, …
    enough = tail <= delta * (1 + 1e-9)
    if not enough.any():  # its last is accuracy ** samples
        needed = math.ceil(math.log(delta) / math.log(accuracy) - 1e-9)
        raise _too_few(
            samples,
            needed,
            f"a target accuracy of {accuracy:g} with a confidence of {confidence:g}",
        )
    return int(np.argmax(enough)) + 1


def _too_few(samples: int, needed: int, what: str) -> StoppingError:
    return StoppingError(
        f"{samples} labelled samples are too few for {what}: it needs at least {needed}; label "
        "more, or ask for less"
    )


@dataclasses.dataclass(frozen=True, eq=False)
class RiskCoverage:
    """Risk against coverage at every threshold, in exact steps.

    Coverage is how much the answers say: their mean information, as a share of a leaf's
    (`Nodes.information`). Risk is the share of all samples whose answer is wrong. At θ up to
    `thresholds[0]` they are `coverage[0]` and `risk[0]`, where every answer is a leaf; up to
    `thresholds[i]`, `coverage[i]` and `risk[i]`; and above all thresholds 0 and 0.

    Args:
      thresholds: float `[S]`, increasing: the probabilities at which an answer changes.
      risk: float64 `[S + 1]` in [0, 1].
      coverage: float64 `[S + 1]` in [0, 1].
    """

    thresholds: np.ndarray
    risk: np.ndarray
    coverage: np.ndarray

    @property
    def area(self) -> float:
        """Area under risk as a function of coverage, in [0, 1]; smaller is better.

        Between two steps it is linear: choosing at random between two thresholds attains that.
        """
        return float(-np.sum(np.diff(self.coverage) * (self.risk[:-1] + self.risk[1:]) / 2))

    def at(self, threshold: float) -> tuple[float, float]:
        """Return risk and coverage at a threshold."""
        i = int(np.searchsorted(self.thresholds, round_up(threshold, self.thresholds.dtype)))
        return float(self.risk[i]), float(self.coverage[i])


def risk_coverage(climb: Climb, labels: ArrayLike, hierarchy: Hierarchy) -> RiskCoverage:
    """Return risk against coverage of the answers of `stop` at every threshold.

    Args:
      climb: N paths, N > 0.
      labels: as for `critical_values`.
      hierarchy: the tree.
    """
    nodes = nodes_of(hierarchy)
    said = nodes.information[nodes.paths[nodes.leaves]][np.asarray(climb.leaf)]  # [N, L]
    return _risk_coverage(
        np.asarray(climb.probability), wrong_nodes(climb, labels, hierarchy), said
    )


def flat_risk_coverage(climb: Climb, labels: ArrayLike, hierarchy: Hierarchy) -> RiskCoverage:
    """Return risk against coverage of answers that are a leaf or nothing at all.

    A sample is answered if its most probable leaf has a probability of at least θ. An answer that
    says nothing is the root, so that this compares with `risk_coverage`. Arguments are the same.
    """
    nodes = nodes_of(hierarchy)
    said = nodes.information[nodes.leaves][np.asarray(climb.leaf)][:, None]
    return _risk_coverage(
        np.asarray(climb.probability)[:, -1:], wrong_nodes(climb, labels, hierarchy)[:, -1:], said
    )


def _risk_coverage(p: np.ndarray, wrong: np.ndarray, said: np.ndarray) -> RiskCoverage:
    """Return the curve of N paths.

    Args:
      p: float `[N, D]`, probabilities from the top down, not increasing.
      wrong: bool `[N, D]`, whether the node is wrong: if so, all nodes below it are.
      said: float64 `[N, D]`, the information of each node; the root has 0.
    """
    # Above p[:, d], an answer moves from node d to the node above it.
    none = np.zeros((len(p), 1))
    less_said = said - np.concatenate([none, said[:, :-1]], axis=1)
    less_wrong = wrong - np.concatenate([none, wrong[:, :-1]], axis=1)
    thresholds, step = np.unique(p, return_inverse=True)
    step = step.reshape(-1)
    falls = [np.bincount(step, x.reshape(-1), len(thresholds)) for x in (less_wrong, less_said)]
    # Sum from the end, where both are exactly 0.
    risk, coverage = (np.concatenate([np.cumsum(fall[::-1])[::-1], [0.0]]) for fall in falls)
    most = said.max(initial=0) if said.size else 0
    return RiskCoverage(
        thresholds, risk / len(p), coverage / (len(p) * most) if most else np.zeros_like(coverage)
    )


def check_coherent(levels: Sequence[np.ndarray], hierarchy: Hierarchy) -> None:
    """Raise a StoppingError unless L arrays `[..., N_l]` are coherent probabilities."""
    rows = max(1, BLOCK // sum(hierarchy.sizes))
    flat = [p.reshape(-1, p.shape[-1]) for p in levels]
    below = []  # of each level above the last: the children's order, their ends, and who has some
    for level, parents in enumerate(hierarchy.parents):
        inner = np.flatnonzero(~hierarchy.is_leaf(level))
        order = np.argsort(parents, kind="stable")
        below.append((inner, order, np.searchsorted(parents[order], inner)))
    for start in range(0, len(flat[0]), rows):
        block = [p[start : start + rows] for p in flat]
        total = block[0].sum(axis=1, dtype=np.float64)
        _refuse(
            np.abs(total - 1) <= SUM_TOLERANCE, start, total,
            f"level '{hierarchy.levels[0]}' sums to {{:.6g}}, and probabilities to 1",
        )  # fmt: skip
        for name, p in zip(hierarchy.levels, block, strict=True):
            least = p.min(axis=1)
            _refuse(
                least >= 0,
                start,
                least,
                f"level '{name}' has {{:g}}; probabilities are not negative",
            )
        for level, (inner, order, starts) in enumerate(below):
            upper, lower = block[level][:, inner], block[level + 1][:, order]
            gap = np.abs(np.add.reduceat(lower, starts, axis=1) - upper).max(axis=1)
            pair = f"'{hierarchy.levels[level]}' and '{hierarchy.levels[level + 1]}'"
            _refuse(
                gap <= SUM_TOLERANCE, start, gap,
                f"levels {pair} differ by {{:.3g}} about a class; stopping needs levels that "
                "agree: adapt them with alpha = 1",
            )  # fmt: skip


def _refuse(good: np.ndarray, start: int, values: np.ndarray, message: str) -> None:
    """Raise a StoppingError about the first row that is not good; NaN is never good."""
    if not good.all():
        row = int(np.argmin(good))
        raise StoppingError(f"row {start + row} (from 0): {message.format(values[row])}")


def round_up(threshold: float, dtype: Any) -> Any:
    """Return the smallest number of a dtype that is not below the threshold.

    Comparisons with it are those with the threshold itself, which may have more digits.
    """
    kind = np.dtype(dtype).type
    value = kind(threshold)
    return value if float(value) >= threshold else np.nextafter(value, kind(np.inf))
