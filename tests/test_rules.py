"""Each rule against its definition, and the properties of all rules.

Tolerances: float32 has a unit roundoff of 6e-8. A result is a sum of at most ten rounded terms of
at most 1 (SUM, absolute); pooled ones are exponentials of sums of logarithms of up to 100, whose
roundings of 4e-6 are relative to the result.
"""

from functools import partial

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadprog
from hypothesis import given
from trees import SCALES, assert_close, coherent, is_leaf, make, padded, to_marginals

from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.rules import (
    RULES,
    bottom_up,
    euclidean_projection,
    geometric_pooling,
    product_of_experts,
    top_down,
)
from hiercls_jax.adaptation.tree import adjust_tree, coherent_target, interpolate

SUM = 2e-6
POOLED = 2e-5

# Trees of the same sizes share what is compiled.
DEEP = make([[0, 0, 2, 2, 0], [0, 0, 2, 4, 4, 4, 2, 0]], [3, 5, 8])  # with leaves at every level
FULL = make([[0, 0, 1, 2, 1], [0, 1, 2, 3, 4, 4, 0, 0]])
FLAT = make([[0, 0, 2, 2, 2, 0]], [4, 6])  # two levels; classes 1 and 3 are leaves
PAIR = make([[0, 0, 1, 2, 2, 2]])
ANY_DEPTH = sorted(set(RULES) - {"euclidean_projection"})
CASES = [*((name, DEEP) for name in ANY_DEPTH), ("euclidean_projection", FLAT)]
N = 20


def random_levels(tree, seed, wide=False):
    """Levels `[N, N_l]` of marginals, with empty classes and of any scale if `wide`."""
    rng = np.random.default_rng(seed)
    shapes = [(N, n) for n in tree.sizes]
    raw = [rng.choice(SCALES, x) if wide else rng.exponential(size=x) for x in shapes]
    return to_marginals(raw, tree)


# Properties of all rules.


@pytest.mark.parametrize(("name", "tree"), CASES)
@pytest.mark.parametrize("wide", [False, True])
def test_targets_are_coherent_distributions(name, tree, wide):
    """On ragged trees: classes have their children's mass, leaves sum to 1, nothing is negative."""
    levels = random_levels(tree, 1, wide)
    target = RULES[name].target(levels, tree)
    assert all(np.asarray(p).min() >= 0 for p in target)
    assert_close(target, coherent(tree, target), atol=SUM)
    leaves = [np.asarray(p, float)[:, x] for p, x in zip(target, is_leaf(tree), strict=True)]
    np.testing.assert_allclose(np.concatenate(leaves, axis=1).sum(1), 1, atol=POOLED)


@pytest.mark.parametrize(("name", "tree"), CASES)
def test_a_leaf_stands_for_its_own_only_child(name, tree):
    """Every rule treats a ragged tree as the full one in which leaves are repeated below."""
    levels = random_levels(tree, 2, wide=True)
    full_levels, full = padded(levels, tree)
    target = RULES[name].target(full_levels, full)
    target = [np.asarray(t)[:, :n] for t, n in zip(target, tree.sizes, strict=True)]
    assert_close(RULES[name].target(levels, tree), target, atol=POOLED)


@pytest.mark.parametrize(("name", "tree"), CASES)
def test_labels_can_be_permuted(name, tree):
    """Numbering the classes otherwise only renumbers the target."""
    rng = np.random.default_rng(3)
    orders = [rng.permutation(n) for n in tree.sizes]
    parents = [
        np.argsort(above)[s][below]
        for s, above, below in zip(tree.parents, orders, orders[1:], strict=False)
    ]
    levels = random_levels(tree, 3)
    permuted = [p[:, o] for p, o in zip(levels, orders, strict=True)]
    results = RULES[name].target(permuted, make(parents, tree.sizes))
    target = RULES[name].target(levels, tree)
    wanted = [np.asarray(p)[:, o] for p, o in zip(target, orders, strict=True)]
    assert_close(results, wanted, atol=SUM)


@pytest.mark.parametrize(("name", "tree"), CASES)
def test_gradients_are_finite(name, tree):
    """For inputs of every scale, and with empty classes."""

    @jax.jit
    @jax.grad
    def gradient(levels):
        target = RULES[name].target(levels, tree)
        return sum(jnp.sum(p * (jnp.arange(p.shape[1]) / p.shape[1])[None]) for p in target)

    for result in gradient(random_levels(tree, 4, wide=True)):
        assert np.isfinite(result).all()


@pytest.mark.parametrize(("name", "tree"), CASES)
def test_interpolation_up_to_the_largest_alpha(name, tree):
    """Up to each rule's largest alpha (1-α) P + α target is not negative before it is clamped."""
    levels = random_levels(tree, 5, wide=True)
    target = RULES[name].target(levels, tree)
    largest = RULES[name].largest_alpha(tree)
    assert len(largest) == tree.num_levels
    assert name == "kl" or set(largest) == {1.0}
    mixed = [
        (1 - a) * p + a * np.asarray(t) for p, t, a in zip(levels, target, largest, strict=True)
    ]
    assert all(np.min(p) >= -SUM for p in mixed)
    assert_close(interpolate(levels, target, largest), mixed, atol=SUM)


@pytest.mark.parametrize(("name", "tree"), CASES)
def test_adjust_is_interpolation_to_the_target(name, tree):
    """`adjust` goes from the levels at α = 0 to the target at α = 1, and rejects α out of range.

    By rules that take weights, to the target of these weights.
    """
    levels, rule = random_levels(tree, 13), RULES[name]
    weights = [1, 2, 3][: tree.num_levels] if rule.takes_weights else None
    target, largest = rule.target(levels, tree, weights), rule.largest_alpha(tree, weights)
    halfway = [(p + np.asarray(t)) / 2 for p, t in zip(levels, target, strict=True)]
    for alpha, wanted in ((0, levels), (0.5, halfway), (1, target)):
        assert_close(rule.adjust(levels, tree, alpha, weights), wanted, atol=SUM)
    with pytest.raises(ValueError, match="alpha of level 0 must lie in"):
        rule.adjust(levels, tree, largest[0] + 0.01, weights)


def test_kl_is_adjust_tree():
    """Every bit of the rule `kl` is that of `adjust_tree`, with weights and beyond α = 1 too."""
    levels, weights = random_levels(DEEP, 14), [1, 2, 3]
    largest = RULES["kl"].largest_alpha(DEEP, weights)
    results = RULES["kl"].adjust(levels, DEEP, largest, weights)
    assert_close(results, adjust_tree(levels, DEEP, largest, weights))
    assert min(largest) > 1


@pytest.mark.parametrize(("name", "tree"), CASES)
def test_adjust_can_be_exported_for_batches_of_any_size(name, tree):
    """`adjust` traces with a symbolic number of samples and a traced α."""
    samples = jax.export.symbolic_shape("n")
    shapes = [jax.ShapeDtypeStruct((*samples, n), np.float32) for n in tree.sizes]
    adjust = jax.jit(lambda levels, alpha: RULES[name].adjust(levels, tree, alpha))
    exported = jax.export.export(adjust)(shapes, jax.ShapeDtypeStruct((), np.float32))
    assert [p.shape[1] for p in exported.out_avals] == list(tree.sizes)


@pytest.mark.parametrize("name", sorted(set(RULES) - {"product_of_experts", "geometric_pooling"}))
def test_coherent_input_is_a_fixed_point(name):
    """Levels that agree stay, by every rule that does not sharpen or flatten them."""
    levels = [p.astype(np.float32) for p in coherent(FLAT, random_levels(FLAT, 6))]
    assert_close(RULES[name].target(levels, FLAT), levels, atol=SUM)


# One by one.


def test_bottom_up_by_hand():
    """Classes have the sums of their leaves, one at the first level; other masses are ignored."""
    tree = make([[0, 0], [0, 0]], [2, 2, 2])
    levels = [[0.3, 0.7], [0.1, 0.25], [0.04, 0.01]]
    assert_close(bottom_up(levels, tree), [[0.3, 0.7], [0.05, 0.25], [0.04, 0.01]], atol=SUM)


def test_top_down_by_hand():
    """The first level stays; below, conditional probabilities; an empty group shares equally."""
    levels = [[0.2, 0.5, 0.3], [0.1, 0.3, 0.6, 0.0, 0.0, 0.0]]
    wanted = [[0.2, 0.5, 0.3], [0.05, 0.15, 0.5, 0.1, 0.1, 0.1]]
    assert_close(top_down(levels, PAIR), wanted, atol=SUM)


def test_top_down_is_the_product_of_conditionals():
    """Down all levels: p(leaf) is P at the first level times each step's share."""
    levels = random_levels(FULL, 7)
    p = levels[0].astype(float)
    for below, s in zip(levels[1:], FULL.parents, strict=True):
        sums = np.stack([below[:, s == i].sum(1) for i in range(p.shape[1])], axis=1)
        p = p[:, s] * below / sums[:, s]
    np.testing.assert_allclose(top_down(levels, FULL)[-1], p, atol=SUM)


def test_product_of_experts_is_renormalised_products():
    """Two levels: f_j P_s(j) over their sum, the paper's; three: the product of the whole path."""
    for tree in (PAIR, FULL):
        levels = random_levels(tree, 8)
        path = [p[:, tree.ancestors(i)].astype(float) for i, p in enumerate(levels)]
        product = np.prod(path, axis=0)
        wanted = product / product.sum(1, keepdims=True)
        np.testing.assert_allclose(product_of_experts(levels, tree)[-1], wanted, rtol=POOLED)


@pytest.mark.parametrize("weights", [None, [1, 3, 2], [0, 1, 2]])
def test_geometric_pooling_is_the_weighted_geometric_mean(weights):
    """Along each leaf's path with exponents w_l / W, renormalised; a weight of 0 is P⁰ = 1."""
    levels = random_levels(FULL, 9)
    exponents = np.ones(3) / 3 if weights is None else np.divide(weights, np.sum(weights))
    if weights and weights[0] == 0:
        levels[0][:, 0] = 0
    terms = [p[:, FULL.ancestors(i)].astype(float) for i, p in enumerate(levels)]
    mean = np.prod([t**e for t, e in zip(terms, exponents, strict=True)], axis=0)
    wanted = mean / mean.sum(1, keepdims=True)
    target = geometric_pooling(levels, FULL, weights)
    np.testing.assert_allclose(target[-1], wanted, rtol=POOLED)
    assert RULES["geometric_pooling"].largest_alpha(FULL, weights) == (1, 1, 1)


def test_products_do_not_underflow():
    """Products of 1e-60 and less keep their ratios."""
    levels = np.float32([[1e-30, 1, 0]] * 2), np.float32([[1e-30, 3e-30, 0, 0, 0, 1]] * 2)
    wanted = [[0.25, 0.75, 0, 0, 0, 0]] * 2
    np.testing.assert_allclose(product_of_experts(levels, PAIR)[1], wanted, rtol=1e-4)
    np.testing.assert_allclose(np.asarray(geometric_pooling(levels, PAIR, [1, 0.5])[1])[:, 2:], 0)


@pytest.mark.parametrize("rule", [product_of_experts, geometric_pooling])
def test_levels_that_contradict_each_other_have_the_kl_target(rule):
    """A sample in which every leaf's product is 0 gets the target of `kl`; others do not change."""
    agree = [0.5, 0.5, 0], [0.5, 0.25, 0.25, 0, 0, 0]
    contradict = [1, 0, 0], [0, 0, 0.25, 0.75, 0, 0]
    levels = [np.float32([a, c]) for a, c in zip(agree, contradict, strict=True)]
    both = [np.asarray(p) for p in rule(levels, PAIR)]
    kl = [np.asarray(p) for p in coherent_target(levels, PAIR)]
    alone = [np.asarray(p) for p in rule([p[[0, 0]] for p in levels], PAIR)]
    assert_close([p[0] for p in both], [p[0] for p in alone], atol=SUM)
    assert_close([p[1] for p in both], [p[1] for p in kl])
    assert np.abs(both[1][0] - kl[1][0]).max() > 0.01


def test_weights_are_for_the_rules_that_have_them():
    """kl and geometric pooling take weights; other rules reject them instead of ignoring them."""
    levels = random_levels(PAIR, 10)
    for name, rule in RULES.items():
        if name in ("kl", "geometric_pooling"):
            weighted = np.asarray(rule.target(levels, PAIR, weights=[1, 5])[1])
            assert np.abs(weighted - rule.target(levels, PAIR)[1]).max() > 0.01
        else:
            for method in (rule.target, partial(rule.adjust, alpha=0.5)):
                with pytest.raises(ValueError, match=f"rule='{name}' takes no weights"):
                    method(levels, PAIR, weights=[1, 5])


# The projection.

C, F = 4, 9


def nearest(coarse, fine, s, shallow=()):
    """The fine level of the Euclidean projection by quadprog; shallow leaves join as children."""
    s = np.concatenate([s, shallow]).astype(int)
    fine = np.concatenate([fine, coarse[list(shallow)]]).astype(float)
    member = (s == np.arange(len(coarse))[:, None]).astype(float)
    n = len(fine)
    constraints = np.concatenate([np.ones((n, 1)), np.eye(n)], axis=1)
    linear = fine + member.T @ coarse.astype(float)
    bounds = np.concatenate([[1.0], np.zeros(n)])
    found = quadprog.solve_qp(np.eye(n) + member.T @ member, linear, constraints, bounds, meq=1)[0]
    return member @ found, found[: n - len(shallow)]


def all_nearest(levels, s, shallow=()):
    """`nearest` of every sample, as two levels."""
    rows = [nearest(coarse, fine, s, shallow) for coarse, fine in zip(*levels, strict=True)]
    return [np.stack(level) for level in zip(*rows, strict=True)]


def projection_problems(count, seed):
    """Coarse `[count, C]` and fine `[count, F]`, concentrated and with zeros, and a map."""
    rng = np.random.default_rng(seed)
    s = rng.permutation(np.concatenate([np.arange(C), rng.integers(0, C, F - C)]))
    levels = []
    for n in (C, F):
        p = rng.gamma(rng.choice([0.1, 0.5, 3], (count, 1)), size=(count, n)) + 1e-9
        p = p * (rng.random((count, n)) < rng.choice([0.3, 0.7, 1], (count, 1)))
        p[p.sum(1) == 0, 0] = 1
        levels.append(p / p.sum(1, keepdims=True))
    return levels, s


@pytest.mark.parametrize("seed", range(4))
def test_projection_is_what_a_solver_finds(seed):
    """On 400 problems, many with zeros: in float64 to 1e-12, in float32 to its roundings."""
    levels, s = projection_problems(100, seed)
    tree = make([s], [C, F])
    wanted = all_nearest(levels, s)
    assert (wanted[1] < 1e-12).mean() > 0.1  # constraints that bind
    assert_close(euclidean_projection(levels, tree), wanted, atol=SUM)
    with enable_x64(True):
        assert_close(euclidean_projection(levels, tree), wanted, atol=1e-12)


def test_projection_of_a_ragged_pair_of_levels():
    """A leaf of the coarse level counts at both levels."""
    levels = random_levels(FLAT, 11)
    wanted = all_nearest(levels, FLAT.parents[0], [1, 3])
    assert_close(euclidean_projection(levels, FLAT), wanted, atol=SUM)


@given(
    coarse=hnp.arrays(np.float32, (1, 4), elements=st.sampled_from([0, 0.25, 0.5, 1])),
    fine=hnp.arrays(np.float32, (1, 6), elements=st.sampled_from([0, 0.25, 0.5, 1])),
)
def test_projection_with_ties(coarse, fine):
    """If many classes join at once, the projection is still that of the solver."""
    levels = to_marginals([coarse, fine], FLAT)
    wanted = all_nearest(levels, FLAT.parents[0], [1, 3])
    assert_close(euclidean_projection(levels, FLAT), wanted, atol=SUM)


def test_projection_of_more_levels_is_refused():
    """Other numbers of levels are rejected before any probability, and the error names `kl`."""
    message = "two levels, this hierarchy has 3; use the rule 'kl'"
    with pytest.raises(ValueError, match=message):
        euclidean_projection(random_levels(FULL, 12), FULL)
    with pytest.raises(ValueError, match=message):
        RULES["euclidean_projection"].largest_alpha(FULL)


@pytest.mark.parametrize("name", RULES)
def test_shapes_are_checked(name):
    """Every rule rejects levels that do not fit the hierarchy."""
    with pytest.raises(ValueError, match=r"levels of \[3, 6\] classes.*got \[\[2, 3\], \[2, 5\]\]"):
        RULES[name].target([np.ones((2, 3)), np.ones((2, 5))], PAIR)
