"""Adaptation of tables of any length: measured against labels, and written, a chunk at a time."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from tqdm import tqdm

from hiercls_jax.adaptation.error_curve import winning_intervals
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.tree import interpolate
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics import coherence_gap
from hiercls_jax.tables import write_table
from hiercls_jax.tables.levels import LevelTables

# Of the float32 rows of all levels that are adapted at once: of 1 to 16 MiB as fast as any, and
# what malloc keeps of freed chunks grows with their size.
CHUNK_BYTES = 2**22


class Adapter:
    """A rule for the levels of a hierarchy, compiled for chunks of one size.

    Args:
      hierarchy: L levels of N_l classes.
      method: one of `RULES`.
      rows: number of samples there are in all.

    Attributes:
      size: number of samples in a chunk; fewer are padded.
      largest_alpha: up to where no probability turns negative.

    Raises:
      ValueError: for a hierarchy that the rule is not for.
    """

    def __init__(self, hierarchy: Hierarchy, method: str, rows: int):
        rule = RULES[method]
        self.size = min(rows, max(1, CHUNK_BYTES // (4 * sum(hierarchy.sizes))))
        self.largest_alpha = min(rule.largest_alpha(hierarchy))

        def target(levels):
            return rule.target(levels, hierarchy)

        self._target = jax.jit(target)
        self._adapt = jax.jit(lambda levels, alpha: interpolate(levels, target(levels), alpha))
        shapes = [jax.ShapeDtypeStruct((self.size, n), np.float32) for n in hierarchy.sizes]
        jax.eval_shape(target, shapes)  # what the rule refuses, before a table is read

    def target(self, levels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the rule's coherent target of L arrays `[n, N_l]`, n up to `size`."""
        return self._padded(self._target, levels)

    def adapt(self, levels: Sequence[np.ndarray], alpha: float) -> list[np.ndarray]:
        """Return (1-α) levels + α target."""
        return self._padded(self._adapt, levels, np.float32(alpha))

    def _padded(self, function, levels, *args):
        count = len(levels[0])
        padded = [np.pad(p, ((0, self.size - count), (0, 0))) for p in levels]
        return [np.asarray(p)[:count] for p in function(padded, *args)]


def winning(tables: LevelTables, adapter: Adapter, labels: Sequence[np.ndarray]) -> np.ndarray:
    """Return the alphas at which each sample's label is its prediction, by level.

    This is all that exact error curves of any part of the samples need (`curve_of_intervals`).

    Args:
      tables: N samples on L levels.
      adapter: for them.
      labels: L integer arrays `[N]`, positions in the level's cut.

    Returns:
      float64 `[L, N, 2]`: closed intervals, as `winning_intervals` has them.
    """
    intervals = np.empty((len(labels), tables.rows, 2))
    for rows, levels in _chunks("measuring", tables, adapter.size):
        pairs = (tables.hierarchy.cut_probs(p) for p in (levels, adapter.target(levels)))
        for level, (original, target) in enumerate(zip(*pairs, strict=True)):
            y = labels[level][rows]
            intervals[level, rows] = winning_intervals(original, target, y, adapter.largest_alpha)
    return intervals


def predicted(tables: LevelTables, adapter: Adapter) -> list[np.ndarray]:
    """Return int32 `[N]` per level: the most probable class before adaptation, in its cut."""
    classes = [np.empty(tables.rows, np.int32) for _ in tables.tables]
    for rows, levels in _chunks("predicting", tables, adapter.size):
        for found, p in zip(classes, tables.hierarchy.cut_probs(levels), strict=True):
            found[rows] = p.argmax(axis=1)
    return classes


def scores(
    tables: LevelTables, adapter: Adapter, rows: np.ndarray
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return the probabilities of some samples and their target, over every level's cut.

    Args:
      tables: N samples on L levels.
      adapter: for them.
      rows: integer `[M]` in `[0, N)`, increasing, M > 0.

    Returns:
      Twice L arrays `[M, K_l]`.
    """
    found = []  # by chunk
    for chunk, levels in _chunks("sampling", tables, adapter.size):
        here = rows[(rows >= chunk.start) & (rows < chunk.stop)] - chunk.start
        pairs = (tables.hierarchy.cut_probs(p) for p in (levels, adapter.target(levels)))
        found.append([[p[here] for p in cut] for cut in pairs])
    before, target = (
        [np.concatenate(chunks) for chunks in zip(*levels, strict=True)]
        for levels in zip(*found, strict=True)
    )
    return before, target


def write_adapted(
    folder: Path, tables: LevelTables, adapter: Adapter, alpha: float, formats: Sequence[str]
) -> dict:
    """Write `p_<level>` and `predictions` into a folder.

    Args:
      folder: where to.
      tables: N samples on L levels.
      adapter: for them.
      alpha: how far to adapt.
      formats: of each level; predictions have that of the last.

    Returns:
      `coherence_gap` between neighbouring levels before and after, and `changed_predictions`, the
      share of samples whose prediction changed, by level.
    """
    hierarchy = tables.hierarchy
    names = None
    if formats[-1] in ("csv", "parquet"):
        names = [np.array(names) for names in map(hierarchy.cut_names, range(hierarchy.num_levels))]
    gaps, changed = {"before": 0.0, "after": 0.0}, 0
    with contextlib.ExitStack() as stack:

        def open_(name, columns, *dtype):
            return stack.enter_context(write_table(folder / name, columns, tables.rows, *dtype))

        writers = [
            open_(f"p_{level}.{format_}", classes)
            for level, classes, format_ in zip(
                hierarchy.levels, hierarchy.names, formats, strict=True
            )
        ]
        write_predictions = open_(
            f"predictions.{formats[-1]}", hierarchy.levels, str if names else np.int32
        )
        for _, levels in _chunks("adapting", tables, adapter.size):
            adapted = adapter.adapt(levels, alpha)
            for write, p in zip(writers, adapted, strict=True):
                write(p)
            before, after = hierarchy.cut_probs(levels), hierarchy.cut_probs(adapted)
            old, new = ([p.argmax(axis=1) for p in cut] for cut in (before, after))
            changed = changed + np.sum(np.not_equal(old, new), axis=1)
            gaps["before"] += len(before[0]) * _gaps(before, hierarchy)
            gaps["after"] += len(after[0]) * _gaps(after, hierarchy)
            if names:
                new = [name[y] for name, y in zip(names, new, strict=True)]
            write_predictions(np.stack(new, axis=1))
    pairs = [f"{a}/{b}" for a, b in zip(hierarchy.levels, hierarchy.levels[1:], strict=False)]
    return {
        "coherence_gap": {
            when: dict(zip(pairs, (gap / tables.rows).tolist(), strict=True))
            for when, gap in gaps.items()
        },
        "changed_predictions": dict(
            zip(hierarchy.levels, (changed / tables.rows).tolist(), strict=True)
        ),
    }


def _gaps(cut: Sequence[np.ndarray], hierarchy: Hierarchy) -> np.ndarray:
    """Return the coherence gap of each pair of neighbouring levels."""
    return np.array(
        [
            coherence_gap(upper, lower, hierarchy.cut_parents(level))
            for level, (upper, lower) in enumerate(zip(cut, cut[1:], strict=False))
        ]
    )


def _chunks(what: str, tables: LevelTables, size: int) -> Iterator[tuple[slice, list[np.ndarray]]]:
    """Yield (which rows, their levels) behind a progress bar, where stderr is a terminal."""
    start = 0
    with tqdm(total=tables.rows, desc=what, unit=" rows", leave=False, disable=None) as bar:
        for levels in tables.chunks(size):
            stop = start + len(levels[0])
            yield slice(start, stop), levels
            bar.update(stop - start)
            start = stop
