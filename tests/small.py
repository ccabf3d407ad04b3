"""A tiny data set and a tiny merged network, which several tests train, and how to compile them."""

import dataclasses
import errno
import io
import os
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from PIL import Image

from hiercls_jax import Hierarchy
from hiercls_jax.data.dataset import Split
from hiercls_jax.models.branched import Branched
from hiercls_jax.models.layers import BatchNormRelu, Conv
from hiercls_jax.runtime import parallel
from hiercls_jax.training.loop import Schedule
from hiercls_jax.training.optimizer import make_optimizer
from hiercls_jax.training.step import Task

HIERARCHY = Hierarchy(
    ("coarse", "fine"),
    (("dark", "light"), ("black", "grey", "silver", "white")),
    ((0, 0, 1, 1),),
)


def pmap_first(step, axis_name: str, devices: int, donate_argnums=()):
    """Return `jax.pmap` of a step over the first devices."""
    return jax.pmap(step, axis_name, devices=jax.devices()[:devices], donate_argnums=donate_argnums)


class Stage(nn.Module):
    """BatchNormRelu and a strided convolution."""

    features: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train):
        return Conv(self.features, 3, 2, name="conv")(
            BatchNormRelu(self.axis_name, name="n")(x, train)
        )


class Stem(nn.Module):
    """One convolution."""

    @nn.compact
    def __call__(self, x, train):
        return Conv(4, 3, name="conv")(x)


@dataclasses.dataclass(frozen=True)
class Toy:
    """A family that compiles in a second."""

    depth: int = 4

    def pieces(self, axis_name):
        """Return a stem, two stages and a final normalisation."""
        stages = (Stage(8 * i, axis_name, name=f"stage{i}") for i in (1, 2))
        return (Stem(name="stem"), *stages, BatchNormRelu(axis_name, name="norm"))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The optimizer part of a config."""

    schedule: str = "step"
    learning_rate: float = 0.05
    decay_at: tuple = (0.5, 0.75)
    decay_factor: float = 0.1
    warmup_steps: int = 0
    warmup_learning_rate: float = 0.0
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4


def split(count: int, seed: int = 0, size: int = 8) -> Split:
    """Noisy images whose brightness is their class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count, dtype=np.int32) % 4
    images = rng.integers(0, 64, (count, size, size, 3)) + 60 * labels[:, None, None, None]
    return Split(images.astype(np.uint8), labels)


def image_folder(root: Path, **counts: int) -> Path:
    """Write an image folder with so many images in each split, of all four classes."""
    for name, count in counts.items():
        data = split(count, seed=len(name))
        for i, (image, label) in enumerate(zip(data.images, data.labels, strict=True)):
            folder = root / name / HIERARCHY.names[1][label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / f"{i:03}.png")
    return root


class ClosedPipe(io.StringIO):
    """Stdout after the program that read it has ended."""

    def write(self, text: str) -> int:
        """Fail as a write to a closed pipe does."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def task(merge: int = 1, hierarchy: Hierarchy = HIERARCHY, **changes) -> Task:
    """A merged toy network with synchronised batch statistics."""
    heads = tuple(zip(hierarchy.levels, hierarchy.sizes, strict=True))
    network = Branched(Toy(), heads, merge, parallel.AXIS)
    levels = enumerate(hierarchy.levels)
    return Task(
        network=network,
        optimizer=make_optimizer(changes.pop("recipe", Recipe()), 100),
        ancestors={name: hierarchy.ancestors(i) for i, name in levels},
        weights=dict.fromkeys(hierarchy.levels, 1.0),
        mean=np.full(3, 120, np.float32),
        std=np.full(3, 70, np.float32),
        key=jax.random.key(7),
        **changes,
    )


def schedule(**changes) -> Schedule:
    """Four epochs of six steps on 50 images."""
    fields = {"epochs": 4, "batch": 8, "seed": (0, 0), "log_every": 4, "save_minutes": 60.0}
    return Schedule(**{**fields, **changes})
