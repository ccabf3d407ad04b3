"""Class hierarchies: levels, names and parents, validated on the host where they are data.

A hierarchy is a stack of levels, coarsest first, every class of a level below the first having
exactly one parent in the level above, and every class above the last level at least one child.
The map from fine to coarse classes is the paper's `s` (Section 3.1).
"""

import csv
import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

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

    Raises:
      HierarchyError: for wrong lengths, duplicate names, ids out of range and childless classes.

    >>> animals = ('cat', 'dog'), ('lynx', 'pug', 'lion')
    >>> pets = Hierarchy(('kind', 'animal'), animals, ((0, 1, 0),))
    >>> pets.sizes
    (2, 3)
    >>> [labels.tolist() for labels in pets.labels(np.array([2, 1]))]
    [[0, 1], [2, 1]]
    """

    levels: tuple[str, ...]
    names: tuple[tuple[str, ...], ...]
    parents: tuple[np.ndarray, ...]

    def __post_init__(self):
        _check_lists(self.levels, self.names, self.parents)
        object.__setattr__(self, "levels", tuple(self.levels))
        object.__setattr__(self, "names", tuple(tuple(level) for level in self.names))
        _check_shape(self.levels, self.names, self.parents)
        for level, names in zip(self.levels, self.names, strict=True):
            _check_names(f"level '{level}'", names)
        parents = []
        for i, ids in enumerate(self.parents):
            above, below = self.levels[i], self.levels[i + 1]
            what = f"parents of level '{below}' (ids into level '{above}')"
            ids = check_parents(ids, len(self.names[i]), what, self.names[i])
            ids.setflags(write=False)
            parents.append(ids)
        object.__setattr__(self, "parents", tuple(parents))

    @property
    def num_levels(self) -> int:
        """Number of levels L."""
        return len(self.levels)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of classes of each level, coarsest first."""
        return tuple(len(names) for names in self.names)

    @property
    def fine_to_coarse(self) -> np.ndarray:
        """The paper's `s`: int32 `[F]`, the first-level class of each last-level class."""
        return self.ancestors(0)

    def ancestors(self, level: int) -> np.ndarray:
        """Return int32 `[F]`: the class in `level` above each class of the last level."""
        if not -self.num_levels <= level < self.num_levels:
            raise IndexError(f"there is no level {level} in a hierarchy of {self.num_levels}")
        ids = np.arange(self.sizes[-1], dtype=np.int32)
        for parents in reversed(self.parents[level % self.num_levels :]):
            ids = parents[ids]
        return ids

    def labels(self, fine: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return int32 `[N]` labels for every level, coarsest first, from last-level ones `[N]`."""
        fine = np.asarray(fine)
        if not np.issubdtype(fine.dtype, np.integer):
            raise HierarchyError(f"labels are integers, not {fine.dtype}")
        if fine.size and (fine.min() < 0 or fine.max() >= self.sizes[-1]):
            bad = fine.min() if fine.min() < 0 else fine.max()
            raise HierarchyError(
                f"label {bad} is out of range: level '{self.levels[-1]}' has {self.sizes[-1]} "
                f"classes, 0 to {self.sizes[-1] - 1}"
            )
        return tuple(self.ancestors(level)[fine] for level in range(self.num_levels))

    def __eq__(self, other) -> bool:
        return isinstance(other, Hierarchy) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        return hash((self.levels, self.names))

    def to_dict(self) -> dict:
        """Return `{"levels": [...], "names": [[...], ...], "parents": [[...], ...]}`."""
        return {
            "levels": list(self.levels),
            "names": [list(names) for names in self.names],
            "parents": [ids.tolist() for ids in self.parents],
        }

    @classmethod
    def from_dict(cls, data: dict) -> "Hierarchy":
        """Build a hierarchy from what `to_dict` returns."""
        if not isinstance(data, dict):
            raise HierarchyError(f"a hierarchy is a JSON object, not {type(data).__name__}")
        wanted = {"levels", "names", "parents"}
        if set(data) != wanted:
            raise HierarchyError(
                f"a hierarchy has the keys {sorted(wanted)}; this one has {sorted(map(str, data))}"
            )
        return cls(data["levels"], data["names"], data["parents"])

    def to_json(self, path) -> None:
        """Write the hierarchy as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")

    @classmethod
    def from_json(cls, path) -> "Hierarchy":
        """Read a hierarchy that `to_json` wrote."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise HierarchyError(f"{path} is not JSON: {error}") from error
        except HierarchyError as error:
            raise HierarchyError(f"{path}: {error}") from error

    @classmethod
    def from_csv(cls, path, levels: Sequence[str] | None = None) -> "Hierarchy":
        """Read a two-column CSV of (class, parent) rows, with or without that header.

        A parent that has no row of its own is a class of the first level; a parent that has one
        is a class of a level between. Classes keep the order of the file, first-level ones the
        order in which they are first named. All leaves must be at the same depth.

        Args:
          path: the file, UTF-8.
          levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
        """
        try:
            return _from_rows(_read_rows(path), levels)
        except UnicodeDecodeError as error:
            raise HierarchyError(f"{path} is not UTF-8 text: {error}") from error
        except csv.Error as error:
            raise HierarchyError(f"{path} is not a CSV file: {error}") from error
        except HierarchyError as error:
            raise HierarchyError(f"{path}: {error}") from error

    @classmethod
    def read(cls, path) -> "Hierarchy":
        """Read a `.json` or `.csv` file."""
        suffix = Path(path).suffix.lower()
        if not Path(path).is_file():
            raise HierarchyError(f"there is no hierarchy file {path}")
        if suffix == ".json":
            return cls.from_json(path)
        if suffix == ".csv":
            return cls.from_csv(path)
        raise HierarchyError(f"{path}: a hierarchy file ends in .json or .csv, not '{suffix}'")


def check_parents(ids, num_parents: int, what: str, names: Sequence[str] = ()) -> np.ndarray:
    """Return `ids` as int32 `[F]` after checking integers, range and that no parent is childless.

    `segment_sum` drops ids out of range without a word, so they are stopped here; a parent
    without children makes coherence impossible.
    """
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
    childless = np.flatnonzero(np.bincount(array, minlength=num_parents) == 0)
    if childless.size:
        first = childless[0]
        called = f" ('{names[first]}')" if len(names) else ""
        raise HierarchyError(
            f"{what}: class {first}{called} has no children; remove it, or give it at least one"
        )
    return array.astype(np.int32)


def _to_array(ids, what: str) -> np.ndarray:
    try:
        return np.asarray(ids)
    except ValueError:  # lists of different lengths
        raise HierarchyError(f"{what}: expected shape [F], got nested lists") from None


def _check_lists(levels, names, parents) -> None:
    wanted = [("levels", levels), ("names", names), ("parents", parents)]
    if _is_list(names):
        wanted += [(f"names of level {i + 1}", level) for i, level in enumerate(names)]
    for what, value in wanted:
        if not _is_list(value):
            raise HierarchyError(f"{what}: expected a list, got {value!r}")


def _is_list(value) -> bool:
    return isinstance(value, Sequence | np.ndarray) and not isinstance(value, str)


def _check_shape(levels, names, parents) -> None:
    if not levels:
        raise HierarchyError("a hierarchy has at least one level")
    _check_names("the levels", levels)
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


def _check_names(where: str, names) -> None:
    if not names:
        raise HierarchyError(f"{where}: no classes")
    for name in names:
        if not isinstance(name, str) or not name.strip():
            raise HierarchyError(f"{where}: a name is a non-empty string, got {name!r}")
    name, count = Counter(names).most_common(1)[0]
    if count > 1:
        raise HierarchyError(f"{where}: the name '{name}' stands {count} times")


def _read_rows(path) -> list[tuple[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]
    numbered = [(number, cells) for number, cells in enumerate(table, 1) if any(cells)]
    if numbered and [cell.lower() for cell in numbered[0][1]] == ["class", "parent"]:
        del numbered[0]
    rows = []
    for number, cells in numbered:
        if len(cells) != 2 or not all(cells):
            raise HierarchyError(f"row {number}: expected two columns (class, parent): {cells}")
        rows.append((cells[0], cells[1]))
    if not rows:
        raise HierarchyError("no rows")
    return rows


def _from_rows(rows: list[tuple[str, str]], levels: Sequence[str] | None) -> Hierarchy:
    name, count = Counter(child for child, _ in rows).most_common(1)[0]
    if count > 1:
        raise HierarchyError(f"class '{name}' has {count} rows; a class has exactly one parent")
    parent_of = dict(rows)
    depth: dict[str, int] = {}
    for child in parent_of:
        chain, node = [], child
        while node in parent_of and node not in depth:
            if node in chain:
                raise HierarchyError(f"'{node}' is its own ancestor")
            chain.append(node)
            node = parent_of[node]
        base = depth.setdefault(node, 0)
        for step, name in enumerate(reversed(chain), 1):
            depth[name] = base + step
    deepest = max(depth.values())
    inner = set(parent_of.values())
    for child in parent_of:
        if child not in inner and depth[child] != deepest:
            raise HierarchyError(
                f"leaf '{child}' is at level {depth[child] + 1} but others are at level "
                f"{deepest + 1}; all leaves must be at the same depth"
            )
    first = dict.fromkeys(parent for _, parent in rows if parent not in parent_of)
    names = [tuple(first)]
    for level in range(1, deepest + 1):
        names.append(tuple(child for child, _ in rows if depth[child] == level))
    index = [{name: i for i, name in enumerate(level)} for level in names]
    parents = [[index[i][parent_of[n]] for n in names[i + 1]] for i in range(deepest)]
    if levels is None:
        two = len(names) == 2
        levels = ("coarse", "fine") if two else [f"level{i + 1}" for i in range(len(names))]
    return Hierarchy(tuple(levels), tuple(names), tuple(parents))


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
