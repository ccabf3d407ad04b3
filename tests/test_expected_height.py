"""Conditional risk minimisation against the matrix of all costs.

Tolerance: float32 has a unit roundoff of 6e-8, and a cost is a sum of at most a few dozen rounded
terms of at most the tree's height, 4.
"""

import math
import re

import jax
import numpy as np
import pytest

from hiercls_jax.adaptation.expected_height import expected_lca_height, lca_steps, least_height_leaf
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics import hierarchical_distance, lca_height

ABSOLUTE = 4e-6


def tree(*parents, ragged=True):
    """A hierarchy with the given parents; its first level has the classes that these name."""
    sizes = [max(parents[0]) + 1, *map(len, parents)]
    names = [[f"{level}/{i}" for i in range(size)] for level, size in enumerate(sizes)]
    return Hierarchy([f"level{i}" for i in range(len(sizes))], names, parents, ragged)


TREES = {
    "two levels": tree([0, 1, 0, 2, 1, 0]),
    "four levels": tree([1, 0, 1], [2, 0, 1, 2], [0, 1, 2, 3, 3, 0, 1, 3]),
    "only children": tree([0, 1], [1, 0], [0, 1, 1]),
    "ragged": tree([0, 0, 2], [1, 1, 2], [0, 2, 2]),
}
trees = pytest.mark.parametrize("hierarchy", TREES.values(), ids=TREES)


def draw(hierarchy, n=50, seed=0):
    """Leaf probabilities float32 `[n, K]`, from spread out to nearly certain."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(hierarchy.num_leaves), n) ** rng.uniform(0.2, 9, (n, 1))
    return (p / p.sum(axis=1, keepdims=True)).astype(np.float32)


def costs_by_matrix(p, hierarchy):
    """Every leaf's expected cost by the product with all pairs' heights, in float64."""
    leaves = np.arange(hierarchy.num_leaves)
    return p.astype(float) @ lca_height(leaves[:, None], leaves, hierarchy)


@trees
def test_costs_are_the_matrix_product(hierarchy):
    """Two passes over the tree equal the product with the matrix of costs."""
    p = draw(hierarchy)
    costs = expected_lca_height(p, hierarchy)
    np.testing.assert_allclose(costs, costs_by_matrix(p, hierarchy), atol=ABSOLUTE)
    assert np.min(costs) >= 0


@trees
def test_steps_lead_from_the_root_to_every_leaf(hierarchy):
    """No step is negative, a leaf's copies in lower cuts have none, and all paths have one sum."""
    steps, labels = lca_steps(hierarchy), hierarchy.labels(np.arange(hierarchy.num_leaves))
    for size, step in zip(hierarchy.sizes, steps, strict=True):
        assert (step[:size] >= 1).all()
        assert (step[size:] == 0).all()
    paths = sum(step[ids] for step, ids in zip(steps, labels, strict=True))
    assert set(paths.tolist()) == {hierarchy.num_levels}


@trees
def test_decision_has_the_smallest_cost(hierarchy):
    """No leaf is cheaper than the chosen one, which is not always the most probable."""
    p = draw(hierarchy)
    costs = costs_by_matrix(p, hierarchy)
    decided = least_height_leaf(p, hierarchy)
    assert decided.dtype == np.int32
    chosen = costs[np.arange(len(p)), np.asarray(decided)]
    np.testing.assert_allclose(chosen, costs.min(axis=1), atol=ABSOLUTE)
    assert np.any(decided != p.argmax(axis=1))


@trees
def test_mean_cost_is_what_labels_drawn_from_p_cost(hierarchy):
    """Over labels with frequencies p, hierarchical distance@1 is the expected cost."""
    counts = np.arange(1, hierarchy.num_leaves + 1)
    p = (counts / counts.sum()).astype(np.float32)
    labels = np.repeat(np.arange(hierarchy.num_leaves), counts)
    costs = np.asarray(expected_lca_height(p, hierarchy))
    scores = np.tile(-costs, (len(labels), 1))
    distance = hierarchical_distance(scores, labels, hierarchy)
    assert distance == pytest.approx(costs.min(), abs=ABSOLUTE)


@trees
def test_certainty_and_ties(hierarchy):
    """A certain leaf costs nothing and is chosen; of equal leaves, the first is chosen."""
    certain = np.eye(hierarchy.num_leaves, dtype=np.float32)
    costs = np.asarray(expected_lca_height(certain, hierarchy))
    np.testing.assert_array_equal(np.diag(costs), 0)
    np.testing.assert_array_equal(least_height_leaf(certain, hierarchy), np.arange(len(certain)))
    nothing = np.zeros(hierarchy.num_leaves, np.float32)
    assert least_height_leaf(nothing, hierarchy) == 0


def test_one_level_is_argmax():
    """If all mistakes cost the same, the decision is the most probable class."""
    flat = Hierarchy(("class",), ([f"{i}" for i in range(6)],), ())
    p = draw(flat)
    np.testing.assert_array_equal(least_height_leaf(p, flat), p.argmax(axis=1))


def test_by_hand():
    """Leaves (0.3, 0.4, 0.3) under parents (0, 1, 0): costs 0.7 + 0.4, 0.6 + 0.6, 0.7 + 0.4."""
    pets = tree([0, 1, 0])
    np.testing.assert_allclose(
        expected_lca_height([0.3, 0.4, 0.3], pets), [1.1, 1.2, 1.1], atol=ABSOLUTE
    )


def test_batches_jit_and_vmap():
    """Leading axes, vmap and an outer jit change nothing."""
    hierarchy = TREES["ragged"]
    p = draw(hierarchy)
    costs = np.asarray(expected_lca_height(p, hierarchy))
    nested = expected_lca_height(p.reshape(5, 10, -1), hierarchy)
    np.testing.assert_allclose(nested, costs.reshape(nested.shape), atol=ABSOLUTE)
    mapped = jax.jit(jax.vmap(lambda x: expected_lca_height(x, hierarchy)))(p)
    np.testing.assert_allclose(mapped, costs, atol=ABSOLUTE)
    np.testing.assert_array_equal(
        jax.vmap(lambda x: least_height_leaf(x, hierarchy))(p), least_height_leaf(p, hierarchy)
    )


@trees
def test_gradients_are_the_heights(hierarchy):
    """∂cost_a/∂p_b is the height of the LCA of a and b, for uniform and for certain p alike."""
    leaves = np.arange(hierarchy.num_leaves)
    heights = lca_height(leaves[:, None], leaves, hierarchy)
    jacobian = jax.jit(jax.jacrev(lambda x: expected_lca_height(x, hierarchy)))
    for p in (np.full(len(leaves), 1 / len(leaves)), leaves == 1):
        np.testing.assert_allclose(jacobian(p.astype(np.float32)), heights, atol=ABSOLUTE)


def test_no_array_has_a_place_for_every_pair_of_leaves():
    """With 1,000 leaves nothing in the computation is larger than all classes together."""
    hierarchy = tree(np.arange(50) % 5, np.arange(1000) % 50)
    program = jax.make_jaxpr(lambda p: expected_lca_height(p, hierarchy))(np.ones(1000, np.float32))
    shapes = re.findall(r"(?:f32|i32|bool)\[([\d,]+)\]", str(program))
    assert 1000 <= max(math.prod(map(int, shape.split(","))) for shape in shapes) <= 1055


def test_wrong_shapes_are_refused():
    """The last axis is that of the leaves."""
    with pytest.raises(ValueError, match=r"p_leaf is \[..., 6\].*got \[2, 5\]"):
        least_height_leaf(np.ones((2, 5)), TREES["two levels"])
    with pytest.raises(ValueError, match=r"got \[\]"):
        expected_lca_height(1.0, TREES["two levels"])
