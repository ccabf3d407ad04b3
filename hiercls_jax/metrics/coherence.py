"""Measures of the levels against each other."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.hierarchy import Hierarchy, check_parents
from hiercls_jax.metrics.checks import mean


def child_sums(p_lower: ArrayLike, parents: ArrayLike) -> np.ndarray:
    """Return Q, float64 `[N, C]`: the sum of the probabilities of each class's children.

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


def coherence_gap(p_upper: ArrayLike, p_lower: ArrayLike, parents: ArrayLike) -> float:
    """Return the mean over samples of Σ_i |P_i - Q_i| / 2, the mass on which two levels disagree.

    Args:
      p_upper: float `[N, C]`, probabilities.
      p_lower: float `[N, F]`, probabilities.
      parents: integer `[F]` in `[0, C)`; every class has a child.
    """
    q = child_sums(p_lower, parents)
    if np.shape(p_upper) != q.shape:
        raise ValueError(
            f"p_upper is [N, C], which p_lower and parents make {list(q.shape)}; got "
            f"{list(np.shape(p_upper))}"
        )
    return mean(np.abs(np.asarray(p_upper) - q).sum(axis=1)) / 2


def coherence_gaps(probs: Sequence[ArrayLike], hierarchy: Hierarchy) -> dict[str, float]:
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


def consistency_rate(probs: Sequence[ArrayLike], hierarchy: Hierarchy) -> float:
    """Return the share of samples whose most probable classes lie on one path of the tree.

    At every level but the last, the most probable class is the parent of the next level's.

    Args:
      probs: L float arrays `[N, K_l]` over the levels' cuts, coarsest first.
      hierarchy: L levels.
    """
    if len(probs) != hierarchy.num_levels:
        raise ValueError(
            f"{len(probs)} arrays for {hierarchy.num_levels} levels; give one for each level"
        )
    cuts = [np.asarray(p) for p in probs]
    wanted = [(len(cuts[0]), len(hierarchy.cut(level))) for level in range(len(cuts))]
    if [p.shape for p in cuts] != wanted or not cuts[0].size:
        raise ValueError(f"probs are {wanted}, N > 0; got {[p.shape for p in cuts]}")
    predicted = [p.argmax(axis=1) for p in cuts]
    pairs = enumerate(zip(predicted, predicted[1:], strict=False))
    agree = [hierarchy.cut_parents(level)[lower] == upper for level, (upper, lower) in pairs]
    return mean(np.all(agree, axis=0))
