"""The choice of alpha: by hand, against dense grids, and on held-out samples."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from hiercls_jax import adjust
from hiercls_jax.adaptation.alpha import (
    FLOOR,
    alpha_search,
    bootstrap_interval,
    cross_validate,
    widest_midpoint,
)

ULPS = 1e-14  # an end that does not belong to its interval is one float64 inside
SEARCH = 2e-6  # between two bounded searches, each right to 1e-6


def right_between(low, high):
    """Original and target scores `[3]` for which label 0 is right at alphas in [low, high]."""
    # It has 1/2 throughout, class 1 falls to 1/2 at low, class 2 rises to 1/2 at high.
    return [0.5, 0.5 + low / 4, 0.5 - high / 4], [0.5, 0.25 + low / 4, 0.75 - high / 4]


def made_up(*levels):
    """Original, target and labels with one sample for every interval `(low, high)` of a level."""
    pairs = [[right_between(*interval) for interval in intervals] for intervals in levels]
    original = [np.array([p for p, _ in pair]) for pair in pairs]
    target = [np.array([t for _, t in pair]) for pair in pairs]
    return original, target, [np.zeros(len(pair), int) for pair in pairs]


def random_problem(samples=200, pull=0.75):
    """Two levels of 3 and 7 classes, float32, predictions better adapted than not.

    The fine target is pulled as far as Algorithm 1 goes at alpha = `pull`; were it 1, as for the
    coarse one, the likelihood would choose 1 whatever the data.
    """
    rng = np.random.default_rng(0)
    s = np.array([0, 0, 1, 1, 2, 2, 2])
    fine = rng.integers(0, 7, samples)
    y = [s[fine], fine]
    original = []
    for label, classes in zip(y, (3, 7), strict=True):
        p = rng.dirichlet(np.ones(classes), samples)
        p += 0.25 * (np.arange(classes) == label[:, None])
        original.append((p / p.sum(axis=1, keepdims=True)).astype(np.float32))
    target = [adjust(*original, s, alpha)[level] for level, alpha in enumerate((1.0, pull))]
    return original, [np.asarray(t) for t in target], y


def take(problem, rows):
    """The same problem on some of its samples."""
    return [[x[rows] for x in levels] for levels in problem]


# The rule of choice.


@pytest.mark.parametrize(
    ("intervals", "wanted"),
    [
        pytest.param([[0.5, 0.75]], 0.625, id="one"),
        pytest.param([[0.9, 1.1], [1.5, 2]], 1.75, id="the widest, though 1 is in another"),
        pytest.param([[0, 0.25], [1, 1.25], [1.75, 2]], 1.125, id="equally wide: nearest to 1"),
        pytest.param([[0, 0.5], [1.5, 2]], 0.25, id="as near: the lower"),
        pytest.param([[0.25, 0.25], [0.75, 0.75], [1.5, 1.5]], 0.75, id="points"),
        pytest.param([[0.1, 0.3], [1.1, 1.3]], 1.2, id="equally wide but for a rounding"),
        pytest.param([[0.3, 0.4], [1.6, 1.7]], 0.35, id="as near but for a rounding"),
        pytest.param([[0, 2]], 1, id="all"),
    ],
)
def test_rule_of_choice(intervals, wanted):
    """Midpoint of the widest; of equally wide ones the nearest to 1; of these the lower."""
    assert widest_midpoint(np.array(intervals)) == pytest.approx(wanted, abs=ULPS)


@pytest.mark.parametrize(
    ("levels", "largest", "objective", "value", "minimisers", "alpha"),
    [
        pytest.param([[(0.5, 1), (0.75, 1.5)]], 2, 0, 0, [[0.75, 1]], 0.875, id="overlap"),
        pytest.param(
            [[(0.5, 1), (1.25, 2)]], 2, 0, 1 / 2, [[0.5, 1], [1.25, 2]], 1.625, id="apart"
        ),
        pytest.param(
            [[(0.5, 1), (1.25, 2)]], 1.5, 0, 1 / 2, [[0.5, 1], [1.25, 1.5]], 0.75, id="cut above"
        ),
        pytest.param([[(-3, 0.5), (-1, 0.25)]], 2, 0, 0, [[0, 0.25]], 0.125, id="cut below"),
        pytest.param([[(0.5, 7)]], 1.5, "sum", 0, [[0.5, 1.5]], 1, id="to the end"),
        pytest.param([[(0.5, 1), (1, 2)]], 2, "sum", 0, [[1, 1]], 1, id="a point"),
        pytest.param([[(3, 4)]], 2, "sum", 1, [[0, 2]], 1, id="nowhere right"),
        # The first level is best on [0, 1/2], the second on [3/2, 2], their sum on [1/4, 1/2].
        pytest.param(
            [[(0, 0.5)] * 2, [(0.25, 2), (1.5, 2)]], 2, 0, 0, [[0, 0.5]], 0.25, id="coarse"
        ),
        pytest.param([[(0, 0.5)] * 2, [(0.25, 2), (1.5, 2)]], 2, 1, 0, [[1.5, 2]], 1.75, id="fine"),
        pytest.param(
            [[(0, 0.5)] * 2, [(0.25, 2), (1.5, 2)]], 2, "sum", 1 / 2, [[0.25, 0.5]], 0.375, id="sum"
        ),
    ],
)
def test_choices_by_hand(levels, largest, objective, value, minimisers, alpha):
    """Made-up errors with known minimisers, cut by the admissible range, for every objective."""
    search = alpha_search(*made_up(*levels), largest=largest, objective=objective)
    np.testing.assert_allclose(search.minimisers, minimisers, atol=ULPS)
    assert search.alpha == pytest.approx(alpha, abs=ULPS)
    assert search.value == value
    assert len(search.curves) == len(levels)


def test_ends_outside_an_interval_are_one_float_inside():
    """Right for alpha > 1/2 and up to 1: the interval begins with the float64 after 1/2."""
    p, target = [[0.75, 0.25], [0.75, 0.25]], [[0.25, 0.75], [0.5, 0.5]]
    search = alpha_search([p], [target], [[1, 0]], largest=2)
    assert search.minimisers.tolist() == [[np.nextafter(0.5, 1), 1]]


def test_default_objective_is_the_sum():
    """Without an objective, the sum of the levels' errors."""
    problem = random_problem()
    search, by_name = (alpha_search(*problem, largest=2, **k) for k in ({}, {"objective": "sum"}))
    assert (search.alpha, search.value) == (by_name.alpha, by_name.value)


@pytest.mark.parametrize("objective", ["sum", 0, np.int64(1)])
def test_no_alpha_of_a_grid_does_better(objective):
    """On a dense grid the smallest error is the search's, met inside its intervals alone."""
    problem = random_problem()
    search = alpha_search(*problem, largest=2, objective=objective)
    grid = np.linspace(0, 2, 4001)
    wrong = []
    for p, t, y in zip(*problem, strict=True):
        p, t = p.astype(np.float64), t.astype(np.float64)
        wrong.append([np.sum(((1 - a) * p + a * t).argmax(axis=1) != y) for a in grid])
    wrong = np.array(wrong)
    np.testing.assert_array_equal([curve.count(grid) for curve in search.curves], wrong)
    total = wrong.sum(axis=0) if objective == "sum" else wrong[objective]
    inside = ((search.minimisers[:, :1] <= grid) & (grid <= search.minimisers[:, 1:])).any(axis=0)
    best = round(search.value * 200)
    assert total.min() >= best
    np.testing.assert_array_equal(inside, total == best)
    assert search.minimisers.ravel().tolist() == sorted(search.minimisers.ravel())
    assert any(low <= search.alpha <= high for low, high in search.minimisers)


@pytest.mark.parametrize("objective", ["sum", 1, "nll"])
def test_order_of_samples_does_not_matter(objective):
    """Permuted samples lead to the same choice; a likelihood is summed in another order."""
    problem = random_problem()
    order = np.random.default_rng(1).permutation(200)
    search, permuted = (
        alpha_search(*x, largest=1.5, objective=objective) for x in (problem, take(problem, order))
    )
    assert permuted.alpha == pytest.approx(search.alpha, abs=SEARCH if objective == "nll" else 0)
    assert permuted.value == pytest.approx(search.value, rel=1e-12)


# Negative log-likelihood.


def two_classes(p, target):
    """One level of two classes, label 0: its probabilities before and after."""
    p, target = np.array(p), np.array(target)
    y = np.zeros(len(p), int)
    return [np.stack([p, 1 - p], axis=1)], [np.stack([target, 1 - target], axis=1)], [y]


@pytest.mark.parametrize(
    ("problem", "alpha"),
    [
        # With β = α/2 the likelihood is (1-β)^a β^b: its maximum is at β = b / (a + b).
        pytest.param(two_classes([1, 1, 1, 0], [0.5] * 4), 0.5, id="3 to 1"),
        pytest.param(two_classes([1, 0, 0, 0, 0], [0.5] * 5), 1.6, id="1 to 4"),
        pytest.param(two_classes([1, 0.75], [0.5, 0.5]), 0, id="at 0"),
        pytest.param(two_classes([0, 0.25], [0.5, 0.5]), 2, id="at the largest"),
        pytest.param(two_classes([0.25, 0.75], [0.25, 0.75]), 1, id="nothing depends on alpha"),
    ],
)
def test_likelihood_by_hand(problem, alpha):
    """Minima in closed form: inside the range, at its ends, and of a constant likelihood."""
    search = alpha_search(*problem, largest=2, objective="nll")
    # The range's ends, and 1, are tried themselves.
    assert search.alpha == pytest.approx(alpha, abs=0 if alpha in (0, 1, 2) else SEARCH)
    assert search.minimisers.tolist() == [[search.alpha, search.alpha]]


def nll_on(problem, grid):
    """The sum over levels of the mean negative log-likelihood at every alpha of a grid, float64."""
    total = 0
    for p, t, y in zip(*problem, strict=True):
        rows = np.arange(len(y))
        p, t = (np.asarray(x, np.float64)[rows, y][:, None] for x in (p, t))
        total = total - np.log(np.maximum((1 - grid) * p + grid * t, FLOOR)).mean(axis=0)
    return total


@given(seed=st.integers(0, 1000))
def test_no_likelihood_of_a_grid_is_better(seed):
    """On three levels of unrelated targets no alpha of a grid has a smaller value."""
    rng = np.random.default_rng(seed)
    original, target = (
        [np.float32(rng.dirichlet(np.full(k, 0.3), 20)) for k in (2, 3, 5)] for _ in range(2)
    )
    # Up to 1.5 no probability is negative, as no rule lets it be.
    target = [(2 * t + p) / 3 for p, t in zip(original, target, strict=True)]
    problem = original, target, [rng.integers(0, k, 20) for k in (2, 3, 5)]
    search = alpha_search(*problem, largest=1.5, objective="nll")
    grid = np.linspace(0, 1.5, 301)
    assert search.value <= nll_on(problem, grid).min() + 1e-12
    assert search.value == pytest.approx(nll_on(problem, np.array([search.alpha]))[0], abs=1e-12)


def test_likelihood_of_algorithm_1_chooses_1():
    """Two levels adapted by Algorithm 1 have a likelihood that is symmetric about alpha = 1."""
    problem = random_problem(pull=1.0)
    values = nll_on(problem, np.array([0.3, 1.7, 0, 2, 1]))
    np.testing.assert_allclose(values[[0, 2]], values[[1, 3]], rtol=1e-5)  # targets are float32
    assert alpha_search(*problem, largest=2, objective="nll").alpha == pytest.approx(1, abs=1e-5)


def test_a_probability_of_zero_counts_as_the_floor():
    """A label of no probability at any alpha adds -log FLOOR, which moves nothing."""
    certain = two_classes([1, 1, 1, 0], [0.5] * 4)
    hopeless = [[np.concatenate([x, x[:1] * 0])] for (x,) in certain]
    without, with_it = (alpha_search(*x, largest=2, objective="nll") for x in (certain, hopeless))
    assert with_it.alpha == pytest.approx(without.alpha, abs=SEARCH)
    assert with_it.value == pytest.approx((4 * without.value - np.log(FLOOR)) / 5, rel=1e-12)
    assert pytest.approx(87.34, abs=0.01) == -np.log(FLOOR)


# Cross-validation.


@pytest.mark.parametrize("objective", ["sum", 0, "nll"])
def test_folds_are_searches_without_their_samples(objective):
    """Each fold's alpha is that of a search on the other samples, its errors those of argmax."""
    problem = random_problem(60)
    result = cross_validate(*problem, largest=1.5, objective=objective, folds=7, seed=3)
    wrong = np.zeros((3, 2))
    for i, alpha in enumerate(result.alphas):
        rest = alpha_search(*take(problem, result.fold != i), largest=1.5, objective=objective)
        assert alpha == pytest.approx(rest.alpha, abs=SEARCH if objective == "nll" else 0)
        for level, (p, t, y) in enumerate(zip(*take(problem, result.fold == i), strict=True)):
            for row, a in enumerate((alpha, 0, 1)):
                adapted = (1 - a) * p.astype(np.float64) + a * t.astype(np.float64)
                wrong[row, level] += np.sum(adapted.argmax(axis=1) != y)
    assert len(result.alphas) == 7
    for got, wanted in zip(
        (result.error, result.error_at_0, result.error_at_1), wrong, strict=True
    ):
        np.testing.assert_array_equal(got, wanted / 60)
    assert len({*result.alphas}) > 1


def test_folds_part_the_samples():
    """Fold sizes differ by at most one sample; a seed repeats its folds, another does not."""
    problem = random_problem(60)
    first, again, other = (cross_validate(*problem, largest=2, folds=7, seed=i) for i in (1, 1, 2))
    assert sorted(np.bincount(first.fold)) == [8, 8, 8, 9, 9, 9, 9]
    np.testing.assert_array_equal(first.fold, again.fold)
    np.testing.assert_array_equal(first.alphas, again.alphas)
    assert (first.fold != other.fold).any()


@pytest.mark.parametrize("objective", ["sum", 1, "nll"])
def test_held_out_samples_have_no_part_in_the_choice(objective):
    """If held-out samples change to favour alpha = 0, only the other folds' alphas move."""
    original, target, y = random_problem(60)
    kwargs = {"largest": 1.5, "objective": objective, "folds": 4, "seed": 5}
    before = cross_validate(original, target, y, **kwargs)
    for fold in range(4):
        held_out = (before.fold == fold)[:, None]
        eyes = [np.eye(x.shape[1]) for x in original]
        spoilt = [
            [
                np.where(held_out, eye[(label + shift) % len(eye)], x)
                for eye, label, x in zip(eyes, y, levels, strict=True)
            ]
            for shift, levels in enumerate((original, target))
        ]
        after = cross_validate(*spoilt, y, **kwargs)
        assert after.alphas[fold] == before.alphas[fold]
        assert (np.delete(after.alphas - before.alphas, fold) < 0).all()


# Bootstrap.


def sharp(width):
    """One level, 400 samples: half right from about 0.8 on, half up to about 0.9, then none."""
    rng = np.random.default_rng(7)
    begins = 0.8 + width * rng.uniform(-1, 1, 200)
    ends = 0.9 + width * rng.uniform(-1, 1, 200)
    return made_up([*((low, 3) for low in begins), *((-1, high) for high in ends)])


def test_interval_of_a_sharp_optimum():
    """All samples are right between about 0.8 and 0.9: the interval is about 0.85, and narrow."""
    low, high = bootstrap_interval(*sharp(0.01), largest=2, resamples=200)
    assert 0.845 < low <= high < 0.855
    wider = bootstrap_interval(*sharp(0.2), largest=2, resamples=200)
    assert wider[1] - wider[0] > 0.05


@pytest.mark.parametrize("objective", ["sum", 0, "nll"])
def test_interval_is_that_of_searches_on_resamples(objective):
    """The quantiles are those of `alpha_search` on the drawn samples themselves."""
    problem = random_problem(80)
    kwargs = {"largest": 1.5, "objective": objective}
    got = bootstrap_interval(*problem, **kwargs, resamples=20, confidence=0.8, seed=9)
    rng = np.random.default_rng(9)
    alphas = [
        alpha_search(*take(problem, rng.integers(80, size=80)), **kwargs).alpha for _ in range(20)
    ]
    tolerance = SEARCH if objective == "nll" else 0
    assert got == pytest.approx(tuple(np.quantile(alphas, [0.1, 0.9])), abs=tolerance + ULPS)


def test_interval_grows_with_confidence_and_repeats():
    """Of the same resamples a higher confidence gives no narrower interval; a seed repeats it."""
    problem = random_problem(80)
    (low, high), (lower, higher), again = (
        bootstrap_interval(*problem, largest=2, resamples=100, confidence=c)
        for c in (0.5, 0.95, 0.5)
    )
    assert lower < low < high < higher
    assert again == (low, high)


# Errors.


@pytest.mark.parametrize("function", [alpha_search, cross_validate, bootstrap_interval])
@pytest.mark.parametrize("objective", ["error", 2, -1, 0.0, None])
def test_unknown_objectives_are_refused(function, objective):
    """A misspelt objective or an unknown level is an error."""
    with pytest.raises(ValueError, match=r"objective=.*: allowed are 'sum', 'nll' .*, 0 to 1"):
        function(*random_problem(10), largest=2, objective=objective)


@pytest.mark.parametrize("function", [alpha_search, cross_validate, bootstrap_interval])
def test_wrong_arrays_are_refused(function):
    """Arrays are checked wherever they come in."""
    original, target, y = random_problem(10)
    with pytest.raises(ValueError, match="level 1: label 7 is out of range, allowed are 0 to 6"):
        function(original, target, [y[0], y[1] * 0 + 7], largest=2)
    with pytest.raises(ValueError, match="a number of at least 1; got 0.9"):
        function(original, target, y, largest=0.9)


@pytest.mark.parametrize("folds", [0, 1, 11])
def test_folds_out_of_range_are_refused(folds):
    """Each fold, and its rest, needs a sample."""
    with pytest.raises(ValueError, match=rf"folds must lie in \[2, 10\] .*, got {folds}"):
        cross_validate(*random_problem(10), largest=2, folds=folds)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"resamples": 0}, "resamples must be at least 1, got 0"),
        ({"confidence": 95}, r"confidence must lie in \(0, 1\), got 95"),
        ({"confidence": 0.0}, r"confidence must lie in \(0, 1\), got 0.0"),
    ],
)
def test_wrong_bootstraps_are_refused(kwargs, message):
    """No resample, or a confidence in percent, is an error."""
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(*random_problem(10), largest=2, **kwargs)
