"""The friendly front of adaptation: checked arrays of any library, by the rule of one's choice."""

import contextlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation import arrays
from hiercls_jax.adaptation.agreement import count_meetings, describe_disagreement
from hiercls_jax.adaptation.arrays import Given
from hiercls_jax.adaptation.checks import SUM_TOLERANCE
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.values import Reader, Remedies
from hiercls_jax.errors import UserError, preview
from hiercls_jax.hierarchy import Hierarchy, match_columns

REMEDIES = Remedies(
    logits="if these are logits, give their softmax: jax.nn.softmax(logits, axis=-1)",
    percent="it looks like percent: divide by 100",
    conditional=(
        "if each level is a softmax over its own classes, convert them by "
        "hiercls_jax.adaptation.tree.marginals(levels, hierarchy)"
    ),
    other=(
        "for probabilities divide each row by its sum, p / p.sum(axis=-1, keepdims=True); for "
        "logits give their softmax"
    ),
)


def adapt_levels(
    levels: Sequence[Any] | Mapping[str, Any],
    hierarchy: Hierarchy,
    alpha: ArrayLike = 1.0,
    rule: str = "kl",
    *,
    names: Mapping[str, Sequence[str]] | None = None,
    check: bool = True,
) -> Any:
    """Adapt the probabilities of every level of a hierarchy to each other, from any library.

    (1-α) levels + α target, by the target of a rule of `hiercls_jax.adaptation.rules.RULES`; `kl`
    is Algorithm 1 and its extension to deeper trees (`adjust_tree`).

    It takes NumPy, JAX and PyTorch arrays and pandas DataFrames, also mixed, and gives each level
    back as what it was. A tensor passes by DLPack. It is detached: no gradient flows through
    PyTorch. A DataFrame keeps its index and the order of its columns, which are matched by name.
    Results are float32; float64 stays float64, for JAX arrays under x64 alone. JAX arrays may be
    traced, by `jit`, `vmap` and `grad`.

    Columns without names are taken in the order of the hierarchy's classes, if that order is
    stated. That of a level in `hierarchy.unordered` is not: give `names` for it.

    In a ragged hierarchy the last level may also be a softmax over all leaves of the tree, if its
    columns have names. Then every leaf above the last level stands as its own only child below.

    Args:
      levels: L arrays `[..., N_l]`, coarsest level first, with the same leading axes, or a dict of
        them by the levels' names. Each is non-negative and sums to 1 over its last axis; in a
        ragged hierarchy together with the leaves above the level (`marginals` converts softmaxes
        over single levels).
      hierarchy: L levels of N_l classes, L at least 2.
      alpha: from 0, which changes nothing, through 1, where the levels agree, to the rule's
        largest; one number for all levels, or L of them.
      rule: a key of `RULES`.
      names: by level the names of columns that have none, in their order.
      check: check values that are not traced: NaN, negative numbers, percent, logits, sums other
        than 1 are errors. Levels that do not seem to speak of the same classes, of 100 rows or
        more, are a warning. The check copies JAX and PyTorch arrays to the host.

    Returns:
      L arrays of the shapes of `levels`, in a dict if `levels` is one.

    Raises:
      UserError: for levels, columns or values that are not as above, naming level and row.
      ValueError: for an alpha or a hierarchy that the rule does not take.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Section 3.2.

    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> kind, animal = adapt_levels([[0.75, 0.25], [0.375, 0.125, 0.5]], pets)
    >>> kind.tolist(), animal.tolist()
    ([0.625, 0.375], [0.46875, 0.15625, 0.375])
    """
    if rule not in RULES:
        raise UserError(f"rule={rule!r}: allowed are {', '.join(map(repr, RULES))}")
    values = _in_order(levels, hierarchy)
    orders: list[list[int]] = []
    with contextlib.ExitStack() as stack:
        if any(_wants_x64(value) for value in values):
            stack.enter_context(enable_x64(True))
        givens = [arrays.take(value) for value in values]
        if not arrays.same_index(givens):
            raise UserError("the DataFrames have different indices; allowed is the same in all")
        over_cut = []
        for level, given in enumerate(givens):
            order, is_cut = _match(given, level, hierarchy, names or {})
            orders.append(order)
            over_cut.append(is_cut)
        in_order = [
            given.array if order == list(range(len(order))) else given.array[..., np.array(order)]
            for given, order in zip(givens, orders, strict=True)
        ]
        _check_leading(in_order, hierarchy)
        tree, full = hierarchy, list(in_order)
        if any(over_cut):
            tree, full = hierarchy.filled(), _filled(in_order, over_cut, hierarchy)
        if check and all(map(arrays.is_concrete, in_order)):
            _check(in_order, over_cut, hierarchy, tree)
        adapted = RULES[rule].adjust(full, tree, alpha)
        results = [
            given.back(p[..., np.argsort(order)])
            for given, order, p in zip(givens, orders, adapted, strict=True)
        ]
    if isinstance(levels, Mapping):
        by_level = dict(zip(hierarchy.levels, results, strict=True))
        return {name: by_level[name] for name in levels}
    return tuple(results)


def _in_order(levels: Sequence[Any] | Mapping[str, Any], hierarchy: Hierarchy) -> list[Any]:
    """Return the levels coarsest first."""
    if isinstance(levels, Mapping):
        if set(levels) != set(hierarchy.levels):
            raise UserError(
                f"levels {preview([str(name) for name in levels])}: allowed is one array for each "
                f"of {preview(hierarchy.levels)}"
            )
        return [levels[name] for name in hierarchy.levels]
    if len(levels) != hierarchy.num_levels:
        raise UserError(
            f"{len(levels)} levels: allowed is one array for each of the hierarchy's "
            f"{hierarchy.num_levels}, {preview(hierarchy.levels)}"
        )
    return list(levels)


def _wants_x64(value: Any) -> bool:
    """Return whether a value is float64 and not JAX's own, whose dtypes follow the settings."""
    if isinstance(value, jax.Array):
        return False
    if hasattr(value, "columns"):
        return any(str(dtype) == "float64" for dtype in value.dtypes)
    return str(getattr(value, "dtype", "")) in ("float64", "torch.float64")


def _match(
    given: Given, level: int, hierarchy: Hierarchy, names: Mapping[str, Sequence[str]]
) -> tuple[list[int], bool]:
    """Return the position of each class among the columns, and whether they are a whole cut."""
    name, classes = hierarchy.levels[level], hierarchy.names[level]
    where = f"level '{name}'"
    if not given.array.ndim:
        raise UserError(f"{where}: shape [], allowed is [..., {len(classes)}]")
    width, columns = given.array.shape[-1], given.columns
    if name in names:
        if columns is not None:
            raise UserError(f"{where}: its columns have names; leave out names['{name}']")
        columns = tuple(names[name])
        if len(columns) != width:
            raise UserError(f"{where}: {len(columns)} names for {width} columns")
    cut = hierarchy.cut_names(level)
    if columns is not None:
        is_cut = len(cut) > len(classes) and set(columns).issuperset(cut)
        return match_columns(where, columns, cut if is_cut else classes, UserError), is_cut
    if width != len(classes):
        hint = ""
        if width == len(cut):
            hint = f"; for a softmax over all {width} leaves give names={{'{name}': [...]}}"
        raise UserError(
            f"{where}: shape {list(given.array.shape)}, allowed is [..., {len(classes)}], a column "
            f"for each of the classes {preview(classes)}{hint}"
        )
    if name in hierarchy.unordered:
        raise UserError(
            f"{where}: its columns have no names, and nobody stated the order of its classes "
            f"{preview(classes)}; give it, names={{'{name}': [...]}}, or a DataFrame, or a "
            "hierarchy that states it: from JSON, or with a row or pair for each class, such as "
            f"'{classes[0]},' or ('{classes[0]}', None)"
        )
    return list(range(width)), False


def _check_leading(levels: Sequence[np.ndarray | jax.Array], hierarchy: Hierarchy) -> None:
    shapes = [list(p.shape[:-1]) for p in levels]
    for name, shape in zip(hierarchy.levels, shapes, strict=True):
        if shape != shapes[0]:
            raise UserError(
                f"level '{name}' has rows {shape} but level '{hierarchy.levels[0]}' has "
                f"{shapes[0]}; allowed is one row for each sample in every level"
            )


def _filled(
    levels: Sequence[np.ndarray | jax.Array], over_cut: Sequence[bool], hierarchy: Hierarchy
) -> list[np.ndarray | jax.Array]:
    """Return every level over its cut; one without the leaves above takes them from the last."""
    full: list[np.ndarray | jax.Array] = []
    for level, (p, is_cut) in enumerate(zip(levels, over_cut, strict=True)):
        if not is_cut and level:
            size, leaf = hierarchy.sizes[level - 1], hierarchy.is_leaf(level - 1)
            above = full[-1]
            p = jnp.concatenate([p, above[..., size:], above[..., :size][..., leaf]], axis=-1)
        full.append(jnp.asarray(p))
    return full


def _check(
    levels: Sequence[np.ndarray | jax.Array],
    over_cut: Sequence[bool],
    hierarchy: Hierarchy,
    tree: Hierarchy,
) -> None:
    """Check values, and warn if the levels do not seem to speak of the same classes."""
    lead = levels[0].shape[:-1]

    def where(level: int, row: int) -> str:
        place = ", ".join(str(i) for i in np.unravel_index(row, lead)) if lead else ""
        return f"level '{hierarchy.levels[level]}'" + (f", row {place} (from 0)" if lead else "")

    rows = [np.asarray(p, np.promote_types(p.dtype, np.float32)) for p in levels]
    rows = [p.reshape(-1, p.shape[-1]) for p in rows]
    if not len(rows[0]):
        return
    # Rounded to bfloat16, probabilities sum to 1 within half a unit in its last place.
    floats = [p.dtype for p in levels if jnp.issubdtype(p.dtype, jnp.floating)]
    tolerance = max([SUM_TOLERANCE, *(float(jnp.finfo(dtype).eps) / 2 for dtype in floats)])
    read = Reader(hierarchy, over_cut, where, REMEDIES, tolerance=tolerance).read(rows)
    answers = [p.argmax(axis=1) for p in tree.cut_probs(read)]
    for warning in describe_disagreement(count_meetings(answers, tree), tree):
        warnings.warn(warning, stacklevel=3)
