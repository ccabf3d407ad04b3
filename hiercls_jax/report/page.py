"""`report.html` shows what adaptation did. It is one file, and needs no other and no network."""

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from hiercls_jax.adaptation.stopping import climb_paths
from hiercls_jax.evaluation.evaluate import adapted
from hiercls_jax.evaluation.outcomes import SampleOutcomes
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.evaluation.sure_answers import LabelledClimb, Target
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.report.answer_contents import PageAnswers
from hiercls_jax.report.page_contents import Page, ReadImage, collect

TARGET = Target(0.9)  # of the threshold that a run's page marks
LEAST = 9  # validation images for it: order_statistic(9, 0.9) is 9
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def write(path: Path, page: Page) -> None:
    """Write a page atomically: if anything fails, the older file stays."""
    text = _render(page.title, collect(page))
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_results(
    path: Path,
    splits: Mapping[str, Predictions],
    hierarchy: Hierarchy,
    results: Mapping[str, Any],
    title: str,
    *,
    noun: str = "test image",
    images: ReadImage | None = None,
    training: Mapping[str, Sequence[dict[str, Any]]] | None = None,
    record: Mapping[str, Any] | None = None,
) -> None:
    """Write the page of a run, or of an ensemble of runs.

    Args:
      path: the file.
      splits: `test`, and `validation` if one was held out.
      hierarchy: the levels.
      results: what `evaluate` returned for these splits.
      title, noun, images, training, record: as in `Page`.
    """
    rule = results.get("rule", "kl")  # older results have none
    validation = splits.get("validation")
    climbs = {name: _climb(split, hierarchy, rule) for name, split in splits.items()}
    answers = PageAnswers(climbs["test"].climb)
    if validation and len(climbs["validation"].leaf_ids) >= LEAST:
        answers = PageAnswers(
            climbs["test"].climb,
            climbs["validation"].threshold(TARGET),
            f"calibrated on validation, {TARGET}; approximate, as that also chose α",
        )
    page = Page(
        title,
        hierarchy,
        SampleOutcomes.of(splits["test"], hierarchy, rule),
        results["alpha"],
        "tuned on validation" if validation else "not tuned: no validation",
        noun=noun,
        interval=results.get("alpha_interval"),
        validation=(SampleOutcomes.of(validation, hierarchy, rule).curves() if validation else ()),
        images=images,
        training=training or {},
        measures=results["measures"],
        record=record,
        answers=answers,
        decisions=results.get("decisions"),
    )
    write(path, page)


def _climb(split: Predictions, hierarchy: Hierarchy, rule: str) -> LabelledClimb:
    """Return the paths of a split's images at alpha = 1."""
    _, target = adapted(split, hierarchy, 1.0, rule)
    labels = split.labels[hierarchy.levels[-1]]
    return LabelledClimb(climb_paths(target, hierarchy), labels, hierarchy)


def _render(title: str, data: dict[str, Any]) -> str:
    """Return the page. It may load nothing, and run only its own script, allowed by its digest."""
    folder = resources.files("hiercls_jax.report") / "html"
    template, style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{POLICY}; script-src 'sha256-{digest}'"
    # Only "<" could end the script element ("</script") or begin a comment in it.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(template).substitute(
        policy=policy, title=html.escape(title), style=style, script=script, data=encoded
    )
