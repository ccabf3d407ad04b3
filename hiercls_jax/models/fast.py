"""The fast family: three stages that each end in a max-pooling, behind a whitening stem.

The paper describes its stages so (Section 3.4): the merge points of Figure 2 fall behind the
poolings. The layers are those of the CIFAR speedruns: airbench (Jordan, 2024) and its successor on
CIFAR-100 (2026), from which all widths, kernels and constants here are taken.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from hiercls_jax.errors import UserError
from hiercls_jax.models.cpu_gradients import as_row, at_least_float32, conv, max_pool
from hiercls_jax.models.layers import BatchNormSilu, Conv

PATCH = 2  # pixels, of the stem's kernel
WHITENED = 2 * 3 * PATCH**2  # the stem's channels: each eigenvector and its negative
WHITENING_EPSILON = 5e-4  # added to the eigenvalues of standardised patches
LOGIT_SCALE = 1.25 / 9


class Shape(NamedTuple):
    """A stage's channels, the channels inside its pairs, and the kernels of its convolutions."""

    features: int
    inner: int
    kernel: int
    pair_kernels: tuple[int, int]


SHAPES = (Shape(64, 64, 3, (1, 1)), Shape(256, 192, 3, (3, 1)), Shape(768, 512, 2, (3, 3)))


def identity_first(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Return a kernel `[k, k, C, D]` whose first min(C, D) filters copy one input channel each.

    The other filters are uniform with variance 1 / (3 k² C), as PyTorch's default.
    """
    rest = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    *_, inputs, outputs = shape
    count, centre = min(inputs, outputs), shape[0] // 2
    copies = jnp.zeros((*shape[:3], count), dtype).at[centre, centre, :count].set(jnp.eye(count))
    return jnp.concatenate([copies, rest[..., count:]], axis=-1)


def whitening_kernel(images: np.ndarray) -> np.ndarray:
    """Return the stem's kernel for a data set, float32 `[2, 2, 3, 24]`.

    Its filters are the eigenvectors of the covariance of 2x2 patches, each divided by
    √(eigenvalue + 5e-4), and their negatives: over these images, the first 12 channels are
    uncorrelated and have variance 1.

    Args:
      images: float `[N, H, W, 3]`, standardised; 5,000 training images are enough.
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    patches = windows.transpose(0, 1, 2, 4, 5, 3).reshape(-1, 3 * PATCH**2).astype(np.float64)
    values, vectors = np.linalg.eigh(np.cov(patches, rowvar=False))
    # eigh leaves the signs open: the largest component of each eigenvector is positive.
    largest = np.abs(vectors).argmax(axis=0)
    vectors = vectors * np.sign(vectors[largest, np.arange(len(largest))])
    filters = vectors / np.sqrt(values + WHITENING_EPSILON)
    both = np.concatenate([filters, -filters], axis=1)
    return both.reshape(PATCH, PATCH, 3, WHITENED).astype(np.float32)


def set_whitening(batch_stats: Mapping[str, Any], kernel: np.ndarray) -> dict[str, Any]:
    """Return `batch_stats` with this kernel in every stem."""
    flat = flatten_dict(batch_stats)
    return unflatten_dict(
        {path: kernel if path[-2:] == ("stem", "kernel") else x for path, x in flat.items()}
    )


class Stem(nn.Module):
    """The whitening convolution, a trained bias and SiLU, `[N, H, W, 3] -> [N, H-1, W-1, 24]`.

    The kernel is a constant of the data, such as their mean and deviation. It is kept among the
    batch statistics, which belong to a run and are not trained. Until `set_whitening` replaces it,
    it copies the pixels of a patch and their negatives.

    Args:
      whiten: whether that is so; otherwise the kernel is a parameter that begins with these copies.
    """

    whiten: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        if min(x.shape[1:3]) < Fast.smallest:
            raise UserError(
                f"images of {x.shape[1]}x{x.shape[2]} pixels are too few for the poolings of this "
                f"architecture; they must have at least {Fast.smallest} pixels a side "
                "(--config.data.image_size), or choose another arch"
            )
        if self.whiten:
            kernel = self.variable("batch_stats", "kernel", copy_patches).value
        else:
            kernel = self.param("kernel", lambda key: copy_patches())
        bias = self.param("bias", nn.initializers.zeros, (WHITENED,))
        y = conv(x, kernel.astype(x.dtype))
        return nn.silu(y + as_row(bias).astype(x.dtype))


def copy_patches() -> jax.Array:
    """Return the kernel `[2, 2, 3, 24]` that copies a patch's 12 pixels, and their negatives."""
    pixels = jnp.eye(WHITENED // 2)
    return jnp.concatenate([pixels, -pixels], axis=1).reshape(PATCH, PATCH, 3, WHITENED)


class Pair(nn.Module):
    """Two convolutions, each followed by a BatchNormSilu, added to the input."""

    inner: int
    kernels: tuple[int, int]
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = Conv(self.inner, self.kernels[0], kernel_init=identity_first, name="conv1")(x)
        inside = BatchNormSilu(self.axis_name, lazy=True, name="norm1")(y, train)
        y = Conv(x.shape[-1], self.kernels[1], kernel_init=identity_first, name="conv2")(inside)
        return x + cast(jax.Array, BatchNormSilu(self.axis_name, name="norm2")(y, train))


class Stage(nn.Module):
    """A convolution, 2x2 max-pooling and BatchNormSilu, and `pairs` pairs at the new resolution."""

    shape: Shape
    pairs: int
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        features, inner, kernel, pair_kernels = self.shape
        x = max_pool(Conv(features, kernel, kernel_init=identity_first, name="conv")(x))
        x = cast(jax.Array, BatchNormSilu(self.axis_name, name="norm")(x, train))
        for i in range(self.pairs):
            x = Pair(inner, pair_kernels, self.axis_name, name=f"pair{i}")(x, train)
        return x


class GlobalPool(nn.Module):
    """The maximum plus the mean over positions, `[N, H, W, C] -> [N, C]`, float32 at least."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        x = at_least_float32(x)
        return jnp.max(x, (1, 2)) + jnp.mean(x, (1, 2))


class ScaledClassifier(nn.Module):
    """A linear layer without bias, its logits scaled, `[N, C] -> [N, classes]`."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # as PyTorch's default
        return x @ self.param("kernel", init, (x.shape[-1], self.classes)) * LOGIT_SCALE


@dataclasses.dataclass(frozen=True)
class Fast:
    """The family `fast<depth>`; the speedrun's network is `fast11`, 8.6 M parameters.

    Args:
      depth: 6n + 5 for n pairs in each of the three stages.
      width: multiplier of all channel counts behind the stem.
      whiten: whether the stem's kernel whitens patches of the training images. Otherwise it is
        trained, like all others.
    """

    smallest: ClassVar[int] = 13  # pixels of an image's side: the last pooling then leaves one
    RECIPE: ClassVar[Mapping[str, object]] = {
        "epochs": 8,
        "batch": 1024,
        "parts": 8,  # of 128 images each, over which batch statistics are taken; not tuned
        "sizes": ((20, 0.4),),  # images of 20 pixels until this fraction of the run
        "reflect": True,
        "alternate_mirror": True,
        "label_smoothing": 0.25,
        "mirror_mean": True,
        "optimizer": {
            "schedule": "linear",
            "learning_rate": 1.38,  # of SGD, at the peak
            "peak_at": 0.2,  # fraction of the run
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 5e-4,  # L2 in the gradient, of the classifiers alone
            "muon_learning_rate": 0.18,  # of convolution kernels, at the peak
            "muon_momentum": 0.6,
            "muon_steps": 3,  # of the Newton-Schulz iteration
        },
    }

    depth: int
    width: float = 1.0
    whiten: bool = True

    def __post_init__(self) -> None:
        if self.depth < 11 or (self.depth - 5) % 6:
            raise ValueError(f"a fast network has depth 6n + 5 (11, 17, …), not {self.depth}")
        if not 0 < self.width <= 1000:
            raise ValueError(f"width is a positive multiplier, not {self.width}; at most 1000")

    def pieces(self, axis_name: str | None) -> tuple[nn.Module, ...]:
        """Return the stem, the three stages and the global pooling, in order."""
        return (
            Stem(self.whiten, name="stem"),
            *(
                Stage(shape, self.pairs, axis_name, name=f"stage{i}")
                for i, shape in enumerate(self.shapes(), 1)
            ),
            GlobalPool(name="pool"),
        )

    @property
    def pairs(self) -> int:
        """The number of pairs in each stage."""
        return (self.depth - 5) // 6

    def shapes(self) -> tuple[Shape, ...]:
        """Return the three stages' shapes at this width."""
        return tuple(self._scaled(shape) for shape in SHAPES)

    def with_constants(self, batch_stats: Mapping[str, Any], images: np.ndarray) -> dict[str, Any]:
        """Return the batch statistics with the whitening kernel of standardised images."""
        if not self.whiten:
            return dict(batch_stats)
        return set_whitening(batch_stats, whitening_kernel(images))

    def head(self, classes: int) -> nn.Module:
        """Return the classifier of a level."""
        return ScaledClassifier(classes, name="classifier")

    def _scaled(self, shape: Shape) -> Shape:
        features, inner = (
            max(1, round(channels * self.width)) for channels in (shape.features, shape.inner)
        )
        return shape._replace(features=features, inner=inner)
