"""Checks of the measures' arguments."""

import numpy as np
from numpy.typing import ArrayLike


def check_scores(probs: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return scores `[N, K]`, of at least float32, and labels `[N]` after checking them.

    Raises:
      ValueError: for other shapes, no samples, labels that are not integers in `[0, K)`, and NaN.
    """
    probs, labels = np.asarray(probs), np.asarray(labels)
    if probs.ndim != 2 or labels.shape != probs.shape[:1] or not probs.size:
        raise ValueError(
            f"probs is [N, K] and labels [N], N and K > 0; got {list(probs.shape)} and "
            f"{list(labels.shape)}"
        )
    _check_integers(labels)
    if labels.min() < 0 or labels.max() >= probs.shape[1]:
        bad = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(
            f"label {bad} is out of range: probs {list(probs.shape)} has classes 0 "
            f"to {probs.shape[1] - 1}"
        )
    if np.isnan(probs).any():
        row, column = np.argwhere(np.isnan(probs))[0]
        raise ValueError(f"probs[{row}, {column}] is NaN")
    return probs.astype(np.result_type(probs, np.float32), copy=False), labels


def check_leaves(predicted: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return predicted and true leaf ids `[N]` after checking their shapes and types."""
    predicted, labels = np.asarray(predicted), np.asarray(labels)
    if predicted.ndim != 1 or predicted.shape != labels.shape or not len(labels):
        raise ValueError(
            f"predicted and labels are [N], N > 0; got {list(predicted.shape)} and "
            f"{list(labels.shape)}"
        )
    _check_integers(predicted)
    _check_integers(labels)
    return predicted, labels


def check_k(k: int, num_classes: int) -> None:
    """Raise a ValueError unless k classes can be the most probable ones of `num_classes`."""
    if not 1 <= k <= num_classes:
        raise ValueError(f"k must lie in [1, {num_classes}], the number of classes; got {k}")


def mean(values: np.ndarray) -> float:
    """Return the mean, summed in float64."""
    return float(values.sum(dtype=np.float64)) / values.size


def _check_integers(ids: np.ndarray) -> None:
    if not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"labels and predictions are integers, not {ids.dtype}")
