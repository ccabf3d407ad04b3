"""The layers that the network families share: Conv, BatchNormRelu, BatchNormSilu, Classifier.

They compute what flax's `Conv`, `BatchNorm` with `relu`, and `Dense` after a mean compute. They
are faster on a CPU, because the operations of `cpu_gradients.py` have written-out gradients.

Layers compute in the type of the images they are given. Parameters, batch statistics and logits are
float32 for every such type (float64 if the parameters are).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.typing import Initializer
from jax import lax

from hiercls_jax.models.cpu_gradients import (
    Activation,
    Normalised,
    at_least_float32,
    batch_moments,
    conv,
    conv_of_normalised,
)

MOMENTUM = 0.9  # of the running statistics, as in both original implementations (flax has 0.99)

# He et al. (2015), by the number of outputs, as in the original implementations of both families.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

Moments = tuple[jax.Array, jax.Array]  # mean and biased variance of each channel, `[C]` each


class Conv(nn.Module):
    """Convolution without bias, `[N, H, W, C] -> [N, ⌈H/stride⌉, ⌈W/stride⌉, features]`.

    It pads by half an odd kernel on each side, as the original implementations do (`SAME` would pad
    a strided convolution on one side only). It does not pad for a kernel of 2x2.

    Args:
      features: channels of the result.
      kernel: size of the kernel.
      stride: of both axes.
      kernel_init: gives the initial kernel.
    """

    features: int
    kernel: int
    stride: int = 1
    kernel_init: Initializer = he_normal

    @nn.compact
    def __call__(self, x: jax.Array | Normalised) -> jax.Array:
        """Convolve images, or images that a `BatchNormRelu` has left to be computed here."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape).astype(x.dtype)
        if isinstance(x, Normalised):
            return conv_of_normalised(x, kernel, self.stride)
        return conv(x, kernel, self.stride)


class BatchNormActivation(nn.Module):
    """Batch normalisation followed by an activation over `[N, H, W, C]` (Ioffe and Szegedy, 2015).

        y = max(0, scale (x - mean) / √(variance + ε) + bias)

    for each channel, with ε = `cpu_gradients.EPSILON`. In training mean and variance are those of
    the batch, and the running ones follow them, by `MOMENTUM`; otherwise they are the running ones.
    The variance is the biased one for both.

    Args:
      axis_name: mapped axis; statistics are of the batch of all its devices. None: of one device.
      lazy: whether to return `Normalised`, for a `Conv` that then keeps no images for its gradient.
      activation: `relu` or `silu`; `BatchNormRelu` and `BatchNormSilu` set it.
    """

    axis_name: str | None = None
    lazy: bool = False
    activation: Activation = "relu"

    @nn.compact
    def __call__(
        self, x: jax.Array, train: bool, moments: Moments | None = None
    ) -> jax.Array | Normalised:
        """Return the normalised images.

        Args:
          x: float `[N, H, W, C]`.
          train: whether to normalise by the batch, and to update the running statistics by it.
          moments: the `batch_moments` of `x` if they are known; computed if not.
        """
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            moments = mean.value, var.value
        elif moments is None:
            moments = moments_within(self, x)
        if train and not self.is_initializing():
            for running, batch in zip((mean, var), moments, strict=True):
                running.value = MOMENTUM * running.value + (1 - MOMENTUM) * lax.stop_gradient(batch)
        normalised = Normalised(x, *moments, scale, bias, self.activation)
        return normalised if self.lazy else normalised.images()


class BatchNormRelu(BatchNormActivation):
    """Batch normalisation followed by ReLU, max(0, z)."""

    activation: Activation = "relu"


class BatchNormSilu(BatchNormActivation):
    """Batch normalisation followed by SiLU, z · σ(z)."""

    activation: Activation = "silu"


def moments_within(module: nn.Module, x: jax.Array) -> Moments:
    """Return `batch_moments` of `x` over the `axis_name` of `module`."""
    # While the parameters are initialised there is no mapped axis to average over.
    return batch_moments(x, None if module.is_initializing() else module.axis_name)


class Classifier(nn.Module):
    """Global average pooling and one linear layer, `[N, H, W, C] -> logits [N, classes]`."""

    classes: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.mean(at_least_float32(x), (1, 2))
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return x @ kernel + bias.reshape(1, -1)
