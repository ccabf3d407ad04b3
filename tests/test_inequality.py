"""Algorithm 1 under inequalities: it changes violated groups as defined, and no other group.

Tolerance: float32 has a unit roundoff of 6e-8, and a result is a sum of at most ten rounded terms
of at most 1 (SUM, absolute).
"""

from functools import partial

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trees
from hypothesis import given

from hiercls_jax import adjust
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.inequality import adjust_incomplete, adjust_multilabel

SUM = 1e-6
TINY = float(np.finfo(np.float32).tiny)  # smallest normal float32
C, F, N = 4, 7, 4  # one shape for all drawn examples: one compilation

EXHAUSTIVE = partial(adjust_multilabel, exhaustive=True)
RULES = {
    "incomplete": adjust_incomplete,
    "multilabel": adjust_multilabel,
    "exhaustive": EXHAUSTIVE,
}
every_rule = pytest.mark.parametrize("rule", RULES)
alphas = st.floats(0, 2, width=32)
to_agreement = st.floats(0, 1, width=32)
assert_close = partial(trees.assert_close, atol=SUM)


@st.composite
def problems(draw, exclusive=False, wide=False):
    """Draw (p_coarse `[N, C]`, p_fine `[N, F]`, s), all inequalities violated now and then.

    Groups may be empty on either level, children tie, and a class may be an only child. If
    `exclusive`, every level sums to at most 1. If `wide`, masses differ by any amount.
    """
    normal = st.floats(0, 1, width=32, allow_subnormal=False)
    normal = st.one_of(normal, st.sampled_from([0, 0.25, 0.5, 1]))
    extreme = st.sampled_from([0, 1e-45, 1e-40, 1e-38, 1.2e-38, 1e-37, 1e-25, 1e-19, 1e-7, 1])
    p = draw(hnp.arrays(np.float32, (N, C + F), elements=extreme if wide else normal))
    extra = draw(st.lists(st.integers(0, C - 1), min_size=F - C, max_size=F - C))
    s = np.array(draw(st.permutations([*range(C), *extra])), np.int32)
    coarse, fine = p[:, :C], p[:, C:]
    if exclusive:
        coarse = coarse / np.maximum(coarse.sum(1, keepdims=True), 1)
        fine = fine / np.maximum(fine.sum(1, keepdims=True), 1)
    return coarse, fine, s


def by_group(fine, s, reduce=np.sum):
    """A reduction over every group's children, float64 `[N, C]`."""
    fine = np.asarray(fine, np.float64)
    return np.stack([reduce(fine[:, s == i], axis=1) for i in range(C)], axis=1)


def violated(rule, p_coarse, p_fine, s, by=0.0):
    """Where a rule's inequalities are violated by more than `by`, bool `[N, C]`."""
    p, total, largest = p_coarse, by_group(p_fine, s), by_group(p_fine, s, np.max)
    excess = (total if rule == "incomplete" else largest) > p + by
    return excess | (p > total + by) if rule == "exhaustive" else excess


def looped(rule, p_coarse, p_fine, s, alpha):
    """The rules word by word for a batch, in float64."""
    coarse, fine = p_coarse.astype(float), p_fine.astype(float)
    for n in range(len(coarse)):
        for i in range(C):
            p, children = coarse[n, i], np.flatnonzero(s == i)
            f = fine[n, children]
            if rule != "incomplete" and max(f) > p:
                t = (p + max(f)) / 2
                target = [min(x, t) for x in f]
            elif (rule == "incomplete" and sum(f) > p) or (rule == "exhaustive" and p > sum(f)):
                t = (p + sum(f)) / 2
                target = [x * t / sum(f) if sum(f) > 0 else t / len(f) for x in f]
            else:
                continue
            coarse[n, i] = (1 - alpha) * p + alpha * t
            for j, x in zip(children, target, strict=True):
                fine[n, j] = (1 - alpha) * fine[n, j] + alpha * x
    return coarse, fine


def run(rule, *problem):
    """The results of a rule as NumPy arrays."""
    return [np.asarray(p) for p in RULES[rule](*problem)]


# Properties of every rule.


@every_rule
@given(problem=problems(), alpha=alphas)
def test_equals_the_double_loop(rule, problem, alpha):
    """A rule is its definition, looped in float64."""
    assert_close(RULES[rule](*problem, alpha), looped(rule, *problem, alpha))


@every_rule
@given(problem=problems(), alpha=alphas)
def test_what_is_not_violated_keeps_every_bit(rule, problem, alpha):
    """Groups without a violation do not change by a bit."""
    p_coarse, p_fine, s = problem
    untouched = ~violated(rule, *problem, by=-SUM)  # nor near one, where roundings decide
    coarse, fine = run(rule, *problem, alpha)
    np.testing.assert_array_equal(coarse[untouched], p_coarse[untouched])
    np.testing.assert_array_equal(fine[untouched[:, s]], p_fine[untouched[:, s]])


@every_rule
@given(problem=problems())
def test_alpha_0_is_the_identity(rule, problem):
    """At α = 0 nothing changes, bit for bit."""
    for result, given_ in zip(RULES[rule](*problem, 0), problem[:2], strict=True):
        np.testing.assert_array_equal(result, given_)


@every_rule
@given(problem=problems())
def test_alpha_1_leaves_no_violation_and_is_idempotent(rule, problem):
    """At α = 1 every inequality of the rule holds; a second time changes nothing."""
    once = run(rule, *problem, 1)
    assert not violated(rule, *once, problem[2], by=SUM).any()
    assert_close(RULES[rule](*once, problem[2], 1), once)


@pytest.mark.parametrize("rule", ["incomplete", "multilabel"])
@given(problem=problems(), alpha=st.floats(1, 2, width=32))
def test_no_violation_is_left_beyond_alpha_1(rule, problem, alpha):
    """A rule with one inequality satisfies it from α = 1 on."""
    assert not violated(rule, *run(rule, *problem, alpha), problem[2], by=SUM).any()


@every_rule
@given(problem=problems(), alpha=alphas)
def test_results_stay_between_the_sides(rule, problem, alpha):
    """No result is negative, or larger than both sides of its group's violated inequality."""
    p_coarse, p_fine, s = problem
    other = by_group(p_fine, s, np.sum if rule == "incomplete" else np.max)
    if rule == "exhaustive":
        other = np.where(p_coarse > by_group(p_fine, s), by_group(p_fine, s), other)
    bound = np.maximum(p_coarse, other)
    coarse, fine = run(rule, *problem, alpha)
    assert np.min(coarse) >= 0
    assert np.min(fine) >= 0
    assert (coarse <= bound + SUM).all()
    assert (fine <= bound[:, s] + SUM).all()


@every_rule
def test_alpha_2_exchanges_the_sides_exactly(rule):
    """At α = 2 an only child and its parent swap values, even tiny ones: nothing cancels.

    This holds if they violate the rule. Exhaustive children violate it either way round.
    """
    small, large = np.float32([1e-30, 1e-10, 0.1, 0]), np.float32([0.9, 0.7, 0.3, 1])
    s = np.arange(C)
    for p_coarse, p_fine in ((small, large), (large, small)):
        coarse, fine = run(rule, p_coarse, p_fine, s, 2)
        broken = p_fine is large or rule == "exhaustive"
        expected = (p_fine, p_coarse) if broken else (p_coarse, p_fine)
        for got, wanted in zip((coarse, fine), expected, strict=True):
            np.testing.assert_array_equal(got, wanted)


@every_rule
@given(problem=problems(wide=True), alpha=alphas)
def test_everything_is_finite(rule, problem, alpha):
    """Values and gradients are finite and values not negative, at every scale of the masses."""
    p_coarse, p_fine, s = problem
    results, gradients = finite_check(rule, p_coarse, p_fine, s, jnp.float32(alpha))
    for array in (*results, *gradients):
        assert np.isfinite(array).all()
    assert min(np.asarray(p).min() for p in results) >= 0


@partial(jax.jit, static_argnums=0)
def finite_check(rule, p_coarse, p_fine, s, alpha):
    """Results, and gradients of a sum of them in which no two classes weigh the same."""

    def total(*args):
        results = RULES[rule](args[0], args[1], s, args[2])
        weights = [jnp.arange(x.shape[1]).reshape(1, -1) / x.shape[1] for x in results]
        return sum(jnp.sum(w * x) for w, x in zip(weights, results, strict=True)), results

    (_, results), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(
        p_coarse, p_fine, alpha
    )
    return results, gradients


def example():
    """One fixed (p_coarse `[4, 4]`, p_fine `[4, 7]`, s) with each violation in some group."""
    rng = np.random.default_rng(1)
    s = np.array([2, 0, 1, 1, 0, 3, 2])
    return rng.random((N, C), np.float32), 0.03 + 0.9 * rng.random((N, F), np.float32) ** 3, s


def test_example_has_every_violation():
    """The fixed example violates each inequality, and has groups that violate none."""
    p_coarse, p_fine, s = example()
    total, largest = by_group(p_fine, s), by_group(p_fine, s, np.max)
    for holds in (total > p_coarse, largest > p_coarse, p_coarse > total):
        assert 0 < holds.sum() < holds.size
    assert ((largest < p_coarse) & (p_coarse < total)).any()


@every_rule
def test_gradients_are_those_of_the_loop(rule):
    """All derivatives are those of the double loop, by central differences in float64.

    Step 1e-5: differences of values to 1e-16 are right to 1e-11, and their curvature, at most
    (p/Q)³ < 1e4 here, adds 1e-6.
    """
    p_coarse, p_fine, s = example()
    x = np.concatenate([p_coarse, p_fine], axis=1)[:1].astype(float)

    def loop(x):
        return np.concatenate(looped(rule, x[:, :C], x[:, C:], s, 0.7), axis=1)[0]

    def adapted(x):
        return jnp.concatenate(RULES[rule](x[:C], x[C:], s, 0.7))

    step = 1e-5
    wanted = [(loop(x + e) - loop(x - e)) / (2 * step) for e in step * np.eye(C + F)]
    with enable_x64(True):
        got = jax.jit(jax.jacfwd(adapted))(x[0])
        back = jax.jit(jax.jacrev(adapted))(x[0])
    np.testing.assert_allclose(got, np.transpose(wanted), atol=1e-6)
    np.testing.assert_allclose(back, got, atol=1e-12)


@every_rule
def test_jit_vmap_broadcast_and_types(rule):
    """Inside a jit with a traced s, by vmap and by broadcasting, in other types: the same."""
    args, grid = example(), np.linspace(0, 2, 5, dtype=np.float32)
    looped_over = [np.stack(x) for x in zip(*(RULES[rule](*args, a) for a in grid), strict=True)]
    assert_close(jax.vmap(lambda a: RULES[rule](*args, a))(grid), looped_over)
    assert_close(RULES[rule](*args, grid[:, None]), looped_over)
    assert_close(jax.jit(RULES[rule])(*args, grid[3]), [x[3] for x in looped_over])
    per_sample = jax.vmap(lambda p, f: RULES[rule](p, f, args[2], grid[3]))(*args[:2])
    assert_close(per_sample, [x[3] for x in looped_over])
    with enable_x64(True):
        exact = [x.astype(np.float64) for x in args[:2]]
        wide = RULES[rule](*exact, args[2], 0.7)
        assert_close(wide, looped(rule, *exact, args[2], 0.7), atol=1e-15)
    half = [x.astype(jnp.bfloat16) for x in args[:2]]
    assert {x.dtype for x in wide} == {np.dtype("float64")}
    assert {x.dtype for x in RULES[rule](*half, args[2], 0.7)} == {np.dtype("float32")}


@every_rule
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alpha": 2.01}, r"alpha must lie in \[0, 2\], got 2.01"),
        ({"alpha": -0.1}, r"alpha must lie in \[0, 2\]"),
        ({"alpha": float("nan")}, r"alpha must lie in \[0, 2\]"),
        ({"alpha": np.ones(3)}, r"alpha \[3\] does not broadcast"),
        ({"s": [2, 0, 1, 1, 0, 3, 4]}, "class 6 has id 4, allowed are 0 to 3"),
        ({"s": [2, 0, 1, 1, 0, 2, 2]}, "class 3 has no children"),
        ({"s": [2, 0, 1]}, r"shape \[7\]; got \[3\]"),
        ({"p_coarse": np.ones((3, C))}, r"same leading axes; got \[3, 4\] and \[4, 7\]"),
        ({"p_fine": 1.0}, r"p_coarse is \[..., C\]"),
    ],
)
def test_wrong_arguments_are_refused(rule, change, message):
    """A wrong argument is named, with what is allowed."""
    names = ("p_coarse", "p_fine", "s", "alpha")
    with pytest.raises(ValueError, match=message):
        RULES[rule](**dict(zip(names, (*example(), 1), strict=True)) | change)


# Exclusive, incomplete.


@given(problem=problems(exclusive=True), alpha=alphas)
def test_incomplete_preserves_each_group(problem, alpha):
    """P + Q of every group stays: the coarse level gains what the fine level loses."""
    p_coarse, p_fine, s = problem
    coarse, fine = run("incomplete", *problem, alpha)
    np.testing.assert_allclose(coarse + by_group(fine, s), p_coarse + by_group(p_fine, s), atol=SUM)
    assert np.max(coarse) <= 1 + SUM
    assert np.max(by_group(fine, s)) <= 1 + SUM


@given(problem=problems(exclusive=True), alpha=alphas)
def test_incomplete_is_algorithm_1_where_violated(problem, alpha):
    """Algorithm 1 gives violated groups the same results."""
    at = violated("incomplete", *problem, by=SUM)
    for got, wanted, mask in zip(
        run("incomplete", *problem, alpha),
        map(np.asarray, adjust(*problem, alpha)),
        (at, at[:, problem[2]]),
        strict=True,
    ):
        np.testing.assert_allclose(got[mask], wanted[mask], atol=SUM)


# Multi-label.


@given(problem=problems(), alpha=to_agreement)
def test_multilabel_only_lowers_children(problem, alpha):
    """Up to α = 1 no child rises, none falls below the midpoint, and no two change their order."""
    p_coarse, p_fine, s = problem
    coarse, fine = run("multilabel", *problem, alpha)
    middle = (p_coarse + by_group(p_fine, s, np.max)) / 2
    assert (coarse >= p_coarse).all()
    assert (fine <= p_fine + SUM).all()
    assert (fine >= np.minimum(p_fine, middle[:, s]) - SUM).all()
    siblings = s[:, None] == s
    above = siblings & (p_fine[:, :, None] > p_fine[:, None, :])
    assert ((fine[:, :, None] >= fine[:, None, :] - SUM) | ~above).all()


@given(problem=problems(), alpha=to_agreement)
def test_a_repair_breaks_no_other_inequality(problem, alpha):
    """With exhaustive children no group gets a violation that it did not have, up to α = 1."""
    p_coarse, p_fine, s = problem
    coarse, fine = run("exhaustive", *problem, alpha)
    total, largest = by_group(p_fine, s), by_group(p_fine, s, np.max)
    assert (by_group(fine, s, np.max) <= coarse + SUM)[largest <= p_coarse].all()
    assert (coarse <= by_group(fine, s) + SUM)[p_coarse <= total].all()


@given(problem=problems(), alpha=alphas)
def test_exhaustive_raises_in_ratio(problem, alpha):
    """Where p > Σ f, siblings keep their ratios, or share equally where all are 0."""
    p_coarse, p_fine, s = problem
    total = by_group(p_fine, s)
    at = p_coarse > total + SUM
    coarse, fine = run("exhaustive", *problem, alpha)
    np.testing.assert_allclose((coarse + by_group(fine, s))[at], (p_coarse + total)[at], atol=SUM)
    weight = np.where((total == 0)[:, s], 1, p_fine)
    cross = fine[:, :, None] * weight[:, None, :]
    cross -= np.swapaxes(cross, 1, 2)
    siblings = (s[:, None] == s) & at[:, s][:, :, None]
    np.testing.assert_allclose(np.where(siblings, cross, 0), 0, atol=SUM)


def test_by_hand():
    """Four groups by hand: too much fine mass, equal mass, too little, and none at all.

    Excess: p 0.2 and f (0.8, 0.6, 0.4), t = 0.5; α = 0.5 goes half of each way, α = 1.5 mirrors
    half of it. Short: p 0.9 and f (0.4, 0.1), t = 0.7 in ratio 4:1. Empty: p 0.4, t = 0.2.
    """
    s = [0, 0, 0, 1, 2, 2, 3, 3]
    p_coarse = [0.2, 0.5, 0.9, 0.4]
    p_fine = [0.8, 0.6, 0.4, 0.5, 0.4, 0.1, 0, 0]
    high = [0.9, 0.4, 0.4, 0.1, 0, 0]  # the coarse and fine values of the last two groups
    for alpha, coarse, excess in [
        (0.5, 0.35, [0.65, 0.55, 0.4]),
        (1, 0.5, [0.5, 0.5, 0.4]),
        (1.5, 0.65, [0.35, 0.45, 0.4]),
    ]:
        got = adjust_multilabel(p_coarse, p_fine, s, alpha)
        assert_close(got, ([coarse, 0.5, *high[:2]], [*excess, 0.5, *high[2:]]))
        got = EXHAUSTIVE(p_coarse, p_fine, s, alpha)
        short, empty = 0.9 - 0.2 * alpha, 0.4 - 0.2 * alpha
        fine = [0.4 + 0.16 * alpha, 0.1 + 0.04 * alpha, 0.1 * alpha, 0.1 * alpha]
        assert_close(got, ([coarse, 0.5, short, empty], [*excess, 0.5, *fine]))
