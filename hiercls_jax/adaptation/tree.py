"""Algorithm 1 for trees of any depth: each sample's levels move towards one coherent tree.

The target of Algorithm 1 minimises KL(P_coarse ‖ p_coarse) + KL(P_fine ‖ p_fine) over coherent
probabilities p. For L levels with weights w_l, Σ_l w_l KL(P_l ‖ p_l) has its minimum in two passes:

    upward     m(v) = w_l P_l(v) + Σ_{children c of v} m(c)
    downward   p(v) = p(parent of v) · m(v) / Σ_{siblings and v} m

and alpha interpolates from P to p. With W = Σ w and the same m, two other sums have the same
minimum. They hold the opinions of the levels below and above about a class v of level l:

    below(v) = Σ_{children c of v} m(c),  with m(v) = w_l P_l(v) + below(v)
    above(c) = (w_l P_l(v) + above(v)) · m(c) / below(v) for c's parent v; 0 at the first level
    others(v) = (below(v) + above(v)) / (W - w_l)

p is the weighted mean of a level's own opinion and the others', W p = w_l P_l + (W - w_l) others,
so interpolation is (1-β) P + β others with β = α (W - w_l) / W. The code computes this form,
because up to β = 1, which is α = W / (W - w_l), no term is negative and nothing cancels.

In a ragged tree a leaf of level l stands for its own only child at every level below. There
below(v) = P_l(v) Σ_{k>l} w_k, and m(v) = P_l(v) Σ_{k≥l} w_k.
"""

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.checks import check_alpha, check_levels, check_weights
from hiercls_jax.adaptation.layout import Levels, classes_first
from hiercls_jax.adaptation.share import Ids, column, share_of_group
from hiercls_jax.hierarchy import Hierarchy


def adjust_tree(
    probs: Sequence[ArrayLike],
    hierarchy: Hierarchy,
    alpha: ArrayLike,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, ...]:
    """Adapt the probabilities of every level of a hierarchy to each other.

    Interpolates from the given levels P to the coherent levels p that minimise
    Σ_l w_l KL(P_l ‖ p_l): (1-α) P + α p. α = 0 changes nothing; at α = 1 every class has the mass
    of its children; at a level's largest α the other levels' opinion replaces its own. For two
    levels of equal weight this is Algorithm 1 of Dutt, Pellerin and Quénot (CBMI 2017), for every
    α. Siblings without mass share their parent's equally, as in `adjust`.

    A level stays non-negative for every input only up to α = W / (W - w_l), W = Σ w: 2 for two
    equal levels, L / (L - 1) for L of them (`largest_alpha`).

    Pure and jitted; one compilation serves every α and every weight. Differentiable, with finite
    values for every input, and finite gradients if these lie in the dtype's range.

    Args:
      probs: L arrays `[..., N_l]`, coarsest level first, all with the same leading axes;
        non-negative marginals: each level sums to 1 together with the leaves above it. For a
        ragged hierarchy `marginals` converts softmaxes over single levels.
      hierarchy: L levels of N_l classes, L at least 2.
      alpha: one number for all levels, or L of them, in [0, W / (W - w_l)]. The range is checked
        unless alpha is traced; a traced alpha above the range counts as the largest.
      weights: L non-negative numbers, at least two of them positive; None for equal weights. Only
        their ratios matter. A level of weight 0 does not affect the target.

    Returns:
      L arrays of the shapes of `probs`: float32, or float64 for float64 input under x64.

    Raises:
      ValueError: for a wrong number or shape of arrays, for other weights, and for an alpha
        outside its range.

    >>> from hiercls_jax.hierarchy import Hierarchy
    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> [p.tolist() for p in adjust_tree([[0.75, 0.25], [0.375, 0.125, 0.5]], pets, 1.0)]
    [[0.625, 0.375], [0.46875, 0.15625, 0.375]]
    """
    return _adjust(*prepare_tree(probs, hierarchy, alpha, weights))


def coherent_target(
    probs: Sequence[ArrayLike], hierarchy: Hierarchy, weights: ArrayLike | None = None
) -> tuple[jax.Array, ...]:
    """Return the coherent levels p that minimise Σ_l w_l KL(P_l ‖ p_l): `adjust_tree` at α = 1.

    The rule of Algorithm 1 of Dutt, Pellerin and Quénot (CBMI 2017) for trees of any depth.
    Arguments as in `adjust_tree`.
    """
    return adjust_tree(probs, hierarchy, 1.0, weights)


def largest_alpha(num_levels: int, weights: ArrayLike | None = None) -> tuple[float, ...]:
    """Return for each level the largest α at which `adjust_tree` is never negative: W / (W - w_l).

    The smallest of them is the largest α for all levels.

    >>> largest_alpha(2), largest_alpha(3, (2, 1, 1))
    ((2.0, 2.0), (2.0, 1.3333333333333333, 1.3333333333333333))
    """
    checked = check_weights(weights, num_levels)
    total = checked.sum()
    return tuple((total / (total - checked)).tolist())


def interpolate(
    probs: Sequence[ArrayLike], target: Sequence[ArrayLike], alpha: ArrayLike
) -> tuple[jax.Array, ...]:
    """Return (1-α) P + α target for every level, with 0 in place of negative numbers.

    Args:
      probs: L float arrays.
      target: L float arrays of the same shapes.
      alpha: one number for all levels, or L of them; not negative.

    Returns:
      L arrays of the shapes of `probs`.
    """
    dtype = jnp.promote_types(jnp.result_type(*probs, *target), jnp.float32)
    return _interpolate(tuple(probs), tuple(target), jnp.asarray(alpha, dtype))


@jax.jit
def _interpolate(probs: Levels, target: Levels, alpha: jax.Array) -> tuple[jax.Array, ...]:
    # Unlike maximum, where has the slope 1 at 0.
    return tuple(jnp.where(p < 0, 0, p) for p in _mix(probs, target, alpha))


def _mix(probs: Levels, target: Levels, alpha: jax.Array) -> tuple[jax.Array, ...]:
    pairs = zip(probs, target, jnp.broadcast_to(alpha, (len(probs),)), strict=True)
    return tuple((1 - a) * p + a * t for p, t, a in pairs)


def marginals(probs: Sequence[ArrayLike], hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Scale each level by the mass that the leaves above it leave over.

    A softmax over the classes of one level sums to 1 without the leaves of the levels above. It
    gives probabilities conditional on reaching the level. `marginals` makes the classes of a level
    and the leaves above it sum to 1; levels without leaves above them do not change.

    Args:
      probs: L arrays `[..., N_l]`, coarsest level first; non-negative, each sums to 1.
      hierarchy: L levels of N_l classes.

    Returns:
      L arrays of the shapes of `probs`.
    """
    reached: jax.Array | float = 1.0
    scaled: list[jax.Array] = []
    for p, leaf in zip(check_levels(probs, hierarchy), leaves(hierarchy), strict=True):
        scaled.append(p * reached)
        if leaf.any():  # sum the inner classes, because 1 minus the leaves would cancel
            reached = jnp.sum(scaled[-1], axis=-1, keepdims=True, where=~leaf)
    return tuple(scaled)


def leaves(hierarchy: Hierarchy) -> tuple[np.ndarray, ...]:
    """Return bool `[N_l]` for every level: which classes have no children."""
    return tuple(hierarchy.is_leaf(level) for level in range(hierarchy.num_levels))


Binary = Callable[[jax.Array, jax.Array], jax.Array]
OfGroups = Callable[[jax.Array, Ids, int], jax.Array]


class Arithmetic(NamedTuple):
    """How masses are added, multiplied and shared: as numbers here, as logarithms in `log_tree`."""

    number: Callable[[jax.Array], jax.Array]  # a plain number -> a mass
    add: Binary
    multiply: Binary
    group_sum: OfGroups  # (masses `[F, ...]`, group of each `[F]`, number of groups) -> `[C, ...]`
    share: OfGroups  # the same arguments -> each one's share of its group's mass, `[F, ...]`


NUMBERS = Arithmetic(lambda x: x, operator.add, operator.mul, jax.ops.segment_sum, share_of_group)


def others(
    levels: Levels,
    parents: Sequence[Ids],
    is_leaf: Sequence[np.ndarray],
    weights: jax.Array | np.ndarray,
    arithmetic: Arithmetic,
) -> list[jax.Array]:
    """Return the other levels' opinion about each class, by the two sums of the module's docstring.

    Args:
      levels: L arrays `[N_l, ...]` of marginals, classes first.
      parents: L - 1 integer arrays `[N_{l+1}]`.
      is_leaf: L boolean arrays `[N_l]`.
      weights: `[L]`.
      arithmetic: that of `levels`.
    """
    number, add, multiply, group_sum, share = arithmetic
    own = [multiply(number(w), p) for w, p in zip(weights, levels, strict=True)]
    below = [multiply(number(jnp.zeros_like(weights[0])), levels[-1])]
    for i in reversed(range(len(parents))):
        as_leaf = multiply(number(jnp.sum(weights[i + 1 :])), levels[i])
        children = group_sum(add(own[i + 1], below[0]), parents[i], len(levels[i]))
        below.insert(0, jnp.where(column(is_leaf[i], children), as_leaf, children))
    above = [multiply(number(jnp.zeros_like(weights[0])), levels[0])]
    for i, s in enumerate(parents):
        shares = share(add(own[i + 1], below[i + 1]), s, len(levels[i]))
        above.append(multiply(shares, add(own[i], above[i])[s]))
    rest = jnp.sum(weights) - weights
    return [multiply(number(1 / r), add(b, a)) for r, b, a in zip(rest, below, above, strict=True)]


@classes_first
def _adjust(
    probs: Levels,
    parents: Sequence[Ids],
    is_leaf: Sequence[np.ndarray],
    weights: jax.Array | np.ndarray,
    beta: jax.Array,
) -> tuple[jax.Array, ...]:
    return _mix(probs, others(probs, parents, is_leaf, weights, NUMBERS), beta)


def prepare_tree(
    levels: Sequence[ArrayLike],
    hierarchy: Hierarchy,
    alpha: ArrayLike,
    weights: ArrayLike | None,
) -> tuple[
    tuple[jax.Array, ...], tuple[np.ndarray, ...], tuple[np.ndarray, ...], np.ndarray, jax.Array
]:
    """Check the arguments of `adjust_tree`; return (levels, parents, leaves, weights, β `[L]`).

    β = α (W - w_l) / W: at 0 a level keeps its own opinion, at 1 it has the others'.
    """
    arrays = check_levels(levels, hierarchy)
    shares = check_weights(weights, len(arrays))
    largest = largest_alpha(len(arrays), shares)
    check_alpha(alpha, largest)
    dtype = arrays[0].dtype
    beta = jnp.asarray(alpha, dtype) / jnp.asarray(largest, dtype)  # exactly 1 at the largest
    beta = jnp.where(beta > 1, 1, beta)
    return arrays, hierarchy.parents, leaves(hierarchy), shares.astype(dtype), beta
