"""Trees and probabilities that several tests draw, the closed form, and how levels are compared."""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import numpy as np

from hiercls_jax import Hierarchy

SIZES = (3, 4, 6, 5)  # classes of each level of a drawn tree; all drawn trees share a compilation
N = 3  # samples
SCALES = [0, 1e-38, 1.2e-38, 1e-30, 1e-19, 1e-7, 1]


def make(parents, sizes=None) -> Hierarchy:
    """Return a hierarchy with these parents and made-up names; classes may be childless."""
    sizes = sizes or [max(parents[0]) + 1, *map(len, parents)]
    names = [[f"{level}.{i}" for i in range(n)] for level, n in enumerate(sizes)]
    return Hierarchy([f"level{i}" for i in range(len(sizes))], names, parents, ragged=True)


@st.composite
def trees(draw, sizes=SIZES, ragged=True):
    """Draw a tree with these sizes; if `ragged`, with leaves at every level."""
    parents = []
    for c, n in zip(sizes, sizes[1:], strict=False):
        one_each = [] if ragged else list(range(c))
        free = n - len(one_each)
        drawn = draw(st.lists(st.integers(0, c - 1), min_size=free, max_size=free))
        parents.append(np.array(draw(st.permutations(one_each + drawn)), np.int32))
    return make(parents, sizes)


def draw_tree(rng, depth, ragged=True) -> Hierarchy:
    """Return a random tree: 2 to 4 classes at the first level, 1 to 3 more at each level below."""
    sizes = [int(rng.integers(2, 5))]
    for _ in range(depth - 1):
        sizes.append(sizes[-1] + int(rng.integers(1, 4)))
    parents = []
    for c, n in zip(sizes, sizes[1:], strict=False):
        first = rng.integers(0, c, c) if ragged else np.arange(c)
        parents.append(rng.permutation(np.concatenate([first, rng.integers(0, c, n - c)])))
    return make(parents, sizes)


def assert_close(actual, wanted, rtol=0.0, atol=0.0):
    """Assert that levels agree in number, shapes and values."""
    for a, w in zip(actual, wanted, strict=True):
        assert np.shape(a) == np.shape(w)
        np.testing.assert_allclose(np.asarray(a, float), np.asarray(w, float), rtol, atol)


def is_leaf(tree) -> list[np.ndarray]:
    """Return bool `[N_l]` for each level: which classes have no children."""
    return [
        np.array([level == tree.num_levels - 1 or i not in tree.parents[level] for i in range(n)])
        for level, n in enumerate(tree.sizes)
    ]


@st.composite
def marginals(draw, tree, wide=False):
    """Draw levels `[N, N_l]` of float32 marginals, with empty classes on every level.

    Masses differ by at most 1000 times, or by any amount if `wide`.
    """
    elements = st.sampled_from(SCALES) if wide else st.floats(2**-10, 1, width=32)
    raw = draw(hnp.arrays(np.float32, (N, sum(tree.sizes)), elements=elements))
    raw = np.where(draw(hnp.arrays(bool, raw.shape)), 0, raw)
    return to_marginals(np.split(raw, np.cumsum(tree.sizes)[:-1], axis=1), tree)


def to_marginals(raw, tree):
    """Scale levels `[N, N_l]` to sum to 1 with the leaves above; a level of zeros is uniform."""
    reached, levels = np.ones((len(raw[0]), 1)), []
    for x, leaf in zip(raw, is_leaf(tree), strict=True):
        x = np.where(x.sum(1, keepdims=True) == 0, 1, x).astype(float)
        levels.append(x / x.sum(1, keepdims=True) * reached)
        reached = levels[-1][:, ~leaf].sum(1, keepdims=True)
    return [p.astype(np.float32) for p in levels]


def coherent(tree, leaf_levels):
    """Return float64 levels: leaves keep their masses, other classes have their children's sum."""
    levels = [np.array(p, float) for p in leaf_levels]
    for level in reversed(range(tree.num_levels - 1)):
        for i in np.flatnonzero(~is_leaf(tree)[level]):
            levels[level][:, i] = levels[level + 1][:, tree.parents[level] == i].sum(1)
    return levels


def padded(levels, tree):
    """Return levels and tree with each leaf repeated below it, after the classes that are there."""
    leaf, levels, parents = is_leaf(tree), list(levels), list(tree.parents)
    childless = np.flatnonzero(leaf[0])
    for i in range(tree.num_levels - 1):
        parents[i] = np.concatenate([parents[i], childless])
        levels[i + 1] = np.concatenate([levels[i + 1], levels[i][:, childless]], axis=1)
        added = np.arange(tree.sizes[i + 1], len(parents[i]))
        childless = np.concatenate([np.flatnonzero(leaf[i + 1]), added])
    return levels, make(parents, [p.shape[1] for p in levels])


def closed_form(levels, tree, alphas, weights=None, number=float, smallest=0):
    """Return (1-α) P + α p; two passes, class by class, find the p of least Σ_l w_l KL(P_l ‖ p_l).

    Args:
      levels: L arrays `[N, N_l]`.
      tree: the hierarchy.
      alphas: L numbers.
      weights: L numbers; ones for None.
      number: the type to compute in, as `float` or `Fraction`.
      smallest: masses below it are 0.

    Returns:
      L arrays `[N, N_l]` of `number`.
    """
    depth = tree.num_levels
    weights = [number(w) for w in weights] if weights is not None else [number(1)] * depth
    results = [np.zeros(p.shape, object) for p in levels]
    children = [
        [np.flatnonzero(s == i) for i in range(n)]
        for s, n in zip(tree.parents, tree.sizes[:-1], strict=True)
    ] + [[()] * tree.sizes[-1]]
    for n in range(len(levels[0])):
        given = [[number(x if x >= smallest else 0) for x in p[n].tolist()] for p in levels]
        m = [[number(0)] * size for size in tree.sizes]
        for level in reversed(range(depth)):
            for i, below in enumerate(children[level]):
                weight = weights[level] if len(below) else sum(weights[level:])
                m[level][i] = weight * given[level][i] + sum(m[level + 1][c] for c in below)
        p = [[x / sum(weights) for x in m[0]]] + [[number(0)] * size for size in tree.sizes[1:]]
        for level in range(depth - 1):
            for i, below in enumerate(children[level]):
                whole = sum(m[level + 1][c] for c in below)
                for c in below:
                    share = m[level + 1][c] / whole if whole > 0 else 1 / number(len(below))
                    p[level + 1][c] = p[level][i] * share
        for level, alpha in enumerate(map(number, alphas)):
            for i, x in enumerate(given[level]):
                results[level][n, i] = (1 - alpha) * x + alpha * p[level][i]
    return results
