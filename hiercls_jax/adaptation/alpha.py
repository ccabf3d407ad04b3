"""The choice of alpha: error of every level against alpha, tuned on validation data."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

GRID = 201  # values of alpha from 0 to its largest; steps of 0.01 for two levels


def error_curve(
    adapt: Callable, probs: Sequence, labels: Sequence, alphas: np.ndarray
) -> np.ndarray:
    """Return the top-1 error of each level at each alpha (the paper's Figures 3 and 4).

    Args:
      adapt: pure function `(probs, alpha) -> probs`, both one array `[N, classes]` per level.
      probs: L arrays `[N, classes]` of probabilities, coarsest level first.
      labels: L arrays `[N]` of integer labels.
      alphas: `[A]` values of alpha.

    Returns:
      float64 `[A, L]`, errors in [0, 1]; ties between classes go to the lowest index.
    """
    return np.asarray(_wrong(adapt, tuple(probs), tuple(labels), jnp.asarray(alphas))) / len(
        labels[0]
    )


def _wrong(adapt, probs, labels, alphas):
    @jax.jit
    def count(probs, labels, alphas):
        def at(alpha):
            adapted = adapt(probs, alpha)
            wrong = [
                jnp.sum(jnp.argmax(p, axis=-1) != y) for p, y in zip(adapted, labels, strict=True)
            ]
            return jnp.stack(wrong)

        return jax.lax.map(at, alphas)

    return count(probs, labels, alphas)


def tune(curve: np.ndarray, alphas: np.ndarray) -> float:
    """Return the alpha with the smallest sum of the levels' errors; of several, the nearest to 1.

    Args:
      curve: float `[A, L]`, errors on validation data.
      alphas: `[A]`.
    """
    total = curve.sum(axis=1)
    minimisers = alphas[total <= total.min() + 1e-12]
    return float(minimisers[np.argmin(np.abs(minimisers - 1))])
