"""Measures of leaves in the tree: how far a mistake goes.

Predictions and labels are leaf ids, the argument of `Hierarchy.labels`: fine classes, in a full
tree.
"""

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.expected_height import lca_steps
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics.checks import check_k, check_leaves, check_scores, mean


def lca_height(a: ArrayLike, b: ArrayLike, hierarchy: Hierarchy) -> np.ndarray:
    """Return the height of the lowest common ancestor of leaves a and b; a leaf has height 0.

    In a full tree, the number of levels at which a and b have different classes (`lca_steps`).

    Args:
      a: integer `[...]`, leaf ids.
      b: integer, leaf ids; broadcasts against `a`.
      hierarchy: the tree.

    Returns:
      int64, of the shape of `a` and `b` broadcast.
    """
    height = np.zeros((), np.int64)
    levels = zip(lca_steps(hierarchy), hierarchy.labels(a), hierarchy.labels(b), strict=True)
    for step, at_a, at_b in levels:
        height = height + step[at_a] * (at_a != at_b)
    return height


def mistake_severity(predicted: ArrayLike, labels: ArrayLike, hierarchy: Hierarchy) -> float | None:
    """Return the mean height of the lowest common ancestor of prediction and label over mistakes.

    Bertinetto, Mueller, Tertikas, Samangooei and Lord, Making Better Mistakes: Leveraging Class
    Hierarchies With Deep Networks (CVPR 2020), Section 4.

    Args:
      predicted: integer `[N]`, leaf ids.
      labels: integer `[N]`, leaf ids.
      hierarchy: the tree.

    Returns:
      From 1 to L in a full tree; None if there are no mistakes.
    """
    predicted, labels = check_leaves(predicted, labels)
    heights = lca_height(predicted, labels, hierarchy)
    mistakes = int(np.count_nonzero(heights))
    return int(heights.sum()) / mistakes if mistakes else None


def hierarchical_distance(
    scores: ArrayLike, labels: ArrayLike, hierarchy: Hierarchy, k: int = 1
) -> float:
    """Return the mean height of the lowest common ancestor of the label and each of the k best.

    Hierarchical distance@k of Bertinetto et al. (CVPR 2020), averaged over the samples and the k
    leaves with the highest scores. For k > 1 the best possible value is above 0.

    Args:
      scores: float `[N, K]` over leaves: probabilities, or minus expected costs, such as
        `-expected_lca_height(...)`.
      labels: integer `[N]`, leaf ids.
      hierarchy: the tree, of K leaves.
      k: from 1 to K.
    """
    scores, labels = check_scores(scores, labels)
    check_k(k, scores.shape[1])
    if scores.shape[1] != hierarchy.num_leaves:
        raise ValueError(
            f"scores {list(scores.shape)} for a hierarchy of {hierarchy.num_leaves} leaves; scores "
            "are [N, K], one for each leaf"
        )
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return mean(lca_height(best, labels[:, None], hierarchy))
