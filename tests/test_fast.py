"""The fast family: its size, its stem, its initial values, and its optimizer."""

import dataclasses
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import Recipe, pmap_first, schedule, split, task

from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.data.augment import standardise
from hiercls_jax.data.dataset import Split
from hiercls_jax.errors import UserError
from hiercls_jax.models import fast, registry
from hiercls_jax.models.branched import Branched
from hiercls_jax.models.costs import summarise
from hiercls_jax.runtime.parallel import AXIS
from hiercls_jax.training import loop
from hiercls_jax.training.loop import Interrupted, train
from hiercls_jax.training.loss import level_losses
from hiercls_jax.training.optimizer import lookahead, make_optimizer, make_schedule
from hiercls_jax.training.state import create
from hiercls_jax.training.step import make_train_step

FINE = (("fine", 100),)
BOTH = (("coarse", 20), *FINE)


def muon(**changes) -> Recipe:
    """The optimizer part of the family's recipe."""
    fields = fast.Fast.RECIPE["optimizer"] | changes
    recipe = Recipe()
    for name, value in fields.items():
        object.__setattr__(recipe, name, value)
    return recipe


# The network.


def test_sizes_are_those_counted_by_hand():
    """Parameters and multiply-adds, kernel by kernel; the width multiplies the channels."""
    kernels = {
        "stage1": 9 * 24 * 64 + 2 * 64 * 64,
        "stage2": 9 * 64 * 256 + 9 * 256 * 192 + 192 * 256,
        "stage3": 4 * 256 * 768 + 2 * 9 * 768 * 512,
    }
    scales = {"stage1": 6 * 64, "stage2": 4 * 256 + 2 * 192, "stage3": 4 * 768 + 2 * 512}
    costs = summarise(Branched(registry.build("fast11"), FINE, 0), (32, 32, 3))
    for stage, kernel in kernels.items():
        assert costs["stages"][f"fine/{stage}"]["parameters"] == kernel + scales[stage]
    assert costs["stages"]["fine/stem"]["parameters"] == 24
    assert costs["stages"]["fine/classifier"]["parameters"] == 768 * 100
    assert costs["parameters"] == 8_608_024
    # Maps of 31 pixels behind the stem, pooled to 15 and 7; 6 behind the 2x2 kernel, pooled to 3.
    by_hand = (
        31**2 * (4 * 3 * 24 + 9 * 24 * 64)
        + 15**2 * (2 * 64 * 64 + 9 * 64 * 256)
        + 7**2 * (9 * 256 * 192 + 192 * 256)
        + 6**2 * (4 * 256 * 768)
        + 3**2 * (2 * 9 * 768 * 512)
        + 768 * 100
    )
    assert costs["multiply_adds"] == by_hand
    half = summarise(Branched(registry.build("fast17", width=0.5), FINE, 0), (32, 32, 3))
    pairs = 2 * 32 * 32 + 9 * 128 * 96 + 96 * 128 + 2 * 9 * 384 * 256
    pairs += 2 * (2 * 32 + 96 + 128 + 256 + 384)
    one_pair = summarise(Branched(registry.build("fast11", width=0.5), FINE, 0), (32, 32, 3))
    assert half["parameters"] - one_pair["parameters"] == pairs


def test_whitened_patches_are_uncorrelated():
    """Behind the whitening kernel, 2x2 patches have the identity as covariance, in 12 channels.

    The other 12 channels are the negatives of these. (The images' smallest eigenvalue is large
    beside the constant that is added to it.)
    """
    rng = np.random.default_rng(0)
    smooth = rng.normal(size=(200, 10, 10, 3)) @ rng.normal(size=(3, 3))
    images = 5 * (smooth + np.roll(smooth, 1, axis=1)).astype(np.float32)
    kernel = fast.whitening_kernel(images)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])
    patches = np.lib.stride_tricks.sliding_window_view(images, (2, 2), axis=(1, 2))
    white = np.einsum("nhwcij,ijcd->nhwd", patches, kernel[..., :12]).reshape(-1, 12)
    np.testing.assert_allclose(np.cov(white, rowvar=False), np.eye(12), atol=0.01)


def test_whitening_is_set_in_every_stem_and_is_not_trained():
    """The kernel is a statistic, not a parameter: merge-0 has it twice, and a step keeps it."""
    network = Branched(registry.build("fast11", width=0.1), BOTH, 0)
    images = np.random.default_rng(0).normal(size=(4, 16, 16, 3)).astype(np.float32)
    variables = jax.jit(lambda key: network.init(key, images, train=False))(jax.random.key(0))
    kernel = fast.whitening_kernel(images)
    stats = fast.set_whitening(variables["batch_stats"], kernel)
    assert jax.tree.structure(stats) == jax.tree.structure(dict(variables["batch_stats"]))
    stems = [stats[level]["stem"]["kernel"] for level in ("coarse", "fine")]
    assert all(stem is kernel for stem in stems)
    assert list(variables["params"]["fine"]["stem"]) == ["bias"]

    @jax.jit
    def apply(stats):
        own = {"params": variables["params"], "batch_stats": stats}
        logits, new = network.apply(own, images, True, mutable=["batch_stats"])
        return logits["fine"], new["batch_stats"]

    before, _ = apply(variables["batch_stats"])
    after, new = apply(stats)
    assert np.abs(np.subtract(before, after)).max() > 1e-3
    np.testing.assert_array_equal(new["fine"]["stem"]["kernel"], kernel)


@pytest.mark.parametrize(("size", "inputs", "outputs"), [(1, 4, 3), (2, 3, 5), (3, 3, 5)])
def test_first_filters_are_the_identity(size, inputs, outputs):
    """The first filters of an initial kernel copy the channels; the others are small and random."""
    shape = (size, size, inputs, outputs)
    kernel = np.asarray(jax.jit(lambda key: fast.identity_first(key, shape))(jax.random.key(0)))
    copied = min(inputs, outputs)
    wanted = np.zeros((size, size, inputs, copied))
    wanted[size // 2, size // 2, :copied] = np.eye(copied)
    np.testing.assert_array_equal(kernel[..., :copied], wanted)
    rest = kernel[..., copied:]
    assert np.all(np.abs(rest) <= 1 / np.sqrt(size * size * inputs))
    assert len(np.unique(rest)) == rest.size


def test_logits_are_of_the_maximum_and_the_mean():
    """The head is (maximum + mean over positions) times a kernel times 1.25 / 9, without bias."""
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 4, 6)), rng.normal(size=(6, 5))
    head = fast.ScaledClassifier(5)
    pooled = fast.GlobalPool().apply({}, x.astype(np.float32), train=True)
    logits = head.apply({"params": {"kernel": kernel.astype(np.float32)}}, pooled)
    wanted = (x.max((1, 2)) + x.mean((1, 2))) @ kernel * 1.25 / 9
    np.testing.assert_allclose(logits, wanted, rtol=1e-5, atol=1e-5)


def test_small_images_are_refused():
    """13 pixels are the fewest of which a pixel is left behind the last pooling."""
    network = Branched(registry.build("fast11", width=0.1), FINE, 0)

    def shapes(size):
        images = jnp.zeros((1, size, size, 3))
        return jax.eval_shape(lambda: network.init(jax.random.key(0), images, train=False))

    shapes(13)
    with pytest.raises(UserError, match="12x12 pixels are too few.* at least 13"):
        shapes(12)


def test_device_count_does_not_change_training():
    """Two steps of Muon on two devices are those on one device.

    The network is the toy, which compiles faster. tests/test_models.py shows that the family
    synchronises its batch statistics.
    """
    optimizer = make_optimizer(muon(learning_rate=0.1), 10)
    a_task = dataclasses.replace(task(smoothing=0.2), optimizer=optimizer)
    start = jax.device_get(create(a_task.network, a_task.optimizer, jax.random.key(0), (8, 8, 3)))
    rng = np.random.default_rng(0)
    batches = [
        {
            "images": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
            "labels": rng.integers(0, 4, 8, np.int32),
            "positions": np.arange(8, dtype=np.int32),
        }
        for _ in range(2)
    ]
    results = []
    for devices in (1, 2):
        step = pmap_first(make_train_step(a_task), AXIS, devices)
        state = jax.tree.map(lambda x: np.stack([x] * devices), start)  # noqa: B023
        for batch in batches:
            state, metrics = step(
                state,
                jax.tree.map(lambda x: x.reshape(devices, -1, *x.shape[1:]), batch),  # noqa: B023
            )
        for leaf in map(np.asarray, jax.tree.leaves(state)):
            np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
        results.append(jax.tree.map(lambda x: np.asarray(x)[0], (state, metrics)))
    # Newton-Schulz's iteration amplifies the rounding of float32 sums in another order.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=5e-4), *results)
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), results[0][0].params, start.params)
    assert moved["shared"]["stage1"]["conv"]["kernel"] > 0.02


def test_a_run_whitens_by_its_own_training_images(tmp_path):
    """The stem's kernel is that of the standardised training images, before and after a restart."""
    network = Branched(registry.build("fast11", width=0.1), (("coarse", 2), ("fine", 4)), 1, AXIS)
    data = split(16, size=16)
    a_task = dataclasses.replace(
        task(recipe=muon(learning_rate=0.1, muon_learning_rate=0.02)), network=network
    )
    images = np.asarray(standardise(data.images, a_task.mean, a_task.std))
    wanted = fast.whitening_kernel(images)
    short = schedule(epochs=1)
    for _ in range(2):
        state, progress = train("run", a_task, jax.random.key(0), data, None, short, tmp_path)
        assert progress.step == 2
        np.testing.assert_array_equal(state.batch_stats["shared"]["stem"]["kernel"], wanted)


def test_a_stopped_run_goes_on_bit_for_bit(tmp_path, monkeypatch):
    """With every field of the recipe, a run stopped within an epoch ends as an undisturbed one.

    So it does if the stop is before images grow, and goes on after.
    """
    network = Branched(registry.build("fast11", width=0.1), (("coarse", 2), ("fine", 4)), 2, AXIS)
    recipe = muon(learning_rate=0.1, muon_learning_rate=0.02, lookahead=2)
    changes = {"smoothing": 0.2, "reflect": True, "parts": 2, "alternate": 3}
    a_task = dataclasses.replace(task(recipe=recipe, **changes), network=network)
    data, short = split(24, size=16), schedule(epochs=2, sizes=((13, 0.5),))
    sizes = [short.size(step, len(data)) for step in range(6)]
    assert sizes == [13, 13, 13, None, None, None]

    def run(folder):
        return train("run", a_task, jax.random.key(0), data, None, short, folder)

    compiled, make = [], loop.make_train_step
    monkeypatch.setattr(
        loop, "make_train_step", lambda task, size: compiled.append(size) or make(task, size)
    )
    undisturbed, _ = run(tmp_path / "a")
    assert compiled == [13, None]
    read, reads = Split.read, []

    def read_and_stop(self, indices):
        reads.append(indices)
        if len(reads) in (3, 5):  # constants, then two steps; constants, then a step
            os.kill(os.getpid(), signal.SIGTERM)
        return read(self, indices)

    monkeypatch.setattr(Split, "read", read_and_stop)
    stops = []
    for _ in range(2):
        with pytest.raises(Interrupted) as stopped:
            run(tmp_path / "b")
        stops.append(str(stopped.value))
    resumed, progress = run(tmp_path / "b")
    assert progress.step == 6
    jax.tree.map(np.testing.assert_array_equal, resumed, undisturbed)


# The recipe.


def test_lookahead_averages_the_parameters():
    """Every third step and the last end on the average, which the formula says; others on SGD's."""
    steps, every, rate = 8, 3, 0.1
    optimizer = lookahead(optax.sgd(rate), every, steps)
    rng = np.random.default_rng(0)
    start, grads = rng.normal(size=5), rng.normal(size=(steps, 5))
    with enable_x64(True):
        params, state = jnp.asarray(start), optimizer.init(start)
        wanted = average = start
        for step, gradient in enumerate(grads, 1):
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            wanted = wanted - rate * gradient
            if step in (3, 6, 8):
                kept = 0.95**3 * (step / steps) ** 3
                wanted = average = kept * average + (1 - kept) * wanted
            np.testing.assert_allclose(params, wanted, rtol=1e-6)
            np.testing.assert_allclose(state.average, average, rtol=1e-6)


def test_linear_schedule_rises_and_falls():
    """The rate rises to its peak and falls; its mean is half the peak, and no step has rate 0."""
    rate = make_schedule(muon(learning_rate=2.0, peak_at=0.25), 40)
    rates = np.array([float(rate(step)) for step in range(40)])
    np.testing.assert_allclose(rates[[0, 9, 10, 39]], [0.1, 1.9, 2 - 1 / 30, 1 / 30], rtol=1e-5)
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert rates.mean() == pytest.approx(1)


@pytest.fixture(scope="module")
def muon_step():
    """Parameters of every kind before and after a step, and their gradients."""
    rng = np.random.default_rng(0)
    params = {
        "stage": {"conv": {"kernel": rng.normal(size=(3, 3, 4, 8))}, "norm": {"scale": np.ones(8)}},
        "stage1": {"blocks": {"conv2": {"kernel": rng.normal(size=(3, 2, 2, 8, 5))}}},
        "classifier": {"kernel": rng.normal(size=(8, 5)), "bias": rng.normal(size=5)},
    }
    with enable_x64(True):
        grads = jax.tree.map(lambda p: rng.normal(size=p.shape), params)
        optimizer = make_optimizer(muon(peak_at=0.5, muon_steps=12), 10)

        @jax.jit
        def step(params, grads):
            updates, _ = optimizer.update(grads, optimizer.init(params), params)
            return jax.tree.map(jnp.add, params, updates)

        return params, grads, jax.device_get(step(params, grads))


def test_muon_moves_kernels_orthogonally(muon_step):
    """A kernel, scaled to the norm √D, moves by rate · (singular vectors of its gradient).

    With Newton-Schulz's coefficients the singular values of that are 0.7 to 1.2 instead of 1. Each
    block of a loop has a matrix of its own.
    """
    params, grads, after = muon_step
    rate = 0.18 * 0.1  # half of the first of five steps to the peak

    def check(before, gradient, after):
        before, gradient, after = (a.reshape(-1, a.shape[-1]) for a in (before, gradient, after))
        start = before * np.sqrt(before.shape[1]) / np.linalg.norm(before)
        moved = (start - after) / rate
        u, _, v = np.linalg.svd(gradient, full_matrices=False)
        inside = u.T @ moved @ v.T
        values = np.diag(inside)
        assert 0.6 < values.min() <= values.max() < 1.3
        np.testing.assert_allclose(inside, np.diag(values), atol=1e-3)
        np.testing.assert_allclose(u @ inside @ v, moved, atol=1e-3)

    kernels = [tree["stage"]["conv"]["kernel"] for tree in muon_step]
    check(*kernels)
    blocks = [tree["stage1"]["blocks"]["conv2"]["kernel"] for tree in muon_step]
    for block in zip(*blocks, strict=True):
        check(*block)


def test_the_rest_is_trained_by_nesterov_sgd(muon_step):
    """Weight decay is of the classifier's kernel alone; Nesterov's first step is 1.9 gradients."""
    params, grads, after = muon_step
    rate = 1.38 * 0.1
    for path, decay in (("bias", 0), ("kernel", 5e-4)):
        before, gradient, got = (tree["classifier"][path] for tree in muon_step)
        # The rate is float32.
        wanted = before - rate * 1.9 * (gradient + decay * before)
        np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-7)
    before, gradient, got = (tree["stage"]["norm"]["scale"] for tree in muon_step)
    np.testing.assert_allclose(got, before - rate * 1.9 * gradient, rtol=1e-6, atol=1e-7)


def test_smoothing_is_a_mixture_with_the_uniform_distribution():
    """The smoothed loss is the cross-entropy to (1 - ε) of the label and ε of all classes."""
    rng = np.random.default_rng(0)
    z, labels = rng.normal(size=(20, 5)), rng.integers(0, 5, 20)
    target = 0.75 * np.eye(5)[labels] + 0.25 / 5
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    wanted = -np.mean(np.sum(target * log_p, axis=1))
    losses = level_losses({"fine": jnp.float32(z)}, {"fine": jnp.int32(labels)}, 0.25)
    assert float(losses["fine"]) == pytest.approx(wanted, rel=1e-5)
