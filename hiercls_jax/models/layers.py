"""The layers that both network families are built from: Conv, BatchNormRelu, Classifier, pooling.

Each computes what flax's own layer computes, faster on a CPU: ReLU∘BatchNorm has a hand-written
derivative that reads its input twice instead of many times, a 1x1 convolution is a product of
matrices, and the derivatives of both kinds of convolution are written down in the order of axes
that is fast. What a BatchNormRelu makes may stay `Normalised` until a convolution reads it,
which keeps for its derivative what it was made from, and makes it again.

They compute in the type of the images they are given. Parameters, statistics and logits are float32
whatever that is (float64 where the parameters are).
"""

from functools import partial

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

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
    """Convolve `[N, H, W, C]` with an odd `[k, k, C, D]` kernel, padded by (k - 1) / 2.

    Args:
      x: float images `[N, H, W, C]`, or `Normalised` ones.
      kernel: float `[k, k, C, D]`, of the type of `x`.
      stride: of both axes.
    """
    if isinstance(x, Normalised):
        return _conv_of_normalised(x, kernel, stride)
    if kernel.shape[0] == 1:
        x = x[:, ::stride, ::stride]
        return _product(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)
    return _conv(x, kernel, stride)


@jax.custom_vjp
def _product(x, w):
    return x @ w


def _product_forward(x, w):
    return x @ w, (x, w)


def _product_backward(saved, dy):
    x, w = saved
    # A product over so many rows is up to 3.6 times as fast where it has fewer rows than columns;
    # the barrier keeps XLA from turning it back.
    wide = w.shape[0] <= w.shape[1]
    dw = x.T @ dy if wide else barrier(dy.T @ x).T
    return dy @ w.T, dw


_product.defvjp(_product_forward, _product_backward)


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
    turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
    rests = [(pad, have - rows + pad) for have, rows in zip(sizes, spread, strict=True)]
    dx = _convolve(dy, turned, rests, spread_x=stride)
    # The sum over images: they take the place of the channels, and dy that of the kernel.
    images, weights = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    rests = [(pad, size - 1 - pad - have + rows) for have, rows in zip(sizes, spread, strict=True)]
    return dx, _convolve(images, weights, rests, spread_kernel=stride).transpose(1, 2, 0, 3)


_conv.defvjp(_conv_forward, _conv_backward)


@flax.struct.dataclass
class Normalised:
    """Images after BatchNormRelu, `[N, H, W, C]`, held as what they are made from.

    That is the images before and, `[C]` each, mean, variance, scale and bias. To make them is a
    pass over memory; to keep them, for each convolution's derivative, would be as much memory again
    (Chen et al., 2016; of a DenseNet, Pleiss et al., 2017).
    """

    x: jax.Array
    mean: jax.Array
    var: jax.Array
    scale: jax.Array
    bias: jax.Array

    shape = property(lambda self: self.x.shape)
    dtype = property(lambda self: self.x.dtype)

    def images(self) -> jax.Array:
        """Return them; what reads this twice keeps it."""
        return _norm_relu(self.x, self.mean, self.var, self.scale, self.bias)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_of_normalised(normalised, kernel, stride):
    return conv(normalised.images(), kernel, stride)


def _conv_of_normalised_forward(normalised, kernel, stride):
    return _conv_of_normalised(normalised, kernel, stride), (normalised, kernel)


def _conv_of_normalised_backward(stride, saved, d_convolved):
    normalised, kernel = saved
    # From another mean, for all that XLA knows, and when the derivative is there: it would keep the
    # images, or make those of all layers at once.
    mean, _ = barrier((normalised.mean, d_convolved[0, 0, 0, 0]))
    normalised = normalised.replace(mean=mean)
    images, back_to_parts = jax.vjp(Normalised.images, normalised)
    _, back = jax.vjp(partial(conv, stride=stride), images, kernel)
    d_images, d_kernel = back(d_convolved)
    return *back_to_parts(d_images), d_kernel


_conv_of_normalised.defvjp(_conv_of_normalised_forward, _conv_of_normalised_backward)


class BatchNormRelu(nn.Module):
    """Batch normalisation followed by ReLU over `[N, H, W, C]` (Ioffe and Szegedy, 2015).

    Args:
      axis_name: mapped axis over whose whole batch the statistics are taken, or None.
      lazy: whether to return `Normalised`, for a convolution, rather than the images.
    """

    axis_name: str | None = None
    lazy: bool = False

    @nn.compact
    def __call__(self, x, train: bool, moments=None):
        """Normalise `x`; in training by `moments`, its `batch_moments`, where they are known."""
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
            mean.value = MOMENTUM * mean.value + (1 - MOMENTUM) * moments[0]
            var.value = MOMENTUM * var.value + (1 - MOMENTUM) * moments[1]
        normalised = Normalised(x, *moments, scale, bias)
        return normalised if self.lazy else normalised.images()


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
    mean, var = batch_moments(x, axis_name)
    y = Normalised(x, mean, var, scale, bias).images()
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def moments_within(module: nn.Module, x):
    """Return `batch_moments` of `x` over the axis that `module` is mapped over."""
    # While the parameters are initialised there is no mapped axis to average over.
    return batch_moments(x, None if module.is_initializing() else module.axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def batch_moments(x, axis_name: str | None = None):
    """Return each channel's mean and biased variance `[C]` over a batch `[N, H, W, C]`.

    Both are float32 at least. The batch is spread over the mapped axis `axis_name`, if any.
    """
    wide = _wide(x)
    mean = jnp.mean(wide, (0, 1, 2))
    var = jnp.mean(jnp.square(wide - _row(mean)), (0, 1, 2))
    if axis_name is not None:  # from each part's own moments: one exchange, and nothing cancels
        means, variances = lax.all_gather(jnp.stack([mean, var]), axis_name, axis=1)
        mean = jnp.mean(means, 0)
        apart = jnp.square(means - mean.reshape(1, -1))
        var = jnp.mean(variances + apart, 0)
    return mean, var


def _moments_forward(x, axis_name):
    mean, var = batch_moments(x, axis_name)
    return (mean, var), (x, mean)


def _moments_backward(axis_name, saved, cotangents):
    x, mean = saved
    if axis_name is not None:
        cotangents = lax.pmean(cotangents, axis_name)
    count = x.size // x.shape[-1]
    d_mean, d_var = (c / count for c in cotangents)
    return ((_row(d_mean) + (_wide(x) - _row(mean)) * _row(2 * d_var)).astype(x.dtype),)


batch_moments.defvjp(_moments_forward, _moments_backward)


@jax.custom_vjp
def _norm_relu(x, mean, var, scale, bias):
    return _apply(x, mean, var, scale, bias)


def _norm_relu_forward(*args):
    return _apply(*args), args


def _norm_relu_backward(saved, dy):
    x, mean, var, scale, bias = saved
    inverse = lax.rsqrt(var + EPSILON)
    dy = _wide(dy)
    g = lax.select(_apply(x, mean, var, scale, bias) > 0, dy, jnp.zeros_like(dy))
    # Over this device's part of the batch: the step averages parameter gradients itself.
    d_bias = jnp.sum(g, (0, 1, 2))
    d_scale = inverse * (jnp.sum(g * _wide(x), (0, 1, 2)) - mean * d_bias)
    dx = _row(scale * inverse) * g
    # The moments are behind the normalised images alone, so that these two sums give theirs too.
    d_mean = -scale * inverse * d_bias
    d_var = -scale * inverse**2 * d_scale / 2
    return dx.astype(x.dtype), d_mean, d_var, d_scale, d_bias


_norm_relu.defvjp(_norm_relu_forward, _norm_relu_backward)


def _apply(x, mean, var, scale, bias):
    y = (_wide(x) - _row(mean)) * _row(lax.rsqrt(var + EPSILON) * scale) + _row(bias)
    return jnp.maximum(y, 0).astype(x.dtype)


def _wide(x):
    """Return `x` in the type that sums are formed in: at least float32."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _row(x):
    """`[C] -> [1, 1, 1, C]`: beside images, said rather than promoted."""
    return x.reshape(1, 1, 1, -1)


def barrier(x):
    """Return `x`, in a way that the compiler does not see through: it merges nothing across it.

    On a CPU, XLA drops JAX's `optimization_barrier` before it merges and fuses, but not a function
    that it may not inline.
    """
    return lax.platform_dependent(x, cpu=_function, default=lax.optimization_barrier)


def _function(x):
    with set_xla_metadata(inlineable="false"):
        return _identity(x)


@jax.jit
def _identity(x):
    return lax.optimization_barrier(x)


@jax.custom_vjp
def sum_gradient_once(x):
    """Return `x`; its gradient is summed once, before anybody reads it.

    For images that many layers read: XLA on a CPU sums their gradients anew for each reader.
    """
    return x


sum_gradient_once.defvjp(lambda x: (x, None), lambda _, dx: (barrier(dx),))


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
    """Average 2x2 neighbours, `[N, H, W, C] -> [N, H/2, W/2, C]`; an odd last one is left out."""
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return _average_pool(x[:, :rows, :columns])


@jax.custom_vjp
def _average_pool(x):
    return sum(x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4


def _average_pool_backward(_, dy):
    n, rows, columns, channels = dy.shape
    squares = (n, rows, 2, columns, 2, channels)
    dx = lax.broadcast_in_dim(dy / 4, squares, (0, 1, 3, 5))
    return (dx.reshape(n, 2 * rows, 2 * columns, channels),)


_average_pool.defvjp(lambda x: (_average_pool(x), None), _average_pool_backward)
