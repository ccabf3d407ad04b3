"""Answers for the rows of tables: a threshold from some labelled rows, measured on others."""

import dataclasses
from typing import Any

from hiercls_jax.adaptation.stopping import Climb, StoppingError
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation.adapt_tables import Inputs, Measured
from hiercls_jax.evaluation.sure_answers import LabelledClimb, Target
from hiercls_jax.tables.streaming import climb


@dataclasses.dataclass(frozen=True, eq=False)
class SureAnswers:
    """Where every row stops.

    Args:
      climb: N paths.
      threshold: where to stop.
      results: how the answers turned out on the test rows, in JSON's types.
    """

    climb: Climb
    threshold: float
    results: dict[str, Any]


def find_answers(inputs: Inputs, measured: Measured, target: Target) -> SureAnswers:
    """Calibrate a threshold on the calibration rows, and measure the answers on the test rows.

    Args:
      inputs: N samples with labels.
      measured: which rows have which part.
      target: how often answers shall be right.

    Raises:
      UserError: if the calibration rows are too few.
      ValueError: without labels.
    """
    if inputs.labels is None:
        raise ValueError("a target accuracy needs labels")
    hierarchy = inputs.tables.hierarchy
    all_rows = climb(inputs.tables, inputs.adapter)
    labelled = LabelledClimb(all_rows, inputs.labels[-1], hierarchy)
    calibration, test = labelled.select(measured.calibration), labelled.select(measured.test)
    known = measured.results["labelled_rows"]
    try:
        threshold = calibration.threshold(target)
        flat_threshold = calibration.flat_threshold(target)
    except StoppingError as error:
        raise UserError(
            f"--target_accuracy: {error}; {int(measured.calibration.sum()):,} of {known:,} "
            "labelled rows are there to calibrate on, and --calibrate_fraction takes more"
        ) from error
    curve, flat = test.curves()
    flat_risk, flat_coverage = flat.at(flat_threshold)
    return SureAnswers(
        all_rows,
        threshold,
        {
            "target_accuracy": target.accuracy,
            "confidence": target.confidence,
            "threshold": threshold,
            "alpha": 1.0,
            "calibrated_on_rows": int(measured.calibration.sum()),
            "measured_on_rows": int(measured.test.sum()),
            **test.results(threshold),
            "risk_coverage_area": curve.area,
            "leaf_or_nothing": {
                "threshold": flat_threshold,
                "accuracy": 1 - flat_risk,
                "information": flat_coverage,
                "risk_coverage_area": flat.area,
            },
        },
    )
