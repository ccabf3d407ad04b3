"""Error curves are exact, by argmax in rational arithmetic and on float32 grids."""

from fractions import Fraction

import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from hiercls_jax import adjust
from hiercls_jax.adaptation import error_curve as module
from hiercls_jax.adaptation.error_curve import (
    Outcomes,
    StepFunction,
    error_curves,
    winning_intervals,
)
from hiercls_jax.hierarchy import cifar100

N, K = 5, 4  # samples and classes of drawn problems

# Scores with many ties and coinciding crossings, and any others of exact differences.
coarse_grid = st.integers(0, 8).map(lambda k: k / 8)
exact = st.floats(2**-29, 1, width=32)
wide = st.sampled_from([0, 1e-45, 1e-40, 1e-38, 1e-25, 1e-9, 0.1, 0.3, 1 / 3, 0.5, 1])
labels = hnp.arrays(np.int32, N, elements=st.integers(0, K - 1))


def scores(elements):
    """Draw float32 `[N, K]`."""
    return hnp.arrays(np.float32, (N, K), elements=elements, fill=st.nothing())


def after(x):
    """The next float64."""
    return float(np.nextafter(x, np.inf))


def before(x):
    """The float64 before."""
    return float(np.nextafter(x, -np.inf))


def wrong_in_fractions(original, target, y, alpha):
    """Count wrong samples by argmax, lowest index first, in rational arithmetic."""
    alpha, wrong = Fraction(float(alpha)), 0
    for p, t, label in zip(original.tolist(), target.tolist(), y.tolist(), strict=True):
        adapted = [
            (1 - alpha) * Fraction(a) + alpha * Fraction(b) for a, b in zip(p, t, strict=True)
        ]
        wrong += adapted.index(max(adapted)) != label
    return wrong


# Exactness.


@given(
    original=scores(coarse_grid | exact | st.just(0)),
    target=scores(coarse_grid | exact | st.just(0)),
    y=labels,
    drawn=st.lists(st.floats(0, 2), max_size=3),
)
def test_equals_argmax_in_rational_arithmetic(original, target, y, drawn):
    """At every float64 alpha, breakpoints and their neighbours first, the count is argmax's own."""
    (curve,) = error_curves([original], [target], [y], largest=2)
    inner = curve.breakpoints[1:]
    alphas = np.array([0, 1, 2, *drawn, *inner, *np.nextafter(inner, 0), *np.nextafter(inner, 2)])
    wanted = [wrong_in_fractions(original, target, y, alpha) for alpha in alphas]
    assert curve.count(alphas).tolist() == wanted
    np.testing.assert_array_equal(curve(alphas), np.array(wanted) / N)


@given(original=scores(coarse_grid), target=scores(coarse_grid), y=labels)
def test_breakpoints_are_where_the_count_changes(original, target, y):
    """Breakpoints start with 0, increase strictly within the range, and part different counts."""
    (curve,) = error_curves([original], [target], [y], largest=1.5)
    assert curve.breakpoints[0] == 0
    assert (np.diff(curve.breakpoints) > 0).all()
    assert curve.breakpoints[-1] <= 1.5
    assert (np.diff(curve.counts) != 0).all()
    assert curve.counts.dtype == np.int64


@given(original=scores(wide), target=scores(wide), y=labels)
def test_any_scale_is_right_inside_pieces(original, target, y):
    """Masses from subnormal to 1 together, whose differences round: right inside every piece."""
    (curve,) = error_curves([original], [target], [y], largest=2)
    edges = np.append(curve.breakpoints, 2)
    # Not the middle: exact crossings are often at 1, and the piece of a lost one is not tested.
    alphas = (edges[:-1] + 0.618 * np.diff(edges))[np.diff(edges) > 1e-12]
    wanted = [wrong_in_fractions(original, target, y, alpha) for alpha in alphas]
    assert curve.count(alphas).tolist() == wanted


def test_equals_a_float32_grid_where_that_is_exact():
    """A grid agrees on dyadic scores and alphas, ties too, because float32 does not round them."""
    rng = np.random.default_rng(0)
    original, target = rng.integers(0, 9, (2, 500, 6)).astype(np.float32) / 8
    y = rng.integers(0, 6, 500)
    alphas = np.arange(65, dtype=np.float32) / 32
    a = alphas[:, None, None]
    grid = jnp.argmax((1 - a) * jnp.asarray(original)[None] + a * jnp.asarray(target)[None], -1)
    (curve,) = error_curves([original], [target], [y], largest=2)
    np.testing.assert_array_equal(curve.count(alphas), np.sum(np.asarray(grid) != y, axis=1))
    assert len(np.unique(curve.count(alphas))) > 10


def test_equals_a_grid_of_adjusted_probabilities():
    """Algorithm 1 at each alpha of a grid has the errors that original and target alone give.

    A sample whose two best classes are within 1e-6, ten roundings of a float32 near 1, may differ.
    """
    rng = np.random.default_rng(1)
    s = cifar100().fine_to_coarse
    fine = rng.integers(0, 100, 300)
    y = (s[fine], fine)
    original = []
    for label, classes in zip(y, (20, 100), strict=True):
        p = rng.dirichlet(np.full(classes, 0.2), 300) + 0.3 * (np.arange(classes) == label[:, None])
        original.append(np.float32(p / p.sum(axis=1, keepdims=True)))
    curves = error_curves(original, adjust(*original, s, 1.0), y, largest=2)
    for alpha in np.linspace(0, 2, 41):
        for curve, p, label in zip(curves, adjust(*original, s, alpha), y, strict=True):
            p = np.asarray(p)
            second, first = np.sort(p, axis=1)[:, -2:].T
            difference = abs(curve.count(alpha) - np.sum(p.argmax(axis=1) != label))
            assert difference <= np.sum(first - second < 1e-6)
    assert all(len(curve.breakpoints) > 30 for curve in curves)


# Intervals, by hand.


@pytest.mark.parametrize(
    ("p", "target", "label", "low", "high"),
    [
        # (1-α) 0.75 + α 0.25 against (1-α) 0.25 + α 0.75: equal at α = 1/2.
        pytest.param([0.75, 0.25], [0.25, 0.75], 0, 0, 0.5, id="a tie goes to the lower index"),
        pytest.param([0.75, 0.25], [0.25, 0.75], 1, after(0.5), 2, id="and not to the higher one"),
        pytest.param([0.25, 0.75], [0.75, 0.25], 0, 0.5, 2, id="likewise where it begins"),
        pytest.param([0.25, 0.75], [0.75, 0.25], 1, 0, before(0.5), id="likewise where it ends"),
        pytest.param([0.5, 0.5], [0.25, 0.75], 0, 0, 0, id="a tie at 0 alone"),
        pytest.param([0.5, 0.5], [0.75, 0.25], 1, 2, 0, id="an open point at 0 is nowhere"),
        pytest.param([1, 0], [0.5, 0.5], 0, 0, 1, id="saturated"),
        pytest.param([0.75, 0.25], [0.5, 0.5], 0, 0, 1, id="ends at a tie inside the range"),
        pytest.param([0.5, 0.5], [0.5, 0.5], 0, 0, 2, id="always a tie, won"),
        pytest.param([0.5, 0.5], [0.5, 0.5], 1, 2, 0, id="always a tie, lost"),
        pytest.param([0.75, 0.25], [0.75, 0.25], 0, 0, 2, id="everywhere"),
        pytest.param([0.25, 0.75], [0.25, 0.75], 0, 2, 0, id="nowhere"),
        pytest.param([0.25, 0.75], [0.375, 0.625], 0, 2, 2, id="the end of the range alone"),
        pytest.param([0.25, 0.75], [0.25, 0.5], 0, 2, 2, id="equal at the end of the range"),
        # Label 0 has 1/2 throughout, class 1 has 3/4 - α/2, class 2 has α/2.
        pytest.param([0.5, 0.75, 0], [0.5, 0.25, 0.5], 0, 0.5, 1, id="between two classes"),
        # Label 1 needs α > 1 against class 0 and α ≤ 1 against class 2; or α ≥ 1 and α ≤ 1.
        pytest.param([1, 0.5, 0], [0.5, 0.5, 0.5], 1, 2, 0, id="open against closed: nowhere"),
        pytest.param([0.5, 1, 0], [0.5, 0.5, 0.5], 0, 1, 1, id="closed against closed: a point"),
    ],
)
def test_intervals_by_hand(p, target, label, low, high):
    """Which ends belong to the interval, points and empty intervals, worked out by hand."""
    got = winning_intervals(np.array([p]), np.array([target]), np.array([label]), 2.0)[0]
    if low > high:
        assert got[0] > got[1]
    else:
        assert got.tolist() == [low, high]


def test_ends_that_no_float_can_hold():
    """Equal at α = 1/3, label 1 wins from the first float64 above it, 0 up to the last below it."""
    p, target = np.array([[0.5, 0.25]] * 2), np.array([[0.25, 0.5 + 0.25]] * 2)
    third = 1 / 3
    assert Fraction(third) < Fraction(1, 3)
    got = winning_intervals(p, target, np.array([0, 1]), 2.0)
    assert got.tolist() == [[0, third], [after(third), 2]]


def test_coinciding_crossings_are_one_breakpoint():
    """Saturated predictions whose target has half on another class all turn at α = 1."""
    rng = np.random.default_rng(2)
    eye = np.eye(5, dtype=np.float32)
    first, then = rng.integers(0, 5, (2, 100))
    target = (eye[first] + eye[then]) / 2
    curves = error_curves([eye[first]] * 2, [target] * 2, [first, then], largest=2)
    alphas, differ = [0, before(1), 1, after(1), 2], np.sum(first != then)
    lower, higher = np.sum(first < then), np.sum(first > then)
    assert curves[0].breakpoints.tolist() == curves[1].breakpoints.tolist() == [0, 1, after(1)]
    assert curves[0].count(alphas).tolist() == [0, 0, higher, differ, differ]
    assert curves[1].count(alphas).tolist() == [differ, differ, lower, 0, 0]


# Counting.


@given(original=scores(coarse_grid), target=scores(coarse_grid), y=labels, seed=st.integers(0, 99))
def test_weights_are_repetitions(original, target, y, seed):
    """An integer weight counts a sample as often as repeating it would; 0 leaves it out."""
    weights = np.random.default_rng(seed).integers(0, 4, N) + (np.arange(N) == 0)
    rows = np.repeat(np.arange(N), weights)
    got = Outcomes.of(original, target, y, 2.0).error(weights)
    (wanted,) = error_curves([original[rows]], [target[rows]], [y[rows]], largest=2)
    assert got.total == wanted.total == len(rows)
    np.testing.assert_array_equal(got.breakpoints, wanted.breakpoints)
    np.testing.assert_array_equal(got.counts, wanted.counts)


def random_problem():
    """Two levels of 60 samples, 3 and 7 classes."""
    rng = np.random.default_rng(3)
    arrays = [[rng.dirichlet(np.ones(k), 60).astype(np.float32) for k in (3, 7)] for _ in range(2)]
    return *arrays, [rng.integers(0, k, 60) for k in (3, 7)]


def assert_same(curves, others):
    """Two tuples of step functions are equal piece by piece."""
    for a, b in zip(curves, others, strict=True):
        np.testing.assert_array_equal(a.breakpoints, b.breakpoints)
        np.testing.assert_array_equal(a.counts, b.counts)


def test_order_of_samples_does_not_matter():
    """Permuted samples have the same curves, piece by piece."""
    problem = random_problem()
    order = np.random.default_rng(4).permutation(60)
    permuted = [[x[order] for x in levels] for levels in problem]
    assert_same(error_curves(*permuted, largest=2), error_curves(*problem, largest=2))


def test_chunks_do_not_matter(monkeypatch):
    """Compared a few samples at a time, or one, the curves are the same."""
    problem = random_problem()
    whole = error_curves(*problem, largest=2)
    for size in (1, 50):
        monkeypatch.setattr(module, "CHUNK", size)
        assert_same(error_curves(*problem, largest=2), whole)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_types_of_scores(dtype):
    """JAX arrays of every float type count as their float64 values do."""
    original, target, y = random_problem()
    original, target = ([jnp.asarray(x, dtype) for x in xs] for xs in (original, target))
    doubled = [[np.asarray(x).astype(np.float64) for x in xs] for xs in (original, target)]
    curves = error_curves(original, target, [jnp.asarray(x) for x in y], largest=np.float32(1.5))
    assert_same(curves, error_curves(*doubled, y, largest=1.5))


# Step functions.


@st.composite
def step_functions(draw):
    """Draw a step function on [0, 2] of 10 samples, with breakpoints at multiples of 1/4."""
    inner = draw(st.lists(st.integers(1, 8), unique=True, max_size=5))
    counts = draw(st.lists(st.integers(0, 10), min_size=6, max_size=6))[: len(inner) + 1]
    return StepFunction(np.array([0, *sorted(inner)]) / 4, np.array(counts), 10, 2.0)


@given(f=step_functions(), g=step_functions())
def test_sum_of_step_functions(f, g):
    """(f + g)(α) = f(α) + g(α), at breakpoints, next to them and between."""
    alphas = np.concatenate([np.arange(17) / 8, np.nextafter(np.arange(1, 9) / 4, 0)])
    np.testing.assert_array_equal((f + g).count(alphas), f.count(alphas) + g.count(alphas))
    assert (f + g).total == 10


@given(f=step_functions())
def test_minimisers_are_all_and_only_the_minimum(f):
    """An alpha has the smallest count if and only if it lies in one of the intervals."""
    intervals = f.minimisers()
    assert (intervals[:, 0] <= intervals[:, 1]).all()
    assert (intervals[1:, 0] > np.nextafter(intervals[:-1, 1], 2)).all()  # apart, increasing
    alphas = np.concatenate([np.arange(17) / 8, np.nextafter(np.arange(1, 9) / 4, 0)])
    inside = ((intervals[:, :1] <= alphas) & (alphas <= intervals[:, 1:])).any(axis=0)
    np.testing.assert_array_equal(inside, f.count(alphas) == f.counts.min())


def test_minimisers_by_hand():
    """Neighbouring pieces with the minimum are one interval; the last ends with the range."""
    f = StepFunction(np.array([0, 0.5, 0.75, 1, 1.5]), np.array([3, 1, 1, 2, 1]), 4, 2.0)
    assert f.minimisers().tolist() == [[0.5, before(1)], [1.5, 2]]
    assert StepFunction(np.array([0.0]), np.array([3]), 4, 1.5).minimisers().tolist() == [[0, 1.5]]


def test_step_functions_keep_the_shape_of_alphas():
    """Scalars and arrays of any shape are evaluated, to float64 of the same shape."""
    f = StepFunction(np.array([0, 0.5]), np.array([3, 1]), 4, 2.0)
    assert f(0.5) == 0.25
    assert f([[0, 0.25], [0.5, 2]]).tolist() == [[0.75, 0.75], [0.25, 0.25]]
    assert f(np.zeros((0, 3))).shape == (0, 3)


# Errors.


@pytest.mark.parametrize("alpha", [-0.1, 2.001, np.nan, [1, 3]])
def test_alphas_outside_the_range_are_refused(alpha):
    """An alpha beyond the largest is an error."""
    f = StepFunction(np.array([0.0]), np.array([3]), 4, 2.0)
    with pytest.raises(ValueError, match=r"alpha must lie in \[0, 2\], got"):
        f(alpha)


@pytest.mark.parametrize(("total", "largest"), [(5, 2.0), (4, 1.5)])
def test_other_samples_or_ranges_are_not_added(total, largest):
    """Adding curves of different samples or of different largest alphas is an error."""
    f, g = (StepFunction(np.array([0.0]), np.array([3]), *x) for x in ((4, 2.0), (total, largest)))
    with pytest.raises(ValueError, match=f"4 samples up to alpha 2 .* those of {total} up to"):
        f + g


P = np.full((3, 2), 0.5)
Y = np.array([0, 1, 1])


@pytest.mark.parametrize(
    ("original", "target", "y", "largest", "message"),
    [
        ([P], [P, P], [Y], 2, "one array per level; got 1, 2 and 1"),
        ([], [], [], 2, "one array per level; got 0, 0 and 0"),
        ([P], [P[:, :1]], [Y], 2, r"level 0: .* got \[3, 2\], \[3, 1\] and \[3\]"),
        ([P, P], [P, P], [Y, Y[:2]], 2, r"level 1: .* got \[3, 2\], \[3, 2\] and \[2\]"),
        ([P[:0]], [P[:0]], [Y[:0]], 2, r"N and K > 0; got \[0, 2\]"),
        ([P[0]], [P[0]], [Y], 2, r"\[N, K\] .* got \[2\]"),
        ([P, P[:2]], [P, P[:2]], [Y, Y[:2]], 2, r"the same samples; got \[3, 2\]"),
        ([P], [P], [Y / 2], 2, "level 0: labels are integers, not float64"),
        ([P], [P], [Y + 1], 2, "level 0: label 2 is out of range, allowed are 0 to 1"),
        ([P], [P], [Y - 1], 2, "level 0: label -1 is out of range, allowed are 0 to 1"),
        ([P], [P * [[1], [np.nan], [1]]], [Y], 2, "level 0: target of sample 1 is not finite"),
        ([P * [[1], [1], [np.inf]]], [P], [Y], 2, "level 0: original of sample 2 is not finite"),
        ([P], [P], [Y], 0.5, "at least 1; got 0.5"),
        ([P], [P], [Y], np.nan, "at least 1; got nan"),
        ([P], [P], [Y], np.inf, "at least 1; got inf"),
    ],
)
def test_wrong_arrays_are_refused(original, target, y, largest, message):
    """Shapes, labels and scores that cannot be counted are named."""
    with pytest.raises(ValueError, match=message):
        error_curves(original, target, y, largest=largest)
