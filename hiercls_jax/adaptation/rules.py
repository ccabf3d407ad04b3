"""Rules that make the levels of a hierarchy agree, behind one interface.

A rule maps the levels' probabilities to a coherent target, and alpha interpolates between the two.
`RULES[name].adjust(probs, hierarchy, alpha)` does both. The levels are those of `adjust_tree`: for
each an array `[..., N_l]` of non-negative marginals, which sums to 1 together with the leaves above
the level. A leaf above the last level stands for its own only child at every level below.

    rule                           target
    -----------------------------  -----------------------------------------------------------------
    kl (Algorithm 1, adjust_tree)  nearest to all levels in Kullback-Leibler divergence
    bottom_up                      of a class: the sum of its leaves; other levels are ignored
    top_down                       of a class: its share among its siblings of the parent's target
    product_of_experts             of a leaf: the product of its and its ancestors' probabilities
    geometric_pooling              of a leaf: their weighted geometric mean
    euclidean_projection           nearest to both levels in Euclidean distance

A new rule is a function of (probs, hierarchy) and a line in `RULES`.

>>> pets = Hierarchy(("kind", "animal"), (("cat", "dog"), ("lynx", "lion", "pug")), ((0, 0, 1),))
>>> probs = [[0.75, 0.25], [0.375, 0.125, 0.5]]
>>> [p.tolist() for p in RULES["top_down"].adjust(probs, pets, alpha=1.0)]
[[0.75, 0.25], [0.5625, 0.1875, 0.25]]
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.checks import check_alpha, check_levels, check_weights
from hiercls_jax.adaptation.layout import Levels, classes_first
from hiercls_jax.adaptation.log_tree import log_group_sum, safe_log
from hiercls_jax.adaptation.share import Ids, column, share_of_group
from hiercls_jax.adaptation.tree import (
    adjust_tree,
    coherent_target,
    interpolate,
    largest_alpha,
    leaves,
)
from hiercls_jax.hierarchy import Hierarchy

Probs = Sequence[ArrayLike]
Parents = Sequence[Ids]
IsLeaf = Sequence[np.ndarray]
Weights = ArrayLike | None


def bottom_up(probs: Probs, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Sum the leaves' probabilities upward; the levels above the leaves are ignored.

    This is the "flat softmax", hard to beat according to Valmadre, *Hierarchical classification at
    multiple operating points* (NeurIPS 2022).

    Args:
      probs: L arrays `[..., N_l]` of marginals, coarsest level first.
      hierarchy: L levels of N_l classes.

    Returns:
      L coherent arrays of the shapes of `probs`.

    Raises:
      ValueError: for a wrong number or shape of arrays.
    """
    return _bottom_up(check_levels(probs, hierarchy), hierarchy.parents, leaves(hierarchy))


def top_down(probs: Probs, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Share every class's target among its children, in the ratios of their own probabilities.

    The first level keeps its probabilities. The target of a class below is its parent's target
    times its probability given the parent, as along the WordTree of Redmon and Farhadi, *YOLO9000:
    Better, Faster, Stronger* (CVPR 2017, Section 4). Siblings without mass share equally.

    Arguments, result and errors are those of `bottom_up`.
    """
    return _top_down(check_levels(probs, hierarchy), hierarchy.parents)


def product_of_experts(probs: Probs, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Give each leaf the product, over all levels, of its own and its ancestors' probabilities.

    For two levels this is f_j · P_s(j), renormalised: the Hierarchical Ensembles of Jain, Karthik
    and Gandhi, *Test-Time Amendment with a Coarse Classifier for Fine-Grained Classification*
    (NeurIPS 2023). Classes above the leaves get the sums of their leaves. A sample in which every
    leaf's product is 0 gets the target of the rule `kl`.

    Arguments, result and errors are those of `bottom_up`.
    """
    return _pool(probs, hierarchy, None, np.ones(hierarchy.num_levels))


def geometric_pooling(
    probs: Probs, hierarchy: Hierarchy, weights: Weights = None
) -> tuple[jax.Array, ...]:
    """Give each leaf the weighted geometric mean of its own and its ancestors' probabilities.

    This is the logarithmic opinion pool of the levels, ∝ Π_l P_l^(w_l / W) with W = Σ w: Genest and
    Zidek, *Combining Probability Distributions: A Critique and an Annotated Bibliography*
    (Statistical Science 1986, Section 3). Classes above the leaves get the sums of their leaves. A
    sample in which every leaf's product is 0 gets the target of the rule `kl` with these weights.

    Arguments, result and errors are those of `bottom_up`; `weights` are those of `adjust_tree`.
    """
    shares = check_weights(weights, hierarchy.num_levels)
    return _pool(probs, hierarchy, weights, shares / shares.sum())


def euclidean_projection(probs: Probs, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Project two levels onto the coherent simplex, the nearest levels p, g that agree.

    Minimises Σ_i (P_i - p_i)² + Σ_j (f_j - g_j)² over g ≥ 0, Σ_j g_j = 1, p_i = Σ_{s(j)=i} g_j:
    least-squares reconciliation under non-negativity, as in Wickramasuriya, Turlach and Hyndman,
    *Optimal non-negative forecast reconciliation* (Statistics and Computing 2020). Two sorts solve
    it exactly, as they do for the projection onto the simplex.

    By Lagrange multipliers the minimum is g_j = max(f_j + τ_i, 0), i = s(j), with τ_i from
    τ_i + Σ_{j in i} max(f_j + τ_i, 0) = P_i + λ, and λ such that the g sum to 1. p_i(λ) is
    piecewise linear: if the k greatest g of the group are above 0 and their f sum to A, it is
    p_i = (A + k (P_i + λ)) / (1 + k), and the next one joins at λ = A - (k + 1) f - P_i.

    Args:
      probs: 2 arrays `[..., N_l]` of marginals, coarse and fine.
      hierarchy: 2 levels of N_l classes.

    Returns:
      2 arrays of the shapes of `probs`, non-negative and coherent, that sum to 1.

    Raises:
      ValueError: for a hierarchy of more or fewer than two levels, and as `bottom_up`.
    """
    _check_two_levels(hierarchy)
    levels = check_levels(probs, hierarchy)
    shallow = np.flatnonzero(leaves(hierarchy)[0])
    return _project(levels, np.concatenate([hierarchy.parents[0], shallow]), shallow)


class Rule(Protocol):
    """A rule that makes levels agree: its target, and adaptation by it.

    Every method raises a ValueError for a hierarchy that the rule cannot adapt, and for weights if
    the rule takes none.
    """

    @property
    def takes_weights(self) -> bool:
        """Whether the rule takes a weight for each level."""
        ...

    def target(
        self, probs: Probs, hierarchy: Hierarchy, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        """Return the coherent levels to which alpha = 1 leads.

        Args:
          probs: L arrays `[..., N_l]` of marginals, coarsest level first.
          hierarchy: L levels of N_l classes.
          weights: L non-negative numbers, or None for equal weights.

        Returns:
          L arrays of the shapes of `probs`.
        """
        ...

    def largest_alpha(self, hierarchy: Hierarchy, weights: Weights = None) -> tuple[float, ...]:
        """Return the largest alpha of each level, up to which no probability is negative."""
        ...

    def adjust(
        self, probs: Probs, hierarchy: Hierarchy, alpha: ArrayLike, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        """Return (1-α) probs + α target.

        Args:
          probs, hierarchy, weights: as for `target`.
          alpha: one number for all levels, or L of them, from 0 to `largest_alpha`. The range is
            checked unless `alpha` is traced.

        Returns:
          L arrays of the shapes of `probs`.
        """
        ...


class _AlgorithmOne:
    """The rule `kl`: `adjust_tree`, which cancels nothing and goes beyond alpha = 1."""

    takes_weights = True

    def target(
        self, probs: Probs, hierarchy: Hierarchy, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        return coherent_target(probs, hierarchy, weights)

    def largest_alpha(self, hierarchy: Hierarchy, weights: Weights = None) -> tuple[float, ...]:
        return largest_alpha(hierarchy.num_levels, weights)

    def adjust(
        self, probs: Probs, hierarchy: Hierarchy, alpha: ArrayLike, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        return adjust_tree(probs, hierarchy, alpha, weights)


@dataclasses.dataclass(frozen=True)
class _Interpolation:
    """A rule given by its target: it interpolates between levels and target, up to alpha = 1.

    Args:
      function: returns the target of (probs, hierarchy), or of (probs, hierarchy, weights).
      takes_weights: whether `function` takes weights.
      two_levels_only: whether `function` rejects deeper hierarchies.
    """

    function: Callable[..., tuple[jax.Array, ...]]
    takes_weights: bool = False
    two_levels_only: bool = False

    def target(
        self, probs: Probs, hierarchy: Hierarchy, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        self._check(hierarchy, weights)
        if weights is None:
            return self.function(probs, hierarchy)
        return self.function(probs, hierarchy, weights)

    def largest_alpha(self, hierarchy: Hierarchy, weights: Weights = None) -> tuple[float, ...]:
        self._check(hierarchy, weights)
        return (1.0,) * hierarchy.num_levels

    def adjust(
        self, probs: Probs, hierarchy: Hierarchy, alpha: ArrayLike, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        check_alpha(alpha, self.largest_alpha(hierarchy, weights))
        levels = check_levels(probs, hierarchy)
        return interpolate(levels, self.target(levels, hierarchy, weights), alpha)

    def _check(self, hierarchy: Hierarchy, weights: Weights) -> None:
        if weights is not None and not self.takes_weights:
            rule = self.function.__name__
            raise ValueError(f"{rule=} takes no weights; leave weights=None")
        if self.two_levels_only:
            _check_two_levels(hierarchy)


def _check_two_levels(hierarchy: Hierarchy) -> None:
    if hierarchy.num_levels != 2:
        raise ValueError(
            "the Euclidean projection is for two levels, this hierarchy has "
            f"{hierarchy.num_levels}; use the rule 'kl' for any depth"
        )


RULES: dict[str, Rule] = {
    "kl": _AlgorithmOne(),
    "bottom_up": _Interpolation(bottom_up),
    "top_down": _Interpolation(top_down),
    "product_of_experts": _Interpolation(product_of_experts),
    "geometric_pooling": _Interpolation(geometric_pooling, takes_weights=True),
    "euclidean_projection": _Interpolation(euclidean_projection, two_levels_only=True),
}


@classes_first
def _bottom_up(levels: Levels, parents: Parents, is_leaf: IsLeaf) -> Levels:
    return _sum_leaves(levels, parents, is_leaf)


def _sum_leaves(levels: Levels, parents: Parents, is_leaf: IsLeaf) -> list[jax.Array]:
    """Return levels in which leaves keep their masses and every other class has its leaves' sum."""
    sums = [levels[-1]]
    for p, s, leaf in reversed(list(zip(levels[:-1], parents, is_leaf[:-1], strict=True))):
        children = jax.ops.segment_sum(sums[0], s, len(p))
        sums.insert(0, jnp.where(column(leaf, p), p, children))
    return sums


@classes_first
def _top_down(levels: Levels, parents: Parents) -> Levels:
    target = [levels[0]]
    for p, s in zip(levels[1:], parents, strict=True):
        target.append(target[-1][s] * share_of_group(p, s, len(target[-1])))
    return target


def _pool(
    probs: Probs, hierarchy: Hierarchy, weights: Weights, exponents: np.ndarray
) -> tuple[jax.Array, ...]:
    levels = check_levels(probs, hierarchy)
    exponents = exponents.astype(levels[0].dtype)
    pooled = _pooled(levels, hierarchy.parents, leaves(hierarchy), exponents)
    any_mass = jnp.any(pooled[0] > 0, axis=-1, keepdims=True)
    fallback = coherent_target(levels, hierarchy, weights)
    return tuple(jnp.where(any_mass, p, t) for p, t in zip(pooled, fallback, strict=True))


@classes_first
def _pooled(
    levels: Levels, parents: Parents, is_leaf: IsLeaf, exponents: jax.Array | np.ndarray
) -> Levels:
    """Pool in logarithms; return zeros for a sample in which every leaf's product is 0."""

    def power(x: jax.Array, exponent: jax.Array) -> jax.Array:
        return jnp.where(exponent > 0, exponent * x, 0)  # 0 · -inf would be NaN

    path = jnp.zeros_like(levels[0])
    scores_by_level = []
    for i, p in enumerate(levels):
        above = path if i == 0 else path[parents[i - 1]]
        x = safe_log(p)
        as_leaf = above + power(x, jnp.sum(exponents[i:]))
        scores_by_level.append(jnp.where(column(is_leaf[i], x), as_leaf, -jnp.inf))
        path = above + power(x, exponents[i])
    scores = jnp.concatenate(scores_by_level)
    total = log_group_sum(scores, jnp.zeros(len(scores), jnp.int32), 1)
    masses = jnp.exp(scores - jnp.where(jnp.isneginf(total), 0, total))
    ends = np.cumsum([len(p) for p in levels])[:-1]
    return _sum_leaves(jnp.split(masses, ends), parents, is_leaf)


@classes_first
def _project(levels: Levels, s: Ids, shallow: np.ndarray) -> Levels:
    coarse, fine = levels
    num_fine, num_coarse = len(fine), len(coarse)
    fine = jnp.concatenate([fine, coarse[shallow]])  # a shallow leaf is its own only child
    # Order the fine classes by group, the greatest of each first. `rank` siblings join before each.
    group = jnp.broadcast_to(column(s, fine), fine.shape)
    sizes = jax.ops.segment_sum(jnp.ones_like(s), s, num_coarse)
    start = jnp.repeat(jnp.cumsum(sizes) - sizes, sizes, total_repeat_length=len(s))
    rank = column(jnp.arange(len(s)) - start, fine).astype(fine.dtype)
    _, down = jax.lax.sort((group, -fine), dimension=0, num_keys=2)
    ordered, s_ordered = -down, jnp.sort(s)
    before = jnp.cumsum(ordered, axis=0) - ordered
    # The λ at which each class joins: A - (k + 1) f - P_i, with k = rank.
    joins = before - before[start] - (rank + 1) * ordered - coarse[s_ordered]
    # Compute Σ p_i(λ) at every λ at which a class joins, which raises the slope of the sum by
    # (k + 1) / (k + 2) - k / (k + 1). The classes that join up to the last λ with a sum below 1 are
    # above 0.
    gain = jnp.broadcast_to(1 / ((rank + 1) * (rank + 2)), fine.shape)
    points, gain = jax.lax.sort((joins, gain), dimension=0, num_keys=1)
    rises = jnp.cumsum(gain, axis=0)[:-1] * jnp.diff(points, axis=0)
    reached = jnp.concatenate([jnp.zeros_like(points[:1]), jnp.cumsum(rises, axis=0)])
    last = jnp.max(jnp.where(reached < 1, points, -jnp.inf), axis=0, keepdims=True)
    active = (joins <= last).astype(fine.dtype)
    k = jax.ops.segment_sum(active, s_ordered, num_coarse)
    mass = jax.ops.segment_sum(active * ordered, s_ordered, num_coarse)
    at_zero, slope = (mass + k * coarse) / (1 + k), k / (1 + k)  # p_i(λ) = at_zero + slope · λ
    multiplier = 1 - jnp.sum(at_zero, axis=0, keepdims=True)
    multiplier = multiplier / jnp.sum(slope, axis=0, keepdims=True)
    shifted = fine + ((coarse + multiplier - mass) / (1 + k))[s]
    projected = jnp.where(shifted > 0, shifted, 0)
    return jax.ops.segment_sum(projected, s, num_coarse), projected[:num_fine]
