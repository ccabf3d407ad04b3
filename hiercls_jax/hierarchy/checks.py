"""Checks of names and ids: each fault is an error that names the class or level at fault."""

from collections import Counter
from collections.abc import Sequence
from reprlib import repr as shortened
from typing import TypeGuard

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.errors import UserError, preview


class HierarchyError(UserError):
    """A hierarchy that cannot be used, with the class or level at fault in its message."""


def check_parents(ids: ArrayLike, num_parents: int, what: str) -> np.ndarray:
    """Return `ids` as int32 `[F]` after checking that they map classes onto all their parents.

    `segment_sum` silently drops ids out of range, so they are rejected here, and a parent without
    children makes coherence impossible.

    Args:
      ids: integer `[F]` in `[0, num_parents)`, F > 0; every parent occurs.
      num_parents: number of parents.
      what: the name of `ids` in errors.

    Raises:
      HierarchyError: for another shape or type, an id out of range, or a childless parent.

    >>> check_parents([0, 1, 0], 2, "s").tolist()
    [0, 1, 0]
    """
    checked = check_ids(ids, num_parents, what)
    childless = find_childless(checked, num_parents)
    if childless.size:
        raise HierarchyError(
            f"{what}: class {childless[0]} has no children; remove it, or give it at least one"
        )
    return checked


def check_ids(ids: object, num_parents: int, what: str) -> np.ndarray:
    """Return `ids` as int32 `[F]` after checking their shape, type and range."""
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


def find_childless(ids: np.ndarray, num_parents: int) -> np.ndarray:
    """Return which of the parents 0 to `num_parents - 1` do not occur in `ids`."""
    return np.flatnonzero(np.bincount(ids, minlength=num_parents) == 0)


def is_list(value: object) -> TypeGuard[Sequence]:
    """Return whether `value` is a list, tuple or array of things, not one thing or a text."""
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


def check_name(where: str, name: object) -> None:
    """Raise a HierarchyError unless `name` is a non-empty string."""
    if not isinstance(name, str) or not name.strip():
        raise HierarchyError(f"{where}: a name is a non-empty string, got {shortened(name)}")


def match_columns(
    where: str, columns: Sequence[str], classes: Sequence[str], error: type[UserError]
) -> list[int]:
    """Return the position of each class among the columns, which must be the classes.

    Args:
      where: names the columns in errors.
      columns: names of the columns, in any order.
      classes: names of the classes.
      error: the type of the error for columns that are not the classes.
    """
    known, given = set(classes), set(columns)
    for fault, names in (
        ("unknown class", [column for column in columns if column not in known]),
        ("two columns for class", [c for c, count in Counter(columns).items() if count > 1]),
        ("no column for class", [class_ for class_ in classes if class_ not in given]),
    ):
        if names:
            raise error(
                f"{where}: {fault} {preview(names)}; allowed is one column for each of the "
                f"{len(classes)} classes {preview(classes)}"
            )
    position = {column: i for i, column in enumerate(columns)}
    return [position[class_] for class_ in classes]


def check_shape(levels: Sequence, names: Sequence, parents: Sequence) -> None:
    """Check that L levels have L lists of names and L - 1 lists of as many parents."""
    lists = [("levels", levels), ("names", names), ("parents", parents)]
    if is_list(names):
        lists += [(f"names of level {i + 1}", level) for i, level in enumerate(names)]
    for what, value in lists:
        if not is_list(value):
            raise HierarchyError(f"{what}: expected a list, got {shortened(value)}")
    if not len(levels):
        raise HierarchyError("a hierarchy has at least one level")
    check_names("the levels", tuple(levels))
    if len(names) != len(levels):
        raise HierarchyError(f"{len(levels)} levels but {len(names)} lists of class names")
    if len(parents) != len(levels) - 1:
        raise HierarchyError(
            f"{len(levels)} levels need {len(levels) - 1} lists of parents, got {len(parents)}"
        )
    for below, of_below, ids in zip(levels[1:], names[1:], parents, strict=True):
        shape = _to_array(ids, f"parents of level '{below}'").shape
        if len(shape) == 1 and shape[0] != len(of_below):
            raise HierarchyError(
                f"level '{below}' has {len(of_below)} classes but {shape[0]} parents"
            )


def _to_array(ids: object, what: str) -> np.ndarray:
    try:
        if not hasattr(ids, "dtype"):
            # In an array of text every element takes the memory of the longest.
            array = np.asarray(ids, object)
            if any(isinstance(i, str | bytes) for i in array.ravel()):
                return array
        return np.asarray(ids)
    except ValueError:  # lists of different lengths
        raise HierarchyError(f"{what}: expected shape [F], got nested lists") from None
