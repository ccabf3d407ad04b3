"""Temperature scaling: calibrate each level by one number, fitted on validation data.

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks (ICML 2017), Section 4.2.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq

from hiercls_jax.metrics import PROBABILITY_FLOOR, check_scores

TEMPERATURES = (0.01, 100.0)  # the search range; Guo et al. report 1 to 3


def log_probs(probs: ArrayLike) -> np.ndarray:
    """Return ln max(p, `PROBABILITY_FLOOR`): logits whose softmax is `probs`.

    Args:
      probs: float `[..., K]`, non-negative.
    """
    probs = np.asarray(probs)
    probs = probs.astype(np.result_type(probs, np.float32), copy=False)
    return np.log(np.maximum(probs, PROBABILITY_FLOOR, dtype=probs.dtype))


def apply_temperature(logits: ArrayLike, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature).

    The order of the classes stays, except that logits which differ by less than 1e-16 of the
    temperature get equal probabilities.

    Args:
      logits: float `[..., K]`, finite; for probabilities `log_probs(probs)`.
      temperature: positive; above 1 it evens the probabilities out, below 1 it sharpens them.

    Returns:
      float64 `[..., K]`.

    >>> apply_temperature(log_probs([0.5, 0.125, 0.375]), 1.0).round(6).tolist()
    [0.5, 0.125, 0.375]
    """
    if not temperature > 0:
        raise ValueError(f"a temperature is positive, got {temperature}")
    logits = np.asarray(logits, np.float64)
    probs = np.exp((logits - logits.max(axis=-1, keepdims=True)) / temperature)
    return probs / probs.sum(axis=-1, keepdims=True)


def fit_temperature(logits: ArrayLike, labels: ArrayLike) -> float:
    """Return the temperature T with the least negative log-likelihood of softmax(logits / T).

    The negative log-likelihood is convex in 1/T with the slope mean(E_T[logit] - logit of the
    label). Brent's method in ln T finds its zero.

    Args:
      logits: float `[N, K]`, finite, of one level on validation data; for probabilities
        `log_probs(probs)`.
      labels: integer `[N]` in `[0, K)`.

    Returns:
      T within `TEMPERATURES`: the lower end if the minimum lies below it, as when every label has
      the largest logit; the upper end if it lies above, as when equal probabilities are better
      than the logits; 1 if T changes nothing.
    """
    logits, labels = check_scores(logits, labels)
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite; convert probabilities by log_probs")
    z = logits - logits.max(axis=1, keepdims=True)
    of_labels = z[np.arange(len(labels)), labels].mean(dtype=np.float64)

    def slope(log_temperature: float) -> float:
        weights = np.exp(z / np.exp(log_temperature, dtype=z.dtype))
        expected = np.einsum("nk,nk->n", weights, z, dtype=np.float64)
        return float(np.mean(expected / weights.sum(axis=1, dtype=np.float64)) - of_labels)

    low, high = np.log(TEMPERATURES)
    if slope(0.0) == 0:
        return 1.0
    if slope(low) <= 0:  # still sharper would be better
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-6)))
