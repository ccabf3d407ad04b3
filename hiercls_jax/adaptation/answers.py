"""Decisions: from the probabilities of all levels to one answer for each sample.

The most probable classes of the levels may contradict each other. A decision gives one path of the
tree instead. `DECISIONS[name](probs, hierarchy)` returns the answer's class on each level.

    decision       answer
    -------------  ----------------------------------------------------------------------------
    independent    the most probable class of each level, whatever the other levels say
    leaf           the most probable leaf, and the classes above it
    top_down       from the top, the most probable child at each step
    minimum_risk   the node, on any level, with the smallest expected distance to the true leaf

All of them take NumPy and JAX arrays, also under `jit`, and compute in the arrays' own dtype. Ties
go to the lowest index.

>>> pets = Hierarchy(("kind", "animal"), (("cat", "dog"), ("lynx", "lion", "pug")), ((0, 0, 1),))
>>> probs = np.array([[0.55, 0.45]]), np.array([[0.3, 0.25, 0.45]])
>>> {name: decide(probs, pets).tolist() for name, decide in DECISIONS.items()}
{'independent': [[0, 2]], 'leaf': [[1, 2]], 'top_down': [[0, 0]], 'minimum_risk': [[0, -1]]}
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import nodes_of

Array = np.ndarray | jax.Array
Probs = Sequence[ArrayLike]
Decision = Callable[[Probs, Hierarchy], Any]


def independent(probs: Probs, hierarchy: Hierarchy) -> Any:
    """Answer with the most probable class of each level, independently of the other levels.

    Args:
      probs: L arrays `[..., N_l]` of marginals, coarsest level first.
      hierarchy: L levels of N_l classes.

    Returns:
      int32 `[..., L]`, rows of each level's cut: classes of the level or, in a ragged hierarchy,
      leaves above it, as in `Hierarchy.labels`. They may lie on different branches of the tree.

    Raises:
      ValueError: for a wrong number or shape of arrays.
    """
    levels, xp = arrays(probs, hierarchy)
    rows = [_cut(levels, hierarchy, level, xp).argmax(-1) for level in range(len(levels))]
    return xp.stack(rows, axis=-1).astype(np.int32)


def leaf(probs: Probs, hierarchy: Hierarchy) -> Any:
    """Answer with the most probable leaf, and the classes above it.

    The levels above the leaves play no part, but adaptation has let them speak.

    Arguments, result and errors are those of `independent`; the rows lie on one path.
    """
    levels, xp = arrays(probs, hierarchy)
    nodes = nodes_of(hierarchy)
    return xp.asarray(nodes.rows[nodes.leaves])[most_probable_leaf(levels, hierarchy, xp)]


def top_down(probs: Probs, hierarchy: Hierarchy) -> Any:
    """Answer with the most probable class of the first level, then with its best child, and so on.

    It ends at a leaf. Only the order of siblings matters, so that this is the same answer for
    marginals and for probabilities given the parent.

    Arguments, result and errors are those of `independent`; the rows lie on one path.
    """
    levels, xp = arrays(probs, hierarchy)
    nodes = nodes_of(hierarchy)
    current = levels[0].argmax(-1)  # a class of the level, or -1 below a leaf
    node = current
    first = hierarchy.sizes[0]
    for level, p in enumerate(levels[1:]):
        parents = hierarchy.parents[level].reshape((1,) * current.ndim + (-1,))
        child = xp.asarray(parents) == current[..., None]
        best = xp.where(child, p, -1).argmax(-1)
        current = xp.where(child.any(axis=-1), best, -1)
        node = xp.where(current >= 0, first + current, node)
        first += hierarchy.sizes[level + 1]
    return xp.asarray(nodes.rows)[node]


def minimum_risk(probs: Probs, hierarchy: Hierarchy) -> Any:
    """Answer with the node that has the smallest expected distance to the true leaf.

    The distance of two nodes is the number of edges between them. With P the probabilities,

        E distance(v, truth) = Σ_u P(u) + Σ_{u: v or above it, not the root} (1 - 2 P(u)),

    because an edge above v counts if the truth lies elsewhere, and every other edge if the truth
    lies below it. If the levels agree, the answer is therefore the lowest class with more than half
    of the probability, or the root, and so it is for edges of any lengths. Ties go to the highest
    node, which claims least.

    Arguments and errors are those of `independent`.

    Returns:
      int32 `[..., L]` as `independent`, rows of one path; -1 at the levels below the answer if it
      has children, and at all levels if it is the root.
    """
    levels, xp = arrays(probs, hierarchy)
    risk = xp.zeros_like(levels[0][..., :1])  # of the nodes above, at first of the root
    best, node = risk[..., 0], xp.full(risk.shape[:-1], -1)
    first = 0
    for level, p in enumerate(levels):
        parents = hierarchy.parents[level - 1] if level else np.zeros(p.shape[-1], np.int32)
        risk = risk[..., parents] + (1 - 2 * p)
        lowest = risk.min(-1)
        node = xp.where(lowest < best, first + risk.argmin(-1), node)
        best = xp.minimum(lowest, best)
        first += hierarchy.sizes[level]
    return xp.asarray(nodes_of(hierarchy).rows)[node]


DECISIONS: dict[str, Decision] = {
    "independent": independent,
    "leaf": leaf,
    "top_down": top_down,
    "minimum_risk": minimum_risk,
}


def answer_nodes(rows: Any, hierarchy: Hierarchy) -> Any:
    """Return the node where each path ends, integer `[...]`: its number in `nodes_of(hierarchy)`.

    Args:
      rows: integer `[..., L]`, paths as the decisions return them. Of `independent`, which returns
        none, the node is the class of the last level.
      hierarchy: L levels.
    """
    xp = jax.numpy if isinstance(rows, jax.Array) else np
    rows, nodes = xp.asarray(rows), nodes_of(hierarchy)
    first = np.cumsum([0, *hierarchy.sizes])
    node = xp.full(rows.shape[:-1], len(nodes.pairs) - 1)  # the root
    for level in range(hierarchy.num_levels):
        of_level, class_ = hierarchy.cut(level).T
        row = rows[..., level]
        node = xp.where(row >= 0, xp.asarray(first[of_level] + class_)[row], node)
    return node


def arrays(probs: Probs, hierarchy: Hierarchy) -> tuple[list[Any], Any]:
    """Check the number and shapes of the levels; return them, and the module that computes on them.

    Raises:
      ValueError: for a wrong number or shape of arrays.
    """
    levels = [p if isinstance(p, jax.Array) else np.asarray(p) for p in probs]
    shapes = [list(p.shape) for p in levels]
    wanted = [[*shapes[0][:-1], n] for n in hierarchy.sizes] if shapes else []
    if shapes != wanted or not shapes:
        raise ValueError(
            f"levels of {list(hierarchy.sizes)} classes take arrays [..., N_l] with the same "
            f"leading axes; got {shapes}"
        )
    if any(isinstance(p, jax.Array) for p in levels):
        return [jax.numpy.asarray(p) for p in levels], jax.numpy
    return levels, np


def most_probable_leaf(levels: Sequence[Any], hierarchy: Hierarchy, xp: Any) -> Any:
    """Return the id of the most probable leaf, integer `[...]`."""
    return _cut(levels, hierarchy, hierarchy.num_levels - 1, xp).argmax(-1)


def _cut(levels: Sequence[Any], hierarchy: Hierarchy, level: int, xp: Any) -> Any:
    """Return the probabilities of a level's cut, `[..., K]`."""
    above = [
        levels[i][..., np.flatnonzero(hierarchy.is_leaf(i))]
        for i in range(level)
        if hierarchy.ragged
    ]
    return xp.concatenate([levels[level], *above], axis=-1) if above else levels[level]
