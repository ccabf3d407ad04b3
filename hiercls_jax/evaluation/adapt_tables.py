"""Adapt tables of any classifier's probabilities: choose alpha on labelled rows, and measure."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from hiercls_jax.adaptation.alpha import widest_midpoint
from hiercls_jax.adaptation.error_curve import StepFunction, curve_of_intervals
from hiercls_jax.errors import UserError, preview
from hiercls_jax.evaluation.evaluate import errors_at_settings, sample_curves
from hiercls_jax.evaluation.outcomes import SampleOutcomes, sample_rows
from hiercls_jax.tables import NO_CLASS, TableError
from hiercls_jax.tables.adapter import Adapter
from hiercls_jax.tables.label_files import LabelRows, read_label_rows
from hiercls_jax.tables.levels import LevelTables
from hiercls_jax.tables.streaming import measure_intervals, predict, sample_scores

LABEL_ROWS = 2**16  # whose identifiers are compared at once
SEED = 0  # of the rows that alpha is tuned on


@dataclasses.dataclass(frozen=True, eq=False)
class Inputs:
    """Tables to adapt, the rule compiled for them, and their labels.

    Args:
      tables: N samples on L levels.
      adapter: the rule, compiled for these levels.
      labels: L integer arrays `[N]`, positions in the level's cut, -1 for a sample without a label;
        None without labels.
      changed: what was done about other classes than in training, in JSON's types.
      warnings: what may be wrong with the labels.
    """

    tables: LevelTables
    adapter: Adapter
    labels: Sequence[np.ndarray] | None
    changed: dict[str, Any] = dataclasses.field(default_factory=dict)
    warnings: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
    """The alpha to adapt by, and the errors if there are labels.

    Args:
      alpha: given, or tuned on `tuning`.
      tuning: bool `[N]`, the rows that alpha was tuned on.
      calibration: bool `[N]`, the rows that a threshold is calibrated on.
      test: bool `[N]`, the rows that errors are measured on; without labels, all rows.
      intervals: float64 `[L, N, 2]`, as `measure_intervals` returns them; None without labels.
      results: the errors, in JSON's types; empty without labels.
      largest: the largest alpha.
    """

    alpha: float
    tuning: np.ndarray
    calibration: np.ndarray
    test: np.ndarray
    intervals: np.ndarray | None
    results: dict[str, Any]
    largest: float

    def held_out_curves(self) -> list[StepFunction]:
        """Return each level's error on the tuning rows, if errors are measured on other rows."""
        if self.intervals is None or not self.tuning.any() or (self.tuning & self.test).any():
            return []
        return _curves(self.intervals, self.tuning, self.largest)


def read_level_labels(
    name: str, tables: LevelTables, columns: Sequence[str] | None = None
) -> tuple[tuple[np.ndarray, ...], list[str]]:
    """Read the leaf of each sample: positions in every level's cut, -1 for one without a label.

    Args:
      name: a file of one column with a label for each sample, or of two with identifiers and labels
        of any samples, in any order.
      tables: N samples.
      columns: names of the columns of the last level's table, if they were given: numbers among
        the labels count them. None for the hierarchy's order.

    Returns:
      L arrays, int32 `[N]`; and what may be wrong with the labels.

    Raises:
      TableError: if the file does not hold leaves of these samples.
    """
    leaves = tables.hierarchy.leaf_names
    counted = [*(columns or ()), *(leaf for leaf in leaves if leaf not in (columns or ()))]
    given = read_label_rows(name, counted, tables.rows, tables.ids.name if tables.ids else None)
    warnings: list[str] = []
    leaf_ids = given.labels
    if given.ids is not None:
        leaf_ids, warnings = _match_ids(name, given, tables)
    known = leaf_ids >= 0
    if not known.any():
        raise TableError(f"{name} has no label; at least one is needed")
    position = {leaf: i for i, leaf in enumerate(leaves)}
    leaf_ids = np.array([position[leaf] for leaf in counted])[np.where(known, leaf_ids, 0)]
    labels = tables.hierarchy.labels(leaf_ids)
    of_level = tuple(np.where(known, y, NO_CLASS).astype(np.int32) for y in labels)
    return of_level, warnings


def _match_ids(name: str, given: LabelRows, tables: LevelTables) -> tuple[np.ndarray, list[str]]:
    """Return int32 `[N]`, each sample's label by its identifier, and a warning about others."""
    assert given.ids is not None
    assert tables.ids is not None  # else `read_label_rows` raises
    label_of: dict[str, int] = {}
    for id_, label in zip(given.ids, given.labels.tolist(), strict=True):
        if label_of.setdefault(id_, label) != label:
            raise TableError(f"{name}: '{id_}' has two different labels; allowed is one")
    found = np.full(tables.rows, NO_CLASS, np.int32)
    used = set()
    start = 0
    for ids in tables.id_chunks(LABEL_ROWS):
        for row, id_ in enumerate(map(str, ids.tolist()), start):
            if id_ in label_of:
                found[row] = label_of[id_]
                used.add(id_)
        start += len(ids)
    unused = [id_ for id_ in label_of if id_ not in used]
    if not used:
        raise TableError(
            f"{name}: none of its rows, such as {preview(unused)}, is in the tables; allowed are "
            f"values of their column '{tables.ids.name}'"
        )
    if unused:
        count = f"{len(unused):,} of {len(label_of):,}"
        return found, [f"{count} labels of {name} are of no row of the tables: {preview(unused)}"]
    return found, []


def measure(
    inputs: Inputs,
    alpha: float | None,
    tune_fraction: float,
    calibrate_fraction: float = 0.0,
) -> Measured:
    """Choose alpha, and measure every level's errors on rows that had no part in the choice.

    Args:
      inputs: N samples.
      alpha: the alpha to adapt by; None to tune it, which needs labels.
      tune_fraction: share of the labelled rows, chosen at random, that alpha is tuned on, in
        [0, 1]. Errors are measured on the other labelled rows, or on all of them if it is 1 or
        `alpha` is given.
      calibrate_fraction: share of the rows, chosen at random among those that alpha is not tuned
        on, to calibrate a threshold on, in [0, 1). Nothing is measured on them.

    Raises:
      UserError: if no row is left to tune alpha on, or to measure errors on.
      TableError: if a table or its labels cannot be read.
      ValueError: if alpha shall be tuned without labels.
    """
    hierarchy, largest = inputs.tables.hierarchy, inputs.adapter.largest_alpha
    if inputs.labels is None:
        if alpha is None:
            raise ValueError("alpha is None, to be tuned; that needs labels")
        nothing = np.zeros(inputs.tables.rows, bool)
        return Measured(alpha, nothing, nothing, ~nothing, None, {}, largest)
    known = inputs.labels[-1] >= 0
    tuning, calibration, test = (
        _among(known, rows)
        for rows in _split(int(known.sum()), alpha is None, tune_fraction, calibrate_fraction)
    )
    labels = [np.maximum(of_level, 0) for of_level in inputs.labels]
    intervals = measure_intervals(inputs.tables, inputs.adapter, labels)
    results: dict[str, Any] = {
        "labelled_rows": int(known.sum()),
        "measured_on_rows": int(test.sum()),
        "tuned_on_rows": int(tuning.sum()),
    }
    name = "given"
    if alpha is None:
        name, results["split_seed"] = "tuned", SEED
        curves = _curves(intervals, tuning, largest)
        alpha = widest_midpoint(sum(curves[1:], curves[0]).minimisers())
        results["validation_error"] = errors_at_settings(curves, hierarchy, alpha)
    curves = _curves(intervals, test, largest)
    results["test_error"] = errors_at_settings(curves, hierarchy, alpha, name)
    results["curve"] = sample_curves(curves, hierarchy)
    return Measured(alpha, tuning, calibration, test, intervals, results, largest)


def sample_outcomes(inputs: Inputs, measured: Measured) -> SampleOutcomes:
    """Return the outcomes of the test rows, with the scores of as many as the report can keep.

    Without labels, each row's predictions before adaptation stand in for them.
    """
    tables, adapter = inputs.tables, inputs.adapter
    labels, intervals = inputs.labels, measured.intervals
    if labels is None or intervals is None:
        labels = predict(tables, adapter)
        intervals = measure_intervals(tables, adapter, labels)
    rows = np.flatnonzero(measured.test)
    sampled = sample_rows(rows, tables.hierarchy)
    before, target = sample_scores(tables, adapter, sampled)
    return SampleOutcomes(
        intervals[:, measured.test],
        labels[-1][measured.test],
        np.searchsorted(rows, sampled),
        before,
        target,
        measured.largest,
        numbers=rows,
        labelled=inputs.labels is not None,
    )


def _split(
    rows: int, tune: bool, fraction: float, calibrate_fraction: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return bool `[rows]` for the rows to tune alpha on, to calibrate on, and to measure on."""
    order = np.random.default_rng(SEED).permutation(rows)
    tuned = round(fraction * rows) if tune else 0
    calibrated = round(calibrate_fraction * rows)
    tuning = order < tuned
    calibration = (order >= tuned) & (order < tuned + calibrated)
    test = order >= tuned + calibrated
    if tune and fraction == 1 and not calibrate_fraction:
        test = tuning
    if not test.any() or (tune and not tuning.any()):
        also = f" and --calibrate_fraction={calibrate_fraction:g}" if calibrate_fraction else ""
        raise UserError(
            f"--tune_fraction={fraction:g}{also} of {rows} labelled rows leaves no row to tune "
            "alpha on or to measure errors on; "
            + (
                "make them smaller, or give a number: --alpha=1"
                if calibrate_fraction
                else "use 1 for both on all, or give a number: --alpha=1"
            )
        )
    return tuning, calibration, test


def _among(known: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return bool `[N]` for rows, a bool for each of those that are True in `known`, `[N]`."""
    among = np.zeros(len(known), bool)
    among[known] = rows
    return among


def _curves(intervals: np.ndarray, rows: np.ndarray, largest: float) -> list[StepFunction]:
    """Return each level's error against alpha on the rows that are True in bool `[N]`."""
    return [curve_of_intervals(of_level[rows], largest) for of_level in intervals]
