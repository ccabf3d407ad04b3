"""The nodes of a hierarchy, the classes of all levels and the root above them, as tables.

A node is a pair (level, class), as in the rows of `Hierarchy.cut`; the root is (-1, 0). Its number
is its position in the classes of all levels side by side, coarsest level first; the root comes
last, so that -1 is its number too.
"""

import dataclasses
import functools

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.hierarchy.hierarchy import Hierarchy

ROOT = (-1, 0)


@dataclasses.dataclass(frozen=True, eq=False)
class Nodes:
    """The M classes of a hierarchy of L levels and K leaves, and its root, by number.

    Args:
      pairs: int32 `[M + 1, 2]`, the level and the class of each node.
      paths: int32 `[M + 1, L]`, the node at each level on the way from the root to each node; below
        its own level, the node itself.
      rows: int32 `[M + 1, L]`, the same as rows of each level's cut, as `Hierarchy.labels` returns
        them; below the level of a node with children, -1.
      leaves: int32 `[K]`, the node of each leaf id.
      leaf_counts: int32 `[M + 1]`, the number of leaves at or below each node.
    """

    pairs: np.ndarray
    paths: np.ndarray
    rows: np.ndarray
    leaves: np.ndarray
    leaf_counts: np.ndarray

    @property
    def levels(self) -> np.ndarray:
        """Level of each node, int32 `[M + 1]`: -1 for the root."""
        return self.pairs[:, 0]

    @property
    def information(self) -> np.ndarray:
        """Bits that each node says about the leaf, float64 `[M + 1]`: log2(K / leaves below it).

        The root says nothing, and a leaf log2 K, all there is to say about K equal leaves.
        """
        return np.log2(self.leaf_counts[-1] / self.leaf_counts)


@functools.lru_cache(maxsize=8)
def nodes_of(hierarchy: Hierarchy) -> Nodes:
    """Return the tables of a hierarchy's nodes.

    >>> animals = ('cat', 'dog'), ('lynx', 'pug', 'lion')
    >>> nodes = nodes_of(Hierarchy(('kind', 'animal'), animals, ((0, 1, 0),)))
    >>> nodes.pairs.tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1], [1, 2], [-1, 0]]
    >>> nodes.paths[4].tolist(), nodes.rows[1].tolist(), nodes.leaf_counts.tolist()
    ([0, 4], [1, -1], [2, 1, 1, 1, 1, 3])
    """
    levels = hierarchy.num_levels
    first = _first_numbers(hierarchy)
    root = first[-1]
    pairs = [(level, i) for level, size in enumerate(hierarchy.sizes) for i in range(size)]
    pairs.append(ROOT)
    paths = np.full((root + 1, levels), root, np.int32)
    for level, size in enumerate(hierarchy.sizes):
        own = np.arange(first[level], first[level] + size)
        if level:
            paths[own] = paths[first[level - 1] + hierarchy.parents[level - 1]]
        paths[own, level:] = own[:, None]
    cuts = [hierarchy.cut(level) for level in range(levels)]
    rows = np.full((root + 1, levels), -1, np.int32)
    for level, cut in enumerate(cuts):
        row_of = np.full(root + 1, -1)
        row_of[first[cut[:, 0]] + cut[:, 1]] = np.arange(len(cut))
        rows[:, level] = row_of[paths[:, level]]
    leaves = (first[cuts[-1][:, 0]] + cuts[-1][:, 1]).astype(np.int32)
    counts = np.zeros(root + 1, np.int32)
    counts[root] = len(leaves)
    level_of = np.array(pairs, np.int32)[:, 0]
    for level in range(levels):
        above = leaves[level_of[leaves] >= level]
        np.add.at(counts, paths[above, level], 1)
    return Nodes(np.array(pairs, np.int32), paths, rows, leaves, counts)


def node_names(hierarchy: Hierarchy) -> tuple[str, ...]:
    """Return the name of each node by its number; the root's is empty."""
    return (*(name for names in hierarchy.names for name in names), "")


def node_numbers(labels: ArrayLike, hierarchy: Hierarchy) -> np.ndarray:
    """Return the number of each node, int32 `[N]`.

    Args:
      labels: integer `[N]`, leaf ids, or `[N, 2]`, pairs (level, class); the root is (-1, 0).
      hierarchy: the tree.

    Raises:
      ValueError: for another shape or type, and for a node that is not in the tree.
    """
    labels = np.asarray(labels)
    if labels.ndim not in (1, 2) or labels.shape[1:] not in ((), (2,)):
        raise ValueError(
            f"labels are leaf ids [N], or [N, 2] for nodes (level, class); got {list(labels.shape)}"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels are integers, not {labels.dtype}")
    if labels.ndim == 1:
        hierarchy.labels(labels)  # checks their range
        return nodes_of(hierarchy).leaves[labels]
    level, class_ = labels.T
    bad = (level < -1) | (level >= hierarchy.num_levels)
    size = np.array([*hierarchy.sizes, 1])[np.where(bad, 0, level)]
    bad |= (class_ < 0) | (class_ >= size)
    if bad.any():
        row = int(bad.argmax())
        raise ValueError(
            f"labels[{row}] is (level, class) = ({level[row]}, {class_[row]}); allowed are levels "
            f"0 to {hierarchy.num_levels - 1} of {', '.join(map(str, hierarchy.sizes))} classes, "
            "and (-1, 0) for the root"
        )
    return (_first_numbers(hierarchy)[level] + class_).astype(np.int32)


def _first_numbers(hierarchy: Hierarchy) -> np.ndarray:
    """Return the number of each level's first class, and at its end, for level -1, the root's."""
    return np.cumsum([0, *hierarchy.sizes])
