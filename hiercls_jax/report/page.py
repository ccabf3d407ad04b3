"""`report.html`: what adaptation did, to look at. One file that needs no other and no network.

The page has a slider of alphas, and everything that moves with it was counted here, exactly, at
each of its positions: the browser adds counts and interpolates, it decides nothing. What depends on
the number of samples is the gallery and the scatter alone, and both show a limited part of them.
"""

import base64
import dataclasses
import hashlib
import html
import io
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from string import Template

import numpy as np
from PIL import Image

from hiercls_jax import metrics
from hiercls_jax.adaptation.error_curve import StepFunction, curve_of_intervals, winning_intervals
from hiercls_jax.adaptation.tree import interpolate, largest_alpha
from hiercls_jax.evaluation.evaluate import adapted
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy

STEPS = 100  # of the slider in an alpha of 1
BREAKPOINTS = 20_000  # of a curve that is drawn step by step; of more, its values at as many alphas
POINTS = 6000  # of a class in the scatter
LEAST = 0.01  # P or Q, below which a sample of another class would lie on the others in the corner
CARDS = 24  # in the gallery, for each level, that were fixed, and as many that were broken
TOP = 3  # classes that a card names
THUMBNAIL = 96  # pixels of its longer side
RECORDS = 400  # of a curve of training or validation
SAMPLE_BYTES = 2**26  # of the probabilities of a sample of the rows, where they do not fit at all
SEED = 0  # of what is drawn
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@dataclasses.dataclass(frozen=True, eq=False)
class Evidence:
    """What the page is made of: where each of N samples is right, and the scores of M of them.

    Args:
      intervals: float64 `[L, N, 2]`, the alphas at which the label is the prediction, by level, as
        `winning_intervals` has them.
      leaf_ids: integer `[N]`, the labels: positions in the last level's cut.
      rows: integer `[M]` in `[0, N)`, increasing: the samples whose scores there are.
      before, target: L arrays `[M, K_l]` over the levels' cuts, the scores at alpha 0 and 1.
      largest: the largest alpha.
      numbers: integer `[N]`, what the samples are called; None for 0 to N - 1.
      labelled: False where the samples have no labels. What they are predicted to be at alpha 0
        then stands in for them, and what would be an error is a changed prediction.
      files: str `[N]`, what the samples are called instead; None where they are no files.
    """

    intervals: np.ndarray
    leaf_ids: np.ndarray
    rows: np.ndarray
    before: Sequence[np.ndarray]
    target: Sequence[np.ndarray]
    largest: float
    numbers: np.ndarray | None = None
    labelled: bool = True
    files: np.ndarray | None = None

    @classmethod
    def of(cls, predictions: Predictions, hierarchy: Hierarchy) -> "Evidence":
        """Adapt a split's predictions by Algorithm 1; all samples' scores are there."""
        before, target = adapted(predictions, hierarchy, 1.0)
        labels, largest = list(predictions.labels.values()), min(largest_alpha(len(before)))
        levels = zip(before, target, labels, strict=True)
        intervals = np.stack([winning_intervals(*level, largest) for level in levels])
        rows = np.arange(len(labels[-1]))
        return cls(intervals, labels[-1], rows, before, target, largest, files=predictions.files)

    def curves(self) -> tuple[StepFunction, ...]:
        """Return the error of each level against alpha."""
        return tuple(curve_of_intervals(of_level, self.largest) for of_level in self.intervals)

    def right(self, alpha: float) -> np.ndarray:
        """Return bool `[L, N]`: where the label is the prediction."""
        return (self.intervals[..., 0] <= alpha) & (alpha <= self.intervals[..., 1])


def sample_rows(rows: np.ndarray, hierarchy: Hierarchy) -> np.ndarray:
    """Return which of `rows` to keep the scores of: as many as fit in `SAMPLE_BYTES`, at random."""
    room = max(
        1,
        SAMPLE_BYTES
        // (8 * sum(len(hierarchy.cut(level)) for level in range(hierarchy.num_levels))),
    )
    return _some(rows, room, np.random.default_rng(SEED))


def write_results(
    path: Path,
    splits: Mapping[str, Predictions],
    hierarchy: Hierarchy,
    results: Mapping,
    title: str,
    **more,
) -> None:
    """Write the page of `evaluate(splits, hierarchy)`'s results.

    Args:
      path: the file.
      splits: `test`, and `validation` where one was held out.
      hierarchy: the levels.
      results: what `evaluate` returned.
      title: what was run.
      **more: `noun`, `images`, `training` and `record`, as `write` takes them.
    """
    tuned = "validation" in splits
    write(
        path,
        Evidence.of(splits["test"], hierarchy),
        hierarchy,
        results["alpha"],
        title,
        chosen="tuned on validation" if tuned else "not tuned: no validation",
        interval=results.get("alpha_interval"),
        validation=Evidence.of(splits["validation"], hierarchy).curves() if tuned else None,
        measures=results["measures"],
        **more,
    )


def write(
    path: Path,
    evidence: Evidence,
    hierarchy: Hierarchy,
    alpha: float,
    title: str,
    *,
    chosen: str,
    noun: str = "test image",
    interval: Sequence[float] | None = None,
    validation: Sequence[StepFunction] | None = None,
    images: Callable[[int], np.ndarray] | None = None,
    training: Mapping[str, Sequence[dict]] | None = None,
    measures: Mapping[str, dict] | None = None,
    record: Mapping | None = None,
) -> None:
    """Write the page under a temporary name and rename it, so that it is whole or not there.

    Args:
      path: the file.
      evidence: of the samples that errors are measured on.
      hierarchy: L levels.
      alpha: the chosen alpha, marked everywhere.
      title: what was run.
      chosen: how alpha was chosen, such as "tuned on validation".
      noun: what a sample is, such as "row".
      interval: of the choice of alpha, where one was estimated.
      validation: errors on the samples that alpha was tuned on, by level.
      images: returns a sample's image by its row, uint8 `[H, W, C]`, C = 1 or 3; None where there
        are none.
      training: the records of `metrics.jsonl`, by network.
      measures: `before` and `after`, as `evaluate` has them.
      record: how the numbers came about: command, config, versions, … in JSON's types.
    """
    data = {
        **_counts(evidence, hierarchy, alpha),
        "title": title,
        "noun": noun,
        "chosen": chosen,
        "interval": interval,
        "labelled": evidence.labelled,
        "sampled": len(evidence.rows),
        "curves": [_curve(curve) for curve in evidence.curves()],
        "validation": [_curve(curve) for curve in validation or ()],
        "scatter": _scatter(evidence, hierarchy),
        "gap": _gaps(evidence, hierarchy),
        "reliability": _reliability(evidence, hierarchy, alpha) if evidence.labelled else [],
        "gallery": _gallery(evidence, alpha, images) if evidence.labelled else None,
        "training": {name: _thinned(records) for name, records in (training or {}).items()},
        "measures": measures,
        "record": record,
    }
    with atomic_write(path) as temporary:
        temporary.write_text(_render(title, data), encoding="utf-8")


def _render(title: str, data: dict) -> str:
    """Return the page. It may load nothing, and run no script but its own, by its digest."""
    folder = resources.files("hiercls_jax.report") / "html"
    page, style, script = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"{POLICY}; script-src 'sha256-{digest}'"
    # In a script element only "<" could begin something else: "</script" or a comment.
    encoded = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(page).substitute(
        policy=policy, title=html.escape(title), style=style, script=script, data=encoded
    )


def _pack(values) -> dict:
    """Return an array of counts as the shortest unsigned type's bytes, of floats as float32's."""
    values = np.asarray(values)
    if values.dtype.kind == "f":
        type_ = "f4"
    else:
        type_ = next(t for t in ("u1", "u2", "u4") if values.max(initial=0) <= np.iinfo(t).max)
    return {"type": type_, "bytes": _base64(values.astype(f"<{type_}").tobytes())}


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _positions(alpha: float, largest: float) -> np.ndarray:
    """Return the slider's alphas, increasing, with 0, 1, the chosen and the largest among them."""
    grid = np.arange(int(STEPS * largest) + 1) / STEPS
    return np.union1d(grid, [1.0, alpha, largest])


def _counts(evidence: Evidence, hierarchy: Hierarchy, alpha: float) -> dict:
    """Return the hierarchy, and at every position of the slider who is wrong, fixed and broken."""
    alphas = _positions(alpha, evidence.largest)
    leaves = np.arange(hierarchy.num_leaves)
    order = np.argsort(evidence.leaf_ids, kind="stable")
    members = np.split(order, np.searchsorted(evidence.leaf_ids[order], leaves[1:]))

    def wrong(level, rows):
        return curve_of_intervals(evidence.intervals[level][rows], evidence.largest).count(alphas)

    right = evidence.right(0.0)
    levels = range(hierarchy.num_levels)
    return {
        "levels": hierarchy.levels,
        "sizes": hierarchy.sizes,
        "names": [list(hierarchy.cut_names(i)) for i in range(hierarchy.num_levels)],
        "parents": [ids.tolist() for ids in hierarchy.parents],
        "labels": [ids.tolist() for ids in hierarchy.labels(leaves)],  # of each leaf, by level
        "alphas": alphas.tolist(),
        "chosen_at": int(np.searchsorted(alphas, alpha)),
        "samples": len(evidence.leaf_ids),
        "totals": [len(rows) for rows in members],  # by leaf
        "wrong": _pack([[wrong(level, rows) for rows in members] for level in levels]),
        "fixed": _pack([(~r).sum() - wrong(level, ~r) for level, r in enumerate(right)]),
        "broken": _pack([wrong(level, r) for level, r in enumerate(right)]),
    }


def _curve(error: StepFunction) -> dict:
    """Return where a curve steps to which count, or its values at equal distances, if too many."""
    alphas, exact = error.breakpoints, True
    if len(alphas) > BREAKPOINTS:
        alphas, exact = np.linspace(0, error.largest, BREAKPOINTS), False
    return {
        "alphas": _pack(alphas),
        "counts": _pack(error.count(alphas)),
        "total": error.total,
        "exact": exact,
    }


def _gaps(evidence: Evidence, hierarchy: Hierarchy) -> dict[str, float]:
    """Return the mass on which neighbouring levels disagree at α = 0; it shrinks as |1 - α|."""
    return {
        f"{hierarchy.levels[level]}/{hierarchy.levels[level + 1]}": metrics.coherence_gap(
            upper, lower, hierarchy.cut_parents(level)
        )
        for level, (upper, lower) in enumerate(
            zip(evidence.before, evidence.before[1:], strict=False)
        )
    }


def _scatter(evidence: Evidence, hierarchy: Hierarchy) -> list[dict]:
    """Return P, Q and their common target of each class that has children, the members last."""
    rng = np.random.default_rng(SEED)
    labels = hierarchy.labels(evidence.leaf_ids[evidence.rows])
    classes = []
    for level in range(hierarchy.num_levels - 1):
        p, target = evidence.before[level], evidence.target[level]
        q = metrics.child_sums(evidence.before[level + 1], hierarchy.cut_parents(level))
        for i in np.flatnonzero(~hierarchy.is_leaf(level)):
            member = (labels[level] == i) & evidence.labelled
            seen = np.flatnonzero((np.maximum(p[:, i], q[:, i]) >= LEAST) | member)
            rows = _some(seen, POINTS, rng)
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


def _reliability(evidence: Evidence, hierarchy: Hierarchy, alpha: float) -> list[dict]:
    """Return each level's reliability diagram and calibration error, before and after."""
    labels = hierarchy.labels(evidence.leaf_ids[evidence.rows])
    after = interpolate(evidence.before, evidence.target, alpha)
    return [
        {
            "before": _diagram(before, y),
            "after": _diagram(np.asarray(adapted), y),
        }
        for before, adapted, y in zip(evidence.before, after, labels, strict=True)
    ]


def _diagram(probs, labels) -> dict:
    confidence, accuracy, count = metrics.reliability(probs, labels)
    some = count > 0
    return {
        "confidence": confidence[some].round(6).tolist(),
        "accuracy": accuracy[some].round(6).tolist(),
        "count": count.tolist(),
        "error": metrics.expected_calibration_error(probs, labels),
    }


def _gallery(evidence: Evidence, alpha: float, images) -> dict:
    """Return some samples that adaptation fixed or broke on each level, drawn at random."""
    rng = np.random.default_rng(SEED)
    drawn = [
        [_some(np.flatnonzero(changed), CARDS, rng) for changed in (~was & now, was & ~now)]
        for was, now in zip(
            *(evidence.right(a)[:, evidence.rows] for a in (0.0, alpha)), strict=True
        )
    ]
    at = np.unique(np.concatenate([rows for of_level in drawn for rows in of_level]))
    before = [p[at] for p in evidence.before]
    after = [np.asarray(p) for p in interpolate(before, [p[at] for p in evidence.target], alpha)]
    cards = [
        {
            "row": int(row if evidence.numbers is None else evidence.numbers[row]),
            "file": None if evidence.files is None else str(evidence.files[row]),
            "label": int(evidence.leaf_ids[row]),
            "right": [
                interval if interval[0] <= interval[1] else None
                for interval in evidence.intervals[:, row].tolist()
            ],
            "before": [_top(p[i]) for p in before],
            "after": [_top(p[i]) for p in after],
            "image": None if images is None else _thumbnail(images(row)),
        }
        for i, row in enumerate(evidence.rows[at])
    ]
    kinds = ("fixed", "broken")
    groups = [
        {kind: np.searchsorted(at, rows).tolist() for kind, rows in zip(kinds, pair, strict=True)}
        for pair in drawn
    ]
    return {"cards": cards, "groups": groups}  # by level


def _top(p: np.ndarray) -> list[tuple[int, float]]:
    """Return the most probable classes and their probabilities."""
    best = np.argsort(-p, kind="stable")[:TOP]
    return [(int(i), round(float(p[i]), 4)) for i in best]


def _thumbnail(image: np.ndarray) -> str:
    """Return an image as a data address: exact where it is small, else a JPEG of `THUMBNAIL`."""
    picture, file = Image.fromarray(image.squeeze()), io.BytesIO()
    if max(picture.size) <= THUMBNAIL // 2:
        picture.save(file, "PNG", optimize=True)
        return f"data:image/png;base64,{_base64(file.getvalue())}"
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{_base64(file.getvalue())}"


def _thinned(records: Sequence[dict]) -> list[dict]:
    """Return records of each split with epochs, losses and errors: `RECORDS` of them at most."""
    kept = []
    for split in dict.fromkeys(record["split"] for record in records):
        of_split = [record for record in records if record["split"] == split]
        of_split = _evened(of_split) if split == "train" else of_split
        kept += of_split[:: -(-len(of_split) // RECORDS)][:-1] + of_split[-1:]
    return [
        {
            key: float(f"{value:.5g}") if isinstance(value, float) else value
            for key, value in record.items()
            if key in ("epoch", "split") or key.startswith(("loss", "error"))
        }
        for record in kept
    ]


def _evened(records: Sequence[dict]) -> list[dict]:
    """Return means over equal parts of the training, each as long as the longest record.

    A record is the mean of the steps since the one before it. The last of an epoch may be that of a
    few steps, the others of fifty: drawn as they are, the curve has teeth.
    """
    ends = np.array([record["epoch"] for record in records])
    spans = np.diff(ends, prepend=0.0)
    parts = ends / max(spans.max(), ends[-1] / RECORDS)
    # Records end where a part does, or within it; a rest joins the last whole part.
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


def _some(rows: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return `count` of the rows at random, in order; all, if they are not more."""
    return rows if len(rows) <= count else np.sort(rng.choice(rows, count, replace=False))
