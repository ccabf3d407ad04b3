"""How right each decision is: all of them, on the same samples."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hiercls_jax import metrics
from hiercls_jax.adaptation.answers import DECISIONS, answer_nodes
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import nodes_of


def decide_all(levels: Sequence[np.ndarray], hierarchy: Hierarchy) -> dict[str, np.ndarray]:
    """Return the answers of every decision, int32 `[N, L]` by its name.

    Args:
      levels: L arrays `[N, N_l]` of marginals.
      hierarchy: L levels.
    """
    return {name: np.asarray(decide(levels, hierarchy)) for name, decide in DECISIONS.items()}


def measure_decisions(
    answers: Mapping[str, np.ndarray], leaf_ids: np.ndarray, hierarchy: Hierarchy
) -> dict[str, dict[str, Any]]:
    """Return the measures of every decision, in JSON's types.

    Args:
      answers: int32 `[N, L]` by the name of the decision, as `decide_all` returns them.
      leaf_ids: integer `[N]`, the labels, N > 0.
      hierarchy: L levels.

    Returns:
      By decision: `error` by level, where no answer counts as an error; `path_accuracy`, the share
      that is right on every level; and, as an independent answer is no node of the tree, for the
      others alone `answer_accuracy`, `information`, and hierarchical `precision`, `recall`, `f1`.
    """
    labels = np.stack(hierarchy.labels(leaf_ids), axis=1)
    results: dict[str, dict[str, Any]] = {}
    for name, rows in answers.items():
        error = np.mean(rows != labels, axis=0).tolist()
        results[name] = {
            "error": dict(zip(hierarchy.levels, error, strict=True)),
            "path_accuracy": metrics.path_accuracy(rows, labels),
        }
        if name != "independent":
            nodes = nodes_of(hierarchy).pairs[answer_nodes(rows, hierarchy)]
            results[name] |= {
                "answer_accuracy": metrics.answer_accuracy(nodes, leaf_ids, hierarchy),
                "information": metrics.mean_information(nodes, hierarchy),
                **metrics.hierarchical_scores(nodes, leaf_ids, hierarchy),
            }
    return results


class Tally:
    """Collects the answers of every decision chunk by chunk, and measures them at the end.

    Args:
      chosen: bool `[N]`, the samples that count; at least one.
      leaf_ids: integer `[N]`, the labels.
      hierarchy: L levels.
    """

    def __init__(self, chosen: np.ndarray, leaf_ids: np.ndarray, hierarchy: Hierarchy) -> None:
        self._chosen, self._leaf_ids, self._hierarchy = chosen, leaf_ids, hierarchy
        shape = int(chosen.sum()), hierarchy.num_levels
        self._answers = {
            when: {name: np.empty(shape, np.int32) for name in DECISIONS}
            for when in ("before", "after")
        }
        self._count = 0  # samples decided so far

    def add(self, rows: slice, before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> None:
        """Decide for the rows of the next chunk, twice L arrays `[n, N_l]`."""
        here = self._chosen[rows]
        to = slice(self._count, self._count + int(here.sum()))
        for when, levels in (("before", before), ("after", after)):
            for name, answers in decide_all([p[here] for p in levels], self._hierarchy).items():
                self._answers[when][name][to] = answers
        self._count = to.stop

    def results(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Return the measures of every decision before and after; see `measure_decisions`."""
        leaf_ids = self._leaf_ids[self._chosen]
        return {
            when: measure_decisions(answers, leaf_ids, self._hierarchy)
            for when, answers in self._answers.items()
        }
