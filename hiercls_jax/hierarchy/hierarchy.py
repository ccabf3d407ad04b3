"""A hierarchy of classes: its levels, cuts and labels, checked on the host.

A hierarchy is a stack of levels, coarsest first. Every class of a level below the first has exactly
one parent in the level above, and every class above the last level has at least one child. The map
from fine to coarse classes is the paper's `s` (Section 3.1).

In a ragged hierarchy, classes above the last level may be childless. They are leaves, as the
classes of the last level are, so a level no longer partitions the samples; a cut does.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import repr as shortened
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.hierarchy.checks import (
    HierarchyError,
    check_ids,
    check_names,
    check_shape,
    find_childless,
)
from hiercls_jax.hierarchy.files import AnyPath, name_file, read_csv, read_json, write_json
from hiercls_jax.hierarchy.pairs import Pair, default_levels, levels_of_pairs


@dataclasses.dataclass(frozen=True, eq=False, init=False)
class Hierarchy:
    """A hierarchy of mutually exclusive classes with any number of levels.

    Args:
      levels: names of the L levels, coarsest first, such as `('coarse', 'fine')`.
      names: class names, one sequence per level; unique within their level.
      parents: L - 1 integer sequences; `parents[l][j]` in `[0, len(names[l]))` is the index,
        in level `l`, of the parent of class `j` of level `l + 1`.
      ragged: whether classes above the last level may be childless. The field `ragged` is True
        only if one is.
      unordered: names of the levels whose order nobody stated. The classes of such a level stand in
        an order that the reader chose, such as the order in which a CSV file first mentions them,
        so columns without names must not be matched to them. JSON does not keep this field,
        because it lists every level.

    Raises:
      HierarchyError: for wrong lengths, duplicate names, ids out of range and, unless `ragged`,
        childless classes above the last level.

    >>> animals = ('cat', 'dog'), ('lynx', 'pug', 'lion')
    >>> pets = Hierarchy(('kind', 'animal'), animals, ((0, 1, 0),))
    >>> pets.sizes
    (2, 3)
    >>> [labels.tolist() for labels in pets.labels(np.array([2, 1]))]
    [[0, 1], [2, 1]]

    A ragged hierarchy: the dog is a leaf of the first level, and the third leaf of the tree.

    >>> pets = Hierarchy(('kind', 'animal'), (('cat', 'dog'), ('lynx', 'lion')), ((0, 0),), True)
    >>> pets.cut(1).tolist(), pets.leaf_names
    ([[1, 0], [1, 1], [0, 1]], ('lynx', 'lion', 'dog'))
    >>> [labels.tolist() for labels in pets.labels(np.array([2, 1]))]
    [[1, 0], [2, 1]]
    """

    levels: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    parents: tuple[np.ndarray, ...]
    ragged: bool = False
    unordered: tuple[str, ...] = ()

    def __init__(
        self,
        levels: Sequence[str],
        names: Sequence[Sequence[str]],
        parents: Sequence[ArrayLike],
        ragged: bool = False,
        unordered: Sequence[str] = (),
    ) -> None:
        check_shape(levels, names, parents)
        if not isinstance(ragged, bool):
            raise HierarchyError(f"ragged: expected true or false, got {shortened(ragged)}")
        for level, of_level in zip(levels, names, strict=True):
            check_names(f"level '{level}'", tuple(of_level))
        checked, any_childless = [], False
        for i, (above, below) in enumerate(zip(levels, levels[1:], strict=False)):
            what = f"parents of level '{below}' (ids into level '{above}')"
            ids = check_ids(parents[i], len(names[i]), what)
            childless = find_childless(ids, len(names[i]))
            if childless.size and not ragged:
                raise HierarchyError(
                    f"{what}: class {childless[0]} ('{names[i][childless[0]]}') has no "
                    "children; remove it, give it at least one, or pass ragged=True"
                )
            any_childless |= childless.size > 0
            ids.setflags(write=False)
            checked.append(ids)
        object.__setattr__(self, "levels", tuple(levels))
        object.__setattr__(self, "names", tuple(tuple(of_level) for of_level in names))
        object.__setattr__(self, "parents", tuple(checked))
        object.__setattr__(self, "ragged", any_childless)
        object.__setattr__(self, "unordered", tuple(unordered))

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.levels)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each level, coarsest first."""
        return tuple(len(names) for names in self.names)

    @property
    def num_leaves(self) -> int:
        """Number of leaves, the classes without children: the last level's, unless ragged."""
        return len(self.cut(-1))

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """Name of each leaf, by leaf id: the order of the last level's cut."""
        return self.cut_names(-1)

    @property
    def fine_to_coarse(self) -> np.ndarray:
        """The paper's `s`: int32 `[F]`, the first-level class of each last-level class.

        A ragged hierarchy has none; see `ancestors`.
        """
        return self.ancestors(0)

    def ancestors(self, level: int) -> np.ndarray:
        """Return int32 `[F]`: the class in `level` above each class of the last level.

        Raises:
          HierarchyError: in a ragged hierarchy, whose leaves are not the last level alone.
        """
        level = self._index(level)
        if self.ragged:
            raise HierarchyError(
                f"the hierarchy is ragged: its {self.num_leaves} leaves are not the "
                f"{self.sizes[-1]} classes of level '{self.levels[-1]}'; use "
                "labels(np.arange(num_leaves)), positions in each level's cut"
            )
        return self.labels(np.arange(self.sizes[-1]))[level]

    def is_leaf(self, level: int) -> np.ndarray:
        """Return bool `[N_l]`: which classes of `level` have no children."""
        level = self._index(level)
        leaf = np.ones(len(self.names[level]), bool)
        if level < self.num_levels - 1:
            leaf[self.parents[level]] = False
        return leaf

    def cut(self, level: int) -> np.ndarray:
        """Return int32 `[K, 2]`, rows (level, class): a partition of the samples at `level`.

        The rows are the N_l classes of `level` in order, then the leaves of the levels above,
        coarsest level first. Every leaf of the tree lies under exactly one row.
        """
        level = self._index(level)
        levels = (level, *range(level))
        classes = [np.arange(len(self.names[level]))]
        classes += [np.flatnonzero(self.is_leaf(above)) for above in range(level)]
        of_level = np.repeat(levels, [len(ids) for ids in classes])
        return np.stack([of_level, np.concatenate(classes)], axis=1).astype(np.int32)

    def cut_names(self, level: int) -> tuple[str, ...]:
        """Return the class names of `cut(level)`, in its order."""
        return tuple(self.names[of_level][i] for of_level, i in self.cut(level))

    def cut_probs(self, levels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the probabilities of every level's cut: L arrays `[N, K_l]`.

        Args:
          levels: L arrays `[N, N_l]`, the probabilities of each level's classes.
        """
        leaves = [p[:, self.is_leaf(level)] for level, p in enumerate(levels[:-1])]
        return [
            np.concatenate([p, *leaves[:level]], axis=1) if self.ragged else p
            for level, p in enumerate(levels)
        ]

    def cut_parents(self, level: int) -> np.ndarray:
        """Return int32 `[K]`: the row of `cut(level)` above each row of `cut(level + 1)`.

        These are `parents[level]`, then the leaves of the levels above `level + 1`, each of which
        is a row of both cuts.
        """
        level = self._index(level)
        self._index(level + 1)  # raises if no level is below
        leaves_above = np.arange(len(self.names[level]), len(self.cut(level)))
        leaves = np.flatnonzero(self.is_leaf(level))
        return np.concatenate([self.parents[level], leaves_above, leaves], dtype=np.int32)

    def filled(self) -> "Hierarchy":
        """Return the tree in which every level is its cut, so that no leaf is above the last level.

        A leaf above the last level stands for its own only child on every level below, under its
        own name. Leaf ids and cuts stay what they are.

        Raises:
          HierarchyError: if a leaf has the name of a class on a level below.
        """
        levels = range(self.num_levels)
        names = [self.cut_names(level) for level in levels]
        parents = [self.cut_parents(level) for level in levels[:-1]]
        return Hierarchy(self.levels, names, parents, unordered=self.unordered)

    def labels(self, leaf_ids: ArrayLike) -> tuple[np.ndarray, ...]:
        """Return the labels of every level, coarsest first, of samples with these leaves.

        Args:
          leaf_ids: integer `[...]` in `[0, num_leaves)`, rows of the last level's cut: the classes
            of the last level and, in a ragged hierarchy, the leaves above it.

        Returns:
          L arrays, int32 `[...]`: rows of each level's cut, which are classes of the level if no
          leaves are above it.

        Raises:
          HierarchyError: for ids that are not integers or out of range.
        """
        leaf_ids = np.asarray(leaf_ids)
        if not np.issubdtype(leaf_ids.dtype, np.integer):
            raise HierarchyError(f"labels are integers, not {leaf_ids.dtype}")
        count = self.num_leaves
        if leaf_ids.size and (leaf_ids.min() < 0 or leaf_ids.max() >= count):
            bad = leaf_ids.min() if leaf_ids.min() < 0 else leaf_ids.max()
            what = f"level '{self.levels[-1]}' has {count} classes"
            if self.ragged:
                what = f"the hierarchy has {count} leaves"
            raise HierarchyError(f"label {bad} is out of range: {what}, 0 to {count - 1}")
        labels = [leaf_ids.astype(np.int32)]
        for level in reversed(range(self.num_levels - 1)):
            labels.append(self.cut_parents(level)[labels[-1]])
        return tuple(reversed(labels))

    def _index(self, level: int) -> int:
        if not -self.num_levels <= level < self.num_levels:
            raise IndexError(f"there is no level {level} in a hierarchy of {self.num_levels}")
        return level % self.num_levels

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hierarchy) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.levels, self.names))

    def to_dict(self) -> dict:
        """Return `{"levels": [...], "names": [[...], ...], "parents": [[...], ...]}`.

        A ragged hierarchy has `"ragged": True` as well.
        """
        data = {
            "levels": list(self.levels),
            "names": [list(names) for names in self.names],
            "parents": [ids.tolist() for ids in self.parents],
        }
        return data | {"ragged": True} if self.ragged else data

    @classmethod
    def from_dict(cls, data: Any) -> "Hierarchy":
        """Build a hierarchy from what `to_dict` returns."""
        if not isinstance(data, dict):
            raise HierarchyError(f"a hierarchy is a JSON object, not {type(data).__name__}")
        wanted = {"levels", "names", "parents"}
        if set(data) - {"ragged"} != wanted:
            raise HierarchyError(
                f"a hierarchy has the keys {sorted(wanted)}; this one has {sorted(map(str, data))}"
            )
        return cls(data["levels"], data["names"], data["parents"], data.get("ragged", False))

    def to_json(self, path: AnyPath) -> None:
        """Write the hierarchy as JSON."""
        write_json(self.to_dict(), path)

    @classmethod
    def from_json(cls, path: AnyPath) -> "Hierarchy":
        """Read a hierarchy that `to_json` wrote."""
        data = read_json(path)
        with name_file(path):
            return cls.from_dict(data)

    @classmethod
    def from_csv(
        cls, path: AnyPath, levels: Sequence[str] | None = None, ragged: bool = False
    ) -> "Hierarchy":
        """Read a two-column CSV of (class, parent) rows, with or without that header.

        A class of the first level has a row without a parent, `class,`, or no row of its own; a
        parent that has a row with a parent is a class of a level between. Classes keep the order of
        their rows, and those without one the order in which they are first named: then the first
        level is `unordered`. All leaves must be at the same depth, unless `ragged`.

        Args:
          path: the file, UTF-8.
          levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
          ragged: whether leaves may be at different depths.
        """
        pairs = read_csv(path)
        with name_file(path):
            if not ragged and all(parent is None for _, parent in pairs):
                raise HierarchyError("no row has a parent, so there is nothing above the classes")
            return cls.from_pairs(pairs, levels, ragged)

    @classmethod
    def from_pairs(
        cls, pairs: Iterable[Pair], levels: Sequence[str] | None = None, ragged: bool = False
    ) -> "Hierarchy":
        """Build a hierarchy from (class, parent) pairs, as a CSV file has them.

        Args:
          pairs: each class at most once. A class of the first level has the parent None, or is
            the parent of a pair and the class of none. Classes keep the order of the pairs. If a
            class of the first level has no pair of its own, that level is `unordered`.
          levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
          ragged: whether leaves may be at different depths.

        >>> Hierarchy.from_pairs([('lynx', 'cat'), ('pug', 'dog')]).names
        (('cat', 'dog'), ('lynx', 'pug'))
        """
        names, parents, first_is_stated = levels_of_pairs(pairs, ragged)
        if levels is None:
            levels = default_levels(len(names))
        return cls(levels, names, parents, ragged, () if first_is_stated else levels[:1])

    @classmethod
    def read(cls, path: AnyPath, ragged: bool = False) -> "Hierarchy":
        """Read a `.json` or `.csv` file.

        Args:
          path: the file.
          ragged: whether the leaves of a CSV file may be at different depths; a JSON file states
            this itself.
        """
        suffix = Path(path).suffix.lower()
        if not Path(path).is_file():
            raise HierarchyError(f"there is no hierarchy file {path}")
        if suffix == ".json":
            return cls.from_json(path)
        if suffix == ".csv":
            return cls.from_csv(path, ragged=ragged)
        raise HierarchyError(f"{path}: a hierarchy file ends in .json or .csv, not '{suffix}'")
