"""Other classes than in training: leave some out, or change how frequent they are, on all levels.

A classifier that was trained with class frequencies π_j answers f_j ∝ π_j · p(x | j). If the
frequencies become π′_j, Bayes' rule gives f′_j ∝ f_j w_j with w_j = π′_j / π_j. A coarse class is
as much more frequent as its members are on average, each weighed by its own probability:

    fine    f′_j ∝ f_j w_j
    coarse  P′_i ∝ P_i · Σ_{j in i} (f_j / Q_i) w_j,   Q_i = Σ_{j in i} f_j

and so on up a tree. Coherent levels stay coherent. To leave a class out is to give it weight 0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.checks import check_levels
from hiercls_jax.adaptation.layout import Levels, classes_first
from hiercls_jax.adaptation.share import Ids, column, share_of_group
from hiercls_jax.errors import UserError, preview
from hiercls_jax.hierarchy import Hierarchy

TOLERANCE = 1e-7  # total change of an estimate in one iteration at which it has converged
ITERATIONS = 2000  # at most


def reweight(
    probs: Sequence[ArrayLike], hierarchy: Hierarchy, prior: ArrayLike, new_prior: ArrayLike
) -> tuple[jax.Array, ...]:
    """Change the class frequencies that the probabilities of every level assume.

    With w_j = new_prior_j / prior_j, a leaf's probability becomes ∝ f_j w_j, and that of a class
    above ∝ P_i times the mean of its children's factors, weighed by their shares f_j / Q_i.
    Children without mass have equal shares. Pure, and may be traced; differentiable.

    Args:
      probs: L arrays `[..., N_l]` of marginals, coarsest level first; non-negative, each sums to 1
        together with the leaves above the level.
      hierarchy: L levels of N_l classes with K leaves.
      prior: float `[K]`, the frequencies of the leaves in training, by leaf id; of any sum.
      new_prior: float `[K]`, not negative: their frequencies now; of any sum.

    Returns:
      L arrays of the shapes of `probs`, marginals again.

    Raises:
      ValueError: for shapes that disagree, frequencies that are negative or not finite, and a leaf
        that is frequent now but was not in training.
      UserError: for a row that has no mass left on a level, naming both, unless it is traced.

    Source: Saerens, Latinne and Decaestecker, *Adjusting the Outputs of a Classifier to New a
      Priori Probabilities* (Neural Computation 2002), Section 2.2, for one level.

    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> levels = reweight([[0.5, 0.5], [0.25, 0.25, 0.5]], pets, [1, 1, 1], [1, 3, 2])
    >>> [p.tolist() for p in levels]
    [[0.5, 0.5], [0.125, 0.375, 0.5]]
    """
    arrays = check_levels(probs, hierarchy)
    weights = weights_of(hierarchy, prior, new_prior)
    weighed = weigh(arrays, hierarchy, weights)
    lead = arrays[0].shape[:-1]

    def where(row: int) -> str:
        place = ", ".join(str(i) for i in np.unravel_index(row, lead)) if lead else ""
        return f"row {place} (from 0)" if lead else "the sample"

    if not any(isinstance(p, jax.core.Tracer) for p in weighed):
        lost = find_lost([np.asarray(p).reshape(-1, p.shape[-1]) for p in weighed], hierarchy)
        if lost is not None:
            raise UserError(describe_lost(where(lost[0]), hierarchy.levels[lost[1]]))
    return weighed


def restrict(
    probs: Sequence[ArrayLike], hierarchy: Hierarchy, keep: Sequence[str] | ArrayLike
) -> tuple[jax.Array, ...]:
    """Leave classes out on every level at once: `reweight` with weights 0 and 1.

    Use it before adaptation, for a region's species or a shop's range. To mask one level alone lets
    the others give the mass back. If all kept children of a class have probability 0, adaptation
    shares the class among all its children; restrict its result again then.

    Args:
      probs, hierarchy: as for `reweight`.
      keep: names of the classes that are kept, of any level, each with all leaves below it; or
        bool `[K]`, which leaves are kept.

    Returns:
      L arrays of the shapes of `probs`; classes without a kept leaf have probability 0.

    Raises:
      UserError: for an unknown class, if none is kept, and as `reweight`.

    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> [p.tolist() for p in restrict([[0.5, 0.5], [0.25, 0.25, 0.5]], pets, ["cat"])]
    [[1.0, 0.0], [0.5, 0.5, 0.0]]
    """
    kept = leaf_mask(hierarchy, keep)
    return reweight(probs, hierarchy, np.ones(len(kept)), kept)


def estimate_prior(p_leaf: ArrayLike, prior: ArrayLike) -> np.ndarray:
    """Estimate the frequencies of the classes in unlabelled samples, by EM.

    Iterates π′_j ← mean over samples of f_j w_j / Σ_k f_k w_k, w = π′ / π, which converges to the
    maximum likelihood if f are the posterior probabilities under π: calibrated ones.

    Args:
      p_leaf: float `[N, K]`, the probabilities of the leaves, as a classifier gives them.
      prior: float `[K]`, the frequencies of the leaves in training, by leaf id; of any sum.

    Returns:
      float64 `[K]`, not negative, sums to 1. A leaf of frequency 0 in training keeps 0.

    Raises:
      ValueError: for shapes that disagree, and for frequencies that are negative or not finite.

    Source: Saerens, Latinne and Decaestecker (Neural Computation 2002), Section 3.

    >>> p = np.array([[0.9, 0.1]] * 3 + [[0.1, 0.9]])
    >>> estimate_prior(p, [0.5, 0.5]).round(3).tolist()
    [0.812, 0.188]
    """
    p = np.asarray(p_leaf, np.float64)
    old = _frequencies(prior, "prior")
    if p.ndim != 2 or p.shape[1] != len(old) or not len(p):
        raise ValueError(
            f"p_leaf is [N, {len(old)}], a column for each of the prior's classes; got "
            f"{list(p.shape)}"
        )
    ratios = np.divide(p, old, out=np.zeros_like(p), where=old > 0)
    ratios = ratios[ratios.any(axis=1)]
    new = old
    for _ in range(ITERATIONS):
        before = new
        new = before * (ratios.T @ (1 / (ratios @ before))) / len(ratios)
        if np.abs(new - before).sum() < TOLERANCE:
            break
    return new / new.sum()


def leaf_mask(hierarchy: Hierarchy, keep: Sequence[str] | ArrayLike) -> np.ndarray:
    """Return bool `[K]`: which leaves are kept; `keep` as for `restrict`.

    Raises:
      UserError: for an unknown class, and if none is kept.
    """
    mask = np.asarray(keep)
    if mask.dtype == bool:
        if mask.shape != (hierarchy.num_leaves,):
            raise UserError(
                f"keep {list(mask.shape)}: allowed are names of classes, or bool "
                f"[{hierarchy.num_leaves}], one for each leaf"
            )
    else:
        names = [str(name) for name in keep]  # type: ignore[union-attr]  # checked: no bools
        mask, known = np.zeros(hierarchy.num_leaves, bool), set()
        labels = hierarchy.labels(np.arange(hierarchy.num_leaves))
        wanted = set(names)
        for level, of_leaf in enumerate(labels):
            cut = np.array(hierarchy.cut_names(level), object)
            mask |= np.isin(cut, names)[of_leaf]
            known.update(wanted.intersection(cut))
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UserError(
                f"unknown class {preview(unknown)}; allowed are the classes of all levels, such as "
                f"{preview(hierarchy.leaf_names)}"
            )
    if not mask.any():
        raise UserError("no class is kept; at least one leaf must be")
    return mask


def weights_of(hierarchy: Hierarchy, prior: ArrayLike, new_prior: ArrayLike) -> np.ndarray:
    """Return float64 `[K]`: how much more frequent each leaf is than in training; 0 of 0 is 0.

    Raises:
      ValueError: as `reweight`.
    """
    old, new = _frequencies(prior, "prior"), _frequencies(new_prior, "new_prior")
    for name, frequencies in (("prior", old), ("new_prior", new)):
        if len(frequencies) != hierarchy.num_leaves:
            raise ValueError(
                f"{name} has {len(frequencies)} frequencies; allowed is one for each of the "
                f"{hierarchy.num_leaves} leaves"
            )
    unseen = np.flatnonzero((old == 0) & (new > 0))
    if unseen.size:
        raise ValueError(
            f"class '{hierarchy.leaf_names[unseen[0]]}' has frequency 0 in training but "
            f"{new[unseen[0]]:g} now; a classifier cannot know it"
        )
    return np.divide(new, old, out=np.zeros_like(new), where=old > 0)


def weigh(
    levels: Sequence[ArrayLike], hierarchy: Hierarchy, weights: np.ndarray
) -> tuple[jax.Array, ...]:
    """Return the levels with every leaf weighed; a level without mass left is 0 there.

    Args:
      levels: L arrays `[..., N_l]` of marginals.
      hierarchy: the levels.
      weights: float `[K]`, not negative, by leaf id.
    """
    of_level, index = hierarchy.cut(-1).T
    by_level = []
    for level, size in enumerate(hierarchy.sizes):
        weight = np.zeros(size)
        here = of_level == level
        weight[index[here]] = weights[here]
        by_level.append(weight)
    leaf = [hierarchy.is_leaf(level) for level in range(hierarchy.num_levels)]
    return _weigh(check_levels(levels, hierarchy), hierarchy.parents, leaf, by_level)


@classes_first
def _weigh(
    levels: Levels,
    parents: Sequence[Ids],
    is_leaf: Sequence[np.ndarray],
    weights: Sequence[np.ndarray],
) -> tuple[jax.Array, ...]:
    factor = jnp.broadcast_to(column(weights[-1], levels[-1]), levels[-1].shape)
    factor = factor.astype(levels[-1].dtype)
    weighed = [levels[-1] * factor]
    for i in reversed(range(len(parents))):
        shares = share_of_group(levels[i + 1], parents[i], len(levels[i]))
        mean = jax.ops.segment_sum(shares * factor, parents[i], len(levels[i]))
        factor = jnp.where(
            column(is_leaf[i], mean), column(weights[i], mean).astype(mean.dtype), mean
        )
        weighed.insert(0, levels[i] * factor)
    room: jax.Array | float = 1.0
    scaled = []
    for p, leaf in zip(weighed, is_leaf, strict=True):
        total = jnp.sum(p, axis=0, keepdims=True)
        scaled.append(jnp.where(total > 0, p / jnp.where(total > 0, total, 1) * room, 0))
        # Sum the inner classes, because 1 minus the leaves would cancel.
        inner = jnp.sum(jnp.where(column(leaf, p), 0, scaled[-1]), axis=0, keepdims=True)
        room = jnp.where(jnp.any(leaf), inner, room)
    return tuple(scaled)


def find_lost(levels: Sequence[np.ndarray], hierarchy: Hierarchy) -> tuple[int, int] | None:
    """Return the first row, and its level, that has no mass left; None if there is none.

    Args:
      levels: L arrays `[N, N_l]`, as `weigh` returns them.
      hierarchy: the levels.
    """
    room = np.ones(len(levels[0]))
    found = []
    for level, p in enumerate(levels):
        lost = np.flatnonzero((room > 0) & ~p.any(axis=1))
        if lost.size:
            found.append((int(lost[0]), level))
        leaf = hierarchy.is_leaf(level)
        if leaf.any() and level < len(levels) - 1:
            room = p.sum(axis=1, where=~leaf)
    return min(found) if found else None


def describe_lost(where: str, level: str) -> str:
    """Return the error for a row without mass."""
    return (
        f"{where} has no mass left on level '{level}': all its classes with probability are left "
        "out, or have frequency 0; keep more of them, or leave the row out"
    )


def _frequencies(values: ArrayLike, what: str) -> np.ndarray:
    """Return frequencies as float64 `[K]` that sum to 1."""
    array = np.asarray(values, np.float64)
    if array.ndim != 1 or not np.isfinite(array).all() or (array < 0).any() or not array.sum() > 0:
        raise ValueError(
            f"{what}: frequencies are [K], finite, not negative and not all 0; got shape "
            f"{list(array.shape)}"
        )
    return array / array.sum()
