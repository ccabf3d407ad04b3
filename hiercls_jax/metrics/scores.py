"""Measures of one level's probabilities: errors, likelihoods, calibration.

`probs` and `labels` belong to any one level, or to the leaves. Among equally probable classes, the
one with the lowest index comes first: it is the prediction. Every function raises a ValueError for
shapes that disagree, no samples, NaN, and labels that are not integers in `[0, K)`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.metrics.checks import check_k, check_scores, mean

# The smallest normal float32, because most devices flush smaller results of a softmax to 0. A label
# at the floor costs 87.3 nats.
PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)
BINS = 15  # as in Guo et al. (ICML 2017)


def topk_error(probs: ArrayLike, labels: ArrayLike, k: int = 1) -> float:
    """Return the share of samples whose label is not among their k most probable classes.

    Args:
      probs: float `[N, K]`, probabilities or any scores.
      labels: integer `[N]` in `[0, K)`.
      k: from 1 to K; a ValueError otherwise.

    >>> topk_error([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2]], [2, 1])
    1.0
    >>> topk_error([[0.5, 0.2, 0.3], [0.4, 0.4, 0.2]], [2, 1], k=2)
    0.0
    """
    probs, labels = check_scores(probs, labels)
    check_k(k, probs.shape[1])
    own = np.take_along_axis(probs, labels[:, None], axis=1)
    before = np.count_nonzero(probs > own, axis=1)
    tied = (probs == own) & (np.arange(probs.shape[1]) < labels[:, None])
    return mean(before + np.count_nonzero(tied, axis=1) >= k)


def negative_log_likelihood(probs: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean over samples of -ln p(label), in nats.

    Args:
      probs: float `[N, K]`, non-negative; a probability below `PROBABILITY_FLOOR` counts as
        the floor.
      labels: integer `[N]` in `[0, K)`.

    >>> round(negative_log_likelihood([[0.5, 0.5], [0.25, 0.75]], [0, 1]), 4)  # -(ln ½ + ln ¾) / 2
    0.4904
    """
    probs, labels = check_scores(probs, labels)
    own = probs[np.arange(len(labels)), labels].astype(np.float64)
    return mean(-np.log(np.maximum(own, PROBABILITY_FLOOR)))


def brier_score(probs: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean over samples of Σ_k (p_k - y_k)², where y_k is 1 for the label, else 0.

    It lies in [0, 2]: the original form of Brier (Monthly Weather Review, 1950), summed over all
    classes. For two classes it is twice the score of one of them.

    Args:
      probs: float `[N, K]`, non-negative, sums to 1 over the last axis.
      labels: integer `[N]` in `[0, K)`.

    >>> brier_score([[0.5, 0.5], [0.25, 0.75]], [0, 1])  # (0.5 + 0.125) / 2
    0.3125
    """
    probs, labels = check_scores(probs, labels)
    residual = probs.copy()
    residual[np.arange(len(labels)), labels] -= 1
    return float(np.einsum("nk,nk->", residual, residual, dtype=np.float64)) / len(labels)


class Reliability(NamedTuple):
    """A reliability diagram: confidence and accuracy in bins of equal width.

    Args:
      confidence: float64 `[bins]`, mean probability of the predicted class; NaN if empty.
      accuracy: float64 `[bins]`, share of right predictions; NaN if empty.
      count: int64 `[bins]`, number of samples.
    """

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray  # type: ignore[assignment]  # hides tuple.count


def reliability(probs: ArrayLike, labels: ArrayLike, bins: int = BINS) -> Reliability:
    """Return accuracy against confidence, the probability of the predicted class.

    Bin b of B holds the confidences in (b/B, (b+1)/B], and the first bin also 0: Guo, Pleiss, Sun
    and Weinberger, *On Calibration of Modern Neural Networks* (ICML 2017), Section 2.

    Args:
      probs: float `[N, K]` in [0, 1]; a ValueError otherwise, because logits have no confidence.
      labels: integer `[N]` in `[0, K)`.
      bins: number of bins B, at least 1.
    """
    probs, labels = check_scores(probs, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence = probs.max(axis=1)
    if confidence.max() > 1 + 1e-3 or probs.min() < 0:  # room for float16's sums
        raise ValueError(
            f"probabilities lie in [0, 1], these in [{probs.min():g}, {confidence.max():g}]; "
            "take the softmax of logits first"
        )
    # In the dtype of the probabilities, so that a float32 0.2 lies on the edge 1/5.
    edges = np.linspace(0, 1, bins + 1).astype(probs.dtype)[1:-1]
    bin_of = np.searchsorted(edges, confidence, side="left")
    count = np.bincount(bin_of, minlength=bins)

    def mean_of_bins(values: np.ndarray) -> np.ndarray:
        total = np.bincount(bin_of, weights=values, minlength=bins)
        return np.divide(total, count, out=np.full(bins, np.nan), where=count > 0)

    return Reliability(
        mean_of_bins(confidence), mean_of_bins(probs.argmax(axis=1) == labels), count
    )


def expected_calibration_error(probs: ArrayLike, labels: ArrayLike, bins: int = BINS) -> float:
    """Return Σ_b n_b/N |accuracy_b - confidence_b| over the bins of `reliability`.

    Guo et al. (ICML 2017), Section 2, equation 3.

    Args:
      probs: float `[N, K]` in [0, 1].
      labels: integer `[N]` in `[0, K)`.
      bins: number of bins of equal width, at least 1.

    >>> expected_calibration_error([[0.25, 0.75], [0.25, 0.75]], [0, 1])  # right in 1 of 2
    0.25
    """
    confidence, accuracy, count = reliability(probs, labels, bins)
    gap = count * np.abs(accuracy - confidence)
    return float(np.nansum(gap)) / int(count.sum())
