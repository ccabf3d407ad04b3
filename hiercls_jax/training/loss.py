"""The cross-entropy, summed over levels (Figure 2d-2g), and the count of errors."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax


def level_losses(
    logits: Mapping[str, jax.Array], labels: Mapping[str, jax.Array], smoothing: float = 0.0
) -> dict[str, jax.Array]:
    """Return the mean cross-entropy of each level, a float32 scalar by level name.

    Label smoothing (Szegedy et al., 2016, Section 7) is the cross-entropy to (1 - ε) of the label
    and ε of the uniform distribution over all classes.

    Args:
      logits: float `[N, classes]` by level name.
      labels: int32 `[N]` by level name, each from 0 to classes - 1.
      smoothing: ε, from 0 to below 1.
    """

    def loss(z: jax.Array, label: jax.Array) -> jax.Array:
        exact = optax.losses.softmax_cross_entropy_with_integer_labels(z, label)
        if smoothing == 0:  # the same program as without it
            return jnp.mean(exact)
        uniform = jax.nn.logsumexp(z, axis=-1) - jnp.mean(z, axis=-1)
        return jnp.mean((1 - smoothing) * exact + smoothing * uniform)

    return {level: loss(z, labels[level]) for level, z in logits.items()}


def summed_loss(
    losses: Mapping[str, jax.Array], weights: Mapping[str, jax.typing.ArrayLike]
) -> jax.Array:
    """Return Σ over levels of weight times loss, a scalar; the paper's weights are all 1.

    >>> summed_loss({"coarse": jnp.float32(2), "fine": jnp.float32(3)}, {"coarse": 1, "fine": 0.5})
    Array(3.5, dtype=float32)
    """
    return jnp.asarray(sum(weights[level] * loss for level, loss in losses.items()))


def error_counts(
    logits: Mapping[str, jax.Array], labels: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Return the number of wrong top-1 predictions of each level, an int32 scalar by level name.

    Args:
      logits: float `[N, classes]` by level name.
      labels: int32 `[N]` by level name, each from 0 to classes - 1.
    """
    return {level: jnp.sum(jnp.argmax(z, axis=-1) != labels[level]) for level, z in logits.items()}
