"""The data of the page's section "Stop where sure": counts at every position of its slider."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from hiercls_jax.adaptation.stopping import (
    Climb,
    RiskCoverage,
    flat_risk_coverage,
    risk_coverage,
    round_up,
    wrong_nodes,
)
from hiercls_jax.evaluation.outcomes import SampleOutcomes
from hiercls_jax.evaluation.sure_answers import classes_above
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import nodes_of

STEPS = 100  # slider positions from 0 to 1
POINTS = 500  # drawn of a curve
EXAMPLES = 12


@dataclasses.dataclass(frozen=True, eq=False)
class PageAnswers:
    """The paths of the samples on a page, and the chosen threshold.

    Args:
      climb: of the page's N samples, at alpha = 1.
      threshold: where answers stop; None if none was chosen.
      chosen: how it was chosen, such as "calibrated on 300 other rows".
    """

    climb: Climb
    threshold: float | None = None
    chosen: str = ""


def collect_answers(
    answers: PageAnswers,
    outcomes: SampleOutcomes,
    hierarchy: Hierarchy,
    card: Callable[[int], dict[str, Any]],
    pack: Callable[[np.ndarray], dict[str, str]],
) -> dict[str, Any]:
    """Return what the section shows, in JSON's types.

    Args:
      answers: the paths of N samples.
      outcomes: of the same samples; labels count only if they are known.
      hierarchy: L levels.
      card: returns what a card shows of a sample besides its path, by its position.
      pack: encodes an array.

    Returns:
      By position of the slider: how many answers stop at the root and on each level, how many are
      wrong, and how much they say; the last two also by class of the level above the leaves. Then
      the curves of risk against coverage, and examples.
    """
    climb, labels = answers.climb, outcomes.leaf_ids
    nodes = nodes_of(hierarchy)
    grid = np.arange(STEPS + 1) / STEPS
    thresholds = grid if answers.threshold is None else np.union1d(grid, [answers.threshold])
    paths = nodes.paths[nodes.leaves][climb.leaf]
    paths = np.concatenate([np.full((len(paths), 1), len(nodes.pairs) - 1), paths], axis=1)
    said = nodes.information / (nodes.information.max() or 1)
    wrong = critical = None
    names: list[str] = []
    if outcomes.labelled:
        wrong = wrong_nodes(climb, labels, hierarchy)
        critical = np.where(wrong, climb.probability, -np.inf).max(axis=1)
        names, of = classes_above(labels, hierarchy)
        totals = np.bincount(of)
    at, errors, information = [], [], []
    class_errors, class_information = [], []
    for threshold in thresholds:
        limit = round_up(float(threshold), climb.probability.dtype)
        depth = (climb.probability >= limit).sum(axis=1)
        node = paths[np.arange(len(paths)), depth]
        at.append(np.bincount(nodes.levels[node] + 1, minlength=hierarchy.num_levels + 1))
        information.append(said[node].mean())
        if critical is not None:
            is_wrong = critical >= limit
            errors.append(is_wrong.sum())
            class_errors.append(np.bincount(of, is_wrong))
            class_information.append(np.bincount(of, said[node]) / totals)
    return {
        "thresholds": thresholds.tolist(),
        "chosen_at": None
        if answers.threshold is None
        else int(np.searchsorted(thresholds, answers.threshold)),
        "chosen": answers.chosen,
        "at": pack(np.array(at)),  # [position, level]
        "information": pack(np.array(information)),
        "wrong": pack(np.array(errors, int)) if errors else None,
        "classes": {
            "names": names,
            "totals": totals.tolist(),
            "wrong": pack(np.array(class_errors, int)),  # [position, class]
            "information": pack(np.array(class_information, float)),
        }
        if names
        else None,
        "curves": [
            _curve(curve(climb, labels, hierarchy), pack)
            for curve in (risk_coverage, flat_risk_coverage)
        ]
        if outcomes.labelled
        else None,
        "examples": _examples(climb, outcomes, hierarchy, card),
    }


def _curve(curve: RiskCoverage, pack: Callable[[np.ndarray], dict[str, str]]) -> dict[str, Any]:
    """Return a curve's steps; if they are many, some at about equal distances of coverage."""
    at = np.arange(len(curve.risk))
    if len(at) > POINTS:
        wanted = np.linspace(0, 1, POINTS)
        at = np.unique(len(at) - 1 - np.searchsorted(curve.coverage[::-1], wanted).clip(max=at[-1]))
    return {
        "coverage": pack(curve.coverage[at]),
        "risk": pack(curve.risk[at]),
        "area": curve.area,
    }


def _examples(
    climb: Climb,
    outcomes: SampleOutcomes,
    hierarchy: Hierarchy,
    card: Callable[[int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return samples of all degrees of sureness, the least sure first."""
    rows = nodes_of(hierarchy).rows[nodes_of(hierarchy).leaves]
    order = np.argsort(climb.probability[outcomes.rows, -1], kind="stable")
    chosen = np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)
    return [
        {
            **card(int(row)),
            "path": rows[climb.leaf[row]].tolist(),
            "p": climb.probability[row].tolist(),
        }
        for row in outcomes.rows[order[chosen]]
    ]
