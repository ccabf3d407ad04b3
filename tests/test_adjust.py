"""Algorithm 1 against the paper's pseudo-code, and the properties that any correct one has.

Tolerances: float32 has a unit roundoff of 6e-8, and a result is a sum of at most ten rounded
terms of at most 1 (SUM, absolute), or a product of a few positive factors (RATIO, relative).
"""

from fractions import Fraction
from functools import partial

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from trees import assert_close

from hiercls_jax import adjust
from hiercls_jax.adaptation import adjust as module
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.hierarchy import cifar100

SUM = 1e-6
RATIO = 2e-6
TINY = float(np.finfo(np.float32).tiny)  # smallest normal float32
C, F, N = 3, 7, 4  # one shape for all drawn examples: one compilation

alphas = st.floats(0, 2, width=32)
near_2 = st.floats(2 - 2**-13, 2, width=32)  # (1 - α) P + α target would cancel here


@st.composite
def maps(draw):
    """Draw an `s`: every coarse class has a child."""
    extra = draw(st.lists(st.integers(0, C - 1), min_size=F - C, max_size=F - C))
    return np.array(draw(st.permutations([*range(C), *extra])), np.int32)


@st.composite
def problems(draw, wide=False):
    """Draw (p_coarse `[N, C]`, p_fine `[N, F]`, s): groups may be empty on either level, or both.

    Masses within a level differ by at most 1000 times, or by any amount if `wide`.
    """
    normal = st.floats(2**-10, 1, width=32)
    extreme = st.sampled_from([0, 1e-45, 1e-40, 1e-38, 1.2e-38, 1e-37, 1e-25, 1e-19, 1e-7, 1])
    weights = draw(hnp.arrays(np.float32, (N, C + F), elements=extreme if wide else normal))
    no_coarse, no_fine = draw(hnp.arrays(bool, (2, N, C)))
    s = draw(maps())
    no_coarse[:, 0] = no_fine[:, 1] = False
    coarse = np.where(no_coarse, 0, weights[:, :C])
    fine = np.where(no_fine[:, s], 0, weights[:, C:])
    if wide:
        coarse[:, 0] = fine[:, list(s).index(1)] = 1
    return coarse / coarse.sum(1, keepdims=True), fine / fine.sum(1, keepdims=True), s


def group_sums(fine, s):
    """Q of every sample, float64 `[N, C]`."""
    fine = np.asarray(fine, np.float64)
    return np.stack([fine[:, s == i].sum(1) for i in range(s.max() + 1)], axis=1)


def printed(p_coarse, p_fine, s, alpha, literal=False, number=float):
    """Algorithm 1 line by line for a batch, in float64 or, with `number=Fraction`, exactly.

    The else-branch is the paper's own if `literal`. Masses below float32's smallest normal number
    are set to 0 first, as XLA does on a CPU.
    """
    coarse, fine = np.zeros(np.shape(p_coarse)), np.zeros(np.shape(p_fine))
    alpha = number(float(alpha))
    for n in range(len(coarse)):
        p = [number(float(x) if x >= TINY else 0) for x in p_coarse[n]]
        f = [number(float(x) if x >= TINY else 0) for x in p_fine[n]]
        for i in range(len(p)):
            children = [j for j in range(len(f)) if s[j] == i]
            q = sum(f[j] for j in children)
            target = (p[i] + q) / 2
            coarse[n, i] = adjusted = (1 - alpha) * p[i] + alpha * target
            for j in children:
                if q > 0:
                    fine[n, j] = (1 - alpha) * f[j] + alpha * (f[j] * target / q)
                elif literal:
                    fine[n, j] = adjusted / len(children)
                else:
                    fine[n, j] = alpha / 2 * p[i] / len(children)
    return coarse, fine


# The algorithm.


@pytest.mark.parametrize("empty", ["preserve", "literal"])
@given(problem=problems(), alpha=alphas)
def test_equals_the_double_loop(problem, alpha, empty):
    """`adjust` is Algorithm 1 as printed, looped in float64, under both rules for empty groups."""
    wanted = printed(*problem, alpha, literal=empty == "literal")
    assert_close(adjust(*problem, alpha, empty=empty), wanted, atol=SUM)


def test_equals_the_double_loop_on_cifar100():
    """The same on CIFAR-100's own hierarchy of 20 and 100 classes."""
    rng = np.random.default_rng(0)
    p_coarse, p_fine = (rng.dirichlet(np.full(k, 0.1), 3).astype(np.float32) for k in (20, 100))
    s = cifar100().fine_to_coarse
    assert_close(adjust(p_coarse, p_fine, s, 1.3), printed(p_coarse, p_fine, s, 1.3), atol=SUM)


@given(problem=problems(wide=True), alpha=alphas | near_2)
def test_is_accurate_at_every_scale(problem, alpha):
    """Every result, however small, is right to a few roundings: nothing cancels or overflows."""
    p_coarse, p_fine, s = problem
    p_fine = np.where((group_sums(p_fine, s) < 1e-37)[:, s], 0, p_fine)  # not near the threshold
    wanted = printed(p_coarse, p_fine, s, alpha, number=Fraction)
    # A result, or a factor of one, below TINY is flushed to 0.
    assert_close(adjust(p_coarse, p_fine, s, alpha), wanted, rtol=RATIO, atol=8 * TINY)


@given(problem=problems())
def test_alpha_0_is_the_identity(problem):
    """At α = 0 nothing changes, bit for bit, empty groups included."""
    for result, given_ in zip(adjust(*problem, 0), problem[:2], strict=True):
        np.testing.assert_array_equal(result, given_)


@given(problem=problems(wide=True), alpha=alphas)
def test_both_levels_still_sum_to_1(problem, alpha):
    """Both levels sum to 1 at every α, whatever the input."""
    for result in adjust(*problem, alpha):
        np.testing.assert_allclose(np.asarray(result, np.float64).sum(1), 1, atol=SUM)


@given(problem=problems(), alpha=alphas)
def test_gap_shrinks_and_sum_stays(problem, alpha):
    """P′ - Q′ = (1 - α)(P - Q) and P′ + Q′ = P + Q."""
    p, q = problem[0], group_sums(problem[1], problem[2])
    coarse, fine = adjust(*problem, alpha)
    p_new, q_new = np.asarray(coarse), group_sums(fine, problem[2])
    np.testing.assert_allclose(p_new - q_new, (1 - alpha) * (p - q), atol=SUM)
    np.testing.assert_allclose(p_new + q_new, p + q, atol=SUM)


@given(problem=problems())
def test_alpha_1_is_coherent_and_idempotent(problem):
    """At α = 1 a coarse class has the mass of its children; a second time changes nothing."""
    s = problem[2]
    once = adjust(*problem, 1)
    np.testing.assert_allclose(once[0], group_sums(once[1], s), atol=SUM)
    assert_close(adjust(*once, s, 1), once, atol=SUM)


@given(problem=problems())
def test_alpha_2_exchanges_the_levels(problem):
    """At α = 2 coarse′ = Q and Σ fine′ = P; a second time returns the input.

    Except for the ratios of a group that the first time emptied.
    """
    p_coarse, p_fine, s = problem
    once = adjust(*problem, 2)
    np.testing.assert_allclose(once[0], group_sums(p_fine, s), atol=SUM)
    np.testing.assert_allclose(group_sums(once[1], s), p_coarse, atol=SUM)
    twice = adjust(*once, s, 2)
    kept = (p_coarse > 0)[:, s]
    np.testing.assert_allclose(twice[0], p_coarse, atol=SUM)
    np.testing.assert_allclose(np.where(kept, twice[1], 0), np.where(kept, p_fine, 0), atol=SUM)
    np.testing.assert_allclose(group_sums(twice[1], s), group_sums(p_fine, s), atol=SUM)


@given(problem=problems(), first=alphas, second=alphas)
def test_two_steps_are_one(problem, first, second):
    """α₁ then α₂ equals α₁ + α₂ - α₁α₂, unless the first step empties a group of its ratios."""
    p_coarse, p_fine, s = problem
    once = adjust(*problem, first)
    coarse, fine = adjust(*once, s, second)
    combined = np.clip(first + second - first * second, 0, 2)
    coarse_wanted, fine_wanted = adjust(*problem, combined)
    emptied = (group_sums(once[1], s) == 0) & (group_sums(p_fine, s) > 0)
    np.testing.assert_allclose(coarse, coarse_wanted, atol=SUM)
    np.testing.assert_allclose(
        np.where(emptied[:, s], 0, fine), np.where(emptied[:, s], 0, fine_wanted), atol=SUM
    )


@given(problem=problems(wide=True), alpha=alphas | near_2)
def test_never_negative(problem, alpha):
    """No probability turns negative for α in [0, 2], not by a rounding either."""
    for result in adjust(*problem, alpha):
        assert np.asarray(result).min() >= 0


@given(problem=problems(), alpha=alphas)
def test_coherent_input_is_a_fixed_point(problem, alpha):
    """Levels that agree stay as they are, whatever α."""
    _, p_fine, s = problem
    p_coarse = group_sums(p_fine, s).astype(np.float32)
    assert_close(adjust(p_coarse, p_fine, s, alpha), (p_coarse, p_fine), atol=SUM)


@given(problem=problems(), alpha=alphas)
def test_ratios_inside_a_group_stay(problem, alpha):
    """fine′_j f_k = fine′_k f_j for all siblings j, k."""
    _, p_fine, s = problem
    fine = np.asarray(adjust(*problem, alpha)[1])
    cross = fine[:, :, None] * p_fine[:, None, :]
    np.testing.assert_allclose(
        np.where(s[:, None] == s, cross - np.swapaxes(cross, 1, 2), 0), 0, atol=SUM
    )


@given(problem=problems(), alpha=alphas)
def test_coarse_commutes_with_ensembling(problem, alpha):
    """coarse′ is linear: of the mean of several members it is the mean of theirs."""
    p_coarse, p_fine, s = problem
    of_mean, _ = adjust(p_coarse.mean(0, keepdims=True), p_fine.mean(0, keepdims=True), s, alpha)
    mean_of = np.asarray(adjust(*problem, alpha)[0]).mean(0, keepdims=True)
    np.testing.assert_allclose(of_mean, mean_of, atol=SUM)


def test_fine_does_not_commute_with_ensembling():
    """fine′ is not linear: averaging before or after adapting gives different answers.

    Worked by hand: each member has Q = (0.5, 0.5), so its first group is scaled by 1.4 and by 0.6;
    the mean of the members is coherent and stays.
    """
    s = [0, 0, 1]
    p_coarse = np.array([[0.9, 0.1], [0.1, 0.9]])
    p_fine = np.array([[0.45, 0.05, 0.5], [0.05, 0.45, 0.5]])
    after = np.asarray(adjust(p_coarse, p_fine, s, 1)[1]).mean(0)
    before = adjust(p_coarse.mean(0), p_fine.mean(0), s, 1)[1]
    np.testing.assert_allclose(after, [0.33, 0.17, 0.5], atol=SUM)
    np.testing.assert_allclose(before, [0.25, 0.25, 0.5], atol=SUM)


@given(
    problem=problems(),
    alpha=alphas,
    coarse_order=st.permutations(range(C)),
    fine_order=st.permutations(range(F)),
)
def test_labels_can_be_permuted(problem, alpha, coarse_order, fine_order):
    """Numbering the coarse or the fine classes otherwise only renumbers the results."""
    p_coarse, p_fine, s = problem
    new_id = np.argsort(coarse_order)  # old coarse class -> its new number
    coarse, fine = map(np.asarray, adjust(*problem, alpha))
    permuted = adjust(
        p_coarse[:, coarse_order], p_fine[:, fine_order], new_id[s][fine_order], alpha
    )
    assert_close(permuted, (coarse[:, coarse_order], fine[:, fine_order]), atol=SUM)


# Empty groups.


@given(problem=problems(), alpha=alphas)
def test_literal_rule_adds_mass_for_empty_groups(problem, alpha):
    """The printed else-branch makes the fine level sum to 1 + (1 - α) Σ P_i over empty groups."""
    p_coarse, p_fine, s = problem
    extra = np.where(group_sums(p_fine, s) == 0, p_coarse, 0).sum(1)
    _, fine = adjust(*problem, alpha, empty="literal")
    np.testing.assert_allclose(np.asarray(fine).sum(1), 1 + (1 - alpha) * extra, atol=SUM)


def test_rules_differ_as_documented():
    """An empty group of 2 children gets β P_i / n each, or, literally, coarse′_i / n."""
    args = ([0.6, 0.4], [0.0, 0.0, 1.0], [0, 0, 1], 0.5)
    assert adjust(*args)[1].tolist() == pytest.approx([0.075, 0.075, 0.85], abs=SUM)
    assert adjust(*args, empty="literal")[1].tolist() == pytest.approx(
        [0.225, 0.225, 0.85], abs=SUM
    )


# Gradients.

MASSES = [1, 1e-7, 1e-19, 1e-25, 1e-37, 1e-40, 0]  # 1e-40 is subnormal


def with_mass(mass):
    """Two groups of two, the first with the given fine mass; the second is empty if it is 1."""
    first = np.float32([0.25, 0.75]) * np.float32(mass)
    second = np.float32([0.4, 0.6]) * np.float32(1 - mass)
    return np.float32([0.3, 0.7]), np.concatenate([first, second]), np.array([0, 0, 1, 1])


@pytest.mark.parametrize("mass", MASSES)
@pytest.mark.parametrize("jacobian", [jax.jacrev, jax.jacfwd])
def test_derivatives_are_right_at_every_mass(mass, jacobian):
    """All derivatives, by both modes, are those of the formula, in float64 and by hand.

    With r_j = f_j / Q; in an empty group r_j is 1/n, and only the term (1-β) f depends on f:
    ∂fine′_j/∂f_k = (1-β) δ_jk + β P_i (δ_jk - r_j) / Q,  ∂fine′_j/∂P_i = β r_j,
    ∂fine′_j/∂α = (r_j P_i - f_j) / 2.
    """
    p_coarse, p_fine, s = with_mass(mass)
    alpha, beta = np.float32(0.7), 0.35
    got_coarse, got_fine = jacobian(lambda *x: adjust(x[0], x[1], s, x[2]), (0, 1, 2))(
        p_coarse, p_fine, alpha
    )
    p, f = p_coarse.astype(float), np.where(p_fine < TINY, 0, p_fine.astype(float))
    member = s == np.arange(2)[:, None]
    q = member @ f
    empty = q < TINY
    safe_q = np.where(empty, 1, q)
    r = np.where(empty[s], 0.5, f / safe_q[s])
    inside = np.where(empty[s], 0, p[s] / safe_q[s])[:, None] * member[s] * (np.eye(4) - r[:, None])
    wanted_coarse = ((1 - beta) * np.eye(2), beta * member, (q - p) / 2)
    wanted_fine = (
        beta * r[:, None] * member.T,
        (1 - beta) * np.eye(4) + beta * inside,
        (r * p[s] - f) / 2,
    )
    assert_close(got_coarse, wanted_coarse, RATIO, SUM)
    assert_close(got_fine, wanted_fine, RATIO, SUM)


@pytest.mark.parametrize("empty", ["preserve", "literal"])
@given(problem=problems(wide=True), alpha=alphas)
def test_everything_is_finite(problem, alpha, empty):
    """Values and gradients are finite for every input, under both rules."""
    p_coarse, p_fine, s = problem
    results, gradients = finite_check(p_coarse, p_fine, s, jnp.float32(alpha), empty)
    for array in (*results, *gradients):
        assert np.isfinite(array).all()


@partial(jax.jit, static_argnums=4)
def finite_check(p_coarse, p_fine, s, alpha, empty):
    """Results, and gradients of a sum of them in which no two classes weigh the same."""

    def total(*args):
        coarse, fine = adjust(args[0], args[1], s, args[2], empty=empty)
        weights = [jnp.arange(x.shape[1]).reshape(1, -1) / x.shape[1] for x in (coarse, fine)]
        return sum(jnp.sum(w * x) for w, x in zip(weights, (coarse, fine), strict=True)), (
            coarse,
            fine,
        )

    (_, results), gradients = jax.value_and_grad(total, (0, 1, 2), has_aux=True)(
        p_coarse, p_fine, alpha
    )
    return results, gradients


# Batches, transformations, types.


@given(problem=problems(), alpha=alphas)
def test_a_sample_does_not_see_its_batch(problem, alpha):
    """Other samples in the batch change no bit of a sample's result; alone it is the same too."""
    p_coarse, p_fine, s = problem
    whole = adjust(*problem, alpha)
    others = adjust(p_coarse[[0, 3, 3, 1]], p_fine[[0, 3, 3, 1]], s, alpha)
    alone = adjust(p_coarse[0], p_fine[0], s, alpha)
    for w, o, a in zip(whole, others, alone, strict=True):
        first = np.asarray(w)[0]
        np.testing.assert_array_equal(first, np.asarray(o)[0])
        np.testing.assert_allclose(first, a, atol=SUM)


def example():
    """One fixed (p_coarse `[4, 3]`, p_fine `[4, 7]`, s) with an empty group."""
    rng = np.random.default_rng(1)
    s = np.array([2, 0, 1, 1, 0, 2, 2])
    p_fine = rng.dirichlet(np.ones(F), N).astype(np.float32)
    p_fine[1] = np.where(s == 1, 0, p_fine[1]) / p_fine[1, s != 1].sum()
    return rng.dirichlet(np.ones(C), N).astype(np.float32), p_fine, s


def test_jit_is_eager():
    """Its own jit, op by op, and another jit with a traced s give the same results."""
    args = example()
    compiled = adjust(*args, 1.3)
    assert_close(jax.jit(adjust)(*args, 1.3), compiled, atol=SUM)
    with jax.disable_jit():
        assert_close(adjust(*args, 1.3), compiled, atol=SUM)


def test_one_compilation_for_all_alphas():
    """Python, NumPy and JAX scalars of any value share one compilation."""
    args = [np.tile(x, (2, 1)) for x in example()[:2]] + [example()[2]]
    before = module._adjust._cache_size()
    for alpha in (0, 0.25, 1.0, np.float64(1.7), np.float32(2), jnp.float32(0.3), np.int64(1)):
        adjust(*args, alpha)
    assert module._adjust._cache_size() == before + 1


def test_alpha_by_vmap_broadcast_and_loop():
    """All of Figure 3 by one vmap, by broadcasting `[A, 1]`, and by a loop are the same."""
    args, grid = example(), np.linspace(0, 2, 9, dtype=np.float32)
    looped = [np.stack(level) for level in zip(*(adjust(*args, a) for a in grid), strict=True)]
    assert_close(jax.vmap(lambda a: adjust(*args, a))(grid), looped, atol=SUM)
    assert_close(adjust(*args, grid[:, None]), looped, atol=SUM)


def test_an_alpha_for_each_sample():
    """An array of alphas along the batch adapts every sample by its own; leading axes nest."""
    p_coarse, p_fine, s = example()
    alpha = np.float32([0, 0.5, 1, 2])
    rows = [adjust(p_coarse[n], p_fine[n], s, alpha[n]) for n in range(N)]
    wanted = [np.stack(level) for level in zip(*rows, strict=True)]
    assert_close(adjust(p_coarse, p_fine, s, alpha), wanted, atol=SUM)
    nested = adjust(p_coarse.reshape(2, 2, C), p_fine.reshape(2, 2, F), s, alpha.reshape(2, 2))
    assert_close(nested, [w.reshape(2, 2, -1) for w in wanted], atol=SUM)


@pytest.mark.parametrize(
    ("x64", "given_dtype", "wanted"),
    [
        (False, "float32", "float32"),
        (False, "float64", "float32"),
        (False, "bfloat16", "float32"),
        (False, "float16", "float32"),
        (True, "float64", "float64"),
        (True, "float32", "float32"),
        (True, "bfloat16", "float32"),
    ],
)
def test_result_types(x64, given_dtype, wanted):
    """float32, or float64 for float64 input under x64; the type of alpha does not matter."""
    p_coarse, p_fine, s = example()
    given_dtype = jnp.dtype(given_dtype)
    with enable_x64(x64):
        for alpha in (0.5, np.float64(0.5), np.float16(0.5)):
            results = adjust(p_coarse.astype(given_dtype), p_fine.astype(given_dtype), s, alpha)
            assert [x.dtype for x in results] == [wanted, wanted]


def test_bfloat16_is_computed_in_float32():
    """bfloat16 input is adapted as its float32 copy is, bit for bit."""
    p_coarse, p_fine, s = example()
    rounded = [jnp.asarray(x, jnp.bfloat16) for x in (p_coarse, p_fine)]
    exact = [x.astype(jnp.float32) for x in rounded]
    for got, wanted in zip(adjust(*rounded, s, 1.3), adjust(*exact, s, 1.3), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_float64_is_accurate():
    """Under x64 the results agree with exact arithmetic to 20 float64 roundings."""
    args = example()
    args = (args[0].astype(np.float64), args[1].astype(np.float64), args[2])
    with enable_x64(True):
        assert_close(adjust(*args, 1.3), printed(*args, 1.3, number=Fraction), rtol=20 * 1.2e-16)


# Errors.


@pytest.mark.parametrize(
    ("s", "message"),
    [
        ([3, 1, 2, 2, 1, 3, 3], "class 0 has id 3, allowed are 0 to 2.*1-based: subtract 1"),
        ([2, 0, 1, 1, 0, 2, -1], "class 6 has id -1, allowed are 0 to 2"),
        ([2, 0, 1, 1, 0, 2, 7], "class 6 has id 7, allowed are 0 to 2"),
        ([2.0, 0, 1, 1, 0, 2, 2], "expected integers, got float64"),
        ([2, 0, 2, 2, 0, 2, 2], "class 1 has no children"),
        ([2, 0, 1, 1, 0, 2], r"each of the 7 fine classes of p_fine \[4, 7\].*got \[6\]"),
        ([[2, 0, 1, 1, 0, 2, 2]], r"shape \[7\]; got \[1, 7\]"),
    ],
)
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_wrong_s_is_refused(s, message, convert, compiled):
    """A concrete `s` is checked, inside a caller's jit too, so no mass is lost silently."""
    p_coarse, p_fine, _ = example()
    if "float64" in message and convert is jnp.asarray:
        message = "expected integers, got float32"
    s = convert(s)

    def call(p_coarse, p_fine):
        return adjust(p_coarse, p_fine, s, 1.0)

    with pytest.raises(ValueError, match=message):
        (jax.jit(call) if compiled else call)(p_coarse, p_fine)


@pytest.mark.parametrize(
    ("coarse", "fine", "alpha", "message"),
    [
        ((4, 3), (5, 7), (), r"same leading axes; got \[4, 3\] and \[5, 7\]"),
        ((3,), (4, 7), (), r"same leading axes; got \[3\] and \[4, 7\]"),
        ((), (7,), (), r"p_coarse is \[..., C\].*got \[\] and \[7\]"),
        ((4, 3), (4, 8), (), r"each of the 8 fine classes of p_fine \[4, 8\].*got \[7\]"),
        ((4, 3), (4, 7), (3,), r"alpha \[3\] does not broadcast.*\[4\]"),
    ],
)
def test_shape_errors_name_the_shapes(coarse, fine, alpha, message):
    """Shapes that disagree are refused before dispatch, under jit too, and named."""
    arrays = np.ones(coarse), np.ones(fine)
    for function in (adjust, jax.jit(adjust)):
        with pytest.raises(ValueError, match=message):
            function(*arrays, example()[2], np.ones(alpha))


@pytest.mark.parametrize(
    ("alpha", "got"), [(-0.1, "-0.1"), (2.001, "2.001"), (np.nan, "nan"), (np.array([0.5, 3]), "3")]
)
def test_alpha_outside_its_range_is_refused(alpha, got):
    """Outside [0, 2] probabilities can turn negative; the error gives the first such value."""
    with pytest.raises(ValueError, match=rf"alpha must lie in \[0, 2\], got {got}$"):
        adjust(np.ones((2, 3)) / 3, np.ones((2, 7)) / 7, example()[2], alpha)


def test_unknown_rule_is_refused():
    """A misspelt rule for empty groups is rejected, not taken as the default."""
    with pytest.raises(ValueError, match="empty='paper' is not one of"):
        adjust(*example(), 1, empty="paper")
