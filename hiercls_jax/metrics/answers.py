"""Measures of answers in the tree: hierarchical precision, recall and F1, and how much is said.

Answers and labels are nodes on any level: leaf ids `[N]`, or pairs (level, class) `[N, 2]`, as
`hiercls_jax.adaptation.stopping.stop` returns them, with (-1, 0) for the root.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import node_numbers, nodes_of
from hiercls_jax.metrics.checks import mean


def hierarchical_scores(
    predicted: ArrayLike,
    labels: ArrayLike,
    hierarchy: Hierarchy,
    *,
    average: str = "micro",
    zero_division: float = 0.0,
    measure: str = "classes",
) -> dict[str, float]:
    """Return hierarchical precision, recall and F1 of answers on any level.

    Each node stands for the set of itself and its ancestors without the root. Precision is
    |predicted ∩ true| / |predicted| and recall |predicted ∩ true| / |true|; F1 is their harmonic
    mean. For leaves of a full tree, counted by classes, all three are equal: the accuracy of the
    predicted leaves, averaged over the levels.

    Kiritchenko, Matwin and Famili, Functional Annotation of Genes Using Hierarchical Text
    Categorization (2005); Silla and Freitas, A survey of hierarchical classification across
    different application domains (Data Mining and Knowledge Discovery, 2011), Section 5. By
    information: Valmadre, Hierarchical classification at multiple operating points (NeurIPS 2022).

    Args:
      predicted: integer `[N]`, leaf ids, or `[N, 2]`, nodes (level, class).
      labels: the same of the truth.
      hierarchy: the tree.
      average: 'micro' sums both sides of each ratio over the samples first; 'macro' averages the
        ratios of the samples.
      zero_division: the value of a ratio of nothing, such as the precision of the root, and as in
        hiclass of F1 where nothing is common. NaN makes a mean NaN.
      measure: the size |·| of a set: 'classes' counts them; 'information' is what the node says
        about the leaf, log2(K / leaves below it), which weighs steps by how much they narrow down.

    Returns:
      `precision`, `recall` and `f1`.

    Raises:
      ValueError: for wrong shapes, nodes that are not in the tree, and unknown options.

    >>> animals = ("cat", "dog"), ("lynx", "lion", "pug")
    >>> pets = Hierarchy(("kind", "animal"), animals, ((0, 0, 1),))
    >>> answers, truth = [[0, 0], [1, 2]], [0, 0]  # cat for a lynx, and pug for a lynx
    >>> hierarchical_scores(answers, truth, pets)
    {'precision': 0.3333333333333333, 'recall': 0.25, 'f1': 0.2857142857142857}
    >>> hierarchical_scores(answers, truth, pets, average="macro")["precision"]
    0.5
    """
    sizes = {"classes": _depths, "information": lambda h: nodes_of(h).information}
    if measure not in sizes:
        raise ValueError(f"measure={measure!r}: allowed are {', '.join(map(repr, sizes))}")
    a, b = _numbers(predicted, labels, hierarchy)
    size = sizes[measure](hierarchy)
    return _scores(size[_common(a, b, hierarchy)], size[a], size[b], average, zero_division)


def path_scores(
    predicted: Sequence[Any] | np.ndarray,
    labels: Sequence[Any] | np.ndarray,
    *,
    average: str = "micro",
    zero_division: float = 0.0,
) -> dict[str, float]:
    """Return hierarchical precision, recall and F1 of tables of names, without a hierarchy.

    These are `hiclass.metrics.precision`, `recall` and `f1` for trees with one label per sample.

    Args:
      predicted: a row for each of N samples: the classes on its path, as names or numbers. Rows may
        have different lengths; an empty text is no class. A row that is one class may stand for
        itself.
      labels: the same of the truth.
      average, zero_division: as for `hierarchical_scores`.

    Returns:
      `precision`, `recall` and `f1`.

    Raises:
      ValueError: for different numbers of samples, none, and unknown options.

    >>> path_scores([["cat", "lynx"], ["cat"]], [["cat", "lion"], ["cat", "lion"]])
    {'precision': 0.6666666666666666, 'recall': 0.5, 'f1': 0.5714285714285714}
    """
    pairs = [
        (_classes(a), _classes(b)) for a, b in zip(_rows(predicted), _rows(labels), strict=False)
    ]
    if len(predicted) != len(labels) or not pairs:
        raise ValueError(
            f"predicted and labels have a row for each of N samples, N > 0; got {len(predicted)} "
            f"and {len(labels)}"
        )
    common, ours, theirs = np.array([(len(a & b), len(a), len(b)) for a, b in pairs]).T
    return _scores(common, ours, theirs, average, zero_division)


def path_accuracy(predicted: ArrayLike, labels: ArrayLike) -> float:
    """Return the share of samples that are right on every level.

    Args:
      predicted: integer `[N, L]`, N > 0: the class of each level, as the decisions of
        `hiercls_jax.adaptation.answers` return them.
      labels: integer `[N, L]`, such as `np.stack(hierarchy.labels(leaf_ids), axis=-1)`.

    >>> path_accuracy([[0, 1], [0, 2]], [[0, 1], [1, 2]])
    0.5
    """
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.shape != labels.shape or predicted.ndim != 2 or not predicted.size:
        raise ValueError(
            f"predicted and labels are [N, L], N > 0; got {list(predicted.shape)} and "
            f"{list(labels.shape)}"
        )
    return mean((predicted == labels).all(axis=1))


def answer_accuracy(predicted: ArrayLike, labels: ArrayLike, hierarchy: Hierarchy) -> float:
    """Return the share of answers that are right: the label, or a node above it.

    Arguments are those of `hierarchical_scores`. An answer below a label at an inner node counts as
    wrong.
    """
    a, b = _numbers(predicted, labels, hierarchy)
    return mean(_common(a, b, hierarchy) == a)


def mean_information(predicted: ArrayLike, hierarchy: Hierarchy) -> float:
    """Return how much answers say, as a share of what a leaf says, in [0, 1].

    The mean of log_K(K / leaves below the answer), for K leaves: 1 for leaves, 0 for the root. A
    tree of one leaf has nothing to say: 0.

    Args:
      predicted: integer `[N]`, leaf ids, or `[N, 2]`, nodes (level, class), N > 0.
      hierarchy: the tree.
    """
    numbers, nodes = node_numbers(predicted, hierarchy), nodes_of(hierarchy)
    if not len(numbers):
        raise ValueError("there are no answers; needed are N > 0")
    most = float(nodes.information.max())
    return min(mean(nodes.information[numbers]) / most, 1.0) if most else 0.0  # or a rounding more


def _scores(
    common: np.ndarray, predicted: np.ndarray, true: np.ndarray, average: str, zero_division: float
) -> dict[str, float]:
    """Return the scores of sets of these sizes, `[N]` each."""
    if average not in ("micro", "macro"):
        raise ValueError(f"average={average!r}: allowed are 'micro' and 'macro'")
    if average == "micro":
        common, predicted, true = (x.sum(keepdims=True) for x in (common, predicted, true))

    def ratio(a: np.ndarray, b: np.ndarray, where: np.ndarray) -> float:
        return mean(np.divide(a, b, out=np.full(len(a), float(zero_division)), where=where))

    return {
        "precision": ratio(common, predicted, predicted > 0),
        "recall": ratio(common, true, true > 0),
        "f1": ratio(2 * common, predicted + true, common > 0),
    }


def _numbers(
    predicted: ArrayLike, labels: ArrayLike, hierarchy: Hierarchy
) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers of the nodes after checking that there are equally many."""
    shapes = np.shape(predicted), np.shape(labels)
    if not all(map(len, shapes)) or shapes[0][0] != shapes[1][0] or not shapes[0][0]:
        raise ValueError(
            f"predicted and labels are [N] or [N, 2], N > 0; got {list(shapes[0])} and "
            f"{list(shapes[1])}"
        )
    return node_numbers(predicted, hierarchy), node_numbers(labels, hierarchy)


def _common(a: np.ndarray, b: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    """Return the lowest common ancestors of nodes, by number."""
    nodes = nodes_of(hierarchy)
    # The paths of two nodes agree from the top to it. Below itself, a node's path repeats it, which
    # is not on the other path unless both are the same node.
    agree = (nodes.paths[a] == nodes.paths[b]).sum(axis=1)
    paths = np.concatenate([np.full((len(a), 1), len(nodes.pairs) - 1), nodes.paths[a]], axis=1)
    return paths[np.arange(len(a)), agree]


def _depths(hierarchy: Hierarchy) -> np.ndarray:
    """Return the number of classes on the path of each node."""
    return nodes_of(hierarchy).levels + 1


def _rows(table: Any) -> Sequence[Any]:
    return table.tolist() if isinstance(table, np.ndarray) else table


def _classes(row: Any) -> set[Hashable]:
    row = row.tolist() if isinstance(row, np.ndarray) else row
    return set(row if isinstance(row, list | tuple) else [row]) - {""}
