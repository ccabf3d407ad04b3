"""Results as text, for the end of a run and of the adaptation of tables."""

from collections.abc import Mapping
from typing import Any

from hiercls_jax.hierarchy import Hierarchy


def error_table(results: Mapping[str, Any], hierarchy: Hierarchy) -> str:
    """Return test errors by level at each setting of alpha as an aligned table, in percent.

    Args:
      results: has `alpha` and `test_error` as `evaluate` returns them, and `validation_error` if
        alpha was tuned.
      hierarchy: the levels.
    """
    errors = results["test_error"]
    names = {name: name.replace("=", " = ") for name in errors}
    own = "given" if "given" in errors else "tuned"
    chosen = "chosen" if own == "tuned" and "validation_error" not in results else own
    names[own] = f"{chosen}, alpha = {results['alpha']:.2f}"
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


def describe_adaptation(results: Mapping[str, Any], hierarchy: Hierarchy) -> str:
    """Describe how adaptation changed the tables, with its errors if there are labels.

    Args:
      results: the contents of `report.json`.
      hierarchy: the levels.
    """
    rule = {"kl": "Algorithm 1 (kl)"}.get(results["method"], results["method"])
    lines = [f"adapted {results['rows']:,} rows by {rule}, alpha = {results['alpha']:.4g}"]
    if "only" in results:
        only = results["only"]
        lines.append(f"kept {only['leaves']:,} of {only['of']:,} leaves, as {only['file']} lists")
    if "prior" in results:
        lines.append(_describe_prior(results["prior"]))
    gap, changed = results["coherence_gap"], results["changed_predictions"]
    for pair, before in gap["before"].items():
        after = gap["after"][pair]
        lines.append(f"probability in disagreement, {pair}: {before:.4f} before, {after:.4f} after")
    for level, share in changed.items():
        lines.append(f"predictions changed, {level}: {100 * share:.2f} %")
    if "test_error" in results:
        tuned, measured = results["tuned_on_rows"], results["measured_on_rows"]
        if not tuned:
            note = f"errors of all {measured:,} rows"
        elif tuned == measured == results["rows"]:
            note = f"alpha was tuned on the same {tuned:,} rows: these errors are optimistic"
        else:
            note = f"alpha was tuned on {tuned:,} random rows; errors of the other {measured:,}"
        lines += ["", error_table(results, hierarchy), note]
    return "\n".join(lines)


def _describe_prior(prior: Mapping[str, Any]) -> str:
    """Describe the class frequencies that the levels were changed to, the most frequent first."""
    rows = prior.get("estimated_on_rows")
    how = f"estimated on {rows:,} rows" if rows else f"of {prior['file']}"
    most = sorted(prior["new_prior"].items(), key=lambda item: -item[1])[:3]
    listed = ", ".join(f"{name} {100 * value:.1f} %" for name, value in most)
    return f"class frequencies {how}: {listed}{', …' if len(prior['new_prior']) > 3 else ''}"
