"""Pre-activation bottleneck ResNet for small images, depth 9n + 2 (He et al., ECCV 2016)."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn

from hiercls_jax.models.layers import BatchNormRelu, Conv

STAGES = 3
EXPANSION = 4  # a block's output channels over its inner ones


class Block(nn.Module):
    """1x1, 3x3, 1x1 convolutions, each after a BatchNormRelu; a shortcut convolution only where the
    width changes, fed with the first activation as in the original implementation."""

    features: int  # inner channels
    stride: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train):
        norm1, norm2, norm3 = (
            BatchNormRelu(self.axis_name, lazy=True, name=f"norm{i}") for i in (1, 2, 3)
        )
        y = norm1(x, train)
        width = self.features * EXPANSION
        if x.shape[-1] != width:
            y = y.images()
            x = Conv(width, 1, self.stride, name="shortcut")(y)
        y = Conv(self.features, 1, self.stride, name="conv1")(y)
        y = Conv(self.features, 3, name="conv2")(norm2(y, train))
        y = Conv(width, 1, name="conv3")(norm3(y, train))
        return x + y


class Stem(nn.Module):
    """The first convolution."""

    features: int
    stride: int

    @nn.compact
    def __call__(self, x, train):
        return Conv(self.features, 3, self.stride, name="conv")(x)


class Stage(nn.Module):
    """`blocks` blocks at one resolution; the first one reaches it by its stride.

    The others are alike, so that they are one loop and compiled once; their parameters are one
    module's, `blocks`, with an axis over blocks in front.
    """

    blocks: int
    features: int
    stride: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x, train):
        x = Block(self.features, self.stride, self.axis_name, name="block0")(x, train)
        if self.blocks == 1:
            return x
        others = Block(self.features, 1, self.axis_name, name="blocks")
        loop = nn.scan(
            lambda block, x: (block(x, train), None),
            variable_axes={"params": 0, "batch_stats": 0},
            split_rngs={"params": True},
            length=self.blocks - 1,
        )
        return loop(others, x)[0]


@dataclasses.dataclass(frozen=True)
class ResNet:
    """The family `resnet<depth>`; ResNet-164 is `resnet164`.

    Args:
      depth: 9n + 2 for n blocks in each of the three stages.
      width: multiplier of all channel counts.
      stem_stride: stride of the first convolution; 2 makes everything behind it 4 times cheaper.
    """

    # He et al. (2016): 64k steps of 128 from 50,000 images are 164 epochs; ÷10 at 32k and 48k.
    RECIPE: ClassVar[Mapping[str, object]] = {
        "epochs": 164,
        "batch": 128,
        "optimizer": {
            "schedule": "step",
            "learning_rate": 0.1,
            "decay_at": (0.5, 0.75),  # fractions of the run
            "decay_factor": 0.1,
            "warmup_steps": 400,
            "warmup_learning_rate": 0.01,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 1e-4,  # L2 in the gradient, on all parameters
        },
    }

    depth: int
    width: float = 1.0
    stem_stride: int = 1

    def __post_init__(self):
        if self.depth < 11 or (self.depth - 2) % 9:
            raise ValueError(f"a bottleneck ResNet has depth 9n + 2 (11, 20, …), not {self.depth}")
        check_scale(self.width, self.stem_stride)

    def pieces(self, axis_name: str | None) -> tuple[nn.Module, ...]:
        """Return the stem, the three stages and the final normalisation, in order."""
        blocks = (self.depth - 2) // 9
        base = max(1, round(16 * self.width))
        return (
            Stem(base, self.stem_stride, name="stem"),
            *(
                Stage(blocks, base * 2**i, 1 if i == 0 else 2, axis_name, name=f"stage{i + 1}")
                for i in range(STAGES)
            ),
            BatchNormRelu(axis_name, name="norm"),
        )


def check_scale(width: float, stem_stride: int) -> None:
    """Raise a ValueError for a width or a stem stride that no network can have."""
    if not 0 < width <= 1000:
        raise ValueError(f"width is a positive multiplier, not {width}; at most 1000")
    if not 1 <= stem_stride <= 1000:
        raise ValueError(f"stem_stride is at least 1, not {stem_stride}; at most 1000")
