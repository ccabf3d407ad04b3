"""Algorithm 1 for trees of any depth: each sample's levels pulled towards one coherent tree.

The target of Algorithm 1 minimises KL(P_coarse ‖ p_coarse) + KL(P_fine ‖ p_fine) over coherent
probabilities p. For L levels with weights w_l, Σ_l w_l KL(P_l ‖ p_l) has its minimum in two passes:

    upward     m(v) = w_l P_l(v) + Σ_{children c of v} m(c)
    downward   p(v) = p(parent of v) · m(v) / Σ_{siblings and v} m

and alpha interpolates from P to p. With W = Σ w and the same m, the passes can also be written as
what the levels below and above say about a class v of level l:

    below(v) = Σ_{children c of v} m(c),  with m(v) = w_l P_l(v) + below(v)
    above(c) = (w_l P_l(v) + above(v)) · m(c) / below(v) for c's parent v; 0 at the first level
    others(v) = (below(v) + above(v)) / (W - w_l)

so that p is the weighted mean of a level's own opinion and the others', W p = w_l P_l + (W - w_l)
others, and interpolation is (1-β) P + β others with β = α (W - w_l) / W. This is what is computed:
up to β = 1, which is α = W / (W - w_l), no term is negative and nothing cancels.

Ragged trees: a leaf at level l stands for its own only child at every level below, so that
below(v) = P_l(v) Σ_{k>l} w_k there, and m(v) = P_l(v) Σ_{k≥l} w_k.
"""

import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hiercls_jax.adaptation.adjust import share_of_group
from hiercls_jax.adaptation.layout import classes_first
from hiercls_jax.hierarchy import Hierarchy

# What callers that check values allow a level's sum to differ from 1: a softmax over 1,000 classes
# sums to 1 within 1e-5 in float32, and within 5e-4 in float16.
SUM_TOLERANCE = 1e-3


def adjust_tree(
    probs: Sequence, hierarchy: Hierarchy, alpha, weights: Sequence[float] | None = None
) -> tuple[jax.Array, ...]:
    """Adapt the probabilities of every level of a hierarchy to each other.

    Interpolates from the given levels P to the coherent levels p that minimise
    Σ_l w_l KL(P_l ‖ p_l): (1-α) P + α p. α = 0 changes nothing; at α = 1 every class has the mass
    of its children; at a level's largest α its own opinion has been exchanged for the other
    levels'. Two levels of equal weight are Algorithm 1 of Dutt, Pellerin and Quénot (CBMI 2017),
    for every α. Siblings without mass share their parent's equally, as in `adjust`.

    A level stays non-negative for every input only up to α = W / (W - w_l), W = Σ w: 2 for two
    equal levels, L / (L - 1) for L of them (`largest_alpha`).

    Pure and jitted; one compilation serves every α and every weight. Differentiable, with finite
    values for every input, and finite gradients where these lie in the dtype's range.

    Args:
      probs: L arrays `[..., N_l]`, coarsest level first, all with the same leading axes;
        non-negative marginals: each level sums to 1 together with the leaves above it. Where
        leaves stand at several levels, `marginals` brings a softmax over one level into that form.
      hierarchy: L levels of N_l classes, L at least 2.
      alpha: one number for all levels, or L of them, in [0, W / (W - w_l)]. Checked where it is
        concrete; a traced one above its range counts as the largest.
      weights: L non-negative numbers, at least two of them positive; None for equal weights. Only
        their ratios matter. The probabilities of a level of weight 0 do not count in the target.

    Returns:
      L arrays of the shapes of `probs`: float32, or float64 for float64 input under x64.

    Raises:
      ValueError: for a wrong number or shape of arrays, for weights that are no such numbers, and
        for an alpha outside its range.

    >>> from hiercls_jax.hierarchy import Hierarchy
    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> [p.tolist() for p in adjust_tree([[0.75, 0.25], [0.375, 0.125, 0.5]], pets, 1.0)]
    [[0.625, 0.375], [0.46875, 0.15625, 0.375]]
    """
    return _adjust(*checked(probs, hierarchy, alpha, weights))


def coherent_target(
    probs: Sequence, hierarchy: Hierarchy, weights: Sequence[float] | None = None
) -> tuple[jax.Array, ...]:
    """Return the coherent levels p that minimise Σ_l w_l KL(P_l ‖ p_l): `adjust_tree` at α = 1.

    The rule of Algorithm 1 of Dutt, Pellerin and Quénot (CBMI 2017) for trees of any depth.
    Arguments as in `adjust_tree`.
    """
    return adjust_tree(probs, hierarchy, 1.0, weights)


def largest_alpha(num_levels: int, weights: Sequence[float] | None = None) -> tuple[float, ...]:
    """Return for each level the α up to which `adjust_tree` is never negative: W / (W - w_l).

    One α for all levels may go up to the smallest of them.

    >>> largest_alpha(2), largest_alpha(3, (2, 1, 1))
    ((2.0, 2.0), (2.0, 1.3333333333333333, 1.3333333333333333))
    """
    weights = check_weights(weights, num_levels)
    total = weights.sum()
    return tuple((total / (total - weights)).tolist())


def interpolate(probs: Sequence, target: Sequence, alpha) -> tuple[jax.Array, ...]:
    """Return (1-α) P + α target for every level, a negative number as 0.

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
def _interpolate(probs, target, alpha):
    alpha = jnp.broadcast_to(alpha, (len(probs),))
    mixed = [(1 - a) * p + a * t for p, t, a in zip(probs, target, alpha, strict=True)]
    return tuple(jnp.where(p < 0, 0, p) for p in mixed)  # unlike maximum, of slope 1 at 0


def marginals(probs: Sequence, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Scale each level's classes by the mass that the leaves above them leave over.

    A softmax over the classes of one level sums to 1 without the leaves of the levels above. Taken
    as probabilities given that the sample reaches this level, they become marginals: the classes
    of a level and the leaves above it sum to 1. Changes nothing where no leaf is above.

    Args:
      probs: L arrays `[..., N_l]`, coarsest level first; non-negative, each sums to 1.
      hierarchy: L levels of N_l classes.

    Returns:
      L arrays of the shapes of `probs`.
    """
    probs = check_levels(probs, hierarchy)
    reached, scaled = 1.0, []
    for p, leaf in zip(probs, leaves(hierarchy), strict=True):
        scaled.append(p * reached)
        if leaf.any():  # the sum of the inner classes; 1 minus that of the leaves would cancel
            reached = jnp.sum(scaled[-1], axis=-1, keepdims=True, where=~leaf)
    return tuple(scaled)


def leaves(hierarchy: Hierarchy) -> tuple[np.ndarray, ...]:
    """Return bool `[N_l]` for every level: which classes have no children."""
    return tuple(hierarchy.is_leaf(level) for level in range(hierarchy.num_levels))


class Arithmetic(NamedTuple):
    """How masses are added, multiplied and shared: as numbers here, as logarithms in `log_tree`."""

    number: Callable  # a plain number -> a mass
    add: Callable
    multiply: Callable
    group_sum: Callable  # (masses `[F, ...]`, group of each `[F]`, number of groups) -> `[C, ...]`
    share: Callable  # of the same: each one's share of its group's mass, `[F, ...]`


NUMBERS = Arithmetic(lambda x: x, operator.add, operator.mul, jax.ops.segment_sum, share_of_group)


def others(levels, parents, is_leaf, weights, arithmetic: Arithmetic) -> list[jax.Array]:
    """Return what the other levels say about each class, by the two passes in the docstring above.

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


def column(x, like):
    """Return `x`, `[N]`, as `[N, 1, ...]` of the rank of `like`."""
    return jnp.reshape(x, (-1,) + (1,) * (like.ndim - 1))


@classes_first
def _adjust(probs, parents, is_leaf, weights, beta):
    return interpolate(probs, others(probs, parents, is_leaf, weights, NUMBERS), beta)


def checked(levels, hierarchy, alpha, weights) -> tuple:
    """Return (levels, parents, leaves, weights, β `[L]`) after checking what `adjust_tree` takes.

    β = α (W - w_l) / W: at 0 a level keeps its own opinion, at 1 it has the others'.
    """
    levels = check_levels(levels, hierarchy)
    weights = check_weights(weights, len(levels))
    largest = largest_alpha(len(levels), weights)
    check_alpha(alpha, largest)
    dtype = levels[0].dtype
    beta = jnp.asarray(alpha, dtype) / jnp.asarray(largest, dtype)  # 1, exactly, at the largest
    beta = jnp.where(beta > 1, 1, beta)
    return levels, hierarchy.parents, leaves(hierarchy), weights.astype(dtype), beta


def check_levels(levels: Sequence, hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Return the arrays in one dtype, at least float32, after checking their number and shapes."""
    if len(levels) != hierarchy.num_levels:
        raise ValueError(
            f"a hierarchy of {hierarchy.num_levels} levels takes one array for each; "
            f"got {len(levels)}"
        )
    levels = [jnp.asarray(p) for p in levels]
    shapes = [list(p.shape) for p in levels]
    wanted = [[*shapes[0][:-1], n] for n in hierarchy.sizes]
    if shapes != wanted:
        raise ValueError(
            f"levels of {list(hierarchy.sizes)} classes take arrays [..., N_l] with the same "
            f"leading axes; got {shapes}"
        )
    dtype = jnp.promote_types(jnp.result_type(*levels), jnp.float32)
    return tuple(p.astype(dtype) for p in levels)


def check_weights(weights: Sequence[float] | None, num_levels: int) -> np.ndarray:
    """Return float64 `[L]` weights of mean 1 after checking them; ones for None."""
    if num_levels < 2:
        raise ValueError(
            f"adaptation takes two levels or more: with {num_levels} there is nothing to adapt to"
        )
    if weights is None:
        return np.ones(num_levels)
    values = np.asarray(weights, float)
    if values.shape != (num_levels,):
        raise ValueError(
            f"{num_levels} levels take {num_levels} weights; got shape {list(values.shape)}"
        )
    if not (np.isfinite(values).all() and (values >= 0).all() and (values > 0).sum() >= 2):
        raise ValueError(
            f"weights are not negative, and at least two are positive; got {values.tolist()}"
        )
    return values / values.mean()


def check_alpha(alpha, largest: Sequence[float]) -> None:
    """Check the shape of `alpha`, one number or `[L]`, and its range where it is not traced."""
    traced = any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(alpha))
    values = np.zeros(jnp.shape(alpha)) if traced else np.asarray(alpha, float)
    if values.shape not in ((), (len(largest),)):
        raise ValueError(
            f"alpha is one number, or one for each of the {len(largest)} levels; "
            f"got shape {list(values.shape)}"
        )
    values = np.broadcast_to(values, len(largest))
    # The largest alpha itself may have been rounded, to float32 as well.
    wrong = np.flatnonzero(~((values >= 0) & (values <= np.multiply(largest, 1 + 1e-6))))
    if wrong.size:
        level = wrong[0]
        raise ValueError(
            f"alpha of level {level} must lie in [0, {largest[level]:g}], where no probability "
            f"turns negative; got {values[level]:g}"
        )
