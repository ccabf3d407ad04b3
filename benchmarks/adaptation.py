"""`adjust` and `adjust_tree` beside NumPy, beside a product with a one-hot matrix, and a copy."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.timing import Row, alternate
from hiercls_jax import Hierarchy, adjust
from hiercls_jax.adaptation.tree import adjust_tree

ALPHA = 0.9
SIZES = ((10_000, 20, 100), (50_000, 100, 1000))  # numbers of samples, coarse and fine classes
TREES = {
    # Sizes of the levels. The first is like WordNet's for ImageNet, with about 1,400 nodes; the
    # second is like iNaturalist's taxonomy, from kingdom to species.
    "1,000 leaves, 1,400 nodes": (5, 30, 120, 245, 1000),
    "10,000 leaves, 7 levels": (3, 13, 51, 273, 1103, 4884, 10_000),
}
TREE_SAMPLES = 10_000


def rows(rounds: int) -> list[Row]:
    """Return every comparison of this file."""
    return [*(_adjust(*size, rounds) for size in SIZES), *(_tree(t, rounds) for t in TREES)]


def _adjust(samples: int, coarse: int, fine: int, rounds: int) -> Row:
    rng = np.random.default_rng(0)
    s = rng.permutation(np.arange(fine) % coarse).astype(np.int32)
    p, f = _softmax(rng, samples, coarse), _softmax(rng, samples, fine)
    member = np.eye(coarse, dtype=np.float32)[s]
    order = np.argsort(s, kind="stable")
    starts = np.searchsorted(s[order], np.arange(coarse))
    flat = (np.arange(samples)[:, None] * coarse + s).ravel()

    def by_numpy(group_sum: Callable[[np.ndarray], np.ndarray]) -> Callable[[], object]:
        return lambda: _numpy_adjust(p, f, s, group_sum)

    p_jax, f_jax, member_jax = jnp.asarray(p), jnp.asarray(f), jnp.asarray(member)
    sides = {
        "adjust": lambda: adjust(p_jax, f_jax, s, ALPHA),
        "plain copy": lambda: _copy((p_jax, f_jax), 1.0),
        "jax, one-hot product": lambda: _one_hot_adjust(p_jax, f_jax, s, member_jax),
        "numpy, one-hot product": by_numpy(lambda f: f @ member),
        "numpy, reduceat": by_numpy(lambda f: np.add.reduceat(f[:, order], starts, axis=1)),
        "numpy, bincount": by_numpy(
            lambda f: np.bincount(flat, f.ravel(), samples * coarse).reshape(samples, coarse)
        ),
    }
    moved = 2 * (p.nbytes + f.nbytes)
    return alternate(f"adjust, {samples:,} x ({coarse}, {fine})", sides, rounds, moved)


def _numpy_adjust(
    p: np.ndarray,
    f: np.ndarray,
    s: np.ndarray,
    group_sum: Callable[[np.ndarray], np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    beta = np.float32(ALPHA / 2)
    q = group_sum(f).astype(np.float32)
    scale = (1 - beta) + beta * p / np.where(q > 0, q, 1)
    return (1 - beta) * p + beta * q, f * scale[:, s]


@jax.jit
def _one_hot_adjust(
    p: jax.Array, f: jax.Array, s: np.ndarray, member: jax.Array
) -> tuple[jax.Array, jax.Array]:
    beta = jnp.float32(ALPHA / 2)
    q = f @ member
    scale = (1 - beta) + beta * p / jnp.where(q > 0, q, 1)
    return (1 - beta) * p + beta * q, f * scale[:, s]


@jax.jit
def _copy(arrays: Sequence[jax.Array], factor: float) -> Sequence[jax.Array]:
    # The factor is unknown to the compiler, which would otherwise move nothing.
    return jax.tree.map(lambda x: x * factor, arrays)


def _tree(name: str, rounds: int) -> Row:
    rng = np.random.default_rng(0)
    sizes = TREES[name]
    parents = tuple(
        np.sort(np.concatenate([np.arange(above), rng.integers(above, size=below - above)]))
        for above, below in zip(sizes, sizes[1:], strict=False)
    )
    names = [[f"{level}-{i}" for i in range(n)] for level, n in enumerate(sizes)]
    hierarchy = Hierarchy([f"level{i}" for i in range(len(sizes))], names, parents)
    probs = [_softmax(rng, TREE_SAMPLES, n) for n in sizes]
    on_device = [jnp.asarray(p) for p in probs]
    sides = {
        "adjust_tree": lambda: adjust_tree(on_device, hierarchy, ALPHA),
        "plain copy": lambda: _copy(on_device, 1.0),
        "numpy, reduceat": lambda: _numpy_tree(probs, parents),
    }
    moved = 2 * sum(p.nbytes for p in probs)
    return alternate(f"adjust_tree, {TREE_SAMPLES:,} x {name}", sides, rounds, moved)


def _numpy_tree(probs: list[np.ndarray], parents: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Make the two passes; children are in the order of their parents, as `reduceat` needs."""
    starts = [np.searchsorted(s, np.arange(s[-1] + 1)) for s in parents]
    mass = [probs[-1]]
    for p, at in zip(reversed(probs[:-1]), reversed(starts), strict=True):
        mass.insert(0, p + np.add.reduceat(mass[0], at, axis=1))
    target = [mass[0] / len(probs)]
    for m, s, at in zip(mass[1:], parents, starts, strict=True):
        target.append(m * (target[-1] / np.add.reduceat(m, at, axis=1))[:, s])
    alpha = np.float32(ALPHA)
    return [(1 - alpha) * p + alpha * t for p, t in zip(probs, target, strict=True)]


def _softmax(rng: np.random.Generator, samples: int, classes: int) -> np.ndarray:
    logits = 3 * rng.standard_normal((samples, classes), np.float32)
    p = np.exp(logits)
    return p / p.sum(axis=1, keepdims=True)
