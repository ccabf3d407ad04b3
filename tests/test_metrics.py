"""Metrics by hand, against loops, against scikit-learn, and those of trees against hiclass.

Tolerance: sums are in float64, so 1e-12 leaves room for a thousand roundings; probabilities drawn
as float32 are exact numbers to both sides.
"""

import math
from functools import cache

import hiclass.metrics
import numpy as np
import pytest
import sklearn.metrics

from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics import (
    PROBABILITY_FLOOR,
    brier_score,
    child_sums,
    coherence_gap,
    coherence_gaps,
    consistency_rate,
    expected_calibration_error,
    hierarchical_distance,
    hierarchical_scores,
    lca_height,
    mistake_severity,
    negative_log_likelihood,
    reliability,
    topk_error,
)

CLOSE = 1e-12
seeds = pytest.mark.parametrize("seed", range(8))


def random_tree(seed, ragged=False):
    """A tree of 2 to 4 levels; if `ragged`, 3 in 4 classes above the last level have children."""
    rng = np.random.default_rng(seed)
    sizes = [int(rng.integers(2, 5))]
    parents = []
    for _ in range(int(rng.integers(1, 4))):
        inner = np.flatnonzero(rng.random(sizes[-1]) < 0.75) if ragged else np.arange(sizes[-1])
        inner = inner if len(inner) else np.arange(1)
        ids = np.concatenate([inner, rng.choice(inner, int(rng.integers(0, 5)))])
        parents.append(rng.permutation(ids))
        sizes.append(len(ids))
    return tree(sizes, parents)


def tree(sizes, parents):
    """A hierarchy whose classes are named for their level and index."""
    names = [[f"{level}/{i}" for i in range(size)] for level, size in enumerate(sizes)]
    return Hierarchy([f"level{i}" for i in range(len(sizes))], names, parents, ragged=True)


def path(hierarchy, leaf):
    """The classes from the first level down to a leaf, (level, index) each."""
    level, i = (int(x) for x in hierarchy.cut(-1)[leaf])
    nodes = [(level, i)]
    while level:
        level, i = level - 1, int(hierarchy.parents[level - 1][i])
        nodes.insert(0, (level, i))
    return nodes


def node_height(hierarchy, nodes):
    """Height of the last of `nodes`, or of the root if it is empty: the longest path to a leaf."""
    below = [p[len(nodes) :] for p in paths(hierarchy) if p[: len(nodes)] == nodes]
    return max(map(len, below))


@cache
def paths(hierarchy):
    """The path of every leaf."""
    return [path(hierarchy, leaf) for leaf in range(hierarchy.num_leaves)]


def heights_by_paths(hierarchy):
    """Height of the LCA of every two leaves, `[K, K]`, straight from its definition."""

    def height(a, b):
        common = [x for x, y in zip(a, b, strict=False) if x == y]
        return node_height(hierarchy, common)

    return np.array([[height(a, b) for b in paths(hierarchy)] for a in paths(hierarchy)])


trees = pytest.mark.parametrize(
    "hierarchy",
    [random_tree(seed, ragged) for ragged in (False, True) for seed in range(8)]
    + [tree([1, 1, 2], [[0], [0, 0]]), tree([3], []), tree([2, 1], [[1]])],
    ids=lambda h: f"{'ragged' if h.ragged else 'full'}{list(h.sizes)}",
)


def draw(hierarchy, seed=0, n=40):
    """Leaf scores with ties `[n, K]`, and labels `[n]` that they often hit."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, hierarchy.num_leaves, n)
    scores = rng.integers(0, 4, (n, hierarchy.num_leaves)).astype(np.float32)
    scores[np.arange(n), labels] += rng.integers(0, 3, n)
    return scores, labels


def ranked(scores, k):
    """The k best classes of a row: highest first, of equal ones the lowest index first."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:k]


# One level.


@seeds
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_topk_error_is_by_rank_with_the_lowest_index_first(seed, k):
    """A label counts as found where it is among the k best, tied classes by index; k = K finds all.

    For k = 1 that is argmax.
    """
    scores, labels = draw(tree([6], []), seed)
    wrong = [y not in ranked(row, k) for row, y in zip(scores, labels, strict=True)]
    assert topk_error(scores, labels, k) == np.mean(wrong)
    assert topk_error(scores, labels, 1) == np.mean(scores.argmax(1) != labels)
    assert topk_error(scores, labels, 6) == 0


def probabilities(seed, n=60, k=5):
    """Probabilities float32 `[n, k]`, and labels `[n]` among which every class occurs."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(k), n).astype(np.float32), rng.permutation(np.arange(n) % k)


@seeds
def test_likelihood_and_brier_score_are_scikit_learns(seed):
    """NLL is scikit-learn's log loss, and the Brier score its sum over one-against-all scores."""
    probs, labels = probabilities(seed)
    own = probs[np.arange(len(labels)), labels].astype(float)
    np.testing.assert_allclose(
        negative_log_likelihood(probs, labels), -np.log(own).mean(), rtol=CLOSE
    )
    exact = probs.astype(float) / probs.astype(float).sum(1, keepdims=True)  # sums to 1 as asked
    wanted = sklearn.metrics.log_loss(labels, exact)
    np.testing.assert_allclose(negative_log_likelihood(exact, labels), wanted, rtol=CLOSE)
    by_class = [sklearn.metrics.brier_score_loss(labels == k, exact[:, k]) for k in range(5)]
    np.testing.assert_allclose(brier_score(exact, labels), sum(by_class), rtol=CLOSE)


def test_likelihood_and_brier_score_by_hand():
    """Labels with 1/2 and 1/4: ln 8 / 2 nats; squares 1/4 + 1/4 and 9/16 + 9/16 halved.

    A probability of 0 costs what the floor costs, and the worst Brier score is 2.
    """
    probs, labels = [[0.5, 0.5], [0.75, 0.25]], [0, 1]
    assert negative_log_likelihood(probs, labels) == pytest.approx(math.log(8) / 2, rel=CLOSE)
    assert brier_score(probs, labels) == 13 / 16
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == -math.log(PROBABILITY_FLOOR)
    assert brier_score([[1.0, 0.0]], [1]) == 2
    assert brier_score([[1.0, 0.0]], [0]) == negative_log_likelihood([[1.0, 0.0]], [0]) == 0


def test_reliability_by_hand():
    """Four samples in two of four bins, one of them on an edge, which belongs to the bin below.

    Confidences 0.5 | 0.8, 1, 0.9, the first right, of the others two: ECE is
    1/4 |1 - 0.5| + 3/4 |2/3 - 0.9| = 0.3.
    """
    probs = [[0.5, 0.5], [0.2, 0.8], [1.0, 0.0], [0.1, 0.9]]
    labels = [0, 1, 1, 1]
    confidence, accuracy, count = reliability(probs, labels, bins=4)
    np.testing.assert_allclose(confidence, [np.nan, 0.5, np.nan, 0.9], rtol=CLOSE)
    np.testing.assert_allclose(accuracy, [np.nan, 1, np.nan, 2 / 3], rtol=CLOSE)
    assert count.tolist() == [0, 1, 0, 3]
    assert expected_calibration_error(probs, labels, bins=4) == pytest.approx(0.3, rel=CLOSE)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_edges_belong_to_the_bin_below(dtype):
    """k/10 lies in bin k - 1 of 10 whether it is a float32 or a float64; so does 0 in the first."""
    confidence = (np.arange(11) / 10).astype(dtype)
    probs = np.stack([confidence, np.zeros_like(confidence)], axis=1)
    assert reliability(probs, np.zeros(11, int), bins=10).count.tolist() == [2] + [1] * 9


@seeds
def test_calibration_error_is_the_loop(seed):
    """ECE with the 15 bins of Guo et al. is their formula, looped; with one bin it is one gap."""
    probs, labels = probabilities(seed)
    confidence, right = probs.max(1).astype(float), probs.argmax(1) == labels
    wanted = 0.0
    for b in range(15):
        inside = (confidence > b / 15) & (confidence <= (b + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert expected_calibration_error(probs, labels) == pytest.approx(wanted, rel=CLOSE)
    one_bin = abs(right.mean() - confidence.mean())
    assert expected_calibration_error(probs, labels, 1) == pytest.approx(one_bin, rel=CLOSE)


def test_calibrated_probabilities_have_no_calibration_error():
    """The error is 0 if accuracy is confidence (3 of 4 at 0.75), 1 if sure answers are wrong."""
    assert expected_calibration_error([[0.75, 0.25]] * 4, [0, 0, 0, 1]) == 0
    assert expected_calibration_error([[1.0, 0.0]] * 4, [1] * 4) == 1


# Levels against each other.


@trees
def test_child_sums_and_gap_are_the_loop(hierarchy):
    """Q is the sum over each class's children, and the gap half the distance to it."""
    rng = np.random.default_rng(0)
    for level in range(hierarchy.num_levels - 1):
        parents = hierarchy.cut_parents(level)
        size = len(hierarchy.cut(level))
        lower = rng.random((3, len(parents)), np.float32)
        upper = rng.random((3, size), np.float32)
        wanted = np.zeros((3, size))
        for j, i in enumerate(parents):
            wanted[:, i] += lower[:, j]
        np.testing.assert_allclose(child_sums(lower, parents), wanted, rtol=CLOSE)
        gap = np.abs(upper - wanted).sum() / 6
        assert coherence_gap(upper, lower, parents) == pytest.approx(gap, rel=CLOSE)
        assert coherence_gap(wanted, lower, parents) == pytest.approx(0, abs=CLOSE)


def test_coherence_gaps_are_those_of_each_pair_of_cuts():
    """The gaps of a ragged tree have the names of their two levels."""
    hierarchy = random_tree(9, ragged=True)
    assert hierarchy.num_levels == 4
    rng = np.random.default_rng(0)
    cuts = [rng.dirichlet(np.ones(len(hierarchy.cut(i))), 5) for i in range(hierarchy.num_levels)]
    gaps = coherence_gaps(cuts, hierarchy)
    assert len(gaps) == hierarchy.num_levels - 1
    for i, (upper, lower) in enumerate(zip(hierarchy.levels, hierarchy.levels[1:], strict=False)):
        wanted = coherence_gap(cuts[i], cuts[i + 1], hierarchy.cut_parents(i))
        assert gaps[f"{upper}/{lower}"] == wanted > 0


def test_coherence_gap_by_hand():
    """Levels that disagree on 0.25 of the mass in one of two samples have a mean gap of 0.125."""
    upper, lower = [[0.75, 0.25], [0.5, 0.5]], [[0.25, 0.5, 0.25], [0.25, 0.5, 0.25]]
    assert coherence_gap(upper, lower, [0, 1, 0]) == 0.125


@trees
def test_consistency_rate_is_the_share_on_one_path(hierarchy):
    """Consistent samples are those whose classes, level by level, are some leaf's labels."""
    rng = np.random.default_rng(1)
    sizes = [len(hierarchy.cut(level)) for level in range(hierarchy.num_levels)]
    probs = [rng.random((50, size), np.float32) for size in sizes]
    labels = hierarchy.labels(np.arange(hierarchy.num_leaves))
    on_a_path = set(zip(*(ids.tolist() for ids in labels), strict=True))
    predicted = zip(*(p.argmax(1).tolist() for p in probs), strict=True)
    wanted = np.mean([classes in on_a_path for classes in predicted])
    assert consistency_rate(probs, hierarchy) == wanted
    certain = [np.eye(size)[ids] for size, ids in zip(sizes, labels, strict=True)]
    assert consistency_rate(certain, hierarchy) == 1


# Leaves in the tree.


@trees
def test_hierarchical_scores_are_hiclass(hierarchy):
    """Precision, recall and F1 are those of hiclass, on the names along each leaf's path."""
    scores, labels = draw(hierarchy)
    predicted = scores.argmax(1)
    blank = [""] * hierarchy.num_levels
    table = np.array([([f"{v}/{i}" for v, i in p] + blank)[: len(blank)] for p in paths(hierarchy)])
    ours = hierarchical_scores(predicted, labels, hierarchy)
    for name in ("precision", "recall", "f1"):
        wanted = getattr(hiclass.metrics, name)(table[labels], table[predicted])
        assert ours[name] == pytest.approx(wanted, rel=CLOSE)
    if not hierarchy.ragged:
        pairs = zip(hierarchy.labels(predicted), hierarchy.labels(labels), strict=True)
        accuracy = np.mean([np.mean(a == b) for a, b in pairs])
        assert list(ours.values()) == pytest.approx([accuracy] * 3, rel=CLOSE)


def ragged_example():
    """a ─ (c ─ (e, f), d) and b, leaves in the order e, f, b, d: the root has height 3."""
    names = (("a", "b"), ("c", "d"), ("e", "f"))
    return Hierarchy(("top", "middle", "bottom"), names, ([0, 0], [0, 0]), ragged=True)


def test_tree_metrics_by_hand():
    """In a ragged tree, for e → e, e → f, e → d, d → e, b → d (predicted → true).

    Paths are ace, acf, ad and b. Common classes: 3 + 2 + 1 + 1 + 0 = 7, of 3 + 3 + 3 + 2 + 1 = 12
    predicted and 3 + 3 + 2 + 3 + 2 = 13 true ones. Heights of the LCA: 0, c 1, a 2, a 2, root 3.
    """
    hierarchy = ragged_example()
    assert hierarchy.leaf_names == ("e", "f", "b", "d")
    predicted, labels = [0, 0, 0, 3, 2], [0, 1, 3, 0, 3]
    assert lca_height(predicted, labels, hierarchy).tolist() == [0, 1, 2, 2, 3]
    scores = hierarchical_scores(predicted, labels, hierarchy)
    assert scores == {"precision": 7 / 12, "recall": 7 / 13, "f1": 14 / 25}
    assert mistake_severity(predicted, labels, hierarchy) == 2
    assert mistake_severity([0, 3], [0, 3], hierarchy) is None
    certain = np.eye(4)[predicted]
    assert hierarchical_distance(certain, labels, hierarchy) == 8 / 5
    # Then e, or f where e was first: heights of (f, e), (f, f), (f, d), (e, e), (e, d).
    assert hierarchical_distance(certain, labels, hierarchy, k=2) == (8 + 1 + 0 + 2 + 0 + 2) / 10
    # All leaves whoever the label: from e 0 + 1 + 3 + 2, from f the same, from d 2 + 2 + 3 + 0.
    assert hierarchical_distance(certain, labels, hierarchy, k=4) == (3 * 6 + 2 * 7) / 20


@trees
def test_lca_heights_are_those_of_the_definition(hierarchy):
    """Heights by steps along a path are those of the LCA's longest path to a leaf, both ways."""
    leaves = np.arange(hierarchy.num_leaves)
    heights = lca_height(leaves[:, None], leaves, hierarchy)
    np.testing.assert_array_equal(heights, heights_by_paths(hierarchy))
    np.testing.assert_array_equal(heights, heights.T)
    if not hierarchy.ragged:
        labels = hierarchy.labels(leaves)
        np.testing.assert_array_equal(heights, sum(y[:, None] != y for y in labels))


@trees
@pytest.mark.parametrize("k", [1, 2])
def test_distances_are_the_loop(hierarchy, k):
    """Severity and distance@k average the heights of the LCA, one by one.

    Distance@1 is severity times error.
    """
    scores, labels = draw(hierarchy)
    k = min(k, hierarchy.num_leaves)
    heights = heights_by_paths(hierarchy)
    of_best = [heights[ranked(row, k), y].mean() for row, y in zip(scores, labels, strict=True)]
    distance = hierarchical_distance(scores, labels, hierarchy, k)
    assert distance == pytest.approx(np.mean(of_best), rel=CLOSE)
    severity = mistake_severity(scores.argmax(1), labels, hierarchy)
    error = topk_error(scores, labels)
    first = hierarchical_distance(scores, labels, hierarchy, 1)
    assert (severity or 0) * error == pytest.approx(first, rel=CLOSE)


# Errors.

PROBS = np.full((4, 4), 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: topk_error(PROBS, [0, 1]), r"\[N, K\] and labels \[N\].*got \[4, 4\] and \[2\]"),
        (lambda: topk_error(PROBS[0], [0] * 4), r"got \[4\] and \[4\]"),
        (lambda: topk_error(PROBS[:0], np.zeros(0, int)), "N and K > 0"),
        (lambda: topk_error(PROBS, [0, 1, 2, 4]), "label 4 is out of range.*classes 0 to 3"),
        (lambda: topk_error(PROBS, [0, 1, 2, -1]), "label -1 is out of range"),
        (lambda: topk_error(PROBS, [0.0, 1, 2, 3]), "integers, not float64"),
        (lambda: topk_error(PROBS, [0] * 4, 5), r"k must lie in \[1, 4\].*got 5"),
        (lambda: topk_error(PROBS, [0] * 4, 0), r"k must lie in \[1, 4\].*got 0"),
        (lambda: topk_error(PROBS * [1, 1, np.nan, 1], [0] * 4), r"probs\[0, 2\] is NaN"),
        (lambda: brier_score(PROBS, [0]), r"got \[4, 4\] and \[1\]"),
        (lambda: negative_log_likelihood(PROBS, [0]), r"got \[4, 4\] and \[1\]"),
        (lambda: reliability(PROBS, [0] * 4, bins=0), "bins must be at least 1, got 0"),
        (lambda: reliability(9 * PROBS, [0] * 4), r"these in \[2.25, 2.25\].*softmax"),
        (lambda: reliability(-PROBS, [0] * 4), r"these in \[-0.25, -0.25\].*softmax"),
        (lambda: child_sums(PROBS, [0, 1]), r"parents \[F\]; got \[4, 4\] and \[2\]"),
        (lambda: child_sums(PROBS, [0, 2, 2, 0]), "class 1 has no children"),
        (lambda: child_sums(PROBS, [0, -1, 1, 0]), "class 1 has id -1"),
        (lambda: coherence_gap(PROBS, PROBS, [0, 0, 1, 1]), r"\[4, 2\]; got \[4, 4\]"),
        (lambda: consistency_rate([PROBS], ragged_example()), "1 arrays for 3 levels"),
        (lambda: consistency_rate([PROBS] * 3, ragged_example()), r"\(4, 2\), \(4, 3\), \(4, 4\)"),
        (lambda: mistake_severity([0], [0, 1], ragged_example()), r"got \[1\] and \[2\]"),
        (lambda: mistake_severity([4], [0], ragged_example()), "label 4 is out of range"),
        (lambda: mistake_severity([0.5], [0], ragged_example()), "integers, not float64"),
        (lambda: hierarchical_scores([], [], ragged_example()), "N > 0"),
        (lambda: hierarchical_distance(PROBS[:, :3], [0] * 4, ragged_example()), "4 leaves"),
        (lambda: hierarchical_distance(PROBS, [0] * 4, ragged_example(), 5), "k must lie in"),
    ],
)
def test_wrong_arguments_are_refused(call, message):
    """A ValueError names the shape or value that was given, and what is allowed."""
    with pytest.raises(ValueError, match=message):
        call()
