"""Algorithm 1 for trees, from logits or log-probabilities: the passes of `tree` on logarithms.

A probability of exp(-500) is 0 in float32, and the ratios inside its group are lost. On logarithms,
sums become log-sum-exps and products become sums. Nothing underflows, so siblings keep their ratios
however small their masses are.
"""

import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.checks import check_levels
from hiercls_jax.adaptation.layout import Levels, classes_first
from hiercls_jax.adaptation.share import Ids, column, group_sizes
from hiercls_jax.adaptation.tree import Arithmetic, leaves, others, prepare_tree
from hiercls_jax.hierarchy import Hierarchy


def adjust_tree_log(
    log_probs: Sequence[ArrayLike],
    hierarchy: Hierarchy,
    alpha: ArrayLike,
    weights: ArrayLike | None = None,
) -> tuple[jax.Array, ...]:
    """Adapt the log-probabilities of every level of a hierarchy to each other.

    Returns the logarithm of `adjust_tree`, correct even if probabilities underflow, for every alpha
    of its range. A class without mass is -inf; only a group that is all -inf counts as empty.

    Differentiable, with finite gradients for every input. The gradient of a result of -inf is 0.
    ∂/∂α, a ratio of probabilities without a bound at the ends of the range, is cut off at the
    square root of the dtype's largest number.

    Args:
      log_probs: L arrays `[..., N_l]`, coarsest level first, all with the same leading axes;
        logarithms of marginals, as `log_marginals` returns them; may be -inf.
      hierarchy: L levels of N_l classes, L at least 2.
      alpha: as in `adjust_tree`.
      weights: as in `adjust_tree`.

    Returns:
      L arrays of the shapes of `log_probs`: float32, or float64 for float64 input under x64.

    Raises:
      ValueError: as `adjust_tree`.

    >>> from hiercls_jax.hierarchy import Hierarchy
    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> logits = [[0.0, 500.0], [-1000.0, -1001.0, 0.0]]
    >>> adapted = adjust_tree_log(log_marginals(logits, pets), pets, 1.0)
    >>> [[round(float(x), 1) for x in level] for level in adapted]
    [[-500.7, 0.0], [-501.0, -502.0, 0.0]]
    """
    return _adjust(*prepare_tree(log_probs, hierarchy, alpha, weights))


@classes_first
def _adjust(
    log_probs: Levels,
    parents: Sequence[Ids],
    is_leaf: Sequence[np.ndarray],
    weights: jax.Array | np.ndarray,
    beta: jax.Array,
) -> list[jax.Array]:
    exchanged = others(log_probs, parents, is_leaf, weights, LOGARITHMS)
    return [_log_mix(p, t, b) for p, t, b in zip(log_probs, exchanged, beta, strict=True)]


def log_marginals(logits: Sequence[ArrayLike], hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Return the log-probabilities of every level as marginals: the logarithm of `marginals`.

    Args:
      logits: L arrays `[..., N_l]`, coarsest level first: logits, or log-probabilities, of each
        level's classes alone. May be -inf, but not for all classes of a level.
      hierarchy: L levels of N_l classes.

    Returns:
      L arrays of the shapes of `logits`: each level's log-softmax, plus the logarithm of the mass
      that the leaves above the level leave over.
    """
    reached: jax.Array | float = 0.0
    scaled: list[jax.Array] = []
    for level, leaf in zip(check_levels(logits, hierarchy), leaves(hierarchy), strict=True):
        scaled.append(jax.nn.log_softmax(level) + reached)
        if leaf.any():
            x = jnp.moveaxis(scaled[-1], -1, 0)
            inner = jnp.where(column(leaf, x), -jnp.inf, x)  # one shape, whatever the tree
            reached = jnp.moveaxis(log_group_sum(inner, np.zeros(len(inner), int), 1), 0, -1)
    return tuple(scaled)


def log_group_sum(x: jax.Array, s: Ids, num_groups: int) -> jax.Array:
    """Return log-sum-exps of groups; -inf with gradient 0 for a group that is empty or all -inf.

    Args:
      x: `[F, ...]`, classes first, finite or -inf.
      s: integer `[F]`, the group of each class.
      num_groups: number of groups.
    """
    top = jax.lax.stop_gradient(jax.ops.segment_max(x, s, num_groups))
    top = jnp.where(jnp.isneginf(top), 0, top)
    return safe_log(jax.ops.segment_sum(jnp.exp(x - top[s]), s, num_groups)) + top


def _log_add(x: jax.Array, y: jax.Array) -> jax.Array:
    top = jax.lax.stop_gradient(jnp.maximum(x, y))
    top = jnp.where(jnp.isneginf(top), 0, top)
    return safe_log(jnp.exp(x - top) + jnp.exp(y - top)) + top


def safe_log(x: jax.Array) -> jax.Array:
    """Return log(x), and -inf with gradient 0 for x below the smallest normal number."""
    kept = x >= jnp.finfo(x.dtype).tiny
    return jnp.where(kept, jnp.log(jnp.where(kept, x, 1)), -jnp.inf)


def _log_share(x: jax.Array, s: Ids, num_groups: int) -> jax.Array:
    whole = log_group_sum(x, s, num_groups)
    empty = jnp.isneginf(whole)
    size = group_sizes(s, num_groups, x)
    return jnp.where(empty[s], -jnp.log(size)[s], x - whole[s])


LOGARITHMS = Arithmetic(jnp.log, _log_add, operator.add, log_group_sum, _log_share)


@jax.custom_jvp
def _log_mix(x: jax.Array, y: jax.Array, beta: jax.Array) -> jax.Array:
    """Return log((1-β) exp(x) + β exp(y)) for β in [0, 1]."""
    return _log_add(x + safe_log(1 - beta), y + safe_log(beta))


@_log_mix.defjvp
def _log_mix_jvp(
    primals: tuple[jax.Array, jax.Array, jax.Array],
    tangents: tuple[jax.Array, jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array]:
    # The derivative that JAX would form loses ∂/∂β of a term of weight 0 (β = 0, β = 1).
    x, y, beta = primals
    mixed = _log_mix(x, y, beta)
    whole = jnp.where(jnp.isneginf(mixed), jnp.inf, mixed)
    bound = jnp.log(jnp.finfo(mixed.dtype).max) / 2
    slopes = (
        jnp.exp(x + safe_log(1 - beta) - whole),
        jnp.exp(y + safe_log(beta) - whole),
        jnp.exp(jnp.minimum(y - whole, bound)) - jnp.exp(jnp.minimum(x - whole, bound)),
    )
    terms = [slope * tangent for slope, tangent in zip(slopes, tangents, strict=True)]
    return mixed, terms[0] + terms[1] + terms[2]
