"""DenseNet-BC for small images, depth 6n + 4, growth rate k (Huang et al., CVPR 2017)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from hiercls_jax.models.layers import (
    BatchNormRelu,
    Conv,
    average_pool,
    moments_within,
    sum_gradient_once,
)
from hiercls_jax.models.resnet import STAGES, Stem, check_scale

BOTTLENECK = 4  # channels of a layer's inner activation over the growth rate


class Layer(nn.Module):
    """1x1 and 3x3 convolution, each after a BatchNormRelu; the new channels join the old ones.

    So do their moments: every later layer normalises the same channels, by the same moments.
    """

    growth: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train, moments):
        y = BatchNormRelu(self.axis_name, lazy=True, name="norm1")(x, train, moments)
        y = Conv(BOTTLENECK * self.growth, 1, name="conv1")(y)
        y = BatchNormRelu(self.axis_name, lazy=True, name="norm2")(y, train)
        y = sum_gradient_once(Conv(self.growth, 3, name="conv2")(y))
        if train:
            moments = jax.tree.map(_join, moments, moments_within(self, y))
        return _join(x, y), moments


def _join(old, new):
    return jnp.concatenate([old, new], axis=-1)


class Stage(nn.Module):
    """A dense block and the transition that ends it; the last stage has no transition."""

    layers: int
    growth: int
    compression: float | None  # of the transition; None for the last stage
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train):
        moments = moments_within(self, x) if train else None
        for i in range(self.layers):
            layer = Layer(self.growth, self.axis_name, name=f"layer{i}")
            x, moments = layer(x, train, moments)
        if self.compression is None:
            return x
        features = int(x.shape[-1] * self.compression)
        y = BatchNormRelu(self.axis_name, lazy=True, name="transition_norm")(x, train, moments)
        return average_pool(Conv(features, 1, name="transition_conv")(y))


@dataclasses.dataclass(frozen=True)
class DenseNet:
    """The family `densenet<depth>`; the paper's DenseNet-100-BC is `densenet100` with k = 12.

    Args:
      depth: 6n + 4 for n layers in each of the three dense blocks.
      growth: growth rate k, the channels that each layer adds.
      compression: channels that a transition keeps, in (0, 1].
      width: multiplier of the growth rate.
      stem_stride: stride of the first convolution; 2 makes everything behind it 4 times cheaper.
    """

    # Huang et al. (2017).
    RECIPE: ClassVar[Mapping[str, object]] = {
        "epochs": 300,
        "batch": 64,
        "optimizer": {
            "schedule": "step",
            "learning_rate": 0.1,
            "decay_at": (0.5, 0.75),
            "decay_factor": 0.1,
            "warmup_steps": 0,
            "warmup_learning_rate": 0.0,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
        },
    }

    depth: int
    growth: int = 12
    compression: float = 0.5
    width: float = 1.0
    stem_stride: int = 1

    def __post_init__(self):
        if self.depth < 10 or (self.depth - 4) % 6:
            raise ValueError(f"a DenseNet-BC has depth 6n + 4 (10, 16, …), not {self.depth}")
        if not 0 < self.compression <= 1:
            raise ValueError(f"compression lies in (0, 1], not {self.compression}")
        if not 1 <= self.growth <= 1000:
            raise ValueError(f"growth is at least 1 channel, not {self.growth}; at most 1000")
        check_scale(self.width, self.stem_stride)

    def pieces(self, axis_name: str | None) -> tuple[nn.Module, ...]:
        """Return the stem, the three stages and the final normalisation, in order."""
        layers = (self.depth - 4) // 6
        growth = max(1, round(self.growth * self.width))
        compressions = [self.compression] * (STAGES - 1) + [None]
        return (
            Stem(2 * growth, self.stem_stride, name="stem"),
            *(
                Stage(layers, growth, compression, axis_name, name=f"stage{i + 1}")
                for i, compression in enumerate(compressions)
            ),
            BatchNormRelu(axis_name, name="norm"),
        )
