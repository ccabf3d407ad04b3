"""Algorithm 1 for trees against its closed form, an optimiser, and its two-level case.

Tolerances: float32 has a unit roundoff of 6e-8. A result is a sum of at most ten rounded terms of
at most 1 (SUM, absolute), or a product of some ten sums of positive terms (RATIO, relative).
"""

from fractions import Fraction

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.test_util import check_grads
from scipy.optimize import minimize
from trees import (
    SCALES,
    SIZES,
    assert_close,
    closed_form,
    coherent,
    draw_tree,
    is_leaf,
    make,
    padded,
    to_marginals,
    trees,
)
from trees import marginals as draw_marginals

from hiercls_jax.adaptation import tree as module
from hiercls_jax.adaptation.adjust import adjust
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.tree import (
    adjust_tree,
    coherent_target,
    interpolate,
    largest_alpha,
    marginals,
)

SUM = 2e-6
RATIO = 5e-6
TINY = float(np.finfo(np.float32).tiny)  # smallest normal float32

weights_of = st.lists(st.floats(0.25, 4, width=32), min_size=len(SIZES), max_size=len(SIZES))


@st.composite
def problems(draw, wide=False, ragged=True, sizes=SIZES):
    """Draw (levels `[N, N_l]`, tree)."""
    tree = draw(trees(sizes, ragged))
    return draw(draw_marginals(tree, wide)), tree


def alphas_up_to(largest):
    """Draw an alpha of [0, largest], the largest itself too, that float32 holds."""
    largest = float(np.nextafter(np.float32(largest), np.float32(0)))
    return st.one_of(st.floats(0, largest, width=32), st.just(largest))


def assert_coherent(levels, tree, atol):
    """Every class with children has their mass."""
    levels = [np.asarray(p, float) for p in levels]
    assert_close(levels, coherent(tree, levels), atol=atol)


def sums_of_cuts(levels, tree):
    """Return the mass of each level with the leaves above it, `[N]` for each level."""
    above, sums = 0, []
    for p, leaf in zip(levels, is_leaf(tree), strict=True):
        sums.append(np.asarray(p, float).sum(1) + above)
        above = above + np.asarray(p, float)[:, leaf].sum(1)
    return sums


# The target.


@pytest.mark.parametrize("wide", [False, True])
@given(data=st.data(), alpha=alphas_up_to(2))
def test_two_equal_levels_are_algorithm_1(wide, data, alpha):
    """With two levels of equal weight every number is that of `adjust`, to a rounding or two."""
    (coarse, fine), tree = data.draw(problems(wide, ragged=False, sizes=(3, 7)))
    wanted = adjust(coarse, fine, tree.parents[0], alpha)
    assert_close(adjust_tree([coarse, fine], tree, alpha), wanted, rtol=2e-7, atol=TINY)


@given(problem=problems(), weights=weights_of, part=alphas_up_to(1))
def test_equals_the_closed_form(problem, weights, part):
    """On ragged trees with weights: the two passes as they are written down, class by class."""
    levels, tree = problem
    alphas = np.array(largest_alpha(4, weights)) * part
    wanted = closed_form(levels, tree, alphas, weights)
    assert_close(adjust_tree(levels, tree, alphas, weights), wanted, atol=SUM)


@given(problem=problems(wide=True), alpha=st.sampled_from([0, 0.25, 1, 1.25]))
def test_is_accurate_at_every_scale(problem, alpha):
    """Every result, however small, is right to a few roundings: nothing cancels or overflows."""
    levels, tree = problem
    levels = [np.where(p < 1e-36, 0, p) for p in levels]  # no group near the threshold
    wanted = closed_form(levels, tree, [alpha] * 4, number=Fraction)
    for a, w, p in zip(adjust_tree(levels, tree, alpha), wanted, levels, strict=True):
        # α (W - w_l) / W is itself rounded, and P moves with that.
        bound = RATIO * w.astype(float) + 1.2e-7 * p + 8 * TINY
        assert (np.abs(np.asarray(a, float) - w.astype(float)) <= bound).all()


@pytest.mark.parametrize("depth", [3, 4, 6])
@pytest.mark.parametrize("ragged", [False, True])
def test_is_the_minimum_that_an_optimiser_finds(depth, ragged):
    """SciPy finds no lower Σ_l w_l KL(P_l ‖ p_l) on random trees, and the same minimiser.

    The leaves of a cut are free; a leaf at level l stands in every level's sum from l on.
    """
    rng = np.random.default_rng(depth)
    tree = draw_tree(rng, depth, ragged)
    weights = rng.uniform(0.5, 2, depth)
    raw = [rng.dirichlet(np.ones(n), 1) for n in tree.sizes]
    levels = [p.astype(float) for p in to_marginals(raw, tree)]
    leaf = is_leaf(tree)
    assert ragged == any(x.any() for x in leaf[:-1])
    wanted, member = [], []  # weighted mass of each class, and the leaves under it
    for level in range(depth):
        for i in range(tree.sizes[level]):
            below = [np.zeros((1, n)) for n in tree.sizes]
            below[level][:, i] = 1
            for k in range(level, depth - 1):
                below[k + 1] = below[k][:, tree.parents[k]]
            inside = np.concatenate([b[0, x] for b, x in zip(below, leaf, strict=True)])
            weight = weights[level] if not leaf[level][i] else weights[level:].sum()
            wanted.append(weight * levels[level][0, i])
            member.append(inside)
    wanted, member = np.array(wanted), np.array(member)

    def objective(logits):  # up to a constant; of leaves exp(logits), whose sum is the last term
        leaves = np.exp(logits)
        q = member @ leaves
        value = -wanted @ np.log(q) + weights.sum() * leaves.sum()
        return value, leaves * (weights.sum() - member.T @ (wanted / q))

    found = minimize(
        objective, np.zeros(member.shape[1]), jac=True, method="BFGS", options={"gtol": 1e-9}
    )
    with enable_x64(True):
        target = coherent_target(levels, tree, weights)
    ours = np.concatenate([np.asarray(p)[0, x] for p, x in zip(target, leaf, strict=True)])
    assert objective(np.log(ours))[0] <= found.fun + 1e-12
    np.testing.assert_allclose(ours, np.exp(found.x), atol=1e-6)


@given(problem=problems())
def test_alpha_1_is_coherent(problem):
    """At α = 1 every class with children has exactly their mass."""
    levels, tree = problem
    assert_coherent(adjust_tree(levels, tree, 1), tree, SUM)
    assert_coherent(coherent_target(levels, tree, [1, 3, 0, 2]), tree, SUM)


@given(problem=problems(), weights=weights_of, part=alphas_up_to(1))
def test_coherent_input_is_a_fixed_point(problem, weights, part):
    """Levels that agree stay as they are, whatever α and weights, on ragged trees too."""
    leaf_levels, tree = problem
    levels = [p.astype(np.float32) for p in coherent(tree, leaf_levels)]
    alphas = np.array(largest_alpha(4, weights)) * part
    assert_close(adjust_tree(levels, tree, alphas, weights), levels, atol=SUM)


@given(problem=problems(wide=True), weights=weights_of, part=alphas_up_to(1))
def test_cuts_sum_to_1_and_nothing_is_negative(problem, weights, part):
    """For every α of its range each level sums to 1 with the leaves above; none is negative.

    `adjust_tree` does not clamp, so this is what it computes.
    """
    levels, tree = problem
    results = adjust_tree(levels, tree, min(largest_alpha(4, weights)) * part, weights)
    assert_close(sums_of_cuts(results, tree), np.ones((4, len(levels[0]))), atol=SUM)
    assert all(np.asarray(p).min() >= 0 for p in results)


@given(problem=problems(wide=True), weights=weights_of)
def test_alpha_0_is_the_identity(problem, weights):
    """At α = 0 nothing changes, bit for bit, empty groups included."""
    levels, tree = problem
    levels = [np.where(p < TINY, 0, p) for p in levels]
    for result, p in zip(adjust_tree(levels, tree, 0, weights), levels, strict=True):
        np.testing.assert_array_equal(result, p)


@given(problem=problems(), weights=weights_of, alphas=st.tuples(*[alphas_up_to(1)] * 4))
def test_an_alpha_for_each_level(problem, weights, alphas):
    """Level l of a result depends on its own alpha alone."""
    levels, tree = problem
    together = adjust_tree(levels, tree, alphas, weights)
    apart = [adjust_tree(levels, tree, a, weights)[i] for i, a in enumerate(alphas)]
    assert_close(together, apart)


@given(problem=problems(), alpha=alphas_up_to(4 / 3), data=st.data())
def test_labels_can_be_permuted(problem, alpha, data):
    """Numbering the classes of every level otherwise only renumbers the results."""
    levels, tree = problem
    orders = [np.array(data.draw(st.permutations(range(n)))) for n in tree.sizes]
    parents = [
        np.argsort(above)[s][below]
        for s, above, below in zip(tree.parents, orders, orders[1:], strict=False)
    ]
    permuted = make(parents, tree.sizes)
    results = adjust_tree([p[:, o] for p, o in zip(levels, orders, strict=True)], permuted, alpha)
    adjusted = adjust_tree(levels, tree, alpha)
    wanted = [np.asarray(p)[:, o] for p, o in zip(adjusted, orders, strict=True)]
    assert_close(results, wanted, atol=SUM)


def test_a_leaf_stands_for_its_own_only_child():
    """A ragged tree is the full one in which every leaf is repeated down to the last level."""
    rng = np.random.default_rng(0)
    tree = draw_tree(rng, 4)
    levels = to_marginals([rng.choice(SCALES, (50, n)) for n in tree.sizes], tree)
    full_levels, full = padded(levels, tree)
    results = adjust_tree(full_levels, full, 1, [2, 1, 1, 3])
    results = [np.asarray(r)[:, :n] for r, n in zip(results, tree.sizes, strict=True)]
    assert_close(results, adjust_tree(levels, tree, 1, [2, 1, 1, 3]), RATIO, 8 * TINY)


# By hand.

CHAIN = make([[0, 0, 1], [0, 0, 1, 2]])  # of sizes 2, 3, 4, not ragged


def test_the_target_by_hand():
    """Three equal levels: m is summed upward, and p shared downward in its ratios."""
    levels = [[0.5, 0.5], [0.4, 0.2, 0.4], [0.3, 0.1, 0.2, 0.4]]
    # m = [1.7, 1.3], [0.8, 0.4, 0.8], [0.3, 0.1, 0.2, 0.4] and p_0 = m / 3.
    first, second = 1.7 / 3, 1.3 / 3
    middle = [first * 2 / 3, first / 3, second]
    wanted = [[first, second], middle, [middle[0] * 0.75, middle[0] * 0.25, middle[1], second]]
    assert_close(adjust_tree(levels, CHAIN, 1), wanted, atol=SUM)


def test_a_ragged_tree_by_hand():
    """A leaf of the first of three levels weighs 3, its sibling's children 1 and 1."""
    tree = make([[0, 0], [0, 0, 1]], [2, 2, 3])
    levels = [[0.6, 0.4], [0.5, 0.1], [0.2, 0.2, 0.2]]
    # m = [1.8, 1.2], [0.9, 0.3], [0.2, 0.2, 0.2].
    wanted = [[0.6, 0.4], [0.45, 0.15], [0.225, 0.225, 0.15]]
    assert_close(adjust_tree(levels, tree, 1), wanted, atol=SUM)


def test_empty_subtrees_are_shared_equally():
    """If nothing below a class has mass, its children share its mass equally, level by level."""
    levels = [[0.6, 0.4], [0, 0, 1], [0, 0, 0, 1]]
    wanted = [[0.2, 0.8], [0.1, 0.1, 0.8], [0.05, 0.05, 0.1, 0.8]]
    assert_close(adjust_tree(levels, CHAIN, 1), wanted, atol=SUM)


def test_weights_by_hand():
    """Weights 3 : 1 put the target of two levels at a quarter of the way; only ratios matter."""
    tree = make([[0, 1]])
    levels = [[1.0, 0.0], [0.0, 1.0]]
    for weights in ([3, 1], [0.75, 0.25]):
        assert_close(adjust_tree(levels, tree, 1, weights), [[0.75, 0.25]] * 2, atol=SUM)
    assert largest_alpha(2, [3, 1]) == (4, 4 / 3)
    assert_close(adjust_tree(levels, tree, [4, 4 / 3], [3, 1]), levels[::-1], atol=SUM)


def test_weights_of_any_size_are_the_same():
    """Only ratios of weights matter, even if weight times mass would underflow or overflow."""
    levels, tree = example()
    wanted = adjust_tree(levels, tree, 1, [1, 2, 3])
    for size in (1e-30, 1e-50, 1e50):
        results = adjust_tree(levels, tree, 1, np.multiply([1, 2, 3], size))
        assert_close(results, wanted, RATIO)


def test_a_level_of_weight_0_does_not_count():
    """Its probabilities do not affect the target, and its largest α is 1."""
    rng = np.random.default_rng(5)
    levels = [rng.dirichlet(np.ones(n), 4) for n in CHAIN.sizes]
    other = [levels[0], levels[1][::-1], levels[2]]
    args = CHAIN, 1, [1, 0, 2]
    assert_close(adjust_tree(other, *args), adjust_tree(levels, *args))
    assert largest_alpha(3, [1, 0, 2])[1] == 1


def test_the_range_of_alpha_is_sharp():
    """At the largest α, a class with mass in its own level alone gets 0, and less beyond it."""
    for level, largest in enumerate(largest_alpha(3, [1, 2, 3])):
        levels = [np.eye(n)[-1 if n < 4 else 3] for n in CHAIN.sizes]
        levels[level] = np.eye(CHAIN.sizes[level])[0]
        at = adjust_tree(levels, CHAIN, [largest if i == level else 0 for i in range(3)], [1, 2, 3])
        assert at[level][0] == 0
        target = coherent_target(levels, CHAIN, [1, 2, 3])[level][0]
        beyond = largest * 1.01
        assert (1 - beyond) + beyond * target < 0


# Gradients.

FIXED = draw_tree(np.random.default_rng(0), 4)


@given(levels=draw_marginals(FIXED, wide=True), alpha=alphas_up_to(4 / 3))
def test_everything_is_finite(levels, alpha):
    """Values and gradients are finite for every input."""
    results, gradients = finite_check(levels, alpha)
    for array in (*results, *gradients[0], gradients[1]):
        assert np.isfinite(array).all()


@jax.jit
def finite_check(levels, alpha):
    """Results, and gradients of a sum of them in which no two classes weigh the same."""

    def total(levels, alpha):
        results = adjust_tree(levels, FIXED, alpha)
        parts = [jnp.sum(p * (jnp.arange(p.shape[1]) / p.shape[1])[None]) for p in results]
        return sum(parts), results

    gradients, results = jax.grad(total, (0, 1), has_aux=True)(levels, alpha)
    return results, gradients


def test_derivatives_are_those_of_finite_differences():
    """With respect to every level and α, on a ragged tree in float64."""
    rng = np.random.default_rng(2)
    tree = draw_tree(rng, 3)
    with enable_x64(True):
        levels = [jnp.asarray(rng.dirichlet(np.ones(n), 2)) for n in tree.sizes]
        function = jax.jit(lambda p, a: adjust_tree(p, tree, a))
        check_grads(function, (levels, 0.7), order=1, modes=("fwd", "rev"))


def test_the_largest_alpha_has_a_whole_slope():
    """At the largest α, where a probability reaches 0, its derivative is not halved."""
    levels = jnp.float32([1, 0]), jnp.float32([0, 1])
    tree = make([[0, 1]])
    jacobian = jax.jacrev(lambda fine: adjust_tree([levels[0], fine], tree, 2.0)[0])(levels[1])
    np.testing.assert_allclose(jacobian, np.eye(2), atol=SUM)


# Batches, transformations, types.


def example(depth=3, samples=3):
    """One fixed (levels `[samples, N_l]`, ragged tree)."""
    rng = np.random.default_rng(3)
    tree = draw_tree(rng, depth)
    return to_marginals([rng.dirichlet(np.ones(n), samples) for n in tree.sizes], tree), tree


def test_one_compilation_for_a_tree():
    """All alphas, one or one per level, all weights and all values share one compilation."""
    levels, tree = example(samples=2)
    before = module._adjust._cache_size()
    for alpha in (0, 1.0, np.float64(1.1), np.float32(1.2), jnp.float32(0.3), [0, 0.5, 1.1]):
        adjust_tree(levels, tree, alpha)
    adjust_tree([p[::-1] for p in levels], tree, 1, [1, 2, 3])
    assert module._adjust._cache_size() == before + 1


def test_a_program_grows_with_levels_not_with_classes():
    """A tree of 3 levels and 10,000 leaves compiles to as many operations as a small one."""

    def operations(sizes):
        tree = make([np.arange(n) % c for c, n in zip(sizes, sizes[1:], strict=False)], sizes)
        levels = [jnp.zeros((2, n)) for n in sizes]
        return str(jax.make_jaxpr(lambda p: adjust_tree(p, tree, 1.0))(levels)).count(" = ")

    assert operations([10, 1000, 10000]) == operations([2, 3, 5])


def test_alpha_by_vmap_and_loop():
    """A whole curve by one vmap, of scalar alphas or of one for each level, is that of a loop."""
    levels, tree = example()
    grid = np.linspace(0, 4 / 3, 5, dtype=np.float32)
    for alphas in (grid, grid[:, None] * np.float32([1, 0.5, 0])):
        looped = zip(*(adjust_tree(levels, tree, a) for a in alphas), strict=True)
        mapped = jax.vmap(lambda a: adjust_tree(levels, tree, a))(alphas)
        assert_close(mapped, [np.stack(level) for level in looped], atol=SUM)


def test_leading_axes_and_jit():
    """Samples may have any leading axes, or none, and results are the same inside a jit."""
    levels, tree = example(samples=4)
    wanted = [np.asarray(p) for p in adjust_tree(levels, tree, 1.2)]
    nested = adjust_tree([p.reshape(2, 2, -1) for p in levels], tree, 1.2)
    assert_close(nested, [w.reshape(2, 2, -1) for w in wanted], atol=SUM)
    alone = jax.jit(lambda p, a: adjust_tree(p, tree, a))([p[0] for p in levels], 1.2)
    assert_close(alone, [w[0] for w in wanted], atol=SUM)


@pytest.mark.parametrize(
    ("x64", "given_dtype", "wanted"),
    [(False, "float64", "float32"), (False, "bfloat16", "float32"), (True, "float64", "float64")],
)
def test_result_types(x64, given_dtype, wanted):
    """float32, or float64 for float64 input under x64."""
    levels, tree = example()
    with enable_x64(x64):
        levels = [p.astype(jnp.dtype(given_dtype)) for p in levels]
        for results in (adjust_tree(levels, tree, 1.1), interpolate(levels, levels, 0.5)):
            assert {p.dtype for p in results} == {jnp.dtype(wanted)}


# Marginals and interpolation.


def test_marginals_by_hand():
    """A level below a leaf of 0.6 sums to 0.4; below a leaf with half of that, to 0.2."""
    tree = make([[0, 0], [0, 0]], [2, 2, 2])
    levels = [[0.4, 0.6], [0.5, 0.5], [0.75, 0.25]]
    wanted = [[0.4, 0.6], [0.2, 0.2], [0.15, 0.05]]
    assert_close(marginals(levels, tree), wanted, atol=SUM)


def test_marginals_keep_what_a_leaf_near_1_leaves():
    """Beside a leaf of 1 a mass of 1e-12 is kept to a few roundings; 1 - leaf would be 0."""
    tree = make([[0, 0]], [2, 2])
    results = marginals([[1e-12, 1.0], [0.25, 0.75]], tree)
    np.testing.assert_allclose(results[1], [0.25e-12, 0.75e-12], rtol=RATIO)


@given(tree=trees(), seed=st.integers(0, 2**32 - 1))
def test_marginals_of_softmaxes_sum_to_1_by_cuts(tree, seed):
    """Each level and the leaves above it sum to 1, and ratios inside a level stay."""
    rng = np.random.default_rng(seed)
    levels = [rng.dirichlet(np.ones(n), 3).astype(np.float32) for n in tree.sizes]
    results = marginals(levels, tree)
    assert_close(sums_of_cuts(results, tree), np.ones((4, 3)), atol=SUM)
    for p, r in zip(levels, results, strict=True):
        np.testing.assert_allclose(r, p * np.asarray(r).sum(1, keepdims=True), atol=SUM)


def test_marginals_of_a_full_tree_are_unchanged():
    """If no leaf is above a level, the level does not change by a bit."""
    rng = np.random.default_rng(4)
    levels = [rng.dirichlet(np.ones(n), 3).astype(np.float32) for n in CHAIN.sizes]
    for result, p in zip(marginals(levels, CHAIN), levels, strict=True):
        np.testing.assert_array_equal(result, p)


def test_a_traced_alpha_beyond_its_range_is_the_largest():
    """A traced alpha is clamped to its range, because its value cannot be checked."""
    levels, tree = example()
    results = jax.jit(lambda a: adjust_tree(levels, tree, a))(7.0)
    assert_close(results, adjust_tree(levels, tree, 3 / 2), atol=SUM)


@given(problem=problems(), alpha=alphas_up_to(4 / 3))
def test_adjust_tree_is_interpolation_to_its_target(problem, alpha):
    """`adjust_tree` is (1-α) P + α target, which is not negative but for roundings."""
    levels, tree = problem
    target = coherent_target(levels, tree)
    assert_close(interpolate(levels, target, alpha), adjust_tree(levels, tree, alpha), atol=SUM)
    for p, t in zip(levels, target, strict=True):
        assert ((1 - alpha) * p + alpha * np.asarray(t) >= -SUM).all()


def test_interpolation_beyond_the_largest_alpha_is_clamped():
    """Negative numbers become 0; others do not change."""
    results = interpolate([np.array([0.0, 1.0])], [np.array([0.5, 0.5])], [3.0])
    assert results[0].tolist() == [1.5, 0.0]


# Errors.


@pytest.mark.parametrize(
    ("alpha", "message"),
    [
        (1.3334, r"alpha of level 0 must lie in \[0, 1.33333\].*got 1.3334"),
        (-0.1, r"alpha of level 0 must lie in \[0, 1.33333\].*got -0.1"),
        (float("nan"), r"alpha of level 0 must lie.*got nan"),
        (np.float32([1, 1, 1.5, 1]), r"alpha of level 2 must lie in \[0, 1.33333\].*got 1.5"),
        (jnp.float32(1.5), r"alpha of level 0 must lie.*got 1.5"),
        ([1, 1], r"one for each of the 4 levels; got shape \[2\]"),
    ],
)
def test_alpha_outside_its_range_is_refused(alpha, message):
    """Beyond W / (W - w_l) probabilities can turn negative; the limit itself is fine."""
    levels, tree = example(depth=4)
    with pytest.raises(ValueError, match=message):
        adjust_tree(levels, tree, alpha)
    for limit in (4 / 3, np.float32(4 / 3), largest_alpha(4)):
        adjust_tree(levels, tree, limit)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1, 1, 1], r"4 levels take 4 weights; got shape \[3\]"),
        ([1, -1, 1, 1], r"at least two are positive; got \[1.0, -1.0, 1.0, 1.0\]"),
        ([0, 0, 0, 1], "at least two are positive"),
        ([1, 1, 1, float("inf")], "weights are"),
    ],
)
def test_wrong_weights_are_refused(weights, message):
    """One finite weight for each level, none negative, two positive."""
    levels, tree = example(depth=4)
    with pytest.raises(ValueError, match=message):
        adjust_tree(levels, tree, 1, weights)


def test_one_level_is_refused():
    """With one level there is nothing to adapt to, and W / (W - w) has no value."""
    with pytest.raises(ValueError, match="two levels or more: with 1 there is nothing"):
        largest_alpha(1)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(3, 2), (3, 3)], "a hierarchy of 3 levels takes one array for each; got 2"),
        ([(3, 2), (3, 3), (3, 5)], r"levels of \[2, 3, 4\].*got \[\[3, 2\], \[3, 3\], \[3, 5\]\]"),
        ([(3, 2), (4, 3), (3, 4)], r"the same leading axes; got \[\[3, 2\], \[4, 3\], \[3, 4\]\]"),
        ([(), (3,), (4,)], r"levels of \[2, 3, 4\] classes.*got \[\[\], \[3\], \[4\]\]"),
    ],
)
def test_shape_errors_name_the_shapes(shapes, message):
    """Levels that do not fit the hierarchy or each other are refused, under jit too."""
    levels = [np.ones(shape) for shape in shapes]
    for function in (adjust_tree, jax.jit(lambda p, h, a: adjust_tree(p, h, a), static_argnums=1)):
        with pytest.raises(ValueError, match=message):
            function(levels, CHAIN, 1.0)
