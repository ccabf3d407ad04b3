"""Algorithm 1 for any number of levels: each sample's levels pulled towards one coherent tree.

The target of Algorithm 1 minimises KL(P_coarse ‖ p_coarse) + KL(P_fine ‖ p_fine) over coherent
probabilities p. For L levels, Σ_l KL(P_l ‖ p_l) has its minimum in two passes over the tree:

    upward     m(v) = P_l(v) + Σ_{children c of v} m(c)
    downward   p(v) = p(parent of v) · m(v) / Σ_{siblings and v} m

and alpha interpolates from P to p. With two levels this is Algorithm 1.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from hiercls_jax.adaptation.adjust import adjust, share_of_group
from hiercls_jax.hierarchy import Hierarchy


def largest_alpha(num_levels: int) -> float:
    """Return the alpha up to which no probability turns negative: L / (L - 1), 2 for two levels."""
    return num_levels / (num_levels - 1)


def adjust_levels(probs: Sequence, hierarchy: Hierarchy, alpha) -> tuple[jax.Array, ...]:
    """Adapt the probabilities of every level of a hierarchy to each other.

    α = 0 changes nothing; at α = 1 every class has the mass of its children.

    Args:
      probs: L float arrays `[..., N_l]`, coarsest level first; each non-negative and summing to 1.
      hierarchy: L levels.
      alpha: scalar in [0, L / (L - 1)].

    Returns:
      L arrays of the shapes of `probs`.
    """
    if len(probs) != hierarchy.num_levels:
        raise ValueError(f"{len(probs)} arrays for {hierarchy.num_levels} levels")
    if hierarchy.num_levels == 2:
        return adjust(probs[0], probs[1], hierarchy.fine_to_coarse, alpha)
    original = [jnp.moveaxis(jnp.asarray(p), -1, 0) for p in probs]
    mass = [original[-1]]
    for p, s in zip(reversed(original[:-1]), reversed(hierarchy.parents), strict=True):
        mass.insert(0, p + jax.ops.segment_sum(mass[0], s, len(p)))
    target = [mass[0] / hierarchy.num_levels]
    for m, s in zip(mass[1:], hierarchy.parents, strict=True):
        target.append(target[-1][s] * share_of_group(m, s, len(target[-1])))
    # Above (1 - alpha) P + alpha p cancels to small negatives near the largest alpha.
    adapted = [
        jnp.maximum((1 - alpha) * p + alpha * t, 0) for p, t in zip(original, target, strict=True)
    ]
    return tuple(jnp.moveaxis(p, 0, -1) for p in adapted)
