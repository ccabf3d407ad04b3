"""Operations with written-out gradients, because those of autodiff are slow on a CPU.

Each function returns what its plain formula returns, and its gradient is that of the formula up to
rounding. What differs is the order in which a CPU computes it: convolutions whose axes XLA has fast
code for, normalised images that are computed again instead of kept, and sums that XLA would
otherwise repeat. Elsewhere than on a CPU, convolutions have the gradients of autodiff.

Nothing here has parameters; `layers.py` has the modules.
"""

import dataclasses
from functools import partial
from typing import Literal, TypeVar

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.xla_metadata import set_xla_metadata

EPSILON = 1e-5  # added to the variance of a batch normalisation
PATCH_ROWS = 2048  # of the matrix that a kernel's gradient reads at a time, to fit in the cache
PATCH_CHANNELS = 8  # fewest of images whose patches make such a matrix

Tree = TypeVar("Tree")  # an array or a pytree of arrays
Activation = Literal["relu", "silu"]


# Convolution.


def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolve images with a kernel, padded by ⌊(k - 1) / 2⌋ on each side.

    Args:
      x: float `[N, H, W, C]`.
      kernel: float `[k, k, C, D]`, of the type of `x`.
      stride: of both axes.

    Returns:
      float `[N, ⌈H / stride⌉, ⌈W / stride⌉, D]`, of the type of `x`, if k is odd. A kernel of 2x2
      is not padded: it makes H and W smaller by 1 first.
    """
    size = kernel.shape[0]
    if size == 1:
        x = x[:, ::stride, ::stride]
        return _matmul(x.reshape(-1, x.shape[-1]), kernel[0, 0]).reshape(*x.shape[:-1], -1)
    if size == 3 and stride == 1 and max(x.shape[1:3]) <= 2:
        return _conv_of_small_map(x, kernel)
    return _conv(x, kernel, stride)


def _conv_of_small_map(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolve maps of 1x1 to 2x2 with a 3x3 kernel, as one product.

    Each output is a sum over all positions of the map, so that a map is a row, and the kernel's
    entries form a matrix. (XLA took 750 ms for maps of 2x2, and 57 and 89 for 1x1 and 3x3.)
    """
    n, rows, columns, channels = x.shape
    entries = [
        kernel[1 - i : 1 - i + rows, 1 - j : 1 - j + columns].reshape(rows * columns * channels, -1)
        for i in range(rows)
        for j in range(columns)
    ]
    matrix = jnp.concatenate(entries, axis=1)
    return _matmul(x.reshape(n, -1), matrix).reshape(n, rows, columns, -1)


@jax.custom_vjp
def _matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


def _matmul_forward(x: jax.Array, w: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return x @ w, (x, w)


def _matmul_backward(
    saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, w = saved
    return dy @ w.T, _product_over_rows(x, dy)


def _product_over_rows(x: jax.Array, dy: jax.Array) -> jax.Array:
    """Return `x.T @ dy` for `[R, C]` and `[R, D]` with many rows R.

    It is up to 3.6 times as fast if its result has fewer rows than columns. The barrier keeps XLA
    from transposing it back.
    """
    wide = x.shape[1] <= dy.shape[1]
    return x.T @ dy if wide else barrier(dy.T @ x).T


_matmul.defvjp(_matmul_forward, _matmul_backward)


def _lax_conv(
    x: jax.Array,
    kernel: jax.Array,
    padding: list[tuple[int, int]],
    stride: int = 1,
    x_dilation: int = 1,
    kernel_dilation: int = 1,
) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(stride, stride),
        padding=padding,
        lhs_dilation=(x_dilation, x_dilation),
        rhs_dilation=(kernel_dilation, kernel_dilation),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _padded_conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    pad = (kernel.shape[0] - 1) // 2
    return _lax_conv(x, kernel, [(pad, pad)] * 2, stride)


_conv = jax.custom_vjp(_padded_conv, nondiff_argnums=(2,))


def _conv_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _conv(x, kernel, stride), (x, kernel)


def _conv_backward(
    stride: int, saved: tuple[jax.Array, jax.Array], dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    on_cpu, elsewhere = partial(_conv_gradients, stride), partial(_conv_autodiff, stride)
    return lax.platform_dependent(*saved, dy, cpu=on_cpu, default=elsewhere)


def _conv_autodiff(
    stride: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return jax.vjp(partial(_padded_conv, stride=stride), x, kernel)[1](dy)


def _conv_gradients(
    stride: int, x: jax.Array, kernel: jax.Array, dy: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Return both gradients, in the forms that are fast on a CPU.

    Convolutions have their axes in the order of the forward one, for which XLA has fast code. It
    rewrites the convolutions of autodiff into this order, but not inside a loop, where they take 9
    times as long.
    """
    size, sizes = kernel.shape[0], x.shape[1:3]
    pad = (size - 1) // 2
    dilated = [(rows - 1) * stride + 1 for rows in dy.shape[1:3]]  # dy's, with zeros in between
    turned = lax.rev(kernel, (0, 1)).swapaxes(2, 3)
    padding = [
        (size - 1 - pad, have - rows + pad) for have, rows in zip(sizes, dilated, strict=True)
    ]
    dx = _lax_conv(dy, turned, padding, x_dilation=stride)
    if stride == 1 and x.shape[-1] >= PATCH_CHANNELS:
        return dx, _kernel_gradient(x, dy, size)
    # The kernel's gradient is a sum over images: they are its channels, and dy is its kernel.
    images, weights = x.transpose(3, 1, 2, 0), dy.transpose(1, 2, 0, 3)
    padding = [
        (pad, size - 1 - pad - have + rows) for have, rows in zip(sizes, dilated, strict=True)
    ]
    d_kernel = _lax_conv(images, weights, padding, kernel_dilation=stride)
    return dx, d_kernel.transpose(1, 2, 0, 3)


def _kernel_gradient(x: jax.Array, dy: jax.Array, size: int) -> jax.Array:
    """Return the gradient of a kernel `[k, k, C, D]` as a sum of products, for a stride of 1.

    Each product is over the patches of a few images, about `PATCH_ROWS`, which stay in the cache.
    On one core with AVX2 that other programs used too, in GFLOP/s beside a convolution as above: 47
    and 5 (31x31 pixels, 24 to 32 channels), 67 and 19 (15x15, 32 to 128), 59 and 46 (7x7, 128 to
    96); of ResNet-164's stages 18 and 6, 24 and 12, 54 and 17. A convolution is faster for 3
    channels (18 and 23), and for the 8x8 maps of a small ResNet (46 and 53).
    """
    count, rows, columns, outputs = dy.shape
    images = _largest_divisor(count, max(1, PATCH_ROWS // (rows * columns)))
    pad = (size - 1) // 2
    corners = [(i, j) for i in range(size) for j in range(size)]
    inputs = size * size * x.shape[-1]

    def add(total: jax.Array, block: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        x, dy = block
        x = jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
        shifted = [x[:, i : i + rows, j : j + columns] for i, j in corners]
        patches = jnp.concatenate(shifted, axis=-1).reshape(-1, inputs)
        return total + _product_over_rows(patches, dy.reshape(-1, outputs)), None

    def in_blocks(a: jax.Array) -> jax.Array:
        return a.reshape(count // images, images, *a.shape[1:])

    zeros = at_least_float32(jnp.zeros((inputs, outputs), x.dtype))
    total, _ = lax.scan(add, zeros, (in_blocks(x), in_blocks(dy)))
    return total.reshape(size, size, -1, outputs).astype(x.dtype)


def _largest_divisor(number: int, largest: int) -> int:
    return next(n for n in range(min(number, largest), 0, -1) if number % n == 0)


_conv.defvjp(_conv_forward, _conv_backward)


# Normalisation and activation.


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def batch_moments(x: jax.Array, axis_name: str | None = None) -> tuple[jax.Array, jax.Array]:
    """Return each channel's mean and biased variance over a batch.

    Args:
      x: float `[N, H, W, C]`.
      axis_name: mapped axis over which the batch is spread, or None.

    Returns:
      (mean `[C]`, variance `[C]`), float32 or the type of `x`, whichever is wider.
    """
    x = at_least_float32(x)
    mean = jnp.mean(x, (0, 1, 2))
    var = jnp.mean(jnp.square(x - as_row(mean)), (0, 1, 2))
    if axis_name is not None:
        # Each device's own moments are combined: one exchange, and no difference of large sums.
        means, variances = lax.all_gather(jnp.stack([mean, var]), axis_name, axis=1)
        mean = jnp.mean(means, 0)
        apart = jnp.square(means - mean.reshape(1, -1))
        var = jnp.mean(variances + apart, 0)
    return mean, var


def _batch_moments_forward(
    x: jax.Array, axis_name: str | None
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
    mean, var = batch_moments(x, axis_name)
    return (mean, var), (x, mean)


def _batch_moments_backward(
    axis_name: str | None,
    saved: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array]:
    x, mean = saved
    if axis_name is not None:
        cotangents = lax.pmean(cotangents, axis_name)
    count = x.size // x.shape[-1]
    d_mean, d_var = (c / count for c in cotangents)
    dx = as_row(d_mean) + (at_least_float32(x) - as_row(mean)) * as_row(2 * d_var)
    return (dx.astype(x.dtype),)


batch_moments.defvjp(_batch_moments_forward, _batch_moments_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def normalise(
    activation: Activation,
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
) -> jax.Array:
    """Return φ((x - mean) / √(var + ε) · scale + bias), of the type of `x`.

    Args:
      activation: φ: `relu`, max(0, z), or `silu`, z · σ(z).
      x: float `[N, H, W, C]`.
      mean, var: float `[C]`, those to normalise by.
      scale, bias: float `[C]`.
    """
    z = _affine(x, mean, var, scale, bias)
    y = jnp.maximum(z, 0) if activation == "relu" else z * jax.nn.sigmoid(z)
    return y.astype(x.dtype)


def _affine(
    x: jax.Array, mean: jax.Array, var: jax.Array, scale: jax.Array, bias: jax.Array
) -> jax.Array:
    factor = lax.rsqrt(var + EPSILON) * scale
    return (at_least_float32(x) - as_row(mean)) * as_row(factor) + as_row(bias)


def _normalise_forward(
    activation: Activation, *args: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    return normalise(activation, *args), args


def _normalise_backward(
    activation: Activation, saved: tuple[jax.Array, ...], dy: jax.Array
) -> tuple[jax.Array, ...]:
    x, mean, var, scale, bias = saved
    inverse = lax.rsqrt(var + EPSILON)
    dy = at_least_float32(dy)
    z = _affine(x, mean, var, scale, bias)
    if activation == "relu":
        g = lax.select(z > 0, dy, jnp.zeros_like(dy))
    else:
        gate = jax.nn.sigmoid(z)
        g = dy * gate * (1 + z * (1 - gate))
    # Sums over this device's part of the batch: the training step averages parameter gradients.
    d_bias = jnp.sum(g, (0, 1, 2))
    d_scale = inverse * (jnp.sum(g * at_least_float32(x), (0, 1, 2)) - mean * d_bias)
    dx = as_row(scale * inverse) * g
    # Mean and variance affect the loss only through y, so these two sums also give their gradients.
    d_mean = -scale * inverse * d_bias
    d_var = -scale * inverse**2 * d_scale / 2
    return dx.astype(x.dtype), d_mean, d_var, d_scale, d_bias


normalise.defvjp(_normalise_forward, _normalise_backward)


# Normalised images that are computed again instead of kept.


@flax.struct.dataclass
class Normalised:
    """Images `[N, H, W, C]` after `normalise`, held as its arguments.

    To compute them is one pass over memory. To keep them for each convolution's gradient would
    double the memory of a training step (Chen et al., 2016; for a DenseNet, Pleiss et al., 2017).
    """

    x: jax.Array
    mean: jax.Array
    var: jax.Array
    scale: jax.Array
    bias: jax.Array
    activation: Activation = flax.struct.field(pytree_node=False, default="relu")

    @property
    def shape(self) -> tuple[int, ...]:
        """Return the shape of the images."""
        return self.x.shape

    @property
    def dtype(self) -> jnp.dtype:
        """Return the type of the images."""
        return self.x.dtype

    def images(self) -> jax.Array:
        """Return the images; autodiff keeps them for every operation that reads them."""
        return normalise(self.activation, self.x, self.mean, self.var, self.scale, self.bias)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv_of_normalised(normalised: Normalised, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Return `conv` of the normalised images, which its gradient computes again.

    Args:
      normalised: the images `[N, H, W, C]`.
      kernel: float `[k, k, C, D]`, of the type of the images.
      stride: of both axes.
    """
    return conv(normalised.images(), kernel, stride)


def _conv_of_normalised_forward(
    normalised: Normalised, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[Normalised, jax.Array]]:
    return conv_of_normalised(normalised, kernel, stride), (normalised, kernel)


def _conv_of_normalised_backward(
    stride: int, saved: tuple[Normalised, jax.Array], dy: jax.Array
) -> tuple[Normalised, jax.Array]:
    normalised, kernel = saved
    # Tie the recomputation to the cotangent with a barrier. Otherwise XLA merges it with the
    # forward pass and keeps the images, or recomputes those of all layers at once.
    mean, _ = barrier((normalised.mean, dy[0, 0, 0, 0]))
    images, normalise_vjp = jax.vjp(Normalised.images, dataclasses.replace(normalised, mean=mean))
    _, conv_vjp = jax.vjp(partial(conv, stride=stride), images, kernel)
    d_images, d_kernel = conv_vjp(dy)
    return *normalise_vjp(d_images), d_kernel


conv_of_normalised.defvjp(_conv_of_normalised_forward, _conv_of_normalised_backward)


# Pooling.


def average_pool(x: jax.Array) -> jax.Array:
    """Average 2x2 neighbours, `[N, H, W, C] -> [N, ⌊H/2⌋, ⌊W/2⌋, C]`; an odd last one is left out.

    >>> average_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
    1.5
    """
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return _average_pool(x[:, :rows, :columns])


@jax.custom_vjp
def _average_pool(x: jax.Array) -> jax.Array:
    left, right = x[:, :, ::2], x[:, :, 1::2]
    return (left[:, ::2] + right[:, ::2] + left[:, 1::2] + right[:, 1::2]) / 4


def _average_pool_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return _average_pool(x), None


def _average_pool_backward(_: None, dy: jax.Array) -> tuple[jax.Array]:
    n, rows, columns, channels = dy.shape
    squares = (n, rows, 2, columns, 2, channels)
    dx = lax.broadcast_in_dim(dy / 4, squares, (0, 1, 3, 5))
    return (dx.reshape(n, 2 * rows, 2 * columns, channels),)


_average_pool.defvjp(_average_pool_forward, _average_pool_backward)


def max_pool(x: jax.Array) -> jax.Array:
    """Return the maxima of 2x2 neighbours, `[N, H, W, C] -> [N, ⌊H/2⌋, ⌊W/2⌋, C]`.

    An odd last row or column is left out. The gradient goes to the first of equal maxima, in the
    order of rows. (XLA's gradient of `reduce_window` took 104 ms, that of four slices 13.)

    >>> max_pool(jnp.arange(4.0).reshape(1, 2, 2, 1)).item()
    3.0
    """
    rows, columns = x.shape[1] // 2 * 2, x.shape[2] // 2 * 2
    return _max_pool(x[:, :rows, :columns])


def _four_slices(x: jax.Array) -> tuple[jax.Array, ...]:
    left, right = x[:, :, ::2], x[:, :, 1::2]
    return left[:, ::2], right[:, ::2], left[:, 1::2], right[:, 1::2]


@jax.custom_vjp
def _max_pool(x: jax.Array) -> jax.Array:
    a, b, c, d = _four_slices(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _max_pool_forward(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    y = _max_pool(x)
    return y, (x, y)


def _max_pool_backward(saved: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array]:
    x, y = saved
    parts, left = [], jnp.ones(y.shape, bool)  # left: the gradient has not gone anywhere yet
    for part in _four_slices(x):
        chosen = left & (part == y)
        parts.append(lax.select(chosen, dy, jnp.zeros_like(dy)))
        left &= ~chosen
    rows = [jnp.stack(pair, axis=3) for pair in (parts[:2], parts[2:])]
    return (jnp.stack(rows, axis=2).reshape(x.shape),)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


# What the compiler may not rearrange.


@jax.custom_vjp
def sum_gradient_once(x: jax.Array) -> jax.Array:
    """Return `x`; its gradient is summed once, before any operation reads it.

    For images that many layers read: XLA on a CPU would sum their gradients anew for each reader.
    """
    return x


def _sum_gradient_once_forward(x: jax.Array) -> tuple[jax.Array, None]:
    return x, None


def _sum_gradient_once_backward(_: None, dx: jax.Array) -> tuple[jax.Array]:
    return (barrier(dx),)


sum_gradient_once.defvjp(_sum_gradient_once_forward, _sum_gradient_once_backward)


def barrier(x: Tree) -> Tree:
    """Return `x`; the compiler merges no operations across this function.

    On a CPU, XLA drops JAX's `optimization_barrier` before it merges and fuses operations, but not
    a function that it may not inline.
    """
    return lax.platform_dependent(x, cpu=_not_inlined, default=lax.optimization_barrier)


def _not_inlined(x: Tree) -> Tree:
    with set_xla_metadata(inlineable="false"):
        return _barrier_function(x)


@jax.jit
def _barrier_function(x: Tree) -> Tree:
    return lax.optimization_barrier(x)


def at_least_float32(x: jax.Array) -> jax.Array:
    """Return `x` in the type that sums are formed in: float32, or float64 if it is that."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def as_row(x: jax.Array) -> jax.Array:
    """`[C] -> [1, 1, 1, C]`; explicit, because implicit rank promotion is disabled."""
    return x.reshape(1, 1, 1, -1)
