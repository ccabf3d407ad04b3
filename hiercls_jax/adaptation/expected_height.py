"""Conditional risk minimisation on leaf probabilities: decide for the smallest expected cost.

Karthik, Prabhu, Dokania and Gandhi, No Cost Likelihood Manipulation at Test Time for Making Better
Mistakes in Deep Networks (ICLR 2021), predict the leaf with the smallest expected height of its
lowest common ancestor (LCA) with the truth, instead of the most probable leaf.

The expected cost is a product with a matrix of all pairs of leaves. For this cost it is also a sum
along the path up from leaf a, because each step from a class v to its parent adds to the height of
the LCA exactly if the truth lies outside v:

    E height(LCA(a, Y)) = Σ_{v: a or above it} (height(parent of v) - height(v)) (1 - P(v))

Two passes over the tree compute it for all leaves, in time linear in the number of classes.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.share import Ids
from hiercls_jax.hierarchy import Hierarchy


def lca_steps(hierarchy: Hierarchy) -> tuple[np.ndarray, ...]:
    """Return the height of each class's parent minus the height of the class.

    The height of a class is the length of the longest path down to a leaf: 0 for a leaf. The height
    of the LCA of leaves a and b is the sum of a's steps over the levels at which a and b have
    different classes: 0 if a = b, 1 for siblings in a full tree, and L if only the root is above
    both.

    Args:
      hierarchy: L levels.

    Returns:
      L arrays, int32 `[K_l]` over each level's cut; the parent of a first-level class is the root.
      In a full tree all steps are 1. A leaf's copies in the cuts below its own level have step 0.

    >>> from hiercls_jax.hierarchy import cifar100
    >>> [sorted(set(steps.tolist())) for steps in lca_steps(cifar100())]
    [[1], [1]]
    """
    heights = [np.zeros(hierarchy.num_leaves, np.int32)]
    steps: list[np.ndarray] = []
    for level in reversed(range(hierarchy.num_levels - 1)):
        parents = hierarchy.cut_parents(level)
        height = np.zeros(parents.max() + 1, np.int32)
        np.maximum.at(height, parents, heights[0] + 1)
        height[hierarchy.sizes[level] :] = 0  # leaves of higher levels
        height[: hierarchy.sizes[level]][hierarchy.is_leaf(level)] = 0
        steps.insert(0, height[parents] - heights[0])
        heights.insert(0, height)
    return (heights[0].max() + 1 - heights[0], *steps)


def expected_lca_height(p_leaf: ArrayLike, hierarchy: Hierarchy) -> jax.Array:
    """Return, for each leaf, the expected height of its lowest common ancestor with the truth.

    Pure and jitted, linear in the number of classes of the tree.

    Args:
      p_leaf: float `[..., K]`, non-negative probabilities of the K leaves, adapted or not.
      hierarchy: a tree of K leaves.

    Returns:
      float `[..., K]`, the expected cost of each leaf, in [0, L] if `p_leaf` sums to 1.

    Raises:
      ValueError: if the last axis does not have K elements.
    """
    p = jnp.asarray(p_leaf)
    if p.shape[-1:] != (hierarchy.num_leaves,):
        raise ValueError(
            f"p_leaf is [..., {hierarchy.num_leaves}], one probability for each leaf of the "
            f"hierarchy; got {list(p.shape)}"
        )
    p = p.astype(jnp.promote_types(p.dtype, jnp.float32))
    parents = [hierarchy.cut_parents(level) for level in range(hierarchy.num_levels - 1)]
    return _expected_lca_height(p, parents, lca_steps(hierarchy))


@jax.jit
def _expected_lca_height(
    p_leaf: jax.Array,
    parents: Sequence[Ids],
    steps: Sequence[Ids],
) -> jax.Array:
    mass = [jnp.moveaxis(p_leaf, -1, 0)]  # a segment sum is fastest over the leading axis
    for ids, step in zip(reversed(parents), reversed(steps[:-1]), strict=True):
        mass.insert(0, jax.ops.segment_sum(mass[0], ids, len(step)))
    total = mass[0].sum(axis=0, keepdims=True)  # no partial sum of it rounds to more
    costs = [
        jnp.expand_dims(step, range(1, m.ndim)) * (total - m)
        for step, m in zip(steps, mass, strict=True)
    ]
    cost = costs[0]
    for ids, below in zip(parents, costs[1:], strict=True):
        cost = cost[ids] + below
    return jnp.moveaxis(cost, 0, -1)


def least_height_leaf(p_leaf: ArrayLike, hierarchy: Hierarchy) -> jax.Array:
    """Decide for the leaf with the smallest expected height of the LCA with the truth.

    Ties go to the lowest index. Pure and jitted; no probability changes.

    Args:
      p_leaf: float `[..., K]`, non-negative probabilities of the K leaves, adapted or not.
      hierarchy: a tree of K leaves.

    Returns:
      int32 `[...]`, leaf ids.

    Raises:
      ValueError: if the last axis does not have K elements.

    Source: Karthik et al. (ICLR 2021), Section 3, with the height of the LCA as cost.

    The most probable leaf is 'pug', but the truth is probably a cat:

    >>> animals = ('cat', 'dog'), ('lynx', 'pug', 'lion')
    >>> pets = Hierarchy(('kind', 'animal'), animals, ((0, 1, 0),))
    >>> least_height_leaf([0.3, 0.4, 0.3], pets).item()
    0
    """
    return jnp.argmin(expected_lca_height(p_leaf, hierarchy), axis=-1).astype(jnp.int32)
