"""Hierarchies from other forms: parent lists, nested dicts, the is-a lines of WordNet.

Each form becomes (class, parent) pairs, from which `Hierarchy.from_pairs` builds the levels. A
class is known by its name, so no name may stand in two places of the tree. `Hierarchy.from_csv`
reads a two-column CSV file.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from reprlib import repr as shortened
from typing import cast

import numpy as np

from hiercls_jax.hierarchy import (
    Hierarchy,
    HierarchyError,
    check_name,
    check_names,
    is_list,
)

Nested = Mapping[str, "Nested"] | Sequence[str] | None


def from_parent_lists(
    names: Sequence[str],
    parents: Sequence[str | int | None],
    levels: Sequence[str] | None = None,
    ragged: bool = False,
) -> Hierarchy:
    """Build a hierarchy from two lists side by side: the classes, and the parent of each.

    Args:
      names: the classes, in any order; each level keeps it.
      parents: for each class its parent: an index into `names`, or a name; -1 or None for a
        class of the first level. A parent that `names` lacks is a class of the first level too.
      levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
      ragged: whether leaves may be at different depths.

    Raises:
      HierarchyError: for lists that form no tree, naming the class.

    >>> from_parent_lists(['cat', 'lynx', 'dog', 'pug'], [-1, 0, -1, 2]).names
    (('cat', 'dog'), ('lynx', 'pug'))
    >>> from_parent_lists(['lynx', 'pug'], ['cat', 'dog']).names
    (('cat', 'dog'), ('lynx', 'pug'))
    """
    for what, value in (("names", names), ("parents", parents)):
        if not is_list(value):
            raise HierarchyError(f"{what}: expected a list, got {shortened(value)}")
    if len(names) != len(parents):
        raise HierarchyError(f"{len(names)} names but {len(parents)} parents")

    def name_of(child: str, parent: str | int | None) -> str | None:
        if isinstance(parent, bool) or not isinstance(parent, int | np.integer):
            return cast(str | None, parent)  # from_pairs rejects any other type
        if not -1 <= parent < len(names):
            raise HierarchyError(
                f"class {shortened(child)} has the parent {parent}; allowed are 0 to "
                f"{len(names) - 1}, and -1 for a class of the first level"
            )
        return None if parent == -1 else names[parent]

    pairs = [(child, name_of(child, parent)) for child, parent in zip(names, parents, strict=True)]
    return Hierarchy.from_pairs(pairs, levels, ragged)


def from_nested(
    tree: Nested, levels: Sequence[str] | None = None, ragged: bool = False
) -> Hierarchy:
    """Build a hierarchy from nested dicts, as JSON and YAML files hold them.

    Args:
      tree: a dict from the name of each class to the tree below it, or a list of the names of
        leaves. A leaf among the keys of a dict has nothing below it: None, `{}` or `[]`.
      levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
      ragged: whether leaves may be at different depths.

    Raises:
      HierarchyError: for values of other types, and for a name that stands twice.

    >>> from_nested({'cat': ['lynx', 'lion'], 'dog': {'pug': None}}).names
    (('cat', 'dog'), ('lynx', 'lion', 'pug'))
    """
    parent_of: dict[str, str | None] = {}
    subtrees: list[tuple[str | None, Nested]] = [(None, tree)]
    for parent, subtree in subtrees:  # breadth first: the list grows while it is read
        where = "the tree" if parent is None else f"below '{parent}'"
        if isinstance(subtree, Mapping):
            children = list(subtree.items())
        elif is_list(subtree):
            children = [(name, None) for name in subtree]
        elif subtree is None:
            children = []
        else:
            raise HierarchyError(
                f"{where}: expected a dict or a list of names, got {shortened(subtree)}"
            )
        for name, _ in children:
            check_name(where, name)
            if name in parent_of:
                places = " and ".join(
                    "at the top" if place is None else f"below '{place}'"
                    for place in (parent_of[name], parent)
                )
                raise HierarchyError(f"class '{name}' stands {places}; it has exactly one place")
            parent_of[name] = parent
        subtrees += children
    return Hierarchy.from_pairs(parent_of.items(), levels, ragged)


def from_wordnet(
    lines: Iterable[str],
    leaves: Sequence[str],
    names: Mapping[str, str] | None = None,
    levels: Sequence[str] | None = None,
    several: str = "refuse",
) -> Hierarchy:
    """Build the hierarchy of some classes from WordNet's is-a relation; it is usually ragged.

    Only the leaves and the synsets above them count. A synset with a single child adds nothing to
    it: the two become one class with the lower name, so every leaf keeps its own. A single class
    at the top is left out, because it is the class of every sample.

    Args:
      lines: `parent child`, separated by white space: the order of the columns in ImageNet's
        `wordnet.is_a.txt`. Empty lines, and those that begin with `#`, do not count.
      leaves: the classes to be told apart, as the lines name them. The classes of each level
        stand in the order of the first leaf below them. Levels above the last are `unordered`.
      names: new names (`lion`) for some or all classes of the lines (`n02129165`).
      levels: names of the levels; `('coarse', 'fine')` for two, else `level1`, `level2`, ….
      several: what to do about synsets with two parents or more, which WordNet has: 'refuse' is an
        error that names them, and 'first' takes the parent that the lines name first. A warning
        then lists every choice.

    Raises:
      HierarchyError: for a leaf that is in no line, or above another leaf; and for synsets with
        two parents, with the numbers of their lines, unless `several='first'`.

    >>> lines = ['cat lion', 'cat lynx', 'mammal cat', 'mammal dog', 'dog wolf', 'dog fox']
    >>> from_wordnet(lines, ['lion', 'wolf', 'lynx']).names
    (('cat', 'wolf'), ('lion', 'lynx'))
    """
    if not is_list(leaves):
        raise HierarchyError(f"the leaves: expected a list of names, got {shortened(leaves)}")
    if names is not None and not isinstance(names, Mapping):
        raise HierarchyError(f"names: expected a dict, got {shortened(names)}")
    leaves = tuple(leaves)
    check_names("the leaves", leaves)
    if several not in ("refuse", "first"):
        raise HierarchyError(f"several: allowed are 'refuse' and 'first', got {shortened(several)}")
    names = names or {}
    parents_of = _read_is_a(lines)
    parent_of = _restrict(parents_of, leaves, names)
    _check_several(parents_of, parent_of, names, several)
    _check_leaves(parent_of, leaves, names)
    tree = Hierarchy.from_pairs(_contract(parent_of).items(), levels, ragged=True)
    renamed = [[names.get(name, name) for name in level] for level in tree.names]
    return Hierarchy(tree.levels, renamed, tree.parents, tree.ragged, tree.levels[:-1])


def _called(node: str | None, names: Mapping[str, str]) -> str:
    """Return the name of a class of the lines, with its id if it has another name."""
    name = names.get(node, node) if node is not None else node
    return f"'{name}'" if name == node else f"'{name}' ({node})"


def _read_is_a(lines: str | Iterable[str]) -> dict[str, dict[str, int]]:
    """Return for each class its parents, each with the number of its line."""
    if isinstance(lines, str):
        lines = lines.splitlines()
    if not isinstance(lines, Iterable):
        raise HierarchyError(f"expected lines of text, got {shortened(lines)}")
    parents_of: dict[str, dict[str, int]] = {}
    for number, line in enumerate(lines, 1):
        words = line.split() if isinstance(line, str) else [line]
        if not words or isinstance(line, str) and words[0].startswith("#"):
            continue
        if len(words) != 2:
            raise HierarchyError(
                f"line {number}: expected two columns (parent, child), got {shortened(line)}"
            )
        parent, child = words
        parents_of.setdefault(parent, {})
        parents_of.setdefault(child, {})[parent] = number
    return parents_of


def _restrict(
    parents_of: dict[str, dict[str, int]], leaves: Sequence[str], names: Mapping[str, str]
) -> dict[str, str | None]:
    """Return the first parent of each leaf and of each class above one."""
    parent_of: dict[str, str | None] = {}
    for leaf in leaves:
        if leaf not in parents_of:
            raise HierarchyError(f"leaf {_called(leaf, names)} is in none of the lines")
        chain = set()
        node: str | None = leaf
        while node is not None and node not in parent_of:
            chain.add(node)
            parent_of[node] = next(iter(parents_of[node]), None)
            node = parent_of[node]
        if node in chain:
            raise HierarchyError(f"{_called(node, names)} is its own ancestor")
    return parent_of


def _check_several(
    parents_of: dict[str, dict[str, int]],
    parent_of: dict[str, str | None],
    names: Mapping[str, str],
    several: str,
) -> None:
    """Refuse classes with more than one parent, or list which one was taken."""
    twice = {node: parents_of[node] for node in parent_of if len(parents_of[node]) > 1}
    if not twice:
        return

    def listed(joined: str) -> str:
        return "; ".join(
            f"{_called(node, names)} under "
            + joined.join(f"{_called(p, names)} (line {number})" for p, number in parents.items())
            for node, parents in twice.items()
        )

    if several == "refuse":
        raise HierarchyError(
            f"a class has exactly one parent: delete all but one of the lines of {listed(' and ')}"
        )
    warnings.warn(
        f"{len(twice)} of {len(parent_of)} classes have several parents, of which the first was "
        f"taken: {listed(', not ')}",
        stacklevel=3,
    )


def _check_leaves(
    parent_of: dict[str, str | None], leaves: Sequence[str], names: Mapping[str, str]
) -> None:
    """Refuse a leaf that is above another one."""
    inner = {parent: node for node, parent in parent_of.items()}
    for leaf in leaves:
        if leaf in inner:
            raise HierarchyError(
                f"{_called(leaf, names)} is a leaf, but {_called(inner[leaf], names)} is below it; "
                f"leave it out of the leaves, or add a line '{leaf} NAME' and have NAME as the leaf"
            )


def _contract(parent_of: dict[str, str | None]) -> dict[str, str | None]:
    """Return the tree without classes that have a single child, and without a single top."""
    num_children = Counter(parent_of.values())
    left_out = {node for node in parent_of if num_children[node] == 1}
    kept: dict[str, str | None] = {}
    for node, parent in parent_of.items():
        if node not in left_out:
            while parent in left_out:  # once for each class that is left out: it has one child
                parent = parent_of[parent]
            kept[node] = parent
    tops = [node for node, parent in kept.items() if parent is None]
    if len(tops) == 1 and len(kept) > 1:
        del kept[tops[0]]
        kept = {node: None if parent == tops[0] else parent for node, parent in kept.items()}
    return kept
