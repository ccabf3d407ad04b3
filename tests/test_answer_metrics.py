"""Measures of answers on any level: against hiclass, and against sets of ancestors.

Tolerance: a few dozen terms of float64 are summed in another order (CLOSE).
"""

import warnings

import hiclass.metrics
import numpy as np
import pytest
from test_answers import TREES, everything, leaves_below, path_of

from hiercls_jax.metrics import (
    answer_accuracy,
    hierarchical_scores,
    mean_information,
    path_accuracy,
    path_scores,
)

CLOSE = 1e-12
trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES)
averages = pytest.mark.parametrize("average", ["micro", "macro"])
NAMES = ("precision", "recall", "f1")


def draw(tree, n=40, seed=0, root=True):
    """Two arrays of nodes `[n, 2]` on all levels; the root only among the first."""
    rng, nodes = np.random.default_rng(seed), np.array(everything(tree))
    predicted = nodes[rng.integers(0 if root else 1, len(nodes), n)]
    labels = nodes[rng.integers(1, len(nodes), n)]
    return np.where(rng.random((n, 1)) < 0.3, labels, predicted), labels


def sets(tree, nodes):
    """The classes from the first level to each node, without the root."""
    return [set(path_of(tree, level, i)) for level, i in nodes.tolist()]


def by_sets(tree, predicted, labels, average, size, zero_division=0.0):
    """Scores by the sets of ancestors."""
    pairs = list(zip(sets(tree, predicted), sets(tree, labels), strict=True))
    sums = np.array([(size(a & b), size(a), size(b)) for a, b in pairs])
    if average == "micro":
        sums = sums.sum(axis=0, keepdims=True)
    scores = [
        (
            c / a if a else zero_division,
            c / b if b else zero_division,
            2 * c / (a + b) if c else zero_division,
        )
        for c, a, b in sums
    ]
    return dict(zip(NAMES, np.mean(scores, axis=0), strict=True))


@trees
@averages
@pytest.mark.parametrize("zero_division", [0.0, 1.0, np.nan])
def test_scores_are_those_of_sets(tree, average, zero_division):
    """Answers and labels on any level are compared as sets of ancestors; the root is empty."""
    predicted, labels = draw(tree)
    options = {"average": average, "zero_division": zero_division}
    wanted = by_sets(tree, predicted, labels, average, len, zero_division)
    assert hierarchical_scores(predicted, labels, tree, **options) == pytest.approx(
        wanted, rel=CLOSE, nan_ok=True
    )


@trees
@averages
def test_scores_by_information(tree, average):
    """The size of a set of ancestors is what its lowest class says about the leaf, in bits."""

    def bits(path):
        below = len(leaves_below(tree, *max(path, default=(-1, 0))))
        return np.log2(tree.num_leaves / below)

    predicted, labels = draw(tree)
    ours = hierarchical_scores(predicted, labels, tree, average=average, measure="information")
    assert ours == pytest.approx(by_sets(tree, predicted, labels, average, bits), rel=CLOSE)


def of_hiclass(labels, predicted, average, zero_division):
    """The three scores of hiclass; it fails for 0.0 with macro, for which "warn" stands there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "precision": hiclass.metrics.precision(labels, predicted, average),
            "recall": hiclass.metrics.recall(labels, predicted, average),
            "f1": hiclass.metrics.f1(labels, predicted, average, zero_division or "warn"),
        }


@averages
@pytest.mark.parametrize("zero_division", [0.0, 1.0, np.nan])
@pytest.mark.parametrize(
    ("labels", "predicted"),
    [
        ([["a", "b"], ["a", "c"], ["d", "e"]], [["a", "b"], ["d", "e"], ["d", "f"]]),
        ([[0, 1, 2], [3, 4, 5]], [[0, 1, 2], [6, 7, 8]]),
        ([[0, 1], [2, 3]], [[4, 5], [6, 7]]),
        ([["a"], ["b", "c"]], [["a", "d"], ["b"]]),
        ([["a", ""], ["b", "c"]], [["a", ""], ["b", ""]]),
        (np.array([["a", "a"], ["b", "c"]]), np.array([["a", "b"], ["c", "c"]])),
        ([1, 2, 3, 3], [1, 3, 3, 2]),
        (np.array([1, 2]), np.array([2, 2])),
        ([[1.0, 2.0], [1.0, 3.0]], [[1.0, 2.0], [4.0, 5.0]]),
    ],
)
def test_path_scores_are_hiclass(labels, predicted, average, zero_division):
    """Every kind of table that hiclass takes for one label per sample gives its numbers."""
    ours = path_scores(predicted, labels, average=average, zero_division=zero_division)
    wanted = of_hiclass(labels, predicted, average, zero_division)
    assert ours == pytest.approx(wanted, rel=CLOSE, nan_ok=True)


@trees
@averages
def test_tables_and_nodes_agree_with_hiclass(tree, average):
    """Nodes and the names on their paths have the same scores, which are those of hiclass."""
    predicted, labels = draw(tree, root=False, seed=1)

    def table(nodes):
        return [[f"{x}" for x in path_of(tree, level, i)] for level, i in nodes.tolist()]

    ours = path_scores(table(predicted), table(labels), average=average)
    assert hierarchical_scores(predicted, labels, tree, average=average) == pytest.approx(ours)
    assert ours == pytest.approx(of_hiclass(table(labels), table(predicted), average, 0.0))


@trees
def test_accuracy_and_information_of_answers(tree):
    """An answer is right if it is the label or above it, and says log(K / leaves below it)."""
    predicted, labels = draw(tree)
    above = zip(sets(tree, predicted), sets(tree, labels), strict=True)
    assert answer_accuracy(predicted, labels, tree) == np.mean([a <= b for a, b in above])
    below = [len(leaves_below(tree, level, i)) for level, i in predicted.tolist()]
    said = 1 - np.log(below) / np.log(tree.num_leaves)
    assert mean_information(predicted, tree) == pytest.approx(said.mean(), rel=CLOSE)
    leaves = np.arange(tree.num_leaves)
    assert mean_information(leaves, tree) == pytest.approx(1)
    assert answer_accuracy(np.tile([-1, 0], (len(leaves), 1)), leaves, tree) == 1


def test_path_accuracy():
    """A sample is right if all its levels are; levels that contradict each other never all are."""
    labels = np.array([[0, 1], [1, 2], [0, 0]])
    assert path_accuracy(labels, labels) == 1
    assert path_accuracy([[0, 1], [0, 2], [0, 1]], labels) == 1 / 3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: hierarchical_scores([0], [0], t, average="mean"), "allowed are 'micro' and"),
        (lambda t: hierarchical_scores([0], [0], t, measure="depth"), "'classes', 'information'"),
        (lambda t: hierarchical_scores([0], [0, 1], t), r"N > 0; got \[1\] and \[2\]"),
        (lambda t: hierarchical_scores(0, 0, t), r"got \[\] and \[\]"),
        (lambda t: answer_accuracy([[9, 0]], [0], t), r"allowed are levels 0 to 1"),
        (lambda t: mean_information(np.zeros((0, 2), int), t), "there are no answers"),
        (lambda t: path_accuracy([[0]], [[0, 1]]), r"got \[1, 1\] and \[1, 2\]"),
        (lambda t: path_scores([["a"]], [["a"], ["b"]]), "got 1 and 2"),
        (lambda t: path_scores([], []), "N > 0"),
    ],
)
def test_wrong_arguments(call, message):
    """A ValueError names what was given and what is allowed."""
    with pytest.raises(ValueError, match=message):
        call(TREES["two levels"])
