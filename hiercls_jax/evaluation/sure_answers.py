"""Answers that stop where sure: a threshold that keeps a promise, and how it turned out."""

import dataclasses
from typing import Any

import numpy as np
from scipy import stats

from hiercls_jax.adaptation.stopping import (
    Climb,
    RiskCoverage,
    critical_values,
    flat_risk_coverage,
    risk_coverage,
    stop_climb,
    threshold_above,
)
from hiercls_jax.errors import UserError
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import node_names, node_numbers, nodes_of

CONFIDENCE = 0.95  # of the intervals of measured accuracies


@dataclasses.dataclass(frozen=True)
class Target:
    """How often answers shall be right.

    Args:
      accuracy: the share, in (0, 1).
      confidence: the share of calibration sets that shall keep it, in (0, 1); None for a promise on
        average.

    Raises:
      UserError: for a share outside (0, 1).
    """

    accuracy: float
    confidence: float | None = None

    def __post_init__(self) -> None:
        shares = ("target_accuracy", self.accuracy), ("confidence", self.confidence)
        for name, value in shares:
            if value is not None and not 0 < value < 1:
                raise UserError(
                    f"{name}={value:g}: allowed is a share between 0 and 1, such as 0.9"
                )

    def __str__(self) -> str:
        """Return the promise in words."""
        sure = self.confidence
        with_ = "on average" if sure is None else f"with {100 * sure:g} % confidence"
        return f"{100 * self.accuracy:g} % right, {with_}"


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledClimb:
    """Paths of samples with labels.

    Args:
      climb: N paths.
      leaf_ids: integer `[N]`.
      hierarchy: the tree.
    """

    climb: Climb
    leaf_ids: np.ndarray
    hierarchy: Hierarchy

    def select(self, rows: np.ndarray) -> "LabelledClimb":
        """Return some of the samples, by a bool or integer array."""
        return LabelledClimb(select(self.climb, rows), self.leaf_ids[rows], self.hierarchy)

    def threshold(self, target: Target) -> float:
        """Return the threshold that keeps a promise, calibrated on these samples.

        Raises:
          StoppingError: if they are too few.
        """
        critical = critical_values(self.climb, self.leaf_ids, self.hierarchy)
        return threshold_above(critical, target.accuracy, target.confidence)

    def flat_threshold(self, target: Target) -> float:
        """Return the same for answers that are a leaf or nothing."""
        critical = critical_values(self.climb, self.leaf_ids, self.hierarchy)
        leaf = self.climb.probability[:, -1]
        critical = np.where(np.isneginf(critical), critical, leaf)
        return threshold_above(critical, target.accuracy, target.confidence)

    def curves(self) -> tuple[RiskCoverage, RiskCoverage]:
        """Return risk against coverage, and that of answers that are a leaf or nothing."""
        of = self.climb, self.leaf_ids, self.hierarchy
        return risk_coverage(*of), flat_risk_coverage(*of)

    def results(self, threshold: float) -> dict[str, Any]:
        """Return how the answers at a threshold turned out, in JSON's types.

        Returns:
          `accuracy` with its 95 % interval (Clopper and Pearson, 1934); `information`, the share
          that the answers say of what leaves say; `answers_at`, the share of the answers on each
          level; and `by_class`, by the true class on the level above the leaves, the number of
          samples, accuracy and information, since an average hides poor classes.
        """
        nodes = nodes_of(self.hierarchy)
        critical = critical_values(self.climb, self.leaf_ids, self.hierarchy)
        answers = stop_climb(self.climb, self.hierarchy, threshold)
        right = critical < threshold
        most = nodes.information.max() or 1.0
        said = nodes.information[node_numbers(answers.node, self.hierarchy)] / most
        interval = stats.binomtest(int(right.sum()), len(right)).proportion_ci(CONFIDENCE)
        return {
            "accuracy": float(right.mean()),
            "accuracy_interval": [float(interval.low), float(interval.high)],
            "information": float(said.mean()),
            "answers_at": answers_at(answers.node, self.hierarchy),
            "by_class": self._by_class(right, said),
        }

    def _by_class(self, right: np.ndarray, said: np.ndarray) -> list[dict[str, Any]]:
        names, of = classes_above(self.leaf_ids, self.hierarchy)
        if not names:
            return []
        rows = np.bincount(of)
        columns = zip(names, rows, np.bincount(of, right), np.bincount(of, said), strict=True)
        return [
            {"class": name, "rows": int(n), "accuracy": float(a / n), "information": float(b / n)}
            for name, n, a, b in columns
        ]


def select(climb: Climb, rows: np.ndarray) -> Climb:
    """Return some of the paths, by a bool or integer array."""
    return Climb(climb.leaf[rows], climb.probability[rows])


def answers_at(node: np.ndarray, hierarchy: Hierarchy) -> dict[str, float]:
    """Return the share of answers on each level, the root's first."""
    count = np.bincount(node[:, 0] + 1, minlength=hierarchy.num_levels + 1)
    return dict(zip(("root", *hierarchy.levels), (count / len(node)).tolist(), strict=True))


def classes_above(leaf_ids: np.ndarray, hierarchy: Hierarchy) -> tuple[list[str], np.ndarray]:
    """Return the classes of the level above the last that have samples.

    Returns:
      The name of each class, or of each leaf above the last level, and the position among them of
      each sample's, integer `[N]`. No names for a tree of one level.
    """
    if hierarchy.num_levels < 2:
        return [], np.zeros(len(leaf_ids), int)
    nodes, names = nodes_of(hierarchy), node_names(hierarchy)
    of = nodes.paths[nodes.leaves[leaf_ids], hierarchy.num_levels - 2]
    found, position = np.unique(of, return_inverse=True)
    return [names[node] for node in found], position.reshape(-1)
