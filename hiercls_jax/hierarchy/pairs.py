"""The levels of a tree that is given as (class, parent) pairs."""

from collections import Counter
from collections.abc import Iterable, Sequence
from reprlib import repr as shortened

from hiercls_jax.hierarchy.checks import HierarchyError, check_name, is_list

Pair = tuple[str, str | None]


def levels_of_pairs(
    pairs: Iterable[Pair], ragged: bool
) -> tuple[list[list[str]], list[list[int]], bool]:
    """Return every level's names and parents, and whether the pairs state the first one's order.

    They do if each class of the first level has a pair of its own, with the parent None.

    Args:
      pairs: as for `Hierarchy.from_pairs`.
      ragged: whether leaves may be at different depths.

    Raises:
      HierarchyError: for pairs that form no tree, naming the pair or class.
    """
    parent_of = _check_pairs(pairs)
    order: dict[str, None] = {}  # the classes in the order in which they are first named
    for child, parent in parent_of.items():
        if parent is not None and parent not in parent_of:
            order[parent] = None
        order[child] = None
    depth = _depths(parent_of)
    deepest = max(depth[name] for name in order)
    inner = set(parent_of.values())
    names: list[list[str]] = [[] for _ in range(deepest + 1)]
    index: dict[str | None, int] = {}  # of each class in its level
    for name in order:
        if not ragged and name not in inner and depth[name] != deepest:
            raise HierarchyError(
                f"leaf '{name}' is at level {depth[name] + 1} but others are at level "
                f"{deepest + 1}; all leaves must be at the same depth, or pass ragged=True"
            )
        of_level = names[depth[name]]
        index[name] = len(of_level)
        of_level.append(name)
    parents = [[index[parent_of[name]] for name in level] for level in names[1:]]
    return names, parents, all(name in parent_of for name in names[0])


def default_levels(num_levels: int) -> Sequence[str]:
    """Return `('coarse', 'fine')` for two levels, else `level1`, `level2`, …."""
    if num_levels == 2:
        return ("coarse", "fine")
    return [f"level{i + 1}" for i in range(num_levels)]


def _check_pairs(pairs: object) -> dict[str, str | None]:
    """Return the parent of each class after checking the pairs."""
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
    """Return the depth of every class and parent: 0 if it has no parent."""
    depth: dict[str | None, int] = {None: -1}
    for name in parent_of:
        chain: dict[str | None, None] = {}
        node: str | None = name
        while node not in depth:
            if node in chain:
                raise HierarchyError(f"'{node}' is its own ancestor")
            chain[node] = None
            node = parent_of.get(node) if node is not None else None
        for step, below in enumerate(reversed(chain), depth[node] + 1):
            depth[below] = step
    return depth
