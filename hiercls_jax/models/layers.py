"""The layers that both network families are built from: Conv, NormRelu, Linear, pooling.

Each computes what flax's own layer computes, faster on a CPU: ReLU∘BatchNorm has a hand-written
derivative that reads its input twice instead of many times, a 1x1 convolution is a product of
matrices, and the derivative of any other one is written down in the order of axes that is fast.

They compute in the type of the images they are given. Parameters, statistics and logits are float32
whatever that is (float64 where the parameters are).
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

MOMENTUM = 0.9  # of the running statistics, as in both original implementations (not flax's 0.99)
EPSILON = 1e-5

# He et al. (2015), over outputs as the original implementations of both families have it.
he_normal = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class Conv(nn.Module):
    """Convolution without bias, `[N, H, W, C] -> [N, H/stride, W/stride, features]`.

    Padded by half a kernel on each side, as the original implementations do (`SAME` would pad a
    strided convolution on one side only).
    """

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        return conv(x, self.param("kernel", he_normal, shape).astype(x.dtype), self.stride)


def conv(x, kernel, stride: int = 1):
    """Convolve `[N, H, W, C]` with an odd `[k, k, C, D]` kernel, padded by (k - 1) / 2."""
    if kernel.shape[0] == 1:
        x = x[:, ::stride, ::stride]
        return (x.reshape(-1, x.shape[-1]) @ kernel[0, 0]).reshape(*x.shape[:-1], -1)
    return _conv(x, kernel, stride)


def _convolve(x, kernel, padding, stride=1, spread_x=1, spread_kernel=1):
    steps = [(step, step) for step in (stride, spread_x, spread_kernel)]
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, steps[0], padding, *steps[1:], numbers)


def _padded(x, kernel, stride):
    pad = kernel.shape[0] // 2
    return _convolve(x, kernel, [(pad, pad)] * 2, stride)


_conv = jax.custom_vjp(_padded, nondiff_argnums=(2,))


def _conv_forward(x, kernel, stride):
    return _conv(x, kernel, stride), (x, kernel)


def _conv_backward(stride, saved, dy):
    return lax.platform_dependent(
        *saved, dy, cpu=partial(_conv_gradients, stride), default=partial(_autodiff, stride)
    )


def _autodiff(stride, x, kernel, dy):
    return jax.vjp(partial(_padded, stride=stride), x, kernel)[1](dy)


def _conv_gradients(stride, x, kernel, dy):
    """Both gradients as convolutions with their axes in the order of the forward one.

    XLA has fast code for this order on a CPU, and brings what autodiff writes down into it; but
    not within a loop, where it takes 9 times as long.
    """
    size, sizes = kernel.shape[0], x.shape[1:3]
    pad = size // 2
    spread = [(rows - 1) * stride + 1 for rows in dy.shape[1:3]]  # dy's, with zeros in between
    turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    rests = [(pad, have - rows + pad) for have, rows in zip(sizes, spread, strict=True)]
    dx = _convolve(dy, turned, rests, spread_x=stride)
    # The sum over images: they take the place of the channels, and dy that of the kernel.
    images, weights = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    rests = [(pad, size - 1 - pad - have + rows) for have, rows in zip(sizes, spread, strict=True)]
    return dx, _convolve(images, weights, rests, spread_kernel=stride).transpose(1, 2, 0, 3)


_conv.defvjp(_conv_forward, _conv_backward)


class NormRelu(nn.Module):
    """Batch normalisation followed by ReLU over `[N, H, W, C]` (Ioffe and Szegedy, 2015).

    Where `axis_name` is given, the statistics are those of the whole batch over that mapped axis.
    """

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train: bool):
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        var = self.variable("batch_stats", "var", jnp.ones, shape)
        if not train:
            return _apply(x, mean.value, var.value, scale, bias)
        # While the parameters are initialised there is no mapped axis to average over.
        axis_name = None if self.is_initializing() else self.axis_name
        y, batch_mean, batch_var = norm_relu(x, scale, bias, axis_name)
        if not self.is_initializing():
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * batch_mean
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * batch_var
        return y


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def norm_relu(x, scale, bias, axis_name: str | None = None):
    """Normalise by the batch's own statistics, scale, shift, and clip at zero.

    Args:
      x: float `[N, H, W, C]`.
      scale, bias: float `[C]`.
      axis_name: mapped axis over which the batch is spread, or None.

    Returns:
      (y `[N, H, W, C]` of the type of x, mean `[C]`, biased variance `[C]`), both in at least
      float32 whatever the type of x. The statistics are for the running
      averages: no gradient flows through them.
    """
    wide = _wide(x)
    mean = _mean(wide, axis_name)
    var = _mean(jnp.square(wide - _row(mean)), axis_name)
    return _apply(x, mean, var, scale, bias), mean, var


def _forward(x, scale, bias, axis_name):
    y, mean, var = norm_relu(x, scale, bias, axis_name)
    return (y, mean, var), (x, mean, var, scale, bias)


def _backward(axis_name, saved, cotangents):
    x, mean, var, scale, bias = saved
    inverse = lax.rsqrt(var + EPSILON)
    normal = (_wide(x) - _row(mean)) * _row(inverse)
    g = jnp.where(_apply(x, mean, var, scale, bias) > 0, _wide(cotangents[0]), 0)
    # Over this device's part of the batch: the step averages parameter gradients itself.
    d_bias = jnp.sum(g, (0, 1, 2))
    d_scale = jnp.sum(g * normal, (0, 1, 2))
    count = x.size // x.shape[-1]
    g_mean, gn_mean = d_bias / count, d_scale / count
    if axis_name is not None:
        g_mean, gn_mean = lax.pmean((g_mean, gn_mean), axis_name)
    dx = _row(scale * inverse) * (g - _row(g_mean) - normal * _row(gn_mean))
    return dx.astype(x.dtype), d_scale, d_bias


norm_relu.defvjp(_forward, _backward)


def _apply(x, mean, var, scale, bias):
    y = (_wide(x) - _row(mean)) * _row(lax.rsqrt(var + EPSILON) * scale) + _row(bias)
    return jnp.maximum(y, 0).astype(x.dtype)


def _wide(x):
    """Return `x` in the type that sums are formed in: at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _mean(x, axis_name):
    mean = jnp.mean(x, (0, 1, 2))
    return mean if axis_name is None else lax.pmean(mean, axis_name)


def _row(x):
    """`[C] -> [1, 1, 1, C]`: beside images, said rather than promoted."""
    return x.reshape(1, 1, 1, -1)


class Classifier(nn.Module):
    """Global average pooling and one linear layer, `[N, H, W, C] -> logits [N, classes]`."""

    classes: int

    @nn.compact
    def __call__(self, x):
        x = jnp.mean(_wide(x), (1, 2))
        init = nn.initializers.lecun_normal()
        kernel = self.param("kernel", init, (x.shape[-1], self.classes))
        bias = self.param("bias", nn.initializers.zeros, (self.classes,))
        return x @ kernel + bias.reshape(1, -1)


def average_pool(x):
    """Average 2x2 neighbours, `[N, H, W, C] -> [N, H/2, W/2, C]`."""
    return nn.avg_pool(x, (2, 2), (2, 2))
