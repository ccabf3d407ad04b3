"""Rules that make the levels of a hierarchy agree, behind one interface, to be compared.

A rule maps the levels' probabilities to a coherent target, in which every class has the mass of its
children; `interpolate(probs, target, alpha)` leads from the one to the other. Each rule takes what
`adjust_tree` takes: one array `[..., N_l]` per level of non-negative marginals, each level summing
to 1 together with the leaves above it, of which a leaf above the last level stands for its own only
child at every level below.

    rule                             the target of a class
    -------------------------------  ---------------------------------------------------------------
    kl (Algorithm 1, adjust_tree)    nearest to all levels in Kullback-Leibler divergence
    bottom_up                        the sum of its leaves; the other levels do not count
    top_down                         its share among its siblings, of its parent's target
    product_of_experts               every leaf the product of its ancestors' probabilities and its
    geometric_pooling                the same of their weighted geometric mean
    euclidean_projection             nearest to both levels in Euclidean distance
"""

import dataclasses
from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from hiercls_jax.adaptation.adjust import share_of_group
from hiercls_jax.adaptation.layout import classes_first
from hiercls_jax.adaptation.log_tree import log_group_sum, safe_log
from hiercls_jax.adaptation.tree import (
    adjust_tree,
    check_alpha,
    check_levels,
    check_weights,
    coherent_target,
    column,
    interpolate,
    largest_alpha,
    leaves,
)
from hiercls_jax.hierarchy import Hierarchy

Levels = Sequence[ArrayLike]
Weights = Sequence[float] | None


def bottom_up(probs: Sequence, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Sum the leaves' probabilities upward; the levels above the leaves do not count.

    The "flat softmax" that Valmadre finds hard to beat: *Hierarchical classification at multiple
    operating points* (NeurIPS 2022).

    Args:
      probs: L arrays `[..., N_l]` of marginals, coarsest level first.
      hierarchy: L levels of N_l classes.

    Returns:
      L arrays of the shapes of `probs`, coherent.
    """
    return _bottom_up(check_levels(probs, hierarchy), hierarchy.parents, leaves(hierarchy))


def top_down(probs: Sequence, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Share every class's target among its children, in the ratios of their own probabilities.

    The first level keeps its probabilities; a class below has its parent's target times its
    probability given its parent, as along the WordTree of Redmon and Farhadi, *YOLO9000: Better,
    Faster, Stronger* (CVPR 2017, Section 4). Siblings without mass share equally.

    Arguments and result as of `bottom_up`.
    """
    return _top_down(check_levels(probs, hierarchy), hierarchy.parents)


def product_of_experts(probs: Sequence, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Give each leaf the product, over all levels, of its own and its ancestors' probabilities.

    For two levels f_j · P_s(j), renormalised: the Hierarchical Ensembles of Jain, Karthik and
    Gandhi, *Test-Time Amendment with a Coarse Classifier for Fine-Grained Classification* (NeurIPS
    2023). Classes above the leaves have the sums of their leaves. A sample whose levels leave no
    leaf a product above 0 has the target of the `kl` rule.

    Arguments and result as of `bottom_up`.
    """
    return _pool(probs, hierarchy, None, np.ones(hierarchy.num_levels))


def geometric_pooling(
    probs: Sequence, hierarchy: Hierarchy, weights: Sequence[float] | None = None
) -> tuple[jax.Array, ...]:
    """Give each leaf the weighted geometric mean of its own and its ancestors' probabilities.

    The logarithmic opinion pool of the levels, ∝ Π_l P_l^(w_l / W) with W = Σ w: Genest and Zidek,
    *Combining Probability Distributions: A Critique and an Annotated Bibliography* (Statistical
    Science 1986, Section 3). Classes above the leaves have the sums of their leaves. A sample whose
    levels leave no leaf a product above 0 has the target of the `kl` rule with these weights.

    Arguments and result as of `bottom_up`; `weights` as in `adjust_tree`.
    """
    shares = check_weights(weights, hierarchy.num_levels)
    return _pool(probs, hierarchy, weights, shares / shares.sum())


def euclidean_projection(probs: Sequence, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Project two levels onto the coherent simplex: the nearest levels p, g that agree.

    Minimises Σ_i (P_i - p_i)² + Σ_j (f_j - g_j)² over g ≥ 0, Σ_j g_j = 1, p_i = Σ_{s(j)=i} g_j:
    least-squares reconciliation under non-negativity, as in Wickramasuriya, Turlach and Hyndman,
    *Optimal non-negative forecast reconciliation* (Statistics and Computing 2020), here solved
    exactly by two sorts, as is the projection onto the simplex.

    With multipliers the minimum is g_j = max(f_j + τ_i, 0), i = s(j), where τ_i is such that
    τ_i + Σ_{j in i} max(f_j + τ_i, 0) = P_i + λ, and λ such that the g sum to 1. As λ grows,
    p_i(λ) is piecewise linear: with the k greatest of the group above 0, of sum A, it is
    p_i = (A + k (P_i + λ)) / (1 + k), and the next one joins at λ = A - (k + 1) f - P_i.

    Args:
      probs: 2 arrays `[..., N_l]` of marginals, coarse and fine.
      hierarchy: 2 levels of N_l classes.

    Returns:
      2 arrays of the shapes of `probs`, non-negative and coherent, with a sum of 1.

    Raises:
      ValueError: for a hierarchy that has not two levels.
    """
    _check_two_levels(hierarchy)
    probs = check_levels(probs, hierarchy)
    shallow = np.flatnonzero(leaves(hierarchy)[0])
    return _project(probs, np.concatenate([hierarchy.parents[0], shallow]), shallow)


class Rule(Protocol):
    """A rule that makes levels agree: its target, and adaptation by it.

    Every method raises a ValueError for a hierarchy that the rule cannot adapt, and for weights if
    the rule takes none.
    """

    @property
    def weighs(self) -> bool:
        """Whether the rule takes a weight for each level."""

    def target(
        self, probs: Levels, hierarchy: Hierarchy, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        """Return the coherent levels to which alpha = 1 leads.

        Args:
          probs: L arrays `[..., N_l]` of marginals, coarsest level first.
          hierarchy: L levels of N_l classes.
          weights: L non-negative numbers, or None for equal weights.

        Returns:
          L arrays of the shapes of `probs`.
        """

    def largest_alpha(self, hierarchy: Hierarchy, weights: Weights = None) -> tuple[float, ...]:
        """Return the largest alpha of each level, up to which no probability is negative."""

    def adjust(
        self, probs: Levels, hierarchy: Hierarchy, alpha: ArrayLike, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        """Return (1-α) probs + α target.

        Args:
          probs, hierarchy, weights: as for `target`.
          alpha: one number for all levels, or L of them, from 0 to `largest_alpha`. The range is
            checked unless `alpha` is traced.

        Returns:
          L arrays of the shapes of `probs`.
        """


class _AlgorithmOne:
    """The rule `kl`: `adjust_tree`, which cancels nothing and goes beyond alpha = 1."""

    weighs = True

    def target(
        self, probs: Levels, hierarchy: Hierarchy, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        return coherent_target(probs, hierarchy, weights)

    def largest_alpha(self, hierarchy: Hierarchy, weights: Weights = None) -> tuple[float, ...]:
        return largest_alpha(hierarchy.num_levels, weights)

    def adjust(
        self, probs: Levels, hierarchy: Hierarchy, alpha: ArrayLike, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        return adjust_tree(probs, hierarchy, alpha, weights)


class Target(Protocol):
    """A function that returns the coherent target of levels."""

    def __call__(
        self, probs: Levels, hierarchy: Hierarchy, weights: Weights, /
    ) -> tuple[jax.Array, ...]: ...


@dataclasses.dataclass(frozen=True)
class _Interpolation:
    """A rule given by its target: it interpolates between levels and target, up to alpha = 1."""

    name: str
    function: Target
    weighs: bool = False
    two_levels_only: bool = False

    def target(
        self, probs: Levels, hierarchy: Hierarchy, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        self._check(hierarchy, weights)
        return self.function(probs, hierarchy, weights)

    def largest_alpha(self, hierarchy: Hierarchy, weights: Weights = None) -> tuple[float, ...]:
        self._check(hierarchy, weights)
        return (1.0,) * hierarchy.num_levels

    def adjust(
        self, probs: Levels, hierarchy: Hierarchy, alpha: ArrayLike, weights: Weights = None
    ) -> tuple[jax.Array, ...]:
        check_alpha(alpha, self.largest_alpha(hierarchy, weights))
        probs = check_levels(probs, hierarchy)
        return interpolate(probs, self.target(probs, hierarchy, weights), alpha)

    def _check(self, hierarchy: Hierarchy, weights: Weights) -> None:
        if weights is not None and not self.weighs:
            raise ValueError(f"rule={self.name!r} takes no weights; leave weights=None")
        if self.two_levels_only:
            _check_two_levels(hierarchy)


def _check_two_levels(hierarchy: Hierarchy) -> None:
    if hierarchy.num_levels != 2:
        raise ValueError(
            "the Euclidean projection is for two levels, this hierarchy has "
            f"{hierarchy.num_levels}; use the rule 'kl' for any depth"
        )


_INTERPOLATIONS = (
    _Interpolation("bottom_up", lambda probs, tree, _: bottom_up(probs, tree)),
    _Interpolation("top_down", lambda probs, tree, _: top_down(probs, tree)),
    _Interpolation("product_of_experts", lambda probs, tree, _: product_of_experts(probs, tree)),
    _Interpolation("geometric_pooling", geometric_pooling, weighs=True),
    _Interpolation(
        "euclidean_projection",
        lambda probs, tree, _: euclidean_projection(probs, tree),
        two_levels_only=True,
    ),
)
RULES: dict[str, Rule] = {"kl": _AlgorithmOne()} | {rule.name: rule for rule in _INTERPOLATIONS}


@classes_first
def _bottom_up(levels, parents, is_leaf):
    return _sum_leaves(levels, parents, is_leaf)


def _sum_leaves(levels, parents, is_leaf):
    sums = [levels[-1]]
    for p, s, leaf in reversed(list(zip(levels[:-1], parents, is_leaf[:-1], strict=True))):
        children = jax.ops.segment_sum(sums[0], s, len(p))
        sums.insert(0, jnp.where(column(leaf, p), p, children))
    return sums


@classes_first
def _top_down(levels, parents):
    target = [levels[0]]
    for p, s in zip(levels[1:], parents, strict=True):
        target.append(target[-1][s] * share_of_group(p, s, len(target[-1])))
    return target


def _pool(probs, hierarchy, weights, exponents):
    probs = check_levels(probs, hierarchy)
    pooled = _pooled(probs, hierarchy.parents, leaves(hierarchy), exponents.astype(probs[0].dtype))
    found = jnp.any(pooled[0] > 0, axis=-1, keepdims=True)
    fallback = coherent_target(probs, hierarchy, weights)
    return tuple(jnp.where(found, p, t) for p, t in zip(pooled, fallback, strict=True))


@classes_first
def _pooled(levels, parents, is_leaf, exponents):
    """Pool in logarithms; all zeros for a sample in which no leaf has a product above 0."""

    def power(x, exponent):
        return jnp.where(exponent > 0, exponent * x, 0)  # x may be -inf, and 0 times that is not 0

    path, scores = jnp.zeros_like(levels[0]), []
    for i, p in enumerate(levels):
        above, x = path if i == 0 else path[parents[i - 1]], safe_log(p)
        as_leaf = above + power(x, jnp.sum(exponents[i:]))
        scores.append(jnp.where(column(is_leaf[i], x), as_leaf, -jnp.inf))
        path = above + power(x, exponents[i])
    scores = jnp.concatenate(scores)
    total = log_group_sum(scores, jnp.zeros(len(scores), jnp.int32), 1)
    masses = jnp.exp(scores - jnp.where(jnp.isneginf(total), 0, total))
    of_level = np.cumsum([len(p) for p in levels])[:-1]
    return _sum_leaves(jnp.split(masses, of_level), parents, is_leaf)


@classes_first
def _project(levels, s, shallow):
    coarse, fine = levels
    num_fine, num_coarse = len(fine), len(coarse)
    fine = jnp.concatenate([fine, coarse[shallow]])  # a shallow leaf is its own only child
    # Fine classes by group, the greatest of each first: `rank` others join before each.
    group = jnp.broadcast_to(column(s, fine), fine.shape)
    sizes = jax.ops.segment_sum(jnp.ones_like(s), s, num_coarse)
    start = jnp.repeat(jnp.cumsum(sizes) - sizes, sizes, total_repeat_length=len(s))
    rank = column(jnp.arange(len(s)) - start, fine).astype(fine.dtype)
    _, down = jax.lax.sort((group, -fine), dimension=0, num_keys=2)
    ordered, s_ordered = -down, jnp.sort(s)
    before = jnp.cumsum(ordered, axis=0) - ordered
    joins = before - before[start] - (rank + 1) * ordered - coarse[s_ordered]
    # Σ p_i(λ) at every λ where a class joins: the last of those below 1 tells who is above 0.
    gain = jnp.broadcast_to(1 / ((rank + 1) * (rank + 2)), fine.shape)
    points, gain = jax.lax.sort((joins, gain), dimension=0, num_keys=1)
    rises = jnp.cumsum(gain, axis=0)[:-1] * jnp.diff(points, axis=0)
    reached = jnp.concatenate([jnp.zeros_like(points[:1]), jnp.cumsum(rises, axis=0)])
    last = jnp.max(jnp.where(reached < 1, points, -jnp.inf), axis=0, keepdims=True)
    active = (joins <= last).astype(fine.dtype)
    k = jax.ops.segment_sum(active, s_ordered, num_coarse)
    mass = jax.ops.segment_sum(active * ordered, s_ordered, num_coarse)
    without, slope = (mass + k * coarse) / (1 + k), k / (1 + k)  # p_i = without + slope · λ
    multiplier = 1 - jnp.sum(without, axis=0, keepdims=True)
    multiplier = multiplier / jnp.sum(slope, axis=0, keepdims=True)
    shifted = fine + ((coarse + multiplier - mass) / (1 + k))[s]
    projected = jnp.where(shifted > 0, shifted, 0)
    return jax.ops.segment_sum(projected, s, num_coarse), projected[:num_fine]
