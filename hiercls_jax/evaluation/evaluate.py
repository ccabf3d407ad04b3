"""Evaluate one run: choose alpha on validation, and measure every level on test."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from hiercls_jax import metrics
from hiercls_jax.adaptation.alpha import alpha_search, bootstrap_interval
from hiercls_jax.adaptation.error_curve import StepFunction, error_curves
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.evaluation.decisions import decide_all, measure_decisions
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import Hierarchy

CURVE_POINTS = 401  # alphas of the curve in the results, which is exact at each of them
RESAMPLES = 200  # of the bootstrap interval: a second for 5,000 images
T = TypeVar("T")


def evaluate(
    splits: Mapping[str, Predictions], hierarchy: Hierarchy, rule: str = "kl"
) -> dict[str, Any]:
    """Choose alpha on validation, and measure every level on test before and after adaptation.

    Args:
      splits: `test`, and `validation` if one was held out; without it alpha is 1, as in the paper's
        own comparison.
      hierarchy: the levels.
      rule: the rule to adapt by, a key of `RULES`.

    Returns:
      In JSON's types: `rule`; `alpha`, how it was chosen, and the 95 % interval of the choice;
      `test_error` (in [0, 1]) by setting (`alpha=0`, `alpha=1`, the largest alpha, `tuned`) and
      level; `validation_error` likewise; `curve` of test errors; `coherence_gap` between
      neighbouring levels, further `measures`, and those of all `decisions`, each before adaptation
      and after it with the chosen alpha.
    """
    largest = min(RULES[rule].largest_alpha(hierarchy))
    scores = {split: _scores(p, hierarchy, rule) for split, p in splits.items()}
    if "validation" in splits:
        alpha = alpha_search(*scores["validation"], largest=largest).alpha
        interval = bootstrap_interval(*scores["validation"], largest=largest, resamples=RESAMPLES)
        chosen = {"alpha_chosen_on": "validation", "alpha_interval": list(interval)}
    else:
        alpha, chosen = 1.0, {"alpha_chosen_on": "nothing: no validation split, set to 1"}
    curves = {split: error_curves(*of, largest=largest) for split, of in scores.items()}
    before, after = adapted(splits["test"], hierarchy, alpha, rule)
    labels = list(splits["test"].labels.values())
    return {
        "rule": rule,
        "alpha": alpha,
        **chosen,
        "curve": sample_curves(curves["test"], hierarchy),
        "images": {split: len(next(iter(p.labels.values()))) for split, p in splits.items()},
        **{
            f"{split}_error": errors_at_settings(of, hierarchy, alpha)
            for split, of in curves.items()
        },
        "coherence_gap": {
            "before": metrics.coherence_gaps(before, hierarchy),
            "after": metrics.coherence_gaps(after, hierarchy),
        },
        "measures": {
            "before": _measures(before, labels, hierarchy),
            "after": _measures(after, labels, hierarchy),
        },
        "decisions": {
            when: measure_decisions(decide_all(probs, hierarchy), labels[-1], hierarchy)
            for when, probs in (("before", before), ("after", after))
        },
    }


def errors_at_settings(
    curves: Sequence[StepFunction], hierarchy: Hierarchy, alpha: float, name: str = "tuned"
) -> dict[str, dict[str, float]]:
    """Return each level's error at alpha 0, 1, the largest, and the chosen one.

    Args:
      curves: the error of each level.
      hierarchy: the levels.
      alpha: the chosen alpha.
      name: what it is called.

    Returns:
      Errors in [0, 1] by setting, by level.
    """
    largest = curves[0].largest
    settings = {"alpha=0": 0.0, "alpha=1": 1.0, f"alpha={largest:g}": largest, name: alpha}
    return {
        setting: by_level(hierarchy, (float(curve(at)) for curve in curves))
        for setting, at in settings.items()
    }


def sample_curves(curves: Sequence[StepFunction], hierarchy: Hierarchy) -> dict[str, list[float]]:
    """Return `alpha` from 0 to the largest at equal distances, and `test_error_<level>` there."""
    alphas = np.linspace(0, curves[0].largest, CURVE_POINTS)
    errors = zip(hierarchy.levels, curves, strict=True)
    return {
        "alpha": [round(alpha, 6) for alpha in alphas.tolist()],
        **{f"test_error_{level}": curve(alphas).tolist() for level, curve in errors},
    }


def by_level(hierarchy: Hierarchy, values: Iterable[T]) -> dict[str, T]:
    """Return one value per level as a dict by the level's name."""
    return dict(zip(hierarchy.levels, values, strict=True))


def adapted(
    predictions: Predictions, hierarchy: Hierarchy, alpha: float, rule: str = "kl"
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return every level's probabilities before and after adaptation by a rule of `RULES`.

    Returns:
      Twice L arrays `[N, N_l]`.
    """
    before = list(predictions.probs.values())
    return before, [np.asarray(p) for p in RULES[rule].adjust(before, hierarchy, alpha)]


def _scores(
    predictions: Predictions, hierarchy: Hierarchy, rule: str
) -> tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]:
    """Return each level's probabilities at alpha 0 and 1, and its labels."""
    return (*adapted(predictions, hierarchy, 1.0, rule), list(predictions.labels.values()))


def _measures(
    probs: Sequence[np.ndarray], labels: Sequence[np.ndarray], hierarchy: Hierarchy
) -> dict[str, Any]:
    """Return further measures of each level, and those of the whole tree."""
    return {
        level: {
            # Of at most five classes the five most probable are all.
            **({"top5_error": metrics.topk_error(p, y, 5)} if p.shape[1] > 5 else {}),
            "negative_log_likelihood": metrics.negative_log_likelihood(p, y),
            "expected_calibration_error": metrics.expected_calibration_error(p, y),
            "brier_score": metrics.brier_score(p, y),
        }
        for level, p, y in zip(hierarchy.levels, probs, labels, strict=True)
    } | {
        "consistency_rate": metrics.consistency_rate(probs, hierarchy),
        "mistake_severity": metrics.mistake_severity(
            probs[-1].argmax(axis=1), labels[-1], hierarchy
        ),
    }
