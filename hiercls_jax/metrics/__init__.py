"""Measures of predicted probabilities and classes: pure functions of arrays, on the host.

Each is a sum over samples, divided once.
"""

from hiercls_jax.metrics.answers import (
    answer_accuracy,
    hierarchical_scores,
    mean_information,
    path_accuracy,
    path_scores,
)
from hiercls_jax.metrics.checks import check_scores
from hiercls_jax.metrics.coherence import (
    child_sums,
    coherence_gap,
    coherence_gaps,
    consistency_rate,
)
from hiercls_jax.metrics.scores import (
    PROBABILITY_FLOOR,
    Reliability,
    brier_score,
    expected_calibration_error,
    negative_log_likelihood,
    reliability,
    topk_error,
)
from hiercls_jax.metrics.tree import (
    hierarchical_distance,
    lca_height,
    mistake_severity,
)

__all__ = [
    "PROBABILITY_FLOOR",
    "Reliability",
    "answer_accuracy",
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
    "mean_information",
    "mistake_severity",
    "negative_log_likelihood",
    "path_accuracy",
    "path_scores",
    "reliability",
    "topk_error",
]
