"""The training step and the prediction step: pure functions of a state and a batch.

They take the sums and averages over devices themselves, over the network's `axis_name`;
`runtime/parallel.py` maps them over devices.

A batch is a dict of arrays, on each device those of its part of the global batch:
  images: uint8 `[N, H, W, 3]`.
  labels: int32 `[N]`, classes of the last level (training only).
  positions: int32 `[N]`, each image's index in the global batch.
  indices: int32 `[N]`, each image's index in its split.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike

from hiercls_jax.data.augment import alternately, augment, resize, sample_keys, standardise
from hiercls_jax.errors import UserError
from hiercls_jax.models.branched import Branched
from hiercls_jax.training.loss import error_counts, level_losses, summed_loss
from hiercls_jax.training.state import State

Batch = Mapping[str, jax.Array]
Tree = Any  # a pytree of arrays


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
      smoothing: of labels, in the training loss, from 0 to below 1.
      reflect: whether augmentation pads by the image's reflection instead of zeros.
      parts: of a batch, over which gradients are averaged one after another, so that memory is that
        of a part. Batch statistics are those of a part, over all devices. Part i has the images
        whose position is i modulo `parts`, so that parts do not depend on the devices.
      mirror: whether probabilities are the mean over an image and its mirror image.
      alternate: steps per epoch, if augmentation mirrors each image in every other epoch; None to
        mirror at random.
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
    smoothing: float = 0.0
    reflect: bool = False
    parts: int = 1
    mirror: bool = False
    alternate: int | None = None


def make_train_step(
    task: Task, size: int | None = None
) -> Callable[[State, Batch], tuple[State, dict[str, jax.Array]]]:
    """Return `step(state, batch) -> (state, metrics)`.

    Args:
      task: network, optimizer and constants.
      size: pixels of the shorter side that augmented images are resized to; None keeps their size.

    Metrics are scalars, each a sum over the global batch: `count`, the number of images; `loss`,
    the weighted sum over levels; and for each level `loss_<level>` and `errors_<level>`.
    """
    axis_name = task.network.axis_name

    def gradients(
        params: Tree, batch_stats: Tree, images: jax.Array, labels: dict[str, jax.Array]
    ) -> tuple[Tree, tuple[Tree, dict[str, jax.Array]]]:
        """Return (batch statistics, (gradients, metrics)) of this device's images."""

        def loss_fn(params: Tree) -> tuple[jax.Array, Any]:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, updated = task.network.apply(
                variables, images.astype(task.dtype), train=True, mutable=["batch_stats"]
            )
            losses = level_losses(logits, labels, task.smoothing)
            return summed_loss(losses, task.weights), (losses, logits, updated["batch_stats"])

        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (losses, logits, new_stats)), grads = gradient(params)
        count = jnp.int32(len(images))
        metrics = {"count": count, "loss": loss * count}
        metrics |= {f"loss_{level}": value * count for level, value in losses.items()}
        errors = error_counts(logits, labels)
        metrics |= {f"errors_{level}": value for level, value in errors.items()}
        return new_stats, (grads, metrics)

    def step(state: State, batch: Batch) -> tuple[State, dict[str, jax.Array]]:
        images = standardise(batch["images"], task.mean, task.std)
        if task.augment:
            keys = sample_keys(task.key, state.step, batch["positions"])
            mirrored = None
            if task.alternate is not None:
                mirrored = alternately(task.key, batch["indices"], state.step // task.alternate)
            images = augment(images, keys, task.reflect, mirrored)
        if size is not None:
            images = resize(images, size)
        labels = {level: jnp.asarray(ids)[batch["labels"]] for level, ids in task.ancestors.items()}
        of_part = partial(gradients, state.params)
        if task.parts == 1:
            batch_stats, (grads, metrics) = of_part(state.batch_stats, images, labels)
        else:
            split = partial(_split, task.parts)
            parts = split(images), jax.tree.map(split, labels)
            batch_stats, (grads, metrics) = _in_parts(of_part, state.batch_stats, parts)
            grads = jax.tree.map(lambda g: g / task.parts, grads)
        if axis_name is not None:
            grads, metrics = lax.pmean(grads, axis_name), lax.psum(metrics, axis_name)
        updates, opt_state = task.optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(state.step + 1, params, batch_stats, opt_state), metrics

    return step


def _split(parts: int, x: jax.Array) -> jax.Array:
    """`[N, ...] -> [parts, N / parts, ...]`: every `parts`-th row is in the same part."""
    if len(x) % parts:
        raise UserError(
            f"a device's {len(x)} images of a batch cannot be divided into {parts} parts; choose a "
            "batch (--config.train.batch) that devices times parts divide"
        )
    return x.reshape(len(x) // parts, parts, *x.shape[1:]).swapaxes(0, 1)


def _in_parts(
    of_part: Callable[..., tuple[Tree, Tree]], batch_stats: Tree, parts: tuple[Tree, ...]
) -> tuple[Tree, Tree]:
    """Return (the last batch statistics, the sum of all results), one part after another."""

    def add(carry: tuple[Tree, Tree], part: tuple[Tree, ...]) -> tuple[tuple[Tree, Tree], None]:
        batch_stats, total = carry
        batch_stats, result = of_part(batch_stats, *part)
        return (batch_stats, jax.tree.map(jnp.add, total, result)), None

    first = jax.tree.map(lambda x: x[0], parts)
    shapes = jax.eval_shape(of_part, batch_stats, *first)[1]
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    carry, _ = lax.scan(add, (batch_stats, zeros), parts)
    return carry


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
            task.network, variables, batch["images"], task.mean, task.std, task.dtype, task.mirror
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
    mirror: bool = False,
) -> dict[str, jax.Array]:
    """Return the softmax of each level, float32 `[N, classes]` by level name.

    Args:
      network: predicts one level per head.
      variables: its `params` and `batch_stats`.
      images: uint8 `[N, H, W, 3]`, not standardised.
      mean, std: float32 `[3]`, of the training images, whose values are in [0, 255].
      dtype: type in which the network computes.
      mirror: whether to return the mean over each image and its mirror image.
    """
    images = standardise(images, mean, std).astype(dtype)
    if mirror:  # one program for both, because a row does not depend on its batch
        images = jnp.concatenate([images, images[:, :, ::-1]])
    logits = cast(dict[str, jax.Array], network.apply(variables, images, train=False))
    probs = {level: jax.nn.softmax(z.astype(jnp.float32)) for level, z in logits.items()}
    if mirror:
        return {level: jnp.mean(p.reshape(2, -1, p.shape[-1]), 0) for level, p in probs.items()}
    return probs
