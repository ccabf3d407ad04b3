"""What adaptation did: errors of every level against alpha, as numbers, a table and figures."""

from functools import partial
from pathlib import Path

import numpy as np

from hiercls_jax.adaptation.alpha import GRID, error_curve, tune
from hiercls_jax.adaptation.tree import adjust_levels, largest_alpha
from hiercls_jax.evaluation import figures
from hiercls_jax.evaluation.metrics import coherence_gap
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import Hierarchy


def evaluate(splits: dict[str, Predictions], hierarchy: Hierarchy) -> dict:
    """Tune alpha on validation, and measure every level on test before and after adaptation.

    Args:
      splits: `test`, and `validation` where one was held out; without it alpha is 1, as in the
        paper's own comparison.
      hierarchy: the levels.

    Returns:
      `alpha` and how it was chosen; `test_error` (in [0, 1]) by setting (`alpha=0`, `alpha=1`,
      the largest alpha, `tuned`) and level; `validation_error` likewise; `curve` of test errors;
      `coherence_gap` between neighbouring levels before and after.
    """
    alphas = np.linspace(0, largest_alpha(hierarchy.num_levels), GRID)
    adapt = partial(_adapt, hierarchy)
    curves = {
        split: error_curve(
            adapt, list(predictions.probs.values()), list(predictions.labels.values()), alphas
        )
        for split, predictions in splits.items()
    }
    held_out = "validation" in splits
    alpha = tune(curves["validation"], alphas) if held_out else 1.0
    settings = {"alpha=0": 0.0, "alpha=1": 1.0, f"alpha={alphas[-1]:g}": alphas[-1], "tuned": alpha}
    results = {
        "alpha": alpha,
        "alpha_chosen_on": "validation" if held_out else "nothing: no validation split, set to 1",
        "curve": {"alpha": [round(a, 6) for a in alphas.tolist()]},
        "images": {split: len(next(iter(p.labels.values()))) for split, p in splits.items()},
    }
    for split, curve in curves.items():
        at = {name: curve[np.argmin(np.abs(alphas - value))] for name, value in settings.items()}
        results[f"{split}_error"] = {
            name: dict(zip(hierarchy.levels, errors.tolist(), strict=True))
            for name, errors in at.items()
        }
    for level, errors in zip(hierarchy.levels, curves["test"].T, strict=True):
        results["curve"][f"test_error_{level}"] = errors.tolist()
    before = list(splits["test"].probs.values())
    after = [np.asarray(p) for p in adapt(before, alpha)]
    results["coherence_gap"] = {
        "before": _gaps(before, hierarchy),
        "after": _gaps(after, hierarchy),
    }
    return results


def format_table(results: dict, hierarchy: Hierarchy) -> str:
    """Return test errors by level at each setting of alpha as an aligned table, in percent."""
    errors = results["test_error"]
    names = {name: name.replace("=", " = ") for name in errors}
    chosen = "tuned" if "validation_error" in results else "chosen"
    names["tuned"] = f"{chosen}, alpha = {results['alpha']:.2f}"
    width = max(map(len, names.values()))
    columns = [max(9, len(level)) for level in hierarchy.levels]
    head = "  ".join(f"{v:>{w}}" for v, w in zip(hierarchy.levels, columns, strict=True))
    lines = [f"{'test error, top-1':<{width}}  {head}"]
    for key, name in names.items():
        cells = (
            f"{100 * errors[key][level]:>{w - 2}.2f} %"
            for level, w in zip(hierarchy.levels, columns, strict=True)
        )
        lines.append(f"{name:<{width}}  {'  '.join(cells)}")
    return "\n".join(lines)


def draw(folder: Path, results: dict, test: Predictions, hierarchy: Hierarchy, title: str) -> None:
    """Write `alpha_curve` and `scatter` as `.png` and `.svg` into `folder`."""
    curve = results["curve"]
    errors = {level: curve[f"test_error_{level}"] for level in hierarchy.levels}
    tuned = results["alpha"] if "validation_error" in results else None
    figures.alpha_curve(folder / "alpha_curve", np.array(curve["alpha"]), errors, tuned, title)

    upper, lower = hierarchy.levels[-2:]
    parents = hierarchy.parents[-1]
    before = list(test.probs.values())
    after = [np.asarray(p) for p in _adapt(hierarchy, before, results["alpha"])]
    # The class whose two answers differ most: where there is most to see.
    shown = int(np.argmax(np.abs(before[-2] - _sum_children(before[-1], parents)).mean(axis=0)))
    figures.scatter(
        folder / "scatter",
        before[-2][:, shown],
        _sum_children(before[-1], parents)[:, shown],
        after[-2][:, shown],
        _sum_children(after[-1], parents)[:, shown],
        test.labels[upper] == shown,
        hierarchy.names[-2][shown],
        upper,
    )


def _adapt(hierarchy: Hierarchy, probs, alpha):
    return adjust_levels(probs, hierarchy, alpha)


def _sum_children(p_lower, parents):
    order = np.argsort(parents, kind="stable")
    starts = np.searchsorted(parents[order], np.arange(parents.max() + 1))
    return np.add.reduceat(p_lower[:, order], starts, axis=1)


def _gaps(probs, hierarchy: Hierarchy) -> dict[str, float]:
    pairs = zip(hierarchy.levels, hierarchy.levels[1:], strict=False)
    return {
        f"{upper}/{lower}": coherence_gap(probs[i], probs[i + 1], hierarchy.parents[i])
        for i, (upper, lower) in enumerate(pairs)
    }
