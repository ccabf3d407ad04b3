"""Layers beside autodiff of the same formula, beside flax's own, and over devices.

Tolerances: float32 results are sums over the 8 * 3 * 4 values of a channel; float64 shows that the
rest is rounding.
"""

import re
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import pmap_first

from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.models import cpu_gradients
from hiercls_jax.models.cpu_gradients import (
    Normalised,
    average_pool,
    batch_moments,
    conv,
    conv_of_normalised,
    max_pool,
    normalise,
)
from hiercls_jax.models.layers import BatchNormRelu, BatchNormSilu, Classifier, Conv

TOLERANCE = {"float32": 2e-5, "float64": 1e-12}
SHAPE = (8, 3, 4, 6)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """float32, and float64 with x64 enabled."""
    with enable_x64(request.param == "float64"):
        yield request.param


def data(dtype, shape=SHAPE):
    """Return (x, weights of the result in a loss, scale, bias); channel 0 is at ReLU's kink."""
    rng = np.random.default_rng(0)
    x, weights = (rng.normal(0.5, 2, shape).astype(dtype) for _ in range(2))
    scale, bias = (rng.normal(1, 0.5, shape[-1]).astype(dtype) for _ in range(2))
    scale[0] = bias[0] = 0
    return x, weights, scale, bias


def assert_close(actual, wanted, dtype):
    """Two trees of arrays agree, in type too."""
    jax.tree.map(
        lambda a, w: np.testing.assert_allclose(
            a, w, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype], strict=True
        ),
        jax.device_get(actual),
        jax.device_get(wanted),
    )


def batch_norm(x, scale, bias, activation="relu"):
    """The package's activation of BatchNorm, in training: (images, mean, variance)."""
    moments = batch_moments(x)
    return normalise(activation, x, *moments, scale, bias), *moments


def plain(x, scale, bias, activation=jax.nn.relu):
    """BatchNorm and an activation for autodiff, by Ioffe and Szegedy's Algorithm 1."""
    mean, var = jnp.mean(x, (0, 1, 2), keepdims=True), jnp.var(x, (0, 1, 2), keepdims=True)
    row = (1, 1, 1, -1)
    normal = (x - mean) / jnp.sqrt(var + 1e-5)
    return activation(normal * scale.reshape(row) + bias.reshape(row)), mean, var


# Normalisation.


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_normalise_equals_autodiff_of_its_formula(dtype, activation):
    """Values, statistics and all three gradients of the hand-written VJP are autodiff's."""
    x, weights, scale, bias = data(dtype)

    def loss(function):
        return lambda *args: jnp.sum(weights * function(*args)[0])

    def results(function):
        gradient = jax.grad(loss(function), (0, 1, 2))
        return jax.jit(lambda *args: (function(*args), gradient(*args)))(x, scale, bias)

    (y, mean, var), gradients = results(partial(plain, activation=getattr(jax.nn, activation)))
    wanted = (y, mean.squeeze(), var.squeeze()), gradients
    assert_close(results(partial(batch_norm, activation=activation)), wanted, dtype)


def test_silu_follows_the_running_statistics(dtype):
    """BatchNormSilu is flax's BatchNorm and SiLU, in evaluation, with the same variables."""
    x, _, scale, bias = data(dtype)
    stats = {"mean": bias, "var": scale**2 + np.asarray(0.1, dtype)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    y = jax.jit(partial(BatchNormSilu().apply, train=False))(variables, x)
    flax_norm = nn.BatchNorm(True, epsilon=1e-5)
    assert_close(y, jax.jit(lambda *a: nn.silu(flax_norm.apply(*a)))(variables, x), dtype)


def test_norm_relu_equals_flax(dtype):
    """A training step of BatchNormRelu, running statistics too, is flax's BatchNorm and ReLU."""
    x, weights, scale, bias = data(dtype)
    params = {"scale": scale, "bias": bias}
    stats = {"mean": bias, "var": scale**2}
    flax_norm = nn.BatchNorm(momentum=0.9, epsilon=1e-5, use_fast_variance=False)

    def ours(params, x):
        variables = {"params": params, "batch_stats": stats}
        y, new = BatchNormRelu().apply(variables, x, True, mutable=["batch_stats"])
        return jnp.sum(weights * y), (y, new["batch_stats"])

    def theirs(params, x):
        variables = {"params": params, "batch_stats": stats}
        y, new = flax_norm.apply(variables, x, False, mutable=["batch_stats"])
        y = nn.relu(y)
        return jnp.sum(weights * y), (y, new["batch_stats"])

    (_, aux), grads = jax.jit(jax.value_and_grad(ours, (0, 1), has_aux=True))(params, x)
    (_, flax_aux), wanted = jax.jit(jax.value_and_grad(theirs, (0, 1), has_aux=True))(params, x)
    assert_close(aux, flax_aux, dtype)
    assert_close(grads, wanted, dtype)


def test_bfloat16_images_are_normalised_in_float32():
    """All results but the images and their gradient are float32, as of the same images in float32.

    The statistics agree to float32's rounding, all else to bfloat16's 8 bits.
    """
    x, weights, scale, bias = data("float32")
    x = x.astype(jnp.bfloat16)

    def loss(x, scale, bias):
        y, mean, var = batch_norm(x, scale, bias)
        return jnp.sum(weights * y), (y, mean, var)

    run = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, (y, *statistics)), (dx, *gradients) = run(x, scale, bias)
    (_, (y32, *statistics32)), (dx32, *gradients32) = run(x.astype("float32"), scale, bias)
    assert (y.dtype, dx.dtype) == (jnp.bfloat16, jnp.bfloat16)
    assert_close(statistics, statistics32, "float32")
    for narrow, wide in zip((y, dx, *gradients), (y32, dx32, *gradients32), strict=True):
        size = np.abs(wide).max()
        np.testing.assert_allclose(narrow.astype("float32"), wide, rtol=2**-7, atol=size * 2**-8)
    assert all(a.dtype == jnp.float32 for a in gradients)


def test_prediction_uses_the_running_statistics(dtype):
    """In evaluation BatchNormRelu is flax's BatchNorm on running averages, and changes none."""
    x, _, scale, bias = data(dtype)
    stats = {"mean": bias, "var": scale**2 + np.asarray(0.1, dtype)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
    apply = jax.jit(partial(BatchNormRelu().apply, train=False, mutable=["batch_stats"]))
    y, new = apply(variables, x)
    flax_norm = jax.jit(nn.BatchNorm(True, epsilon=1e-5).apply)
    assert_close(y, jax.device_get(flax_norm(variables, x)).clip(0), dtype)
    assert_close(new.get("batch_stats", stats), stats, dtype)


@pytest.mark.devices
@pytest.mark.parametrize(("dtype", "devices"), [("float32", 4), ("float64", 2)], indirect=["dtype"])
def test_norm_relu_over_devices_equals_one_device(dtype, devices):
    """Spread over devices, values, statistics and gradients are those of the whole batch on one.

    The loss is the mean over devices of each one's mean; gradients of parameters are averaged over
    devices as the training step does; the gradient of an image is that of the sum over devices.
    """
    x, weights, scale, bias = data(dtype)
    params = {"scale": scale, "bias": bias}
    stats = {"mean": bias, "var": scale**2}

    def step(axis_name, x, weights):
        def loss(params, x):
            variables = {"params": params, "batch_stats": stats}
            module = BatchNormRelu(axis_name)
            y, new = module.apply(variables, x, True, mutable=["batch_stats"])
            return jnp.mean(weights * y), (y, new["batch_stats"])

        (d_params, dx), aux = jax.grad(loss, (0, 1), has_aux=True)(params, x)
        if axis_name is not None:
            d_params = jax.lax.pmean(d_params, axis_name)
        return d_params, dx, aux

    wanted = jax.jit(lambda *args: step(None, *args))(x, weights)
    spread = pmap_first(partial(step, "i"), "i", devices)
    d_params, dx, (y, new) = spread(*(a.reshape(devices, -1, *SHAPE[1:]) for a in (x, weights)))
    for replica in range(devices):
        got = jax.tree.map(lambda a: a[replica], (d_params, new))  # noqa: B023
        assert_close(got, (wanted[0], wanted[2][1]), dtype)
    assert_close(y.reshape(SHAPE), wanted[2][0], dtype)
    assert_close(dx.reshape(SHAPE) / devices, wanted[1], dtype)


def test_momentum_epsilon_and_initial_values():
    """Scale 1, bias 0, statistics 0 and 1, untouched by initialisation; momentum 0.9, ε 1e-5."""
    # Mean 3, variance 1e-5: with ε = 1e-5 the normalised images are ±1/√2.
    x = 3 + np.sqrt(1e-5, dtype=np.float32) * np.float32([1, -1]).reshape(2, 1, 1, 1)
    variables = jax.jit(partial(BatchNormRelu().init, train=True))(jax.random.key(0), x)
    assert jax.tree.map(float, jax.tree.map(jnp.squeeze, variables)) == {
        "params": {"scale": 1.0, "bias": 0.0},
        "batch_stats": {"mean": 0.0, "var": 1.0},
    }
    apply = partial(BatchNormRelu().apply, train=True, mutable=["batch_stats"])
    y, new = jax.jit(apply)(variables, x)
    # x itself is rounded to 2e-7, 1e-4 of its deviation.
    np.testing.assert_allclose(y.squeeze(), [np.sqrt(0.5), 0], atol=1e-3)
    np.testing.assert_allclose(new["batch_stats"]["mean"], 0.1 * 3, rtol=1e-6)
    np.testing.assert_allclose(new["batch_stats"]["var"], 0.9 + 0.1 * 1e-5, rtol=1e-6)


def test_a_channel_far_from_zero_keeps_its_gradient():
    """With a mean of 300 deviations, sums and differences still agree with float64's.

    The images themselves are rounded to 2e-5 of a deviation there, which their gradients inherit.
    """
    rng = np.random.default_rng(0)
    x = (1 + rng.normal(0, 1 / 300, (32, 8, 8, 4))).astype("float32")
    weights = rng.normal(size=x.shape).astype("float32")
    scale, bias = np.float32([1, 0.5, -1, 2]), np.float32([0, 0.1, 0.2, -1])

    def gradients(norm):
        loss = lambda *args: jnp.sum(weights * norm(*args)[0])  # noqa: E731
        return jax.jit(jax.grad(loss, (0, 1, 2)))(x, scale, bias)

    ours = jax.device_get(gradients(batch_norm))
    with enable_x64(True):
        x, weights, scale, bias = (a.astype("float64") for a in (x, weights, scale, bias))
        wanted = gradients(plain)
    for got, exact in zip(ours, wanted, strict=True):
        np.testing.assert_allclose(got, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def test_known_moments_change_nothing(dtype):
    """Given its images' moments, BatchNormRelu returns, updates and differentiates the same."""
    x, weights, scale, bias = data(dtype)
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": bias, "var": scale**2},
    }

    def loss(x, known):
        halves = [batch_moments(part) for part in jnp.split(x, 2, axis=-1)]
        moments = jax.tree.map(lambda *parts: jnp.concatenate(parts), *halves) if known else None
        y, new = BatchNormRelu().apply(variables, x, True, moments, mutable=["batch_stats"])
        return jnp.sum(weights * y), (y, new)

    known, unknown = (
        jax.jit(jax.grad(partial(loss, known=k), has_aux=True))(x) for k in (True, False)
    )
    assert_close(known, unknown, dtype)


def test_running_statistics_carry_no_gradient():
    """A loss on the running averages moves nothing, though they are averages of the batch's."""
    x, _, scale, bias = data("float32")
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": bias, "var": scale**2},
    }

    @jax.jit
    def gradient(x):
        def loss(x):
            _, new = BatchNormRelu().apply(variables, x, True, mutable=["batch_stats"])
            return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(new))

        return jax.value_and_grad(loss)(x)

    value, gradient_of_x = gradient(x)
    assert value != gradient(2 * x)[0]
    assert not np.any(gradient_of_x)


# Convolution, pooling, classifier.


@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [
        *((kernel, *of) for kernel in (1, 3, 5) for of in ((1, 8), (2, 8), (2, 7))),
        *((2, 1, size) for size in (2, 7)),
        *((3, 1, size) for size in (1, 2, 3)),
    ],
)
def test_conv_equals_flax(kernel, stride, size, dtype):
    """Values and both gradients are those of flax's Conv, padded by half an odd kernel.

    Maps of 1x1 and 2x2 pixels are products; a kernel of 2x2 is not padded.
    """
    x, *_ = data(dtype, (2, size, size, 3))
    weights = data(dtype, (kernel, kernel, 3, 5))[0]
    padding = (kernel - 1) // 2
    theirs = nn.Conv(5, (kernel, kernel), stride, padding=padding, use_bias=False)

    def flax_conv(x, weights):
        return theirs.apply({"params": {"kernel": weights}}, x)

    def with_gradients(function):
        def loss(x, weights):
            y = function(x, weights)
            return jnp.mean(y**2), y

        return jax.jit(jax.grad(loss, (0, 1), has_aux=True))(x, weights)

    gradients, got = with_gradients(lambda x, weights: conv(x, weights, stride))
    side = -(-(size - (kernel == 2)) // stride)
    assert got.shape == (2, side, side, 5)
    assert_close((gradients, got), with_gradients(flax_conv), dtype)


@pytest.mark.parametrize("stride", [1, 2])
def test_a_loop_has_only_convolutions_that_are_fast_on_a_cpu(stride):
    """Forwards and backwards, all have the axes that XLA has fast code for on a CPU.

    XLA does not reorder the axes of convolutions inside a loop.
    """
    kernels = jnp.zeros((3, 3, 3, 8, 8))

    def loss(x, kernels):
        def pad_back(y):
            return jnp.pad(y, [(0, 0), (0, 8 - y.shape[1]), (0, 8 - y.shape[2]), (0, 0)])

        last, _ = jax.lax.scan(lambda x, w: (pad_back(conv(x, w, stride)), None), x, kernels)
        return jnp.sum(last**2)

    gradient = jax.jit(jax.grad(loss, (0, 1)))
    program = gradient.lower(jnp.ones((2, 8, 8, 8)), kernels).compile().as_text()
    numbers = re.findall(r" convolution\(.*dim_labels=(\S+?)[,\s]", program)
    assert len(numbers) == {1: 2, 2: 3}[stride]  # for a stride of 1, that of the kernel is a dot
    assert set(numbers) == {"b01f_01io->b01f"}


@pytest.mark.parametrize("images", [1, 6, 7])
def test_gradient_of_a_kernel_is_summed_over_blocks_of_images(images, dtype, monkeypatch):
    """A sum over blocks of any size is autodiff's gradient, for odd and even kernels."""
    monkeypatch.setattr(cpu_gradients, "PATCH_ROWS", 3 * 5 * 4)  # of three images, if they divide
    x = data(dtype, (images, 5, 4, 9))[0]
    for size in (2, 3):
        kernel = data(dtype, (size, size, 9, 4))[0]
        padding = [((size - 1) // 2,) * 2] * 2

        def plainly(x, kernel, padding=padding):
            axes = ("NHWC", "HWIO", "NHWC")
            return jax.lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=axes)

        ours, wanted = (
            jax.jit(jax.grad(lambda x, w, f=f: jnp.mean(f(x, w) ** 2), (0, 1)))(x, kernel)
            for f in (conv, plainly)
        )
        assert_close(ours, wanted, dtype)


@pytest.mark.parametrize("features", [2, 6, 9])
def test_gradient_of_a_product_of_any_width(features, dtype):
    """A 1x1 convolution to fewer, as many or more channels has autodiff's gradients."""
    x, *_ = data(dtype)
    weights = data(dtype, (1, 1, 6, features))[0]

    def plainly(x, weights):
        return jnp.einsum("nhwc,cd->nhwd", x, weights[0, 0])

    ours, wanted = (
        jax.jit(jax.grad(lambda x, w, f=f: jnp.mean(f(x, w) ** 2), (0, 1)))(x, weights)
        for f in (conv, plainly)
    )
    assert_close(ours, wanted, dtype)


@pytest.mark.parametrize(
    ("kernel", "stride", "activation"),
    [(1, 1, "silu"), (1, 2, "relu"), (3, 1, "relu"), (3, 2, "silu")],
)
def test_conv_of_normalised_equals_that_of_its_images(kernel, stride, activation, dtype):
    """Values and the gradients of images, moments, scale, bias and kernel are the same."""
    x, _, scale, bias = data(dtype)
    normalised = Normalised(x, *batch_moments(x), scale, bias, activation)
    weights = data(dtype, (kernel, kernel, 6, 5))[0]

    def loss(normalised, weights, convolve):
        y = convolve(normalised, weights, stride)
        return jnp.mean(y**2), y

    ours, wanted = (
        jax.jit(jax.grad(partial(loss, convolve=convolve), (0, 1), has_aux=True))(
            normalised, weights
        )
        for convolve in (conv_of_normalised, lambda n, *rest: conv(n.images(), *rest))
    )
    assert_close(ours, wanted, dtype)


@pytest.mark.parametrize("kernel", [1, 3])
def test_a_convolution_does_not_keep_normalised_images(kernel, monkeypatch):
    """Six BatchNormRelus and convolutions in turn keep six images for their gradients, not twelve.

    They need no more than four besides, for the layer whose gradient is computed.
    """
    monkeypatch.setattr(cpu_gradients, "PATCH_ROWS", 256)  # of one image: small beside all eight
    x, weights = jnp.ones((8, 16, 16, 8)), jnp.ones((6, kernel, kernel, 8, 8))
    ones = jnp.ones(8)

    def loss(x, weights):
        for w in weights:
            x = conv_of_normalised(Normalised(x, *batch_moments(x), ones, ones), w)
        return jnp.sum(x**2)

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(x, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 10 * x.nbytes


def test_conv_is_initialised_as_he_et_al():
    """Kernels are normal with variance 2 / (k² · outputs), not truncated; there is no bias."""
    init = jax.jit(Conv(64, 3).init)
    variables = init(jax.random.key(0), jnp.zeros((1, 8, 8, 32)))
    assert list(variables["params"]) == ["kernel"]
    kernel = variables["params"]["kernel"]
    assert kernel.shape == (3, 3, 32, 64)
    # 18,432 draws: the standard error of the deviation is 0.5 %, of the mean 0.7 % of it.
    deviation = np.sqrt(2 / (9 * 64))
    assert np.std(kernel) == pytest.approx(deviation, rel=0.02)
    assert abs(np.mean(kernel)) < 0.03 * deviation
    # Of a normal distribution 0.27 % lie beyond 3 deviations; of a truncated one none.
    assert 0.001 < np.mean(np.abs(kernel) > 3 * deviation) < 0.005


def test_classifier_averages_and_multiplies():
    """The classifier is the mean over positions times a kernel plus a bias."""
    x = data("float32")[0]
    rng = np.random.default_rng(1)
    params = {"kernel": rng.normal(size=(6, 5)), "bias": rng.normal(size=5)}
    params = {name: value.astype(np.float32) for name, value in params.items()}
    wanted = x.astype(np.float64).mean((1, 2)) @ params["kernel"] + params["bias"]
    got = jax.jit(Classifier(5).apply)({"params": params}, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_average_pool_halves():
    """Each result is the mean of a 2x2 square."""
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    np.testing.assert_array_equal(average_pool(x)[0, :, :, 0], [[2.5, 4.5], [10.5, 12.5]])


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (3, 2)])
def test_pooling_equals_flax(size, dtype):
    """Values and gradient are flax's, also for an odd number of rows or columns."""
    x, *_ = data(dtype, (2, *size, 3))

    def with_gradient(pool):
        return jax.jit(jax.value_and_grad(lambda x: jnp.sum(pool(x) ** 2)))(x)

    flax_pool = partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2))
    assert_close(with_gradient(average_pool), with_gradient(flax_pool), dtype)
    flax_pool = partial(nn.max_pool, window_shape=(2, 2), strides=(2, 2))
    assert_close(with_gradient(max_pool), with_gradient(flax_pool), dtype)


def test_one_of_equal_maxima_has_the_gradient():
    """The gradient goes to the first of equal maxima, in the order of rows, and to no other."""
    x = np.float32([[0, 5, 1, 1], [5, 5, 1, 1], [2, 2, -1, -1], [3, 3, -1, 0]]).reshape(1, 4, 4, 1)
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(max_pool(x))))(x)
    wanted = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]]
    np.testing.assert_array_equal(gradient[0, :, :, 0], wanted)
