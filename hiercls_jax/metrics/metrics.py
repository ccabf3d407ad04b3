"""Metrics of predicted probabilities and classes: sums over samples, divided once, on the host.

`probs` and `labels` are those of any one level, or of the leaves. Of equally probable classes the
one with the lowest index counts as predicted, and comes first among the k most probable. Tree
metrics take leaf ids, `hierarchy.labels`'s argument: fine classes, in a full tree.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from hiercls_jax.adaptation.decision import lca_steps
from hiercls_jax.hierarchy import Hierarchy, check_parents

# Smallest normal float32: what softmax gives for less is 0 on most devices. Costs 87.3 nats.
PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)
BINS = 15  # of the calibration error, as Guo et al. (ICML 2017) have it


# One level.


def topk_error(probs, labels, k: int = 1) -> float:
    """Return the share of samples whose label is not among their k most probable classes.

    Args:
      probs: float `[N, K]`, probabilities or any scores.
      labels: integer `[N]` in `[0, K)`.
      k: from 1 to K.

    >>> topk_error([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2]], [2, 1])
    1.0
    >>> topk_error([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2]], [2, 1], k=2)
    0.0
    """
    probs, labels = check_scores(probs, labels)
    _check_k(k, probs.shape[1])
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    before = np.count_nonzero(probs > own, axis=1)
    tied = (probs == own) & (np.arange(probs.shape[1]) < labels[:, None])
    return _mean(before + np.count_nonzero(tied, axis=1) >= k)


def negative_log_likelihood(probs, labels) -> float:
    """Return the mean over samples of -ln p(label), in nats.

    Args:
      probs: float `[N, K]`, non-negative; a probability below `PROBABILITY_FLOOR` counts as that.
      labels: integer `[N]` in `[0, K)`.
    """
    probs, labels = check_scores(probs, labels)
    own = probs[np.arange(len(labels)), labels].astype(np.float64)
    return _mean(-np.log(np.maximum(own, PROBABILITY_FLOOR)))


def brier_score(probs, labels) -> float:
    """Return the mean over samples of Σ_k (p_k - y_k)², y being 1 for the label and else 0.

    From 0 to 2: the original form of Brier (Monthly Weather Review, 1950), with all classes
    summed; for two classes it is twice the score of one of them.

    Args:
      probs: float `[N, K]`, non-negative, sums to 1 over the last axis.
      labels: integer `[N]` in `[0, K)`.
    """
    probs, labels = check_scores(probs, labels)
    residual = probs.copy()
    residual[np.arange(len(labels)), labels] -= 1
    return float(np.einsum("nk,nk->", residual, residual, dtype=np.float64)) / len(labels)


class Reliability(NamedTuple):
    """A reliability diagram: what is said and what is so, over bins of equal width.

    Args:
      confidence: float64 `[bins]`, mean probability of the predicted class; NaN where empty.
      accuracy: float64 `[bins]`, share of right predictions; NaN where empty.
      count: int64 `[bins]`, number of samples.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray


def reliability(probs, labels, bins: int = BINS) -> Reliability:
    """Return accuracy against confidence, the probability of the predicted class.

    Bin b of B holds the confidences in (b/B, (b+1)/B], the first also 0: Guo, Pleiss, Sun and
    Weinberger, On Calibration of Modern Neural Networks (ICML 2017), Section 2.

    Args:
      probs: float `[N, K]` in [0, 1].
      labels: integer `[N]` in `[0, K)`.
      bins: number of bins B, at least 1.
    """
    probs, labels = check_scores(probs, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence = probs.max(axis=1)
    if confidence.max() > 1 + 1e-3 or probs.min() < 0:  # room for float16's sums
        raise ValueError(
            f"probabilities lie in [0, 1], these in [{probs.min():g}, {confidence.max():g}]; "
            "take the softmax of logits first"
        )
    # In the type of the probabilities, so that a float32 0.2 lies on the edge that 1/5 is.
    edges = np.linspace(0, 1, bins + 1).astype(probs.dtype)[1:-1]
    bin_of = np.searchsorted(edges, confidence, side="left")
    count = np.bincount(bin_of, minlength=bins)

    def mean(values):
        total = np.bincount(bin_of, weights=values, minlength=bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(mean(confidence), mean(probs.argmax(axis=1) == labels), count)


def expected_calibration_error(probs, labels, bins: int = BINS) -> float:
    """Return Σ_b n_b/N |accuracy_b - confidence_b| over the bins of `reliability`.

    Guo et al. (ICML 2017), Section 2, equation 3.

    Args:
      probs: float `[N, K]` in [0, 1].
      labels: integer `[N]` in `[0, K)`.
      bins: number of bins of equal width.
    """
    confidence, accuracy, count = reliability(probs, labels, bins)
    gap = count * np.abs(accuracy - confidence)
    return float(np.nansum(gap)) / int(count.sum())


# Levels against each other.


def child_sums(p_lower, parents) -> np.ndarray:
    """Return Q, float64 `[N, C]`: the probability of each class by the sum of its children.

    Args:
      p_lower: float `[N, F]`.
      parents: integer `[F]` in `[0, C)`; every class has a child.
    """
    p_lower, parents = np.asarray(p_lower), np.asarray(parents)
    if p_lower.ndim != 2 or parents.shape != p_lower.shape[1:]:
        raise ValueError(
            f"p_lower is [N, F] and parents [F]; got {list(p_lower.shape)} and "
            f"{list(parents.shape)}"
        )
    parents = check_parents(parents, parents.max(initial=-1) + 1, "parents")
    order = np.argsort(parents, kind="stable")
    starts = np.searchsorted(parents[order], np.arange(parents.max() + 1))
    return np.add.reduceat(p_lower[:, order], starts, axis=1, dtype=np.float64)


def coherence_gap(p_upper, p_lower, parents) -> float:
    """Return the mean over samples of Σ_i |P_i - Q_i| / 2, the mass on which two levels disagree.

    Args:
      p_upper: float `[N, C]`, probabilities.
      p_lower: float `[N, F]`, probabilities.
      parents: integer `[F]` in `[0, C)`; every class has a child.
    """
    q = child_sums(p_lower, parents)
    if np.shape(p_upper) != q.shape:
        raise ValueError(
            f"p_upper is [N, C], by p_lower and parents {list(q.shape)}; got "
            f"{list(np.shape(p_upper))}"
        )
    return _mean(np.abs(np.asarray(p_upper) - q).sum(axis=1)) / 2


def coherence_gaps(probs: Sequence, hierarchy: Hierarchy) -> dict[str, float]:
    """Return the `coherence_gap` of each pair of neighbouring levels, by 'upper/lower'.

    Args:
      probs: L float arrays `[N, K_l]` over the levels' cuts, coarsest first.
      hierarchy: L levels.
    """
    pairs = zip(hierarchy.levels, hierarchy.levels[1:], strict=False)
    return {
        f"{upper}/{lower}": coherence_gap(probs[i], probs[i + 1], hierarchy.cut_parents(i))
        for i, (upper, lower) in enumerate(pairs)
    }


def consistency_rate(probs: Sequence, hierarchy: Hierarchy) -> float:
    """Return the share of samples whose most probable classes lie on one path of the tree.

    At every level but the last, the most probable class is the parent of the next level's.

    Args:
      probs: L float arrays `[N, K_l]` over the levels' cuts, coarsest first.
      hierarchy: L levels.
    """
    if len(probs) != hierarchy.num_levels:
        raise ValueError(f"{len(probs)} arrays for {hierarchy.num_levels} levels")
    probs = [np.asarray(p) for p in probs]
    wanted = [(len(probs[0]), len(hierarchy.cut(level))) for level in range(len(probs))]
    if [p.shape for p in probs] != wanted or not probs[0].size:
        raise ValueError(f"probs are {wanted}, N > 0; got {[p.shape for p in probs]}")
    predicted = [p.argmax(axis=1) for p in probs]
    consistent = np.ones(len(probs[0]), bool)
    for level, (upper, lower) in enumerate(zip(predicted, predicted[1:], strict=False)):
        consistent &= hierarchy.cut_parents(level)[lower] == upper
    return _mean(consistent)


# Leaves in the tree.


def hierarchical_scores(predicted, labels, hierarchy: Hierarchy) -> dict[str, float]:
    """Return hierarchical precision, recall and F1 of leaves, micro-averaged.

    With the set of a leaf and its ancestors, the root left out, in place of the leaf: precision
    is Σ |predicted ∩ true| / Σ |predicted|, recall Σ |predicted ∩ true| / Σ |true|, sums over the
    samples; F1 is their harmonic mean. In a full tree the three are equal: the mean over the
    levels of the accuracy that the predicted leaves have there.

    Kiritchenko, Matwin and Famili, Functional Annotation of Genes Using Hierarchical Text
    Categorization (2005); Silla and Freitas, A survey of hierarchical classification across
    different application domains (Data Mining and Knowledge Discovery, 2011), Section 5.

    Args:
      predicted: integer `[N]`, leaf ids.
      labels: integer `[N]`, leaf ids.
      hierarchy: the tree.

    Returns:
      `precision`, `recall` and `f1`.
    """
    predicted, labels = _check_leaves(predicted, labels)
    common = num_predicted = num_true = 0
    pairs = zip(hierarchy.labels(predicted), hierarchy.labels(labels), strict=True)
    for size, (a, b) in zip(hierarchy.sizes, pairs, strict=True):
        # From `size` on, a cut repeats leaves of the levels above.
        common += int(np.sum((a == b) & (a < size)))
        num_predicted += int(np.sum(a < size))
        num_true += int(np.sum(b < size))
    return {
        "precision": common / num_predicted,
        "recall": common / num_true,
        "f1": 2 * common / (num_predicted + num_true),
    }


def lca_height(a, b, hierarchy: Hierarchy) -> np.ndarray:
    """Return the height of the lowest common ancestor of leaves a and b, that of a leaf being 0.

    See `lca_steps`: in a full tree the number of levels at which a and b have different classes.

    Args:
      a: integer `[...]`, leaf ids.
      b: integer, leaf ids; broadcasts against `a`.
      hierarchy: the tree.

    Returns:
      int64, of the shape of `a` and `b` broadcast.
    """
    height = np.int64(0)
    levels = zip(lca_steps(hierarchy), hierarchy.labels(a), hierarchy.labels(b), strict=True)
    for step, at_a, at_b in levels:
        height = height + step[at_a] * (at_a != at_b)
    return height


def mistake_severity(predicted, labels, hierarchy: Hierarchy) -> float | None:
    """Return the mean height of the lowest common ancestor of prediction and label over mistakes.

    Bertinetto, Mueller, Tertikas, Samangooei and Lord, Making Better Mistakes: Leveraging Class
    Hierarchies With Deep Networks (CVPR 2020), Section 4.

    Args:
      predicted: integer `[N]`, leaf ids.
      labels: integer `[N]`, leaf ids.
      hierarchy: the tree.

    Returns:
      From 1 to L in a full tree; None where nothing is mistaken, and there is nothing to average.
    """
    predicted, labels = _check_leaves(predicted, labels)
    heights = lca_height(predicted, labels, hierarchy)
    mistakes = int(np.count_nonzero(heights))
    return int(heights.sum()) / mistakes if mistakes else None


def hierarchical_distance(scores, labels, hierarchy: Hierarchy, k: int = 1) -> float:
    """Return the mean height of the lowest common ancestor of the label and each of the k best.

    Hierarchical distance@k of Bertinetto et al. (CVPR 2020): over samples and the k leaves with
    the highest scores. For k > 1 the best possible value is not 0.

    Args:
      scores: float `[N, K]` over leaves: probabilities, or minus expected costs, such as
        `-expected_lca_height(...)`.
      labels: integer `[N]`, leaf ids.
      hierarchy: the tree, of K leaves.
      k: from 1 to K.
    """
    scores, labels = check_scores(scores, labels)
    _check_k(k, scores.shape[1])
    if scores.shape[1] != hierarchy.num_leaves:
        raise ValueError(
            f"scores {list(scores.shape)} for a hierarchy of {hierarchy.num_leaves} leaves"
        )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return _mean(lca_height(best, labels[:, None], hierarchy))


def _mean(values: np.ndarray) -> float:
    return float(values.sum(dtype=np.float64)) / values.size


def check_scores(probs, labels) -> tuple[np.ndarray, np.ndarray]:
    """Return scores of at least float32 `[N, K]` and labels `[N]`, checked; raise a ValueError."""
    probs, labels = np.asarray(probs), np.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not probs.size:
        raise ValueError(
            f"probs is [N, K] and labels [N], N and K > 0; got {list(probs.shape)} and "
            f"{list(labels.shape)}"
        )
    _check_integers(labels)
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(
            f"label {bad} is out of range: probs {list(probs.shape)} has classes 0 "
            f"to {probs.shape[1] - 1}"
        )
    if np.isnan(probs).any():
        row, column = np.argwhere(np.isnan(probs))[0]
        raise ValueError(f"probs[{row}, {column}] is NaN")
    return probs.astype(np.result_type(probs, np.float32), copy=False), labels


def _check_leaves(predicted, labels) -> tuple[np.ndarray, np.ndarray]:
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape or not len(labels):
        raise ValueError(
            f"predicted and labels are [N], N > 0; got {list(predicted.shape)} and "
            f"{list(labels.shape)}"
        )
    _check_integers(predicted)
    _check_integers(labels)
    return predicted, labels


def _check_integers(ids) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"labels and predictions are integers, not {ids.dtype}")


def _check_k(k: int, num_classes: int) -> None:
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must lie in [1, {num_classes}], the number of classes; got {k}")
