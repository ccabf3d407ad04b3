"""Temperature scaling: one number per level, fitted on validation data, that mends confidence.

Guo, Pleiss, Sun and Weinberger, On Calibration of Modern Neural Networks (ICML 2017), Section 4.2.
"""

import numpy as np
from scipy.optimize import brentq

from hiercls_jax.metrics import PROBABILITY_FLOOR, check_scores

TEMPERATURES = (0.01, 100.0)  # the range that is searched; Guo et al. find 1 to 3


def log_probs(probs) -> np.ndarray:
    """Return ln p, of at least `PROBABILITY_FLOOR`: logits that have `probs` as their softmax.

    Args:
      probs: float `[..., K]`, non-negative.
    """
    probs = np.asarray(probs)
    probs = probs.astype(np.result_type(probs, np.float32), copy=False)
    return np.log(np.maximum(probs, PROBABILITY_FLOOR, dtype=probs.dtype))


def apply_temperature(logits, temperature: float) -> np.ndarray:
    """Return softmax(logits / temperature).

    The order of the classes stays, and so the most probable one: only logits nearer to each other
    than 1e-16 of the temperature become equal probabilities.

    Args:
      logits: float `[..., K]`, finite; of probabilities `log_probs(probs)`.
      temperature: positive; above 1 probabilities draw together, below 1 apart.

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


def fit_temperature(logits, labels) -> float:
    """Return the temperature T with the least negative log-likelihood of softmax(logits / T).

    The likelihood is convex in 1/T, with the slope mean(E_T[logit] - logit of the label): the
    minimum is where that crosses 0, found by Brent's method in ln T.

    Args:
      logits: float `[N, K]`, finite, of one level on validation data; of probabilities
        `log_probs(probs)`.
      labels: integer `[N]` in `[0, K)`.

    Returns:
      T within `TEMPERATURES`. An end of the range where the minimum lies beyond it: the lower one
      where every label has the largest logit, the upper one where the logits are no better than
      equal probabilities. 1 where T changes nothing.
    """
    logits, labels = check_scores(logits, labels)
    if not np.isfinite(logits).all():
        raise ValueError("logits must be finite; take those of probabilities with log_probs")
    z = logits - logits.max(axis=1, keepdims=True)
    of_labels = z[np.arange(len(labels)), labels].mean(dtype=np.float64)

    def slope(log_temperature):
        weights = np.exp(z / np.exp(log_temperature, dtype=z.dtype))
        expected = np.einsum("nk,nk->n", weights, z, dtype=np.float64)
        return np.mean(expected / weights.sum(axis=1, dtype=np.float64)) - of_labels

    low, high = np.log(TEMPERATURES)
    if slope(0.0) == 0:
        return 1.0
    if slope(low) <= 0:  # sharper is better yet
        return TEMPERATURES[0]
    if slope(high) >= 0:
        return TEMPERATURES[1]
    return float(np.exp(brentq(slope, low, high, xtol=1e-6)))
