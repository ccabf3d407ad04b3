"""The summed cross-entropy over levels (Figure 2d-2g) and its metrics as sums and counts."""

import jax.numpy as jnp
import optax


def level_losses(logits: dict, labels: dict) -> dict:
    """Return the mean cross-entropy of each level, a float32 scalar by level name.

    Args:
      logits: float `[N, classes]` by level name.
      labels: int32 `[N]` by level name.
    """
    return {
        level: jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(z, labels[level]))
        for level, z in logits.items()
    }


def summed_loss(losses: dict, weights: dict):
    """Return Σ over levels of weight times loss; the paper's weights are all 1."""
    return sum(weights[level] * loss for level, loss in losses.items())


def error_counts(logits: dict, labels: dict) -> dict:
    """Return the number of wrong top-1 predictions of each level, an int32 scalar by name."""
    return {level: jnp.sum(jnp.argmax(z, axis=-1) != labels[level]) for level, z in logits.items()}
