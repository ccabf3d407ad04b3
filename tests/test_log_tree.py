"""The passes on logarithms against the closed form in 80-bit floats, which reach 10^-4932.

Tolerance: a float32 logarithm x has a rounding of 6e-8 |x|, and a result is made from some ten of
the size of the largest: LOG times that, or LOG itself where all are small.
"""

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from jax.test_util import check_grads
from trees import SCALES, SIZES, N, closed_form, draw_tree, is_leaf, make, to_marginals, trees

from hiercls_jax.adaptation.adjust import adjust
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.log_tree import adjust_tree_log, log_group_sum, log_marginals
from hiercls_jax.adaptation.tree import adjust_tree, largest_alpha, marginals

LOG = 2e-6
LARGEST = 4 / 3

alphas = st.sampled_from([0, 0.5, 1, 1.25, LARGEST])


@st.composite
def problems(draw, absent=False):
    """Draw (logits `[N, N_l]` from -500 to 500, tree); half of them -inf if `absent`."""
    tree = draw(trees())
    shape = (N, sum(SIZES))
    logits = draw(hnp.arrays(np.float32, shape, elements=st.floats(-500, 500, width=32)))
    if absent:
        logits = np.where(draw(hnp.arrays(bool, shape)), -np.inf, logits)
    levels = np.split(logits, np.cumsum(SIZES)[:-1], axis=1)
    for x in levels:  # no level is -inf throughout
        x[:, 0] = np.where(np.isneginf(x).all(1), 0, x[:, 0])
    return levels, tree


def exp80(levels):
    """Probabilities of log-probabilities, in 80-bit floats."""
    return [np.exp(np.asarray(x, np.longdouble)) for x in levels]


def log80(levels):
    """Logarithms in float64 of 80-bit floats, and -inf of 0."""
    with np.errstate(divide="ignore"):
        return [np.log(np.asarray(p, np.longdouble)).astype(float) for p in levels]


def assert_log_close(actual, wanted, given_):
    """Finite ones agree to some roundings of the greatest logarithm, and -inf with -inf."""
    size = max(np.abs(x[np.isfinite(x)]).max(initial=1) for x in map(np.asarray, given_))
    for a, w in zip(actual, wanted, strict=True):
        np.testing.assert_allclose(a, w, rtol=0, atol=LOG * size)


@pytest.mark.parametrize("absent", [False, True])
@given(data=st.data(), alpha=st.sampled_from([0, 0.25, 0.5, 0.75, 1]))
def test_is_the_logarithm_where_probabilities_underflow(absent, data, alpha):
    """On ragged trees with masses from 1 to e^-2000, every logarithm is right, and -inf is 0."""
    logits, tree = data.draw(problems(absent))
    log_probs = [np.asarray(x) for x in log_marginals(logits, tree)]
    wanted = log80(closed_form(exp80(log_probs), tree, [alpha] * 4, number=np.longdouble))
    assert_log_close(adjust_tree_log(log_probs, tree, alpha), wanted, log_probs)


@given(
    logits=hnp.arrays(np.float32, (N, 10), elements=st.floats(-500, 500, width=32)),
    tree=trees((3, 7), ragged=False),
    beta=st.sampled_from([0.5, 0.75, 1]),
)
def test_nothing_cancels_up_to_the_largest_alpha(logits, tree, beta):
    """Up to α = 2, where a level's own opinion is gone: Algorithm 1 of two levels, by β = α / 2.

    coarse′ = (1-β) P + β Q and fine′ = (1-β) f + β f P / Q, with no difference of large numbers.
    """
    log_probs = log_marginals([logits[:, :3], logits[:, 3:]], tree)
    p, f = exp80(log_probs)
    s = tree.parents[0]
    q = np.stack([f[:, s == i].sum(1) for i in range(3)], axis=1)
    wanted = log80([(1 - beta) * p + beta * q, (1 - beta) * f + beta * f / q[:, s] * p[:, s]])
    assert_log_close(adjust_tree_log(log_probs, tree, 2 * beta), wanted, log_probs)


@given(tree=trees(), seed=st.integers(0, 2**32 - 1), alpha=alphas)
def test_is_the_logarithm_of_adjust_tree(tree, seed, alpha):
    """With weights, one α for each level, and probabilities that float32 holds."""
    rng = np.random.default_rng(seed)
    levels = to_marginals([rng.uniform(0.01, 1, (N, n)) for n in SIZES], tree)
    weights = [1, 2, 0.5, 1]
    per_level = np.array(largest_alpha(4, weights)) * (alpha / LARGEST)
    results = adjust_tree_log([np.log(p) for p in levels], tree, per_level, weights)
    for r, w in zip(results, adjust_tree(levels, tree, per_level, weights), strict=True):
        np.testing.assert_allclose(np.exp(r), w, atol=2e-6)


def test_the_largest_alpha_of_uneven_weights_leaves_nothing_over():
    """At the largest α nothing of P is left, though it is e^500 times the others."""
    tree, weights = make([[0, 1], [0, 1]]), [1.0, 0.7, 0.9]
    far = [0.0, -500.0]
    log_probs = [np.float32(far), np.float32(far[::-1]), np.float32(far[::-1])]
    results = adjust_tree_log(log_probs, tree, largest_alpha(3, weights), weights)
    np.testing.assert_allclose(results[0], far[::-1], atol=1e-3)


@given(problem=problems(absent=True))
def test_alpha_0_is_the_identity(problem):
    """At α = 0 nothing changes, -inf included, to a rounding of a logarithm."""
    logits, tree = problem
    log_probs = log_marginals(logits, tree)
    assert_log_close(adjust_tree_log(log_probs, tree, 0), log_probs, log_probs)


def test_empty_groups_share_equally():
    """Children that are all -inf share their parent's mass; any mass at all keeps its ratios."""
    tree = make([[0, 0, 1]])
    coarse = np.log([0.5, 0.5])
    results = adjust_tree_log([coarse, [-np.inf, -np.inf, 0]], tree, 1.0)
    np.testing.assert_allclose(np.exp(results[1]), [0.125, 0.125, 0.75], rtol=LOG)
    results = adjust_tree_log([coarse, [-1000, -1000 + np.log(3), 0]], tree, 1.0)
    np.testing.assert_allclose(np.exp(results[1]), [0.0625, 0.1875, 0.75], rtol=100 * LOG)


# Logits.


@given(problem=problems(), shift=st.floats(-100, 100, width=32))
def test_log_marginals_are_normalised(problem, shift):
    """Each level and the leaves above it sum to 1; adding a constant to the logits does nothing."""
    logits, tree = problem
    log_probs = log_marginals(logits, tree)
    above = 0
    for x, leaf in zip(exp80(log_probs), is_leaf(tree), strict=True):
        np.testing.assert_allclose((x.sum(1) + above).astype(float), 1, atol=1e-4)
        above = above + x[:, leaf].sum(1)
    shifted = log_marginals([x + shift for x in logits], tree)
    assert_log_close(shifted, log_probs, [*log_probs, *logits])


def test_log_marginals_are_the_logarithm_of_marginals():
    """The softmax of logits and log-probabilities give what `marginals` does."""
    rng = np.random.default_rng(0)
    above = zip(SIZES, SIZES[1:], strict=False)
    tree = make([rng.integers(0, c, n) for c, n in above], SIZES)
    assert tree.ragged
    logits = [rng.normal(size=(N, n)).astype(np.float32) for n in tree.sizes]
    wanted = marginals([jax.nn.softmax(x) for x in logits], tree)
    for x in (logits, [jax.nn.log_softmax(x) for x in logits]):
        for r, w in zip(log_marginals(x, tree), wanted, strict=True):
            np.testing.assert_allclose(np.exp(r), w, rtol=1e-5)


def test_log_marginals_keep_what_a_leaf_near_1_leaves():
    """If a leaf has all but e^-500 of the mass, the level below sums to e^-500."""
    results = log_marginals([[-500, 0], [0, 0]], make([[0, 0]], [2, 2]))
    np.testing.assert_allclose(results[1], -500 - np.log([2, 2]), rtol=LOG)


# Gradients.


def test_derivatives_are_those_of_finite_differences():
    """With respect to logits of every level and α, on a ragged tree in float64."""
    rng = np.random.default_rng(1)
    tree = draw_tree(rng, 3)
    with enable_x64(True):
        logits = [jnp.asarray(rng.normal(size=(2, n))) for n in tree.sizes]
        function = jax.jit(lambda x, a: adjust_tree_log(log_marginals(x, tree), tree, a))
        check_grads(function, (logits, 0.7), order=1, modes=("rev",))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_the_derivative_by_alpha_at_the_ends_too(alpha):
    """∂ log p/∂α = (∂p/∂α) / p, at α = 0 and at the largest, where one term has no weight."""
    tree = make([[0, 0, 1]])
    levels = np.float32([0.7, 0.3]), np.float32([0.1, 0.2, 0.7])
    logs = [np.log(p) for p in levels]
    values = adjust(*levels, tree.parents[0], alpha)
    slopes = jax.jacfwd(lambda a: adjust(*levels, tree.parents[0], a))(alpha)
    results = jax.jacfwd(lambda a: adjust_tree_log(logs, tree, a))(alpha)
    for r, slope, value in zip(results, slopes, values, strict=True):
        np.testing.assert_allclose(r, slope / value, rtol=2e-5)


TREE = draw_tree(np.random.default_rng(2), 4)


@given(
    values=hnp.arrays(
        np.float32, sum(TREE.sizes), elements=st.sampled_from([0, -1, -80, -500, -1e4, -np.inf])
    ),
    alpha=alphas,
)
def test_everything_is_finite(values, alpha):
    """No result is NaN or +inf, and all gradients are finite, even if inputs are -inf."""
    levels = np.split(values, np.cumsum(TREE.sizes)[:-1])
    results, gradients = finite_check(levels, jnp.float32(alpha))
    for array in results:
        assert (np.asarray(array) < np.inf).all()
    for array in (*gradients[0], gradients[1]):
        assert np.isfinite(array).all()


@jax.jit
def finite_check(levels, alpha):
    """Results, and gradients of a weighted sum of the finite ones."""

    def total(levels, alpha):
        results = adjust_tree_log(levels, TREE, alpha)
        parts = [
            jnp.where(jnp.isneginf(x), 0, x) @ jnp.arange(len(x), dtype=float) for x in results
        ]
        return sum(parts), results

    gradients, results = jax.grad(total, (0, 1), has_aux=True)(levels, alpha)
    return results, gradients


def test_log_group_sum_of_nothing():
    """A group without members, or of -inf alone, has -inf and a gradient of 0."""
    x = jnp.array([-jnp.inf, 3.0])
    sums, pull = jax.vjp(lambda x: log_group_sum(x, jnp.array([0, 2]), 3), x)
    assert sums.tolist() == [-np.inf, -np.inf, 3]
    assert pull(jnp.ones(3))[0].tolist() == [0, 1]


@pytest.mark.parametrize("scale", SCALES[3:])
def test_agrees_with_probabilities_of_every_scale(scale):
    """Siblings of tiny mass have the ratios that `adjust_tree` gives them."""
    tree = make([[0, 0, 1]])
    levels = np.float32([0.5, 0.5]), np.float32([scale / 4, scale * 3 / 4, 1 - scale])
    with np.errstate(divide="ignore"):
        logs = [np.log(p) for p in levels]
    for r, w in zip(adjust_tree_log(logs, tree, 1), adjust_tree(levels, tree, 1), strict=True):
        np.testing.assert_allclose(np.exp(r), w, rtol=100 * LOG)


def test_rejects_what_adjust_tree_rejects():
    """An alpha beyond its range and levels that do not fit are errors."""
    tree = make([[0, 0, 1]])
    with pytest.raises(ValueError, match=r"alpha of level 0 must lie in \[0, 2\]"):
        adjust_tree_log([np.zeros(2), np.zeros(3)], tree, 2.1)
    with pytest.raises(ValueError, match=r"levels of \[2, 3\]"):
        adjust_tree_log([np.zeros(2), np.zeros(2)], tree, 1)
    with pytest.raises(ValueError, match=r"levels of \[2, 3\]"):
        log_marginals([np.zeros(2), np.zeros(2)], tree)
