"""Class hierarchies: levels, names and parents, validated on the host where they are data.

A hierarchy is a stack of levels, coarsest first, every class of a level below the first having
exactly one parent in the level above, and every class above the last level at least one child.
The map from fine to coarse classes is the paper's `s` (Section 3.1).

In a ragged hierarchy classes above the last level may be childless: they are leaves as the
classes of the last level are. What partitions the samples is then not a level but a cut.
"""

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from reprlib import repr as shortened

import numpy as np

from hiercls_jax.errors import UserError


class HierarchyError(UserError):
    """A hierarchy that cannot be used, with the class or level at fault in its message."""


@dataclasses.dataclass(frozen=True, eq=False)
class Hierarchy:
    """A hierarchy of mutually exclusive classes with any number of levels.

    Args:
      levels: names of the L levels, coarsest first, such as `('coarse', 'fine')`.
      names: class names, one sequence per level; unique within their level.
      parents: L - 1 integer sequences; `parents[l][j]` in `[0, len(names[l]))` is the index,
        in level `l`, of the parent of class `j` of level `l + 1`.
      ragged: whether classes above the last level may be childless. The field says afterwards
        whether one is.

    Raises:
      HierarchyError: for wrong lengths, duplicate names, ids out of range and, unless `ragged`,
        childless classes.

    >>> animals = ('cat', 'dog'), ('lynx', 'pug', 'lion')
    >>> pets = Hierarchy(('kind', 'animal'), animals, ((0, 1, 0),))
    >>> pets.sizes
    (2, 3)
    >>> [labels.tolist() for labels in pets.labels(np.array([2, 1]))]
    [[0, 1], [2, 1]]

    A ragged one: the dog is a leaf of the first level, and the third leaf of the tree.

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

    def __post_init__(self):
        _check_lists(self.levels, self.names, self.parents)
        if not isinstance(self.ragged, bool):
            raise HierarchyError(f"ragged: expected true or false, got {shortened(self.ragged)}")
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "names", tuple(tuple(level) for level in self.names))
        _check_shape(self.levels, self.names, self.parents)
        for level, names in zip(self.levels, self.names, strict=True):
            check_names(f"level '{level}'", names)
        parents, ragged = [], False
        for i, ids in enumerate(self.parents):
            above, below = self.levels[i], self.levels[i + 1]
            what = f"parents of level '{below}' (ids into level '{above}')"
            ids = _check_ids(ids, len(self.names[i]), what)
            childless = np.flatnonzero(_is_childless(ids, len(self.names[i])))
            if childless.size and not self.ragged:
                raise HierarchyError(
                    f"{what}: class {childless[0]} ('{self.names[i][childless[0]]}') has no "
                    "children; remove it, give it at least one, or pass ragged=True"
                )
            ragged |= childless.size > 0
            ids.setflags(write=False)
            parents.append(ids)
        object.__setattr__(self, "parents", tuple(parents))
        object.__setattr__(self, "ragged", ragged)

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
        """Number of leaves, the classes without children: the last level's, where not ragged."""
        return len(self.cut(-1))

    @property
    def leaf_names(self) -> tuple[str, ...]:
        """Name of each leaf, by leaf id: the order of the last level's cut."""
        return self.cut_names(-1)

    @property
    def fine_to_coarse(self) -> np.ndarray:
        """The paper's `s`: int32 `[F]`, the first-level class of each last-level class.

        Not of a ragged hierarchy; see `ancestors`.
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
        size = len(self.names[level])
        if level == self.num_levels - 1:
            return np.ones(size, bool)
        return _is_childless(self.parents[level], size)

    def cut(self, level: int) -> np.ndarray:
        """Return int32 `[K, 2]`, rows (level, class): a partition of the samples at `level`.

        The N_l classes of `level` in order, then the leaves of the levels above, coarsest level
        first, by index. Every leaf of the tree lies under exactly one row.
        """
        level = self._index(level)
        parts = [(level, np.arange(len(self.names[level])))]
        parts += [(above, np.flatnonzero(self.is_leaf(above))) for above in range(level)]
        rows = [np.stack([np.full_like(ids, where), ids], axis=1) for where, ids in parts]
        return np.concatenate(rows).astype(np.int32)

    def cut_names(self, level: int) -> tuple[str, ...]:
        """Return the class names of `cut(level)`, in its order."""
        return tuple(self.names[where][i] for where, i in self.cut(level))

    def cut_probs(self, levels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return every level's probabilities over its cut, L arrays `[N, K_l]`.

        Args:
          levels: L arrays `[N, N_l]`, the probabilities of each level's classes.
        """
        leaves = [p[:, self.is_leaf(level)] for level, p in enumerate(levels[:-1])]
        return [
            np.concatenate([p, *leaves[:level]], axis=1) if self.ragged else p
            for level, p in enumerate(levels)
        ]

    def cut_parents(self, level: int) -> np.ndarray:
        """Return int32: for each row of `cut(level + 1)`, the row of `cut(level)` above it.

        `parents[level]`, followed by the leaves above: each is its own row in both cuts.
        """
        level = self._index(self._index(level) + 1) - 1
        leaves_above = np.arange(len(self.names[level]), len(self.cut(level)))
        leaves = np.flatnonzero(self.is_leaf(level))
        return np.concatenate([self.parents[level], leaves_above, leaves], dtype=np.int32)

    def labels(self, leaf_ids: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return int32 `[N]` labels for every level, coarsest first, from those of leaves `[N]`.

        Args:
          leaf_ids: integer `[N]` in `[0, num_leaves)`, positions in the last level's cut: the
            classes of the last level and, in a ragged hierarchy, the leaves above it.

        Returns:
          Per level the position in that level's cut: where the level has no leaves above it, a
          class of the level.
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

    def __eq__(self, other) -> bool:
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
    def from_dict(cls, data: dict) -> "Hierarchy":
        """Build a hierarchy from what `to_dict` returns."""
        if not isinstance(data, dict):
            raise HierarchyError(f"a hierarchy is a JSON object, not {type(data).__name__}")
        wanted = {"levels", "names", "parents"}
        if set(data) - {"ragged"} != wanted:
            raise HierarchyError(
                f"a hierarchy has the keys {sorted(wanted)}; this one has {sorted(map(str, data))}"
            )
        return cls(data["levels"], data["names"], data["parents"], data.get("ragged", False))

    def to_json(self, path) -> None:
        """Write the hierarchy as JSON."""
        path = Path(path)
        temporary = path.with_name(f".{path.name}.tmp")  # renamed when it is whole
        temporary.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def from_json(cls, path) -> "Hierarchy":
        """Read a hierarchy that `to_json` wrote."""
        text = Path(path).read_bytes()
        try:
            data = json.loads(text.decode("utf-8"))
        except (ValueError, RecursionError) as error:  # also ids of thousands of digits
            raise HierarchyError(f"{path} is not JSON: {error}") from error
        try:
            return cls.from_dict(data)
        except HierarchyError as error:
            raise HierarchyError(f"{path}: {error}") from error

    @classmethod
    def from_csv(
        cls, path, levels: Sequence[str] | None = None, ragged: bool = False
    ) -> "Hierarchy":
        """Read a two-column CSV of (class, parent) rows, with or without that header.

        A parent that has no row of its own is a class of the first level; a parent that has one
        is a class of a level between. Classes keep the order of the file, first-level ones the
        order in which they are first named. All leaves must be at the same depth, unless
        `ragged`.

        Args:
          path: the file, UTF-8.
          levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
          ragged: whether leaves may be at different depths. The parent may then be left out,
            `class,` being a class of the first level, with or without children.
        """
        try:
            return cls.from_pairs(_read_rows(path, ragged), levels, ragged)
        except UnicodeDecodeError as error:
            raise HierarchyError(f"{path} is not UTF-8 text: {error}") from error
        except csv.Error as error:
            raise HierarchyError(f"{path} is not a CSV file: {error}") from error
        except HierarchyError as error:
            raise HierarchyError(f"{path}: {error}") from error

    @classmethod
    def from_pairs(
        cls,
        pairs: Iterable[tuple[str, str | None]],
        levels: Sequence[str] | None = None,
        ragged: bool = False,
    ) -> "Hierarchy":
        """Build a hierarchy from (class, parent) pairs, as a CSV file has them.

        Args:
          pairs: each class at most once; the parent None for a class of the first level, as is
            every parent that is in no pair the class. Classes keep this order.
          levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
          ragged: whether leaves may be at different depths.

        >>> Hierarchy.from_pairs([('lynx', 'cat'), ('pug', 'dog')]).names
        (('cat', 'dog'), ('lynx', 'pug'))
        """
        parent_of = _parent_of(pairs)
        order: dict[str, None] = {}  # the classes, as first named
        for child, parent in parent_of.items():
            if parent is not None and parent not in parent_of:
                order[parent] = None
            order[child] = None
        depth = _depths(parent_of)
        deepest = max(depth[name] for name in order)
        inner = set(parent_of.values())
        names: list[list[str]] = [[] for _ in range(deepest + 1)]
        for name in order:
            if not ragged and name not in inner and depth[name] != deepest:
                raise HierarchyError(
                    f"leaf '{name}' is at level {depth[name] + 1} but others are at level "
                    f"{deepest + 1}; all leaves must be at the same depth, or pass ragged=True"
                )
            names[depth[name]].append(name)
        index = {name: i for level in names for i, name in enumerate(level)}
        parents = [[index[parent_of[name]] for name in level] for level in names[1:]]
        if levels is None:
            two = len(names) == 2
            levels = ("coarse", "fine") if two else [f"level{i + 1}" for i in range(len(names))]
        return cls(levels, names, parents, ragged)

    @classmethod
    def read(cls, path, ragged: bool = False) -> "Hierarchy":
        """Read a `.json` or `.csv` file.

        Args:
          path: the file.
          ragged: whether the leaves of a CSV file may be at different depths; a JSON file says
            that itself.
        """
        suffix = Path(path).suffix.lower()
        if not Path(path).is_file():
            raise HierarchyError(f"there is no hierarchy file {path}")
        if suffix == ".json":
            return cls.from_json(path)
        if suffix == ".csv":
            return cls.from_csv(path, ragged=ragged)
        raise HierarchyError(f"{path}: a hierarchy file ends in .json or .csv, not '{suffix}'")


def check_parents(ids, num_parents: int, what: str) -> np.ndarray:
    """Return `ids` as int32 `[F]` after checking integers, range and that no parent is childless.

    `segment_sum` drops ids out of range without a word, so they are stopped here; a parent
    without children makes coherence impossible.
    """
    ids = _check_ids(ids, num_parents, what)
    childless = np.flatnonzero(_is_childless(ids, num_parents))
    if childless.size:
        raise HierarchyError(
            f"{what}: class {childless[0]} has no children; remove it, or give it at least one"
        )
    return ids


def is_list(value) -> bool:
    """Whether `value` is a list, tuple or array of things, rather than one thing or a text."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_names(where: str, names: Sequence[str]) -> None:
    """Raise a HierarchyError unless `names` are non-empty strings, at least one, all different."""
    if not names:
        raise HierarchyError(f"{where}: no classes")
    for name in names:
        check_name(where, name)
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise HierarchyError(f"{where}: the name '{name}' stands {count} times")


def check_name(where: str, name) -> None:
    """Raise a HierarchyError unless `name` is a non-empty string."""
    if not isinstance(name, str) or not name.strip():
        raise HierarchyError(f"{where}: a name is a non-empty string, got {shortened(name)}")


def _check_ids(ids, num_parents: int, what: str) -> np.ndarray:
    array = _to_array(ids, what)
    if array.ndim != 1 or array.size == 0:
        raise HierarchyError(f"{what}: expected shape [F] with F > 0, got {list(array.shape)}")
    if not np.issubdtype(array.dtype, np.integer):
        raise HierarchyError(f"{what}: expected integers, got {array.dtype}")
    bad = np.flatnonzero((array < 0) | (array >= num_parents))
    if bad.size:
        hint = ""
        if array.min() == 1 and array.max() == num_parents:
            hint = "; ids start at 0, and these look 1-based: subtract 1"
        raise HierarchyError(
            f"{what}: class {bad[0]} has id {array[bad[0]]}, allowed are 0 to "
            f"{num_parents - 1}{hint}"
        )
    return array.astype(np.int32)


def _is_childless(ids: np.ndarray, num_parents: int) -> np.ndarray:
    return np.bincount(ids, minlength=num_parents) == 0


def _to_array(ids, what: str) -> np.ndarray:
    try:
        if not hasattr(ids, "dtype"):
            # An array of text takes, for every element, the memory of the longest.
            array = np.asarray(ids, object)
            if any(isinstance(i, str | bytes) for i in array.ravel()):
                return array
        return np.asarray(ids)
    except ValueError:  # lists of different lengths
        raise HierarchyError(f"{what}: expected shape [F], got nested lists") from None


def _check_lists(levels, names, parents) -> None:
    wanted = [("levels", levels), ("names", names), ("parents", parents)]
    if is_list(names):
        wanted += [(f"names of level {i + 1}", level) for i, level in enumerate(names)]
    for what, value in wanted:
        if not is_list(value):
            raise HierarchyError(f"{what}: expected a list, got {shortened(value)}")


def _check_shape(levels, names, parents) -> None:
    if not levels:
        raise HierarchyError("a hierarchy has at least one level")
    check_names("the levels", levels)
    if len(names) != len(levels):
        raise HierarchyError(f"{len(levels)} levels but {len(names)} lists of class names")
    if len(parents) != len(levels) - 1:
        raise HierarchyError(
            f"{len(levels)} levels need {len(levels) - 1} lists of parents, got {len(parents)}"
        )
    for i, ids in enumerate(parents):
        shape = _to_array(ids, f"parents of level '{levels[i + 1]}'").shape
        if len(shape) == 1 and shape[0] != len(names[i + 1]):
            raise HierarchyError(
                f"level '{levels[i + 1]}' has {len(names[i + 1])} classes but {shape[0]} parents"
            )


def _read_rows(path, ragged: bool) -> list[tuple[str, str | None]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]
    numbered = [(number, cells) for number, cells in enumerate(table, 1) if any(cells)]
    if numbered and [cell.lower() for cell in numbered[0][1]] == ["class", "parent"]:
        del numbered[0]
    for number, cells in numbered:
        if len(cells) != 2 or not cells[0] or not (cells[1] or ragged):
            raise HierarchyError(
                f"row {number}: expected two columns (class, parent): {shortened(cells)}"
            )
    if not numbered:
        raise HierarchyError("no rows")
    return [(child, parent or None) for _, (child, parent) in numbered]


def _parent_of(pairs) -> dict[str, str | None]:
    if not isinstance(pairs, Iterable):
        raise HierarchyError(f"expected (class, parent) pairs, got {shortened(pairs)}")
    pairs = list(pairs)
    for number, pair in enumerate(pairs, 1):
        if not is_list(pair) or len(pair) != 2:
            raise HierarchyError(f"pair {number}: expected (class, parent), got {shortened(pair)}")
        check_name(f"pair {number}", pair[0])
        if pair[1] is not None:
            check_name(f"pair {number}", pair[1])
    if not pairs:
        raise HierarchyError("no classes")
    name, count = Counter(child for child, _ in pairs).most_common(1)[0]
    if count > 1:
        parents = [parent for child, parent in pairs if child == name]
        raise HierarchyError(
            f"class '{name}' has {count} rows, with the parents {shortened(parents)}; a class has "
            "exactly one parent"
        )
    return dict(pairs)


def _depths(parent_of: dict[str, str | None]) -> dict[str | None, int]:
    """Return the depth of every class and parent, 0 for those without a parent."""
    depth: dict[str | None, int] = {None: -1}
    for name in parent_of:
        chain: dict[str | None, None] = {}
        node: str | None = name
        while node not in depth:
            if node in chain:
                raise HierarchyError(f"'{node}' is its own ancestor")
            chain[node] = None
            node = parent_of.get(node)
        for step, below in enumerate(reversed(chain), depth[node] + 1):
            depth[below] = step
    return depth


# CIFAR-100's own table, fine classes in alphabetical order; several public copies are wrong.
_CIFAR100_COARSE = (
    "aquatic_mammals fish flowers food_containers fruit_and_vegetables "
    "household_electrical_devices household_furniture insects large_carnivores "
    "large_man-made_outdoor_things large_natural_outdoor_scenes large_omnivores_and_herbivores "
    "medium_mammals non-insect_invertebrates people reptiles small_mammals trees vehicles_1 "
    "vehicles_2"
)
_CIFAR100_FINE = (
    "apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus "
    "butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch "
    "crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo "
    "keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse "
    "mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy "
    "porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper "
    "snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television "
    "tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm"
)
_CIFAR100_FINE_TO_COARSE = (
    4, 1, 14, 8, 0, 6, 7, 7, 18, 3, 3, 14, 9, 18, 7, 11, 3, 9, 7, 11, 6, 11, 5, 10, 7,
    6, 13, 15, 3, 15, 0, 11, 1, 10, 12, 14, 16, 9, 11, 5, 5, 19, 8, 8, 15, 13, 14, 17, 18, 10,
    16, 4, 17, 4, 2, 0, 17, 4, 18, 17, 10, 3, 2, 12, 12, 16, 12, 1, 9, 19, 2, 10, 0, 1, 16,
    12, 9, 13, 15, 13, 16, 19, 2, 4, 6, 19, 5, 5, 8, 19, 18, 1, 2, 15, 6, 0, 17, 8, 14, 13,
)  # fmt: skip


def cifar100() -> Hierarchy:
    """Return CIFAR-100's two levels: 20 coarse and 100 fine classes (Krizhevsky, 2009).

    >>> cifar100().fine_to_coarse[:5].tolist()
    [4, 1, 14, 8, 0]
    """
    return Hierarchy(
        ("coarse", "fine"),
        (_CIFAR100_COARSE.split(), _CIFAR100_FINE.split()),
        (_CIFAR100_FINE_TO_COARSE,),
    )
