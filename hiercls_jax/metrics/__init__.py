"""Measures of predicted probabilities and classes: pure functions of arrays."""

from hiercls_jax.metrics.metrics import (
    PROBABILITY_FLOOR,
    Reliability,
    brier_score,
    check_scores,
    child_sums,
    coherence_gap,
    coherence_gaps,
    consistency_rate,
    expected_calibration_error,
    hierarchical_distance,
    hierarchical_scores,
    lca_height,
    mistake_severity,
    negative_log_likelihood,
    reliability,
    topk_error,
)

__all__ = [
    "PROBABILITY_FLOOR",
    "Reliability",
    "brier_score",
    "check_scores",
    "child_sums",
    "coherence_gap",
    "coherence_gaps",
    "consistency_rate",
    "expected_calibration_error",
    "hierarchical_distance",
    "hierarchical_scores",
    "lca_height",
    "mistake_severity",
    "negative_log_likelihood",
    "reliability",
    "topk_error",
]
