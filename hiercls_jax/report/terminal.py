"""Results as text, for the end of a run and of the adaptation of tables."""

from collections.abc import Mapping
from typing import Any

from hiercls_jax.evaluation.sure_answers import Target
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
    rule = {"kl": "Algorithm 1 (kl)"}.get(results["rule"], results["rule"])
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
        labelled = results.get("labelled_rows", results["rows"])
        if not tuned:
            note = f"errors of {'all ' * (measured == labelled)}{measured:,} rows"
        elif tuned == measured == labelled:
            note = f"alpha was tuned on the same {tuned:,} rows: these errors are optimistic"
        else:
            others = "the other" if tuned + measured == labelled else "another"
            note = f"alpha was tuned on {tuned:,} random rows; errors of {others} {measured:,}"
        if labelled < results["rows"]:
            note += f"; {results['rows'] - labelled:,} rows have no label"
        lines += ["", error_table(results, hierarchy), describe_decisions(results), note]
    if "answers" in results:
        lines += ["", describe_answers(results["answers"])]
    return "\n".join(lines)


def describe_decisions(results: Mapping[str, Any]) -> str:
    """Describe how often each decision is right on every level after adaptation, in one line.

    Args:
      results: has `decisions`, as `evaluate` returns them.
    """
    shares = ", ".join(
        f"{name} {100 * measured['path_accuracy']:.2f} %"
        for name, measured in results["decisions"]["after"].items()
    )
    return f"right on every level: {shares}"


def describe_answers(answers: Mapping[str, Any]) -> str:
    """Describe answers that stop where sure, and how often they were right.

    Args:
      answers: `answers` of `report.json`.
    """
    low, high = (100 * end for end in answers["accuracy_interval"])
    stops = ", ".join(
        f"{100 * share:.1f} % {'nothing' if level == 'root' else level}"
        for level, share in reversed(answers["answers_at"].items())
    )
    said, flat = (100 * of["information"] for of in (answers, answers["leaf_or_nothing"]))
    promise = Target(answers["target_accuracy"], answers["confidence"])
    return (
        f"answers that shall be {promise}: threshold {answers['threshold']:.4g}, calibrated on "
        f"{answers['calibrated_on_rows']:,} rows at alpha = 1\n"
        f"right on {answers['measured_on_rows']:,} other rows: {100 * answers['accuracy']:.1f} % "
        f"(95 % interval: {low:.1f} to {high:.1f} %)\n"
        f"answers on each level: {stops}\n"
        f"they say {said:.1f} % of what leaves say; leaves or nothing would say {flat:.1f} %"
    )


def _describe_prior(prior: Mapping[str, Any]) -> str:
    """Describe the class frequencies that the levels were changed to, the most frequent first."""
    rows = prior.get("estimated_on_rows")
    how = f"estimated on {rows:,} rows" if rows else f"of {prior['file']}"
    most = sorted(prior["new_prior"].items(), key=lambda item: -item[1])[:3]
    listed = ", ".join(f"{name} {100 * value:.1f} %" for name, value in most)
    return f"class frequencies {how}: {listed}{', …' if len(prior['new_prior']) > 3 else ''}"
