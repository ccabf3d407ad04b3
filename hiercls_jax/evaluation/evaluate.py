"""What adaptation did: errors of every level against alpha, as numbers, a table and figures."""

import numpy as np

from hiercls_jax import metrics
from hiercls_jax.adaptation.alpha import alpha_search, bootstrap_interval
from hiercls_jax.adaptation.error_curve import error_curves
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import Hierarchy

POINTS = 401  # of the curve in the results; the curve itself is exact at each
RESAMPLES = 200  # of the bootstrap interval: a second for 5,000 images


def evaluate(splits: dict[str, Predictions], hierarchy: Hierarchy, rule: str = "kl") -> dict:
    """Tune alpha on validation, and measure every level on test before and after adaptation.

    Args:
      splits: `test`, and `validation` where one was held out; without it alpha is 1, as in the
        paper's own comparison.
      hierarchy: the levels.
      rule: how the levels are adapted, a key of `RULES`.

    Returns:
      `rule`; `alpha`, how it was chosen, and the 95 % bootstrap interval of the choice;
      `test_error` (in [0, 1]) by setting (`alpha=0`, `alpha=1`, the largest, `tuned`) and level;
      `validation_error` likewise; `curve` of test errors; `coherence_gap` between neighbouring
      levels and further `measures`, before adaptation and after, with the chosen alpha.
    """
    largest = min(RULES[rule].largest_alpha(hierarchy))
    evidence = {split: _evidence(p, hierarchy, rule) for split, p in splits.items()}
    if "validation" in splits:
        alpha = alpha_search(*evidence["validation"], largest=largest).alpha
        interval = bootstrap_interval(*evidence["validation"], largest=largest, resamples=RESAMPLES)
        chosen = {"alpha_chosen_on": "validation", "alpha_interval": list(interval)}
    else:
        alpha, chosen = 1.0, {"alpha_chosen_on": "nothing: no validation split, set to 1"}
    settings = {"alpha=0": 0.0, "alpha=1": 1.0, f"alpha={largest:g}": largest, "tuned": alpha}
    curves = {split: error_curves(*e, largest=largest) for split, e in evidence.items()}
    alphas = np.linspace(0, largest, POINTS)
    results = {
        "rule": rule,
        "alpha": alpha,
        **chosen,
        "curve": {"alpha": [round(a, 6) for a in alphas.tolist()]},
        "images": {split: len(next(iter(p.labels.values()))) for split, p in splits.items()},
    }
    for split, by_level in curves.items():
        results[f"{split}_error"] = {
            name: {v: float(curve(at)) for v, curve in zip(hierarchy.levels, by_level, strict=True)}
            for name, at in settings.items()
        }
    for level, curve in zip(hierarchy.levels, curves["test"], strict=True):
        results["curve"][f"test_error_{level}"] = curve(alphas).tolist()
    before, after = adapted(splits["test"], hierarchy, alpha, rule)
    results["coherence_gap"] = {
        "before": _gaps(before, hierarchy),
        "after": _gaps(after, hierarchy),
    }
    labels = list(splits["test"].labels.values())
    results["measures"] = {
        "before": _measures(before, labels, hierarchy),
        "after": _measures(after, labels, hierarchy),
    }
    return results


def _measures(probs: list, labels: list, hierarchy: Hierarchy) -> dict:
    """Return what else there is to know of test predictions: by level, and of the tree."""
    return {
        level: {
            "top5_error": metrics.topk_error(p, y, min(5, p.shape[1])),
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


def _evidence(predictions: Predictions, hierarchy: Hierarchy, rule: str) -> tuple[list, list, list]:
    """Return what the exact curve is made of: probabilities, their target, labels, by level."""
    return (*adapted(predictions, hierarchy, 1.0, rule), list(predictions.labels.values()))


def adapted(
    predictions: Predictions, hierarchy: Hierarchy, alpha: float, rule: str = "kl"
) -> tuple[list, list]:
    """Return every level's probabilities before and after adaptation by a rule of `RULES`."""
    before = list(predictions.probs.values())
    return before, [np.asarray(p) for p in RULES[rule].adjust(before, hierarchy, alpha)]


def _gaps(probs, hierarchy: Hierarchy) -> dict[str, float]:
    pairs = zip(hierarchy.levels, hierarchy.levels[1:], strict=False)
    return {
        f"{upper}/{lower}": metrics.coherence_gap(probs[i], probs[i + 1], hierarchy.parents[i])
        for i, (upper, lower) in enumerate(pairs)
    }
