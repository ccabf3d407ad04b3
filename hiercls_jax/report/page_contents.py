"""The data of `report.html`: everything that the page shows, counted here exactly.

The page has a slider of alphas. Everything that changes with it is counted at each of its
positions, so that the browser only adds counts and interpolates. Only the gallery and the scatter
need scores of single samples, and both show a limited part of them.
"""

import base64
import dataclasses
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from hiercls_jax import metrics
from hiercls_jax.adaptation.error_curve import StepFunction, curve_of_intervals
from hiercls_jax.adaptation.tree import interpolate
from hiercls_jax.evaluation.outcomes import SampleOutcomes, draw
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.report.answer_contents import PageAnswers, collect_answers

STEPS = 100  # slider positions in an alpha of 1
BREAKPOINTS = 20_000  # steps drawn of a curve; if it has more, its values at as many alphas
POINTS = 6000  # of a class in the scatter
LEAST = 0.01  # P or Q below which samples of other classes crowd the corner of the scatter
CARDS = 24  # in the gallery, per level, that were fixed, and as many that were broken
TOP = 3  # classes that a card names
THUMBNAIL = 96  # pixels of its longer side
RECORDS = 400  # points of a training curve, and of a validation curve
SEED = 0  # of the random samples

ReadImage = Callable[[int], np.ndarray]
"""Returns a sample's image by its row: uint8 `[H, W, C]`, C = 1 or 3."""


@dataclasses.dataclass(frozen=True, eq=False)
class Page:
    """The contents of a page.

    Args:
      title: names the run.
      hierarchy: L levels.
      outcomes: of the samples that errors are measured on.
      alpha: the chosen alpha, marked everywhere.
      chosen: how alpha was chosen, such as "tuned on validation".
      noun: one sample, such as "row".
      interval: the 95 % interval of the choice of alpha; None if it was not estimated.
      validation: each level's error on the samples that alpha was tuned on; empty without them.
      images: reads the samples' images; None without images.
      training: the records of `metrics.jsonl`, by network.
      measures: `before` and `after`, as `evaluate` returns them; None without them.
      record: how the numbers were made (command, config, versions, …), in JSON's types.
      answers: where each sample stops; None without them.
      decisions: `before` and `after`, as `measure_decisions` returns them; None without labels.
      warnings: what may be wrong with the inputs, shown first.
    """

    title: str
    hierarchy: Hierarchy
    outcomes: SampleOutcomes
    alpha: float
    chosen: str
    noun: str = "test image"
    interval: Sequence[float] | None = None
    validation: Sequence[StepFunction] = ()
    images: ReadImage | None = None
    training: Mapping[str, Sequence[dict[str, Any]]] = dataclasses.field(default_factory=dict)
    measures: Mapping[str, dict[str, Any]] | None = None
    record: Mapping[str, Any] | None = None
    answers: PageAnswers | None = None
    decisions: Mapping[str, dict[str, Any]] | None = None
    warnings: Sequence[str] = ()


def collect(page: Page) -> dict[str, Any]:
    """Return all that the page's script shows, in JSON's types."""
    outcomes, hierarchy, alpha = page.outcomes, page.hierarchy, page.alpha
    labelled = outcomes.labelled
    return {
        **_counts(outcomes, hierarchy, alpha),
        "title": page.title,
        "noun": page.noun,
        "chosen": page.chosen,
        "interval": page.interval,
        "labelled": labelled,
        "sampled": len(outcomes.rows),
        "curves": [_curve(curve) for curve in outcomes.curves()],
        "validation": [_curve(curve) for curve in page.validation],
        "scatter": _scatter(outcomes, hierarchy),
        # The disagreement at α = 0; at another α it is |1 - α| times as much.
        "gap": metrics.coherence_gaps(outcomes.before, hierarchy),
        "reliability": _reliability(outcomes, hierarchy, alpha) if labelled else [],
        "gallery": _gallery(outcomes, alpha, page.images) if labelled else None,
        "training": {name: _thinned(records) for name, records in page.training.items()},
        "measures": page.measures,
        "decisions": page.decisions,
        "answers": _answers(page),
        "record": page.record,
        "warnings": list(page.warnings),
    }


def _pack(values: ArrayLike) -> dict[str, str]:
    """Encode an array: counts as bytes of the shortest unsigned type, floats of float32."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        type_ = "f4"
    else:
        type_ = next(t for t in ("u1", "u2", "u4") if values.max(initial=0) <= np.iinfo(t).max)
    return {"type": type_, "bytes": _base64(values.astype(f"<{type_}").tobytes())}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _positions(alpha: float, largest: float) -> np.ndarray:
    """Return the slider's alphas, increasing: among them 0, 1, the chosen and the largest."""
    grid = np.arange(int(STEPS * largest) + 1) / STEPS
    return np.union1d(grid, [1.0, alpha, largest])


def _counts(outcomes: SampleOutcomes, hierarchy: Hierarchy, alpha: float) -> dict[str, Any]:
    """Return the hierarchy, and how many are wrong, fixed and broken at each slider position."""
    alphas = _positions(alpha, outcomes.largest)
    leaves = np.arange(hierarchy.num_leaves)
    order = np.argsort(outcomes.leaf_ids, kind="stable")
    members = np.split(order, np.searchsorted(outcomes.leaf_ids[order], leaves[1:]))

    def wrong(level: int, rows: np.ndarray) -> np.ndarray:
        return curve_of_intervals(outcomes.intervals[level][rows], outcomes.largest).count(alphas)

    right = outcomes.right(0.0)
    levels = range(hierarchy.num_levels)
    return {
        "levels": hierarchy.levels,
        "sizes": hierarchy.sizes,
        "names": [list(hierarchy.cut_names(i)) for i in range(hierarchy.num_levels)],
        "parents": [ids.tolist() for ids in hierarchy.parents],
        "labels": [ids.tolist() for ids in hierarchy.labels(leaves)],  # of each leaf, by level
        "alphas": alphas.tolist(),
        "chosen_at": int(np.searchsorted(alphas, alpha)),
        "samples": len(outcomes.leaf_ids),
        "totals": [len(rows) for rows in members],  # by leaf
        "wrong": _pack([[wrong(level, rows) for rows in members] for level in levels]),
        "fixed": _pack([(~r).sum() - wrong(level, ~r) for level, r in enumerate(right)]),
        "broken": _pack([wrong(level, r) for level, r in enumerate(right)]),
    }


def _curve(error: StepFunction) -> dict[str, Any]:
    """Return a curve's steps, or its values at equal distances if it has too many steps."""
    alphas, exact = error.breakpoints, True
    if len(alphas) > BREAKPOINTS:
        alphas, exact = np.linspace(0, error.largest, BREAKPOINTS), False
    return {
        "alphas": _pack(alphas),
        "counts": _pack(error.count(alphas)),
        "total": error.total,
        "exact": exact,
    }


def _scatter(outcomes: SampleOutcomes, hierarchy: Hierarchy) -> list[dict[str, Any]]:
    """Return P, Q and their target for each class that has children; its members come last."""
    rng = np.random.default_rng(SEED)
    labels = hierarchy.labels(outcomes.leaf_ids[outcomes.rows])
    classes = []
    for level in range(hierarchy.num_levels - 1):
        p, target = outcomes.before[level], outcomes.target[level]
        q = metrics.child_sums(outcomes.before[level + 1], hierarchy.cut_parents(level))
        for i in np.flatnonzero(~hierarchy.is_leaf(level)):
            member = (labels[level] == i) & outcomes.labelled
            seen = np.flatnonzero((np.maximum(p[:, i], q[:, i]) >= LEAST) | member)
            rows = draw(seen, POINTS, rng)
            rows = rows[np.argsort(member[rows], kind="stable")]
            points = {
                name: _pack(np.rint(np.clip(x[rows, i], 0, 1) * 65535).astype(np.uint16))
                for name, x in (("p", p), ("q", q), ("target", target))
            }
            classes.append(
                {
                    "level": level,
                    "class": int(i),
                    "seen": len(seen),
                    "members": int(member[rows].sum()),
                    "gap": float(np.abs(p[:, i] - q[:, i]).mean()),
                    **points,
                }
            )
    return classes


def _reliability(
    outcomes: SampleOutcomes, hierarchy: Hierarchy, alpha: float
) -> list[dict[str, Any]]:
    """Return each level's reliability diagram and calibration error, before and after."""
    labels = hierarchy.labels(outcomes.leaf_ids[outcomes.rows])
    after = interpolate(outcomes.before, outcomes.target, alpha)
    return [
        {
            "before": _diagram(before, y),
            "after": _diagram(np.asarray(adapted), y),
        }
        for before, adapted, y in zip(outcomes.before, after, labels, strict=True)
    ]


def _diagram(probs: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    confidence, accuracy, count = metrics.reliability(probs, labels)
    filled = count > 0
    return {
        "confidence": confidence[filled].round(6).tolist(),
        "accuracy": accuracy[filled].round(6).tolist(),
        "count": count.tolist(),
        "error": metrics.expected_calibration_error(probs, labels),
    }


def _gallery(outcomes: SampleOutcomes, alpha: float, images: ReadImage | None) -> dict[str, Any]:
    """Return random samples that adaptation fixed or broke on each level."""
    rng = np.random.default_rng(SEED)
    was_right, is_right = (outcomes.right(a)[:, outcomes.rows] for a in (0.0, alpha))
    drawn = [
        {
            "fixed": draw(np.flatnonzero(~was & now), CARDS, rng),
            "broken": draw(np.flatnonzero(was & ~now), CARDS, rng),
        }
        for was, now in zip(was_right, is_right, strict=True)
    ]
    at = np.unique(np.concatenate([rows for of_level in drawn for rows in of_level.values()]))
    before = [p[at] for p in outcomes.before]
    after = [np.asarray(p) for p in interpolate(before, [p[at] for p in outcomes.target], alpha)]
    cards = [
        {
            **_identity(outcomes, row),
            "label": int(outcomes.leaf_ids[row]),
            "right": [
                interval if interval[0] <= interval[1] else None
                for interval in outcomes.intervals[:, row].tolist()
            ],
            "before": [_top(p[i]) for p in before],
            "after": [_top(p[i]) for p in after],
            "image": None if images is None else _thumbnail(images(row)),
        }
        for i, row in enumerate(outcomes.rows[at])
    ]
    groups = [
        {kind: np.searchsorted(at, rows).tolist() for kind, rows in of_level.items()}
        for of_level in drawn
    ]
    return {"cards": cards, "groups": groups}  # by level


def _answers(page: Page) -> dict[str, Any] | None:
    """Return where the samples stop."""
    outcomes, images = page.outcomes, page.images
    if page.answers is None:
        return None

    def card(row: int) -> dict[str, Any]:
        return {
            **_identity(outcomes, row),
            "label": int(outcomes.leaf_ids[row]) if outcomes.labelled else None,
            "image": None if images is None else _thumbnail(images(row)),
        }

    return collect_answers(page.answers, outcomes, page.hierarchy, card, _pack)


def _identity(outcomes: SampleOutcomes, row: int) -> dict[str, Any]:
    """Return the number and the file of a sample."""
    return {
        "row": int(row if outcomes.numbers is None else outcomes.numbers[row]),
        "file": None if outcomes.files is None else str(outcomes.files[row]),
    }


def _top(p: np.ndarray) -> list[tuple[int, float]]:
    """Return the most probable classes and their probabilities."""
    best = np.argsort(-p, kind="stable")[:TOP]
    return [(int(i), round(float(p[i]), 4)) for i in best]


def _thumbnail(image: np.ndarray) -> str:
    """Return an image as a data URL: exact if it is small, else a JPEG of at most `THUMBNAIL`."""
    picture, file = Image.fromarray(image.squeeze()), io.BytesIO()
    if max(picture.size) <= THUMBNAIL // 2:
        picture.save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{_base64(file.getvalue())}"
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{_base64(file.getvalue())}"


def _thinned(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return at most `RECORDS` records of each split, with epochs, losses and errors."""
    kept: list[dict[str, Any]] = []
    for split in dict.fromkeys(record["split"] for record in records):
        of_split = [record for record in records if record["split"] == split]
        evened = _evened(of_split) if split == "train" else of_split
        every = math.ceil(len(evened) / RECORDS)
        kept += evened[::every][:-1] + evened[-1:]
    return [
        {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in record.items()
            if key in ("epoch", "split") or key.startswith(("loss", "error"))
        }
        for record in kept
    ]


def _evened(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means over equal parts of the training, each as long as the longest record.

    A record is the mean of the steps since the record before it: often of fifty steps, but the last
    one of an epoch may cover only a few. Drawn as they are, the curve would have teeth.
    """
    ends = np.array([record["epoch"] for record in records])
    spans = np.diff(ends, prepend=0.0)
    parts = ends / max(spans.max(), ends[-1] / RECORDS)
    # A record belongs to the part in which it ends; an incomplete last part joins the one before.
    part = np.minimum(np.ceil(parts - 1e-6), np.floor(parts[-1] + 1e-6))
    groups = np.split(np.arange(len(records)), np.flatnonzero(np.diff(part)) + 1)
    return [
        {
            key: float(np.average([records[i][key] for i in group], weights=spans[group]))
            if key.startswith(("loss", "error"))
            else value
            for key, value in records[group[-1]].items()
        }
        for group in groups
    ]
