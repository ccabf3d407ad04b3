"""Passes over tables of any length, chunk by chunk: measure, predict, sample, adapt and write."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike
from tqdm import tqdm

from hiercls_jax.adaptation.agreement import (
    count_meetings,
    count_pairs,
    describe_disagreement,
    describe_labels,
)
from hiercls_jax.adaptation.answers import DECISIONS
from hiercls_jax.adaptation.error_curve import winning_intervals
from hiercls_jax.adaptation.stopping import Climb, climb_paths
from hiercls_jax.metrics import coherence_gaps
from hiercls_jax.tables import write_table
from hiercls_jax.tables.adapter import Adapter
from hiercls_jax.tables.levels import LevelTables
from hiercls_jax.tables.table import Identifiers, Write


def measure_intervals(
    tables: LevelTables, adapter: Adapter, labels: Sequence[np.ndarray]
) -> np.ndarray:
    """Return the alphas at which each sample's label is its prediction, by level.

    `curve_of_intervals` turns those of any part of the samples into an exact error curve.

    Args:
      tables: N samples on L levels.
      adapter: for these levels.
      labels: L integer arrays `[N]`, positions in the level's cut.

    Returns:
      float64 `[L, N, 2]`: closed intervals, as `winning_intervals` returns them.
    """
    intervals = np.empty((len(labels), tables.rows, 2))
    for rows, levels in _chunks("measuring", tables, adapter.size):
        pairs = (tables.hierarchy.cut_probs(p) for p in (levels, adapter.target(levels)))
        for level, (original, target) in enumerate(zip(*pairs, strict=True)):
            y = labels[level][rows]
            intervals[level, rows] = winning_intervals(original, target, y, adapter.largest_alpha)
    return intervals


def predict(tables: LevelTables, adapter: Adapter) -> list[np.ndarray]:
    """Return int32 `[N]` per level: the most probable class before adaptation, in its cut."""
    classes = [np.empty(tables.rows, np.int32) for _ in tables.tables]
    for rows, levels in _chunks("predicting", tables, adapter.size):
        for of_level, p in zip(classes, tables.hierarchy.cut_probs(levels), strict=True):
            of_level[rows] = p.argmax(axis=1)
    return classes


def sample_scores(
    tables: LevelTables, adapter: Adapter, rows: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the probabilities of some samples and their target, over every level's cut.

    Args:
      tables: N samples on L levels.
      adapter: for these levels.
      rows: integer `[M]` in `[0, N)`, increasing, M > 0.

    Returns:
      The probabilities, L arrays `[M, K_l]`, and their target, L arrays of the same shapes.
    """
    pieces = []
    for chunk, levels in _chunks("sampling", tables, adapter.size):
        here = rows[(rows >= chunk.start) & (rows < chunk.stop)] - chunk.start
        pairs = (tables.hierarchy.cut_probs(p) for p in (levels, adapter.target(levels)))
        pieces.append([[p[here] for p in cut] for cut in pairs])
    before, target = (
        [np.concatenate(chunks) for chunks in zip(*levels, strict=True)]
        for levels in zip(*pieces, strict=True)
    )
    return before, target


def sample_levels(tables: LevelTables, size: int, rows: np.ndarray) -> list[np.ndarray]:
    """Return the probabilities of some samples over every level's cut, L arrays `[M, K_l]`.

    Args:
      tables: N samples on L levels.
      size: number of rows to read at a time.
      rows: integer `[M]` in `[0, N)`, increasing, M > 0.
    """
    pieces = []
    for chunk, levels in _chunks("sampling", tables, size):
        here = rows[(rows >= chunk.start) & (rows < chunk.stop)] - chunk.start
        pieces.append([p[here] for p in tables.hierarchy.cut_probs(levels)])
    return [np.concatenate(of_level) for of_level in zip(*pieces, strict=True)]


def climb(tables: LevelTables, adapter: Adapter) -> Climb:
    """Return the path of each sample's most probable leaf at alpha = 1, where the levels agree."""
    pieces = [
        climb_paths(adapter.target(levels), tables.hierarchy)
        for _, levels in _chunks("climbing", tables, adapter.size)
    ]
    return Climb(*(np.concatenate(parts) for parts in zip(*pieces, strict=True)))


def write_adapted(
    folder: Path,
    tables: LevelTables,
    adapter: Adapter,
    alpha: float,
    formats: Sequence[str],
    decision: str = "independent",
    observe: Callable[[slice, list[np.ndarray], list[np.ndarray]], None] | None = None,
    labels: np.ndarray | None = None,
) -> dict[str, Any]:
    """Adapt tables, and write `p_<level>` and `predictions` into a folder.

    Identifiers of the rows are the first column of each; arrays have no room for them, so beside
    arrays they are in `ids.csv`.

    Args:
      folder: an existing folder.
      tables: N samples on L levels.
      adapter: for these levels.
      alpha: how far to adapt, from 0 to the adapter's largest.
      formats: one of `FORMATS` for each level; predictions have that of the last level.
      decision: how predictions are made, a key of `DECISIONS`. A level below the answer has -1, or
        an empty name.
      observe: called with the rows of each chunk and its levels before and after adaptation.
      labels: integer `[N]`, leaf ids to compare with the answers before adaptation; -1 for none.

    Returns:
      `coherence_gap` between neighbouring levels before and after, `changed_predictions`, the share
      of samples whose prediction changed, by level, and `warnings` about levels and labels that do
      not seem to speak of the same classes.
    """
    hierarchy = tables.hierarchy
    names = None
    if formats[-1] in ("csv", "parquet"):
        cuts = map(hierarchy.cut_names, range(hierarchy.num_levels))
        names = [np.array([*cut, ""]) for cut in cuts]  # -1 is no class
    gaps = {when: np.zeros(hierarchy.num_levels - 1) for when in ("before", "after")}
    changed = np.zeros(hierarchy.num_levels, np.int64)
    none = np.zeros(0, np.int64)
    meetings = count_meetings([none] * hierarchy.num_levels, hierarchy)
    labelled, labelled_rows = count_pairs(none, none, hierarchy.num_leaves), 0
    with contextlib.ExitStack() as stack:

        def open_(name: str, columns: Sequence[str], dtype: DTypeLike = np.float32) -> Write:
            column = named_apart(tables.ids, columns)
            return stack.enter_context(
                write_table(folder / name, columns, tables.rows, dtype, column)
            )

        writers = [
            open_(f"p_{level}.{format_}", classes)
            for level, classes, format_ in zip(
                hierarchy.levels, hierarchy.names, formats, strict=True
            )
        ]
        write_predictions = open_(
            f"predictions.{formats[-1]}", hierarchy.levels, str if names else np.int32
        )
        write_ids = None
        if tables.ids is not None and not {"csv", "parquet"}.issuperset(formats):
            write_ids = open_("ids.csv", (), str)
        all_ids = tables.id_chunks(adapter.size)
        for rows, levels in _chunks("adapting", tables, adapter.size):
            ids = next(all_ids, None)
            adapted = adapter.adapt(levels, alpha)
            for write, p in zip(writers, adapted, strict=True):
                write(p, ids)
            if write_ids:
                write_ids(np.empty((len(levels[0]), 0), str), ids)
            if observe:
                observe(rows, levels, adapted)
            old, new = (DECISIONS[decision](p, hierarchy) for p in (levels, adapted))
            changed += np.sum(old != new, axis=0)
            before, after = hierarchy.cut_probs(levels), hierarchy.cut_probs(adapted)
            answers = [p.argmax(axis=1) for p in before]
            if labels is not None:
                known = labels[rows] >= 0
                pair = labels[rows][known], answers[-1][known]
                labelled += count_pairs(*pair, hierarchy.num_leaves, labelled_rows)
                labelled_rows += int(known.sum())
            counted = count_meetings(answers, hierarchy, rows.start)
            for total, counts in zip(meetings, counted, strict=True):
                total += counts
            for when, cut in (("before", before), ("after", after)):
                gaps[when] += len(cut[0]) * np.array([*coherence_gaps(cut, hierarchy).values()])
            if names:
                new = np.stack([name[y] for name, y in zip(names, new.T, strict=True)], axis=1)
            write_predictions(new, ids)
    pairs = [f"{a}/{b}" for a, b in zip(hierarchy.levels, hierarchy.levels[1:], strict=False)]
    return {
        "coherence_gap": {
            when: dict(zip(pairs, (gap / tables.rows).tolist(), strict=True))
            for when, gap in gaps.items()
        },
        "changed_predictions": dict(
            zip(hierarchy.levels, (changed / tables.rows).tolist(), strict=True)
        ),
        "warnings": [
            *describe_disagreement(meetings, hierarchy),
            *describe_labels(labelled, hierarchy),
        ],
    }


def named_apart(ids: Identifiers | None, columns: Sequence[str]) -> Identifiers | None:
    """Return identifiers whose column has none of the other columns' names."""
    while ids is not None and ids.name in columns:
        ids = dataclasses.replace(ids, name=f"{ids.name}_id")
    return ids


def _chunks(what: str, tables: LevelTables, size: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Yield the rows of each chunk and its levels, behind a progress bar on a terminal."""
    start = 0
    with tqdm(total=tables.rows, desc=what, unit=" rows", leave=False, disable=None) as bar:
        for levels in tables.chunks(size):
            stop = start + len(levels[0])
            yield slice(start, stop), levels
            bar.update(stop - start)
            start = stop
