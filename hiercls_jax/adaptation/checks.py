"""Checks of the arguments of adaptation: always shapes; values only if they are not traced."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.share import Ids
from hiercls_jax.hierarchy import Hierarchy, check_parents

# How far a level's sum may be from 1 if values are checked: a softmax over 1,000 classes sums to 1
# within 1e-5 in float32, and within 5e-4 in float16.
SUM_TOLERANCE = 1e-3

# The arguments of Algorithm 1: ((p_coarse, p_fine, alpha `[..., 1]`), s).
Pair = tuple[tuple[jax.Array, jax.Array, jax.Array], Ids]


def prepare_pair(p_coarse: ArrayLike, p_fine: ArrayLike, s: ArrayLike, alpha: ArrayLike) -> Pair:
    """Check the arguments of `adjust` and return them in one dtype, at least float32.

    Raises:
      ValueError: as `adjust`.
    """
    coarse, fine = jnp.asarray(p_coarse), jnp.asarray(p_fine)
    dtype = jnp.promote_types(jnp.result_type(coarse, fine), jnp.float32)
    if not isinstance(alpha, jax.Array):  # reading one would wait for a device, or fail if traced
        values = np.asarray(alpha, float)
        wrong = values[~((values >= 0) & (values <= 2))]
        if wrong.size:
            raise ValueError(f"alpha must lie in [0, 2], got {wrong[0]:g}")
    alphas = jnp.asarray(alpha, dtype)
    _check_pair_shapes(coarse.shape, fine.shape, np.shape(s), alphas.shape)
    if not isinstance(s, jax.core.Tracer):
        s = check_parents(s, coarse.shape[-1], "s (the coarse class of each fine class)")
    return (coarse.astype(dtype), fine.astype(dtype), alphas[..., None]), s


def _check_pair_shapes(
    coarse: tuple[int, ...], fine: tuple[int, ...], s: tuple[int, ...], alpha: tuple[int, ...]
) -> None:
    if not coarse or not fine:
        raise ValueError(
            f"p_coarse is [..., C] and p_fine is [..., F]; got {list(coarse)} and {list(fine)}"
        )
    if coarse[:-1] != fine[:-1]:
        raise ValueError(
            "p_coarse and p_fine must have the same leading axes; got "
            f"{list(coarse)} and {list(fine)}"
        )
    if s != fine[-1:]:
        raise ValueError(
            f"s must give one coarse class for each of the {fine[-1]} fine classes of p_fine "
            f"{list(fine)}, shape [{fine[-1]}]; got {list(s)}"
        )
    try:
        np.broadcast_shapes(coarse[:-1], alpha)
    except ValueError:
        raise ValueError(
            f"alpha {list(alpha)} does not broadcast against the leading axes {list(coarse[:-1])}"
        ) from None


def check_levels(levels: Sequence[ArrayLike], hierarchy: Hierarchy) -> tuple[jax.Array, ...]:
    """Check the number and shapes of the levels, and return them in one dtype, at least float32.

    Args:
      levels: L arrays `[..., N_l]`, all with the same leading axes.
      hierarchy: L levels of N_l classes.
    """
    if len(levels) != hierarchy.num_levels:
        raise ValueError(
            f"a hierarchy of {hierarchy.num_levels} levels takes one array for each; "
            f"got {len(levels)}"
        )
    arrays = [jnp.asarray(p) for p in levels]
    shapes = [list(p.shape) for p in arrays]
    wanted = [[*shapes[0][:-1], n] for n in hierarchy.sizes]
    if shapes != wanted:
        raise ValueError(
            f"levels of {list(hierarchy.sizes)} classes take arrays [..., N_l] with the same "
            f"leading axes; got {shapes}"
        )
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(p.astype(dtype) for p in arrays)


def check_weights(weights: ArrayLike | None, num_levels: int) -> np.ndarray:
    """Check the weights of L levels and return them as float64 `[L]` of mean 1; ones for None."""
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


def check_alpha(alpha: ArrayLike, largest: Sequence[float]) -> None:
    """Check the shape of `alpha`, one number or `[L]`, and its range if it is not traced.

    Args:
      alpha: to be in `[0, largest]` of each level.
      largest: the largest alpha of each of the L levels.
    """
    traced = any(isinstance(a, jax.core.Tracer) for a in jax.tree.leaves(alpha))
    values = np.zeros(jnp.asarray(alpha).shape) if traced else np.asarray(alpha, float)
    if values.shape not in ((), (len(largest),)):
        raise ValueError(
            f"alpha is one number, or one for each of the {len(largest)} levels; "
            f"got shape {list(values.shape)}"
        )
    values = np.broadcast_to(values, len(largest))
    # The largest alpha may have been rounded, even to float32.
    wrong = np.flatnonzero(~((values >= 0) & (values <= np.multiply(largest, 1 + 1e-6))))
    if wrong.size:
        level = wrong[0]
        raise ValueError(
            f"alpha of level {level} must lie in [0, {largest[level]:g}], where no probability "
            f"turns negative; got {values[level]:g}"
        )
