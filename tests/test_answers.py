"""The decisions against their definitions, by loops over classes in float64.

Drawn probabilities are far enough from ties that float32 decides as float64 does.
"""

import jax
import numpy as np
import pytest
from trees import coherent, draw_tree, make, to_marginals

from hiercls_jax import Hierarchy
from hiercls_jax.adaptation.answers import DECISIONS, answer_nodes
from hiercls_jax.hierarchy.nodes import node_names, node_numbers, nodes_of

N = 60
TREES = {
    "one level": Hierarchy(("class",), (("a", "b", "c"),), ()),
    "two levels": make([[0, 1, 0, 2, 1, 0]]),
    "only children": make([[0, 1], [1, 0], [0, 1, 1]]),
    "ragged": make([[0, 0, 2], [1, 1, 2, 2]]),
    "deep and ragged": draw_tree(np.random.default_rng(3), 4),
}
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
names = pytest.mark.parametrize("name", DECISIONS)


def draw(tree, agree, seed=0, n=N):
    """Levels float64 `[n, N_l]` of marginals, coherent if they shall agree."""
    rng = np.random.default_rng(seed)
    raw = [rng.dirichlet(np.full(size, 0.3), n) for size in tree.sizes]
    levels = [p.astype(float) for p in to_marginals(raw, tree)]
    return coherent(tree, levels) if agree else levels


def path_of(tree, level, i):
    """The classes (level, class) from the first level down to a node, by the parents."""
    path = [(level, i)] if level >= 0 else []
    while level > 0:
        level, i = level - 1, int(tree.parents[level - 1][i])
        path.insert(0, (level, i))
    return path


def children(tree, level, i):
    """The classes below a node."""
    if level < 0:
        return [(0, j) for j in range(tree.sizes[0])]
    if level == tree.num_levels - 1:
        return []
    return [(level + 1, int(j)) for j in np.flatnonzero(tree.parents[level] == i)]


def leaves_below(tree, level, i):
    """The leaves at or below a node."""
    below = children(tree, level, i)
    return [x for c in below for x in leaves_below(tree, *c)] if below else [(level, i)]


def everything(tree):
    """All nodes, the root first, coarsest level first."""
    return [(-1, 0), *((level, i) for level, n in enumerate(tree.sizes) for i in range(n))]


def rows_of(tree, level, i):
    """A node's row in each level's cut, by names; -1 below a node that has children."""
    path, rows = path_of(tree, level, i), []
    for depth in range(tree.num_levels):
        node = path[min(depth, len(path) - 1)] if path else None
        cut = [tuple(pair) for pair in tree.cut(depth).tolist()]
        rows.append(cut.index(node) if node in cut else -1)
    return rows


@trees
def test_nodes_are_the_tree(tree):
    """Paths, rows, leaves and counts are those of a walk along the parents."""
    nodes, names = nodes_of(tree), node_names(tree)
    numbers = {tuple(pair): i for i, pair in enumerate(nodes.pairs.tolist())}
    assert set(numbers) == set(everything(tree))
    for node, number in numbers.items():
        path = path_of(tree, *node)
        padded = [path[min(d, len(path) - 1)] if path else node for d in range(tree.num_levels)]
        assert [tuple(nodes.pairs[i]) for i in nodes.paths[number]] == padded
        assert nodes.rows[number].tolist() == rows_of(tree, *node)
        below = leaves_below(tree, *node)
        assert nodes.leaf_counts[number] == len(below)
        bits = np.log2(tree.num_leaves / len(below))
        assert nodes.information[number] == pytest.approx(bits, abs=1e-12)
        assert names[number] == (tree.names[node[0]][node[1]] if node[0] >= 0 else "")
    assert numbers[-1, 0] == len(numbers) - 1
    ids = np.arange(tree.num_leaves)
    np.testing.assert_array_equal(nodes.rows[nodes.leaves].T, tree.labels(ids))
    np.testing.assert_array_equal(node_numbers(ids, tree), nodes.leaves)
    np.testing.assert_array_equal(node_numbers(nodes.pairs, tree), np.arange(len(numbers)))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[0, 3]], r"labels\[0\] is \(level, class\) = \(0, 3\); allowed are levels 0 to 2"),
        ([[0, 0], [3, 0]], r"labels\[1\] .* and \(-1, 0\) for the root"),
        ([[-1, 1]], r"\(-1, 1\)"),
        ([9], "label 9 is out of range"),
        ([0.5], "integers, not float64"),
        ([[0, 0, 0]], r"got \[1, 3\]"),
    ],
)
def test_no_such_node(labels, message):
    """What is no node of the tree is refused, with the row and what is allowed."""
    with pytest.raises(ValueError, match=message):
        node_numbers(labels, TREES["ragged"])


@trees
@pytest.mark.parametrize("agree", [True, False], ids=["coherent", "incoherent"])
@names
def test_decisions_are_their_definitions(tree, agree, name):
    """Each decision is what its definition gives sample by sample; NumPy, JAX and jit agree."""
    levels = draw(tree, agree)
    wanted = [DEFINITIONS[name](tree, [p[n] for p in levels]) for n in range(N)]
    decide = DECISIONS[name]
    for given in (levels, [p.astype(np.float32) for p in levels]):
        got = decide(given, tree)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, wanted)
    arrays = [jax.numpy.asarray(p, np.float32) for p in levels]
    jitted = jax.jit(lambda levels: decide(levels, tree))(arrays)
    assert isinstance(jitted, jax.Array)
    np.testing.assert_array_equal(jitted, wanted)
    batched = [p.reshape(2, N // 2, -1) for p in levels]
    np.testing.assert_array_equal(decide(batched, tree).reshape(N, -1), wanted)
    np.testing.assert_array_equal(decide([p[0] for p in levels], tree), wanted[0])


def _independent(tree, p):
    return [
        int(np.argmax([p[level][i] for level, i in tree.cut(depth)]))
        for depth in range(tree.num_levels)
    ]


def _leaf(tree, p):
    leaves = [tuple(pair) for pair in tree.cut(tree.num_levels - 1).tolist()]
    return rows_of(tree, *max(leaves, key=lambda node: p[node[0]][node[1]]))


def _top_down(tree, p):
    node = (-1, 0)
    while below := children(tree, *node):
        node = max(below, key=lambda c: p[c[0]][c[1]])
    return rows_of(tree, *node)


def _minimum_risk(tree, p):
    """The smallest Σ over classes u of P(u) · [not on v's path] + (1 - P(u)) · [on it]."""

    def risk(node):
        path = set(path_of(tree, *node))
        classes = everything(tree)[1:]
        return sum(1 - p[u[0]][u[1]] if u in path else p[u[0]][u[1]] for u in classes)

    return rows_of(tree, *min(everything(tree), key=risk))


DEFINITIONS = {
    "independent": _independent, "leaf": _leaf, "top_down": _top_down,
    "minimum_risk": _minimum_risk,
}  # fmt: skip


def test_every_decision_has_a_definition_here():
    """A decision that is added is tested."""
    assert DEFINITIONS.keys() == DECISIONS.keys()


@trees
def test_least_risk_is_least_mean_distance(tree):
    """Over leaves drawn with frequencies p, no node is nearer on average, counted in edges."""
    levels = draw(tree, agree=True, n=20)
    leaves = [tuple(pair) for pair in tree.cut(tree.num_levels - 1).tolist()]

    def distance(a, b):
        return len(set(path_of(tree, *a)) ^ set(path_of(tree, *b)))

    table = np.array([[distance(v, y) for y in leaves] for v in everything(tree)])
    means = table @ np.array([levels[level][:, i] for level, i in leaves])
    answers = nodes_of(tree).pairs[answer_nodes(DECISIONS["minimum_risk"](levels, tree), tree)]
    at = [everything(tree).index(tuple(pair)) for pair in answers.tolist()]
    np.testing.assert_allclose(means[at, np.arange(20)], means.min(axis=0), atol=1e-9)
    assert len(set(at)) > 1


@trees
def test_least_risk_is_the_lowest_majority(tree):
    """If the levels agree, it is the lowest class with more than half of the probability."""
    levels = draw(tree, agree=True)
    majority = [
        max(
            (node for node in everything(tree)[1:] if levels[node[0]][n, node[1]] > 0.5),
            key=lambda node: node[0],
            default=(-1, 0),
        )
        for n in range(N)
    ]
    rows = DECISIONS["minimum_risk"](levels, tree)
    np.testing.assert_array_equal(rows, [rows_of(tree, *node) for node in majority])


@trees
@pytest.mark.parametrize("name", ["leaf", "top_down", "minimum_risk"])
def test_answers_are_paths(tree, name):
    """All but `independent` answer with one node and its ancestors, whatever the levels say."""
    rows = DECISIONS[name](draw(tree, agree=False, seed=1), tree)
    nodes = nodes_of(tree)
    np.testing.assert_array_equal(nodes.rows[answer_nodes(rows, tree)], rows)


def test_ties():
    """Of equal classes the first is taken; of equally risky nodes the highest."""
    tree = make([[0, 0, 1, 1]])
    levels = np.full((1, 2), 0.5), np.full((1, 4), 0.25)
    assert {name: decide(levels, tree).tolist() for name, decide in DECISIONS.items()} == {
        "independent": [[0, 0]], "leaf": [[0, 0]], "top_down": [[0, 0]],
        "minimum_risk": [[-1, -1]],
    }  # fmt: skip


@names
def test_wrong_shapes(name):
    """A wrong number or shape of levels is refused, with the shapes."""
    with pytest.raises(ValueError, match=r"levels of \[3, 6\] classes .* got \[\[1, 3\], \[1, 5\]"):
        DECISIONS[name]([np.ones((1, 3)), np.ones((1, 5))], TREES["two levels"])
    with pytest.raises(ValueError, match=r"got \[\]"):
        DECISIONS[name]([], TREES["two levels"])
