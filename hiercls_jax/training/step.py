"""The training step and the prediction step: pure functions of a state and a batch.

They take an `axis_name` and average over it; `parallel.py` maps them over devices.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from hiercls_jax.data.augment import augment, sample_keys, standardise
from hiercls_jax.models.branched import Branched
from hiercls_jax.training.loss import error_counts, level_losses, summed_loss
from hiercls_jax.training.state import State


@dataclasses.dataclass(frozen=True)
class Task:
    """All that the steps need to know besides state and batch; constants to the compiler.

    Args:
      network: predicts one level per head.
      optimizer: applied to the gradient of the summed loss.
      ancestors: int32 `[F]` by level name, the class of each last-level label in that level.
      weights: of each level's loss in the sum, by level name.
      mean, std: float32 `[3]`, of the training images in [0, 255].
      key: random key that augmentation is drawn from.
      augment: whether training images are flipped and cropped at random.
      dtype: in which the network computes; parameters, statistics and loss are float32.
    """

    network: Branched
    optimizer: optax.GradientTransformation
    ancestors: dict[str, np.ndarray]
    weights: dict[str, float]
    mean: np.ndarray
    std: np.ndarray
    key: Any
    augment: bool = True
    dtype: str = "float32"


def make_train_step(task: Task) -> Callable[[State, dict], tuple[State, dict]]:
    """Return `step(state, batch) -> (state, metrics)`.

    A batch has `images` uint8 `[N, H, W, 3]`, `labels` int32 `[N]` of the last level, and
    `positions` int32 `[N]`, each image's index in the global batch. Metrics are sums over the
    global batch: `loss_<level>` and `errors_<level>`, with `count` and the summed `loss`.
    """
    axis_name = task.network.axis_name

    def step(state: State, batch: dict) -> tuple[State, dict]:
        images = standardise(batch["images"], task.mean, task.std)
        if task.augment:
            images = augment(images, sample_keys(task.key, state.step, batch["positions"]))
        labels = {level: jnp.asarray(ids)[batch["labels"]] for level, ids in task.ancestors.items()}

        def loss_fn(params):
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
        metrics |= {f"errors_{k}": v for k, v in error_counts(logits, labels).items()}
        if axis_name is not None:
            metrics = lax.psum(metrics, axis_name)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def make_predict_step(task: Task) -> Callable[[State, dict], tuple[jax.Array, dict]]:
    """Return `step(state, batch) -> (positions, probabilities)` of the global batch.

    `positions` are int32 `[N]`, each row's index in the global batch; probabilities float32
    `[N, classes]` by level name. Every device returns those of all.
    """
    axis_name = task.network.axis_name

    def step(state: State, batch: dict) -> tuple[jax.Array, dict]:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        probs = probabilities(
            task.network, variables, batch["images"], task.mean, task.std, task.dtype
        )
        found = batch["positions"], probs
        if axis_name is not None:
            found = lax.all_gather(found, axis_name, tiled=True)
        return found

    return step


def probabilities(
    network: Branched, variables: dict, images, mean, std, dtype: str
) -> dict[str, jax.Array]:
    """Return float32 `[N, classes]` by level name for images uint8 `[N, H, W, 3]`.

    Args:
      network: predicts one level per head.
      variables: its `params` and `batch_stats`.
      images: as they are, not standardised.
      mean, std: float32 `[3]`, of the training images in [0, 255].
      dtype: in which the network computes.
    """
    images = standardise(images, mean, std).astype(dtype)
    logits = network.apply(variables, images, train=False)
    return {level: jax.nn.softmax(z.astype(jnp.float32)) for level, z in logits.items()}
