"""The training step and the prediction step: pure functions of a state and a batch.

They take the sums and averages over devices themselves, over the network's `axis_name`;
`runtime/parallel.py` maps them over devices.

A batch is a dict of arrays, on each device those of its part of the global batch:
  images: uint8 `[N, H, W, 3]`.
  labels: int32 `[N]`, classes of the last level (training only).
  positions: int32 `[N]`, each image's index in the global batch.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from hiercls_jax.data.augment import augment, sample_keys, standardise
from hiercls_jax.models.branched import Branched
from hiercls_jax.training.loss import error_counts, level_losses, summed_loss
from hiercls_jax.training.state import State

Batch = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Task:
    """Everything that the steps read besides state and batch; constants to the compiler.

    Args:
      network: predicts one level per head.
      optimizer: applied to the gradient of the summed loss.
      ancestors: by level name, int32 `[F]`: the class in that level of each of the F classes of
        the last level.
      weights: by level name, of each level's loss in the sum; at least 0.
      mean, std: float32 `[3]`, of the training images, whose values are in [0, 255].
      key: random key of augmentation.
      augment: whether training images are flipped and cropped at random.
      dtype: type in which the network computes; parameters, statistics and loss are float32.
    """

    network: Branched
    optimizer: optax.GradientTransformation
    ancestors: dict[str, np.ndarray]
    weights: dict[str, float]
    mean: np.ndarray
    std: np.ndarray
    key: jax.Array
    augment: bool = True
    dtype: str = "float32"


def make_train_step(task: Task) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """Return `step(state, batch) -> (state, metrics)`.

    Metrics are scalars, each a sum over the global batch: `count`, the number of images; `loss`,
    the weighted sum over levels; and for each level `loss_<level>` and `errors_<level>`.
    """
    axis_name = task.network.axis_name

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        images = standardise(batch["images"], task.mean, task.std)
        if task.augment:
            images = augment(images, sample_keys(task.key, state.step, batch["positions"]))
        labels = {level: jnp.asarray(ids)[batch["labels"]] for level, ids in task.ancestors.items()}

        def loss_fn(params: dict[str, Any]) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits, updated = task.network.apply(
                variables, images.astype(task.dtype), train=True, mutable=["batch_stats"]
            )
            losses = level_losses(logits, labels)
            return summed_loss(losses, task.weights), (losses, logits, updated["batch_stats"])

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (losses, logits, batch_stats)), grads = gradient(state.params)
        if axis_name is not None:
            grads = lax.pmean(grads, axis_name)
        updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
        count = jnp.int32(len(batch["labels"]))
        metrics = {"count": count, "loss": loss * count}
        metrics |= {f"loss_{level}": value * count for level, value in losses.items()}
        errors = error_counts(logits, labels)
        metrics |= {f"errors_{level}": value for level, value in errors.items()}
        if axis_name is not None:
            metrics = lax.psum(metrics, axis_name)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def make_predict_step(
    task: Task,
) -> Callable[[State, Batch], tuple[jax.Array, dict[str, jax.Array]]]:
    """Return `step(state, batch) -> (positions, probabilities)` of the global batch.

    `positions` are int32 `[N]`, each row's index in the global batch. Probabilities are float32
    `[N, classes]` by level name. Every device returns the rows of all devices.
    """
    axis_name = task.network.axis_name

    def step(state: State, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        probs = probabilities(
            task.network, variables, batch["images"], task.mean, task.std, task.dtype
        )
        rows = batch["positions"], probs
        if axis_name is not None:
            rows = lax.all_gather(rows, axis_name, tiled=True)
        return rows

    return step


def probabilities(
    network: Branched,
    variables: Mapping[str, Any],
    images: ArrayLike,
    mean: ArrayLike,
    std: ArrayLike,
    dtype: str,
) -> dict[str, jax.Array]:
    """Return the softmax of each level, float32 `[N, classes]` by level name.

    Args:
      network: predicts one level per head.
      variables: its `params` and `batch_stats`.
      images: uint8 `[N, H, W, 3]`, not standardised.
      mean, std: float32 `[3]`, of the training images, whose values are in [0, 255].
      dtype: type in which the network computes.
    """
    images = standardise(images, mean, std).astype(dtype)
    logits = cast(dict[str, jax.Array], network.apply(variables, images, train=False))
    return {level: jax.nn.softmax(z.astype(jnp.float32)) for level, z in logits.items()}
