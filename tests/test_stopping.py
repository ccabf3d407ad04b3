"""Stopping against a climb written as a loop, and its guarantees over thousands of splits."""

import jax
import numpy as np
import pytest
from scipy import stats
from test_answers import TREES, draw, path_of
from trees import make

from hiercls_jax import Hierarchy
from hiercls_jax.adaptation.answers import answer_nodes
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.stopping import (
    StoppingError,
    calibrate_threshold,
    climb_paths,
    critical_values,
    flat_risk_coverage,
    order_statistic,
    risk_coverage,
    round_up,
    stop,
    stop_climb,
    threshold_above,
)
from hiercls_jax.hierarchy.nodes import nodes_of

trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
TWO = TREES["two levels"]
THRESHOLDS = (0.0, 0.2, 0.5, 0.7, 0.95, 1.0, 1.5)


def labels_for(levels, tree, seed=0):
    """Leaf ids drawn as often as the levels say, or from all leaves: they are not calibrated."""
    rng = np.random.default_rng(seed)
    p = np.concatenate(
        [levels[level][:, i : i + 1] for level, i in tree.cut(tree.num_levels - 1)], axis=1
    )
    drawn = (p.cumsum(axis=1) < rng.random((len(p), 1))).sum(axis=1).clip(max=tree.num_leaves - 1)
    return np.where(rng.random(len(p)) < 0.3, rng.integers(tree.num_leaves, size=len(p)), drawn)


def climb_by_hand(tree, levels, n, threshold):
    """The answer to sample n: from the most probable leaf up, while the probability is too low."""
    leaves = [tuple(pair) for pair in tree.cut(tree.num_levels - 1).tolist()]
    level, i = max(leaves, key=lambda node: levels[node[0]][n, node[1]])
    while level >= 0:
        if levels[level][n, i] >= threshold:
            return (level, i), levels[level][n, i]
        level, i = level - 1, int(tree.parents[level - 1][i]) if level else 0
    return (-1, 0), 1.0


@trees
@pytest.mark.parametrize("threshold", THRESHOLDS)
def test_stop_is_the_climb(tree, threshold):
    """The answer is the first node on the way up that is probable enough; its path leads there."""
    levels = draw(tree, agree=True)
    answers = stop(levels, tree, threshold)
    for n in range(len(levels[0])):
        node, p = climb_by_hand(tree, levels, n, threshold)
        assert tuple(answers.node[n].tolist()) == node
        assert answers.probability[n] == pytest.approx(p, abs=1e-9)
    numbers = answer_nodes(answers.path, tree)
    np.testing.assert_array_equal(nodes_of(tree).pairs[numbers], answers.node)
    if threshold == 0:  # leaves all; above 1, roots all
        assert (answers.path >= 0).all()
    if threshold > 1:
        assert (answers.path == -1).all()
        assert (answers.probability == 1).all()


@pytest.mark.parametrize("tree", [TREES["one level"], TREES["deep and ragged"]])
def test_arrays_of_jax_and_batches(tree):
    """JAX, an outer jit, leading axes and single samples give what NumPy gives."""
    levels = [p.astype(np.float32) for p in draw(tree, agree=True)]
    wanted = stop(levels, tree, 0.6)
    arrays = [jax.numpy.asarray(p) for p in levels]
    for got in (stop(arrays, tree, 0.6), jax.jit(lambda p: stop(p, tree, 0.6))(arrays)):
        assert all(isinstance(x, jax.Array) for x in got)
        for a, b in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    batched = stop([p.reshape(2, -1, p.shape[-1]) for p in levels], tree, 0.6)
    np.testing.assert_array_equal(batched.node.reshape(-1, 2), wanted.node)
    np.testing.assert_array_equal(stop([p[3] for p in levels], tree, 0.6).node, wanted.node[3])


@trees
def test_a_right_answer_stays_right(tree):
    """As the threshold rises, answers move up, and are right exactly from the critical value on."""
    levels = draw(tree, agree=True, n=200)
    labels = labels_for(levels, tree)
    climb = climb_paths(levels, tree)
    critical = critical_values(climb, labels, tree)
    paths = [set(path_of(tree, *tree.cut(tree.num_levels - 1)[y].tolist())) for y in labels]
    depth = np.full(200, tree.num_levels)
    values = np.unique(np.concatenate([*climb.probability, [0.0, 1.0]]))
    thresholds = np.concatenate([values, np.nextafter(values, 2)])
    for threshold in np.sort(thresholds)[:: max(1, len(thresholds) // 300)]:
        node = stop_climb(climb, tree, threshold).node
        right = [y == (-1, 0) or y in path for y, path in zip(map(tuple, node), paths, strict=True)]
        np.testing.assert_array_equal(right, threshold > critical)
        assert (node[:, 0] <= depth).all()
        depth = node[:, 0]
    assert 0 < np.isneginf(critical).mean() < 1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_thresholds_are_exact_in_every_dtype(dtype):
    """θ is the very next number above a critical value: the answer changes there, and not before.

    Numbers of float16 are computed on as float32.
    """
    levels = [p.astype(dtype) for p in draw(TWO, agree=True, n=300)]
    labels = labels_for(levels, TWO)
    climb = climb_paths(levels, TWO)
    own = np.promote_types(dtype, np.float32)
    assert climb.probability.dtype == own
    critical = critical_values(climb, labels, TWO)
    k = order_statistic(300, 0.9)
    value = np.sort(critical)[k - 1]
    threshold = calibrate_threshold(levels, labels, TWO, 0.9)
    assert own.type(threshold) == threshold > value
    assert np.nextafter(own.type(threshold), own.type(0)) == value
    at, below = (stop(levels, TWO, t) for t in (threshold, float(value)))
    row = int(np.flatnonzero(critical == value)[0])
    assert at.node[row, 0] < below.node[row, 0]
    # A threshold with more digits than the dtype has is not rounded down.
    assert float(round_up(float(value) + 1e-12, np.float32)) >= float(value) + 1e-12


def test_rounding_cannot_break_the_order():
    """A class that rounding makes less probable than one below it counts as probable as that."""
    tree = make([[0, 0, 1]])
    up, down = np.float32(0.75), np.nextafter(np.float32(0.75), np.float32(0))
    levels = [np.array([[down, 0.25]], np.float32), np.array([[up, 0, 0.25]], np.float32)]
    climb = climb_paths(levels, tree)
    assert climb.probability.tolist() == [[0.75, 0.75]]
    critical = critical_values(climb, [2], tree)  # both the leaf and its parent are wrong
    assert critical.tolist() == [0.75]
    for threshold, node in ((float(up), [1, 0]), (np.nextafter(up, np.float32(1)), [-1, 0])):
        assert stop(levels, tree, threshold).node.tolist() == [node]
    # And a sum slightly above 1 needs a threshold above it: the root answers at any.
    above = np.nextafter(np.float32(1), np.float32(2))
    certain = [np.array([[above, 0]], np.float32), np.array([[1, 0, 0]], np.float32)]
    wrong = critical_values(climb_paths(certain, tree), [2], tree)
    threshold = threshold_above(np.repeat(wrong, 9), 0.5)
    assert threshold > above
    assert stop(certain, tree, threshold).node.tolist() == [[-1, 0]]


def test_adapted_float32_levels_are_accepted():
    """What the rules return in float32 agrees closely enough."""
    rng = np.random.default_rng(0)
    tree = make([rng.permutation(np.arange(300) % 20)])
    levels = [rng.dirichlet(np.full(n, 0.02), 50).astype(np.float32) for n in tree.sizes]
    for name in ("kl", "product_of_experts"):
        adapted = [np.asarray(p) for p in RULES[name].target(levels, tree)]
        assert (stop(adapted, tree, 0.9).probability >= 0.9).all()


def make_critical(n=20_000, seed=0):
    """Critical values of made-up samples, whose probabilities are far from calibrated."""
    tree = make([[0, 0, 1, 1, 2, 2], np.arange(18) % 6])
    levels = draw(tree, agree=True, n=n, seed=seed)
    labels = labels_for(levels, tree, seed)
    return critical_values(climb_paths(levels, tree), labels, tree)


@pytest.mark.parametrize(("target", "n"), [(0.75, 37), (0.9, 100)])
def test_the_guarantee_on_average(target, n):
    """Over 3,000 random splits, answers on the other part are right `target` of the time or more.

    The mean lies between ⌈(n+1)t⌉/(n+1) and, as ties are few, little above it: the bound is tight.
    """
    critical, rng = make_critical(600), np.random.default_rng(1)
    rates = []
    for _ in range(3000):
        order = rng.permutation(len(critical))
        threshold = threshold_above(critical[order[:n]], target)
        rates.append(np.mean(critical[order[n:]] < threshold))
    error = np.std(rates) / np.sqrt(len(rates))
    wanted = order_statistic(n, target) / (n + 1)
    assert target <= wanted < target + 1 / n
    assert wanted - 3 * error < np.mean(rates) < wanted + 3 * error + 0.002


def test_the_guarantee_with_confidence():
    """Of 3,000 calibration sets, the share that misses its target is δ, and never much less.

    The first guarantee, which holds on average alone, misses far more often.
    """
    critical, rng = make_critical(), np.random.default_rng(2)
    target, delta, n = 0.85, 0.1, 200
    ordered, accuracy = np.sort(critical), {False: [], True: []}
    for _ in range(3000):
        drawn = critical[rng.integers(len(critical), size=n)]
        for sure, rates in accuracy.items():
            threshold = threshold_above(drawn, target, 1 - delta if sure else None)
            rates.append(np.searchsorted(ordered, threshold) / len(ordered))
    missed = {sure: np.mean(np.array(rates) < target) for sure, rates in accuracy.items()}
    exact = stats.binom.sf(order_statistic(n, target, 1 - delta) - 1, n, target)
    assert exact <= delta
    assert exact - 0.02 < missed[True] < delta + 3 * np.sqrt(delta * (1 - delta) / 3000)
    assert missed[False] > 3 * delta


@pytest.mark.parametrize("target", [0.5, 0.7, 0.9, 0.99])
@pytest.mark.parametrize("confidence", [None, 0.8, 0.95])
def test_order_statistic_is_the_smallest_that_holds(target, confidence):
    """k satisfies its inequality and k - 1 does not; an error names the least n that has one."""

    def holds(n, k):
        if confidence is None:
            return k >= (n + 1) * target - 1e-9
        return stats.binom.sf(k - 1, n, target) <= (1 - confidence) * (1 + 1e-9)

    smallest = next(n for n in range(1, 1000) if holds(n, n))
    for n in (smallest, smallest + 1, 500, 1234):
        k = order_statistic(n, target, confidence)
        assert 1 <= k <= n
        assert holds(n, k)
        assert not holds(n, k - 1)
    if smallest > 1:
        with pytest.raises(StoppingError, match=f"needs at least {smallest};"):
            order_statistic(smallest - 1, target, confidence)


@pytest.mark.parametrize("bad", [0, 1, -0.5, 90, np.nan])
def test_targets_out_of_range(bad):
    """Accuracy and confidence are shares between 0 and 1."""
    with pytest.raises(ValueError, match="accuracy must lie between 0 and 1"):
        order_statistic(100, bad)
    with pytest.raises(ValueError, match="confidence must lie between 0 and 1"):
        order_statistic(100, 0.9, bad)


def test_one_level_is_a_leaf_or_the_root():
    """Of a single level, a sample is answered or it is not; at a threshold of 0 it always is."""
    tree = TREES["one level"]
    levels = draw(tree, agree=True)
    answers = stop(levels, tree, 0.7)
    sure = levels[0].max(axis=1) >= 0.7
    np.testing.assert_array_equal(answers.node[:, 0], np.where(sure, 0, -1))
    np.testing.assert_array_equal(answers.node[sure, 1], levels[0][sure].argmax(axis=1))
    labels = labels_for(levels, tree)
    climb = climb_paths(levels, tree)
    a, b = risk_coverage(climb, labels, tree), flat_risk_coverage(climb, labels, tree)
    np.testing.assert_array_equal(a.risk, b.risk)
    np.testing.assert_allclose(a.coverage, b.coverage)


def test_ties():
    """Equal critical values are exceeded together; where all are right, the threshold is 0."""
    critical = np.array([-np.inf, 0.5, 0.5, 0.5, 0.9])
    threshold = threshold_above(critical, 0.3)
    assert threshold == np.nextafter(0.5, 1)
    assert np.mean(critical < threshold) == 0.8
    assert threshold_above(np.full(9, -np.inf), 0.8) == 0


def test_labels_at_inner_nodes():
    """Such a label is right where the answer is it or above it; below it counts as wrong."""
    tree = make([[0, 0, 1, 1]])
    levels = [np.array([[0.8, 0.2]] * 4), np.array([[0.6, 0.2, 0.1, 0.1]] * 4)]
    climb = climb_paths(levels, tree)
    labels = [[1, 0], [0, 0], [0, 1], [-1, 0]]
    assert critical_values(climb, labels, tree).tolist() == [-np.inf, 0.6, 0.8, 0.8]
    with pytest.raises(ValueError, match="4 samples take as many labels; got 1"):
        critical_values(climb, [0], tree)


@trees
def test_risk_coverage_is_exact(tree):
    """At every threshold, risk and coverage are those of the answers there; the ends are known."""
    levels = draw(tree, agree=True, n=80)
    labels = labels_for(levels, tree)
    climb, nodes = climb_paths(levels, tree), nodes_of(tree)
    critical = critical_values(climb, labels, tree)
    curve = risk_coverage(climb, labels, tree)
    most = np.log2(tree.num_leaves)
    for threshold in [*curve.thresholds, *np.nextafter(curve.thresholds, 2)][::5]:
        answers = stop_climb(climb, tree, threshold)
        said = nodes.information[answer_nodes(answers.path, tree)]
        wanted = np.mean(critical >= threshold), said.mean() / most
        assert curve.at(threshold) == pytest.approx(wanted, abs=1e-9)
    assert (curve.risk[-1], curve.coverage[-1]) == (0, 0)
    assert curve.coverage[0] == pytest.approx(1)
    assert (np.diff(curve.risk) <= 0).all()
    assert (np.diff(curve.coverage) <= 1e-12).all()
    flat = flat_risk_coverage(climb, labels, tree)
    for threshold in THRESHOLDS:
        answered = climb.probability[:, -1] >= threshold
        wrong = answered & ~np.isneginf(critical)
        assert flat.at(threshold) == pytest.approx((wrong.mean(), answered.mean()), abs=1e-9)
    assert 0 <= curve.area <= curve.risk[0]


def test_area_by_hand():
    """Two samples: right with 0.9, wrong with 0.6. Points (1, ½), (½, 0), (0, 0): ⅛ below them."""
    tree = Hierarchy(("class",), (("a", "b"),), ())
    climb = climb_paths([np.array([[0.9, 0.1], [0.6, 0.4]])], tree)
    curve = risk_coverage(climb, [0, 1], tree)
    assert curve.thresholds.tolist() == [0.6, 0.9]
    assert (curve.risk.tolist(), curve.coverage.tolist()) == ([0.5, 0, 0], [1, 0.5, 0])
    assert curve.area == pytest.approx(1 / 8)


def test_incoherent_levels_are_refused():
    """Levels that do not agree, do not sum to 1, are negative or NaN are refused, with the row."""
    levels = draw(TWO, agree=True, n=5)
    cases = {
        r"row 3 .* levels 'level0' and 'level1' differ by 0.01 .* alpha = 1": (1, 3, 0.01),
        r"row 2 .* level 'level0' sums to 1.01": (0, 2, 0.01),
        r"row 1 .* sums to nan": (0, 1, np.nan),
        r"row 0 .* level 'level0' has -": (0, 0, -levels[0][0, 0] - 1e-4),
    }
    for message, (level, row, by) in cases.items():
        changed = [p.copy() for p in levels]
        changed[level][row, 0] += by
        if by < 0:
            changed[0][row, 1] -= by
        with pytest.raises(StoppingError, match=message):
            stop(changed, TWO, 0.5)
    with pytest.raises(StoppingError, match="agree"):
        calibrate_threshold(draw(TWO, agree=False), np.zeros(60, int), TWO, 0.9)
    with pytest.raises(ValueError, match="a threshold is not negative; got -0.1"):
        stop(levels, TWO, -0.1)
