"""The training step and the prediction step, on one device and on several."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import HIERARCHY, Recipe, pmap_first, schedule, split, task

from hiercls_jax.data.augment import alternately, augment, sample_keys, standardise
from hiercls_jax.errors import UserError
from hiercls_jax.runtime import parallel
from hiercls_jax.training.feed import fed, make_feed
from hiercls_jax.training.loss import error_counts, level_losses
from hiercls_jax.training.optimizer import make_optimizer, make_schedule
from hiercls_jax.training.split_predictor import SplitPredictor
from hiercls_jax.training.state import create
from hiercls_jax.training.step import make_train_step, probabilities

STEPS = 5
SHAPE = (8, 8, 3)


def batches(count=STEPS, size=8):
    data = split(count * size)
    for i in range(count):
        part = slice(i * size, (i + 1) * size)
        positions = np.arange(size, dtype=np.int32)
        where = {"positions": positions, "indices": positions + 1}
        yield {"images": data.images[part], "labels": data.labels[part], **where}


@pytest.fixture(scope="module")
def start():
    """The state at step 0, on the host, of every task here: they differ in nothing it holds."""
    a_task = task()
    return jax.device_get(create(a_task.network, a_task.optimizer, jax.random.key(1), SHAPE))


def one_device(*trees):
    """Give every array the axis of one device."""
    return [jax.tree.map(lambda x: np.asarray(x)[None], tree) for tree in trees]


def run_on(devices: int, a_task, start):
    state = parallel.replicate(start, devices)
    step = pmap_first(make_train_step(a_task), parallel.AXIS, devices, donate_argnums=(0,))
    records = []
    for batch in batches():
        state, metrics = step(state, parallel.shard(batch, devices))
        records.append({key: float(value[0]) for key, value in metrics.items()})
    return state, records


@pytest.fixture(scope="module")
def runs(start):
    """Five steps of the same batches on 1, 2 and 4 devices, with augmentation."""
    return {devices: run_on(devices, task(), start) for devices in (1, 2, 4)}


@pytest.mark.devices
@pytest.mark.parametrize("devices", [2, 4])
def test_device_count_does_not_change_training(runs, devices):
    """Losses and state after five augmented steps are those of one device.

    Only the order of float32 sums differs: by 1e-5 in a step, which the batch statistics of 8
    images amplify in five steps.
    """
    one, records = runs[1]
    many, many_records = runs[devices]
    losses = [[record["loss"] for record in run] for run in (records, many_records)]
    np.testing.assert_allclose(*losses, rtol=2e-4)
    for a, b in zip(
        jax.tree.leaves(parallel.unreplicate(one)),
        jax.tree.leaves(parallel.unreplicate(many)),
        strict=True,
    ):
        np.testing.assert_allclose(b, a, rtol=2e-3, atol=2e-4)


@pytest.mark.devices
def test_replicas_are_identical(runs):
    """Every leaf of the state, batch statistics and momenta included, is the same bits on each
    of four devices."""
    state, _ = runs[4]
    leaves = jax.tree.leaves(state)
    assert len(leaves) > 30
    for leaf in leaves:
        copies = np.asarray(leaf)
        assert len(copies) == 4
        for copy in copies[1:]:
            np.testing.assert_array_equal(copy, copies[0])


def test_metrics_are_sums_over_the_global_batch(runs):
    """`count` is the global batch, errors are counted over it, and the loss is the levels' sum."""
    first = {devices: records[0] for devices, (_, records) in runs.items()}
    for record in first.values():
        assert record["count"] == 8
        assert record["errors_fine"] == first[1]["errors_fine"] <= 8
        total = record["loss_coarse"] + record["loss_fine"]
        assert record["loss"] == pytest.approx(total, rel=1e-6)


def test_bfloat16_computes_and_float32_remembers(runs, start):
    """The state stays float32; losses are float32's to two digits, and not to four."""
    state, records = run_on(1, task(dtype="bfloat16"), start)
    wanted, wanted_records = runs[1]
    types = jax.tree.map(lambda x: x.dtype, (state, wanted))
    assert types[0] == types[1]
    losses, wide = ([record["loss"] for record in run] for run in (records, wanted_records))
    np.testing.assert_allclose(losses, wide, rtol=0.02)
    assert np.abs(np.divide(losses, wide) - 1).max() > 1e-4


def test_losses_and_errors_are_those_of_the_formulas():
    """A level's loss is the mean of -log softmax at its labels; errors are other top classes."""
    rng = np.random.default_rng(0)
    sizes = dict(zip(HIERARCHY.levels, HIERARCHY.sizes, strict=True))
    logits = {level: rng.normal(0, 3, (20, n)).astype(np.float32) for level, n in sizes.items()}
    labels = {level: rng.integers(0, n, 20, np.int32) for level, n in sizes.items()}
    losses, errors = level_losses(logits, labels), error_counts(logits, labels)
    for level, z in logits.items():
        p = np.exp(z.astype(float))
        chosen = (p / p.sum(axis=1, keepdims=True))[np.arange(20), labels[level]]
        assert float(losses[level]) == pytest.approx(-np.mean(np.log(chosen)), rel=1e-5)
        assert int(errors[level]) == np.sum(z.argmax(axis=1) != labels[level])


def test_loss_weights_scale_each_level(start):
    """A weight of 0 on coarse leaves its branch without a gradient; without L2 nothing moves it."""
    still = task(recipe=Recipe(weight_decay=0.0))
    still.weights["coarse"] = 0.0
    step = pmap_first(make_train_step(still), parallel.AXIS, 1)
    after, _ = step(parallel.replicate(start, 1), parallel.shard(next(batches()), 1))
    before, after = start.params, parallel.unreplicate(after.params)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, before["coarse"], after["coarse"])))
    kernels = (tree["fine"]["classifier"]["kernel"] for tree in (before, after))
    assert not np.array_equal(*kernels)


def test_resident_and_host_fed_batches_train_alike(start):
    """Images looked up in device memory give the same state as images sent from the host."""
    a_task, data = task(), split(40)
    indices = np.array([3, 1, 39, 7, 22, 10, 11, 0])
    results = []
    for resident in (False, True):
        step = pmap_first(fed(make_train_step(a_task)), parallel.AXIS, parallel.device_count())
        batch = next(make_feed(data, resident)([indices]))
        results.append(parallel.unreplicate(step(parallel.replicate(start), batch)[0]))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_step_in_parts_averages_the_gradients_of_its_parts(start):
    """Three parts on one or two devices give the mean of the parts' gradients, and all metrics.

    Part i has the images whose position is i modulo 3. Its batch statistics are its own, so that
    its gradient is that of a step on this part alone. Without momentum and weight decay, the change
    of the parameters is the gradient times the rate.
    """
    plain = Recipe(momentum=0.0, weight_decay=0.0)
    batch = next(batches(1, 12))
    taken = {devices: {} for devices in (1, 2)}
    for devices, of in taken.items():
        step = pmap_first(make_train_step(task(recipe=plain, parts=3)), parallel.AXIS, devices)
        of["whole"] = step(parallel.replicate(start, devices), parallel.shard(batch, devices))
    one_part = pmap_first(make_train_step(task(recipe=plain)), parallel.AXIS, 1)
    for i in range(3):
        part = {name: x[i::3] for name, x in batch.items()}
        taken[1][i] = one_part(parallel.replicate(start, 1), parallel.shard(part, 1))

    def after(devices, which):
        state, metrics = jax.tree.map(lambda x: np.asarray(x)[0], taken[devices][which])
        return state.params, metrics

    params, metrics = after(1, "whole")
    parts = [after(1, i) for i in range(3)]
    means = jax.tree.map(lambda *x: np.mean(x, axis=0), *(params for params, _ in parts))
    check = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)  # float32 sums
    jax.tree.map(check, params, means)
    assert any(jax.tree.leaves(jax.tree.map(lambda a, b: np.any(a != b), params, start.params)))
    assert metrics["count"] == 12
    for name, value in metrics.items():
        check(value, sum(of[name] for _, of in parts))
    jax.tree.map(check, after(2, "whole"), (params, metrics))
    with pytest.raises(UserError, match="12 images of a batch cannot be divided into 5 parts"):
        pmap_first(make_train_step(task(parts=5)), parallel.AXIS, 1)(
            parallel.replicate(start, 1), parallel.shard(batch, 1)
        )


def test_a_step_of_a_size_is_one_on_smaller_images(start):
    """Images of one colour give the same step whether they are small or are made small."""
    colours = np.random.default_rng(0).integers(0, 256, (8, 1, 1, 3))
    (batch,) = batches(1)
    plain, results = task(augment=False), []
    for size, pixels in ((None, 6), (6, 8)):
        images = np.broadcast_to(colours, (8, pixels, pixels, 3)).astype(np.uint8)
        step = pmap_first(make_train_step(plain, size), parallel.AXIS, 1)
        results.append(step(*one_device(start, {**batch, "images": images})))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *results)


def test_mirror_images_alternate_by_epoch(start):
    """Step 6 at five steps per epoch is of epoch 1, and mirrors the images of `alternately` there.

    Which ones these are depends on the batch's `indices`.
    """
    (batch,) = batches(1)
    still = task(recipe=Recipe(learning_rate=1e-30), alternate=5)
    step = pmap_first(make_train_step(still), parallel.AXIS, 1)

    def loss(state_step, mirror=False, shift=0):
        images = batch["images"][:, :, ::-1] if mirror else batch["images"]
        at = start.replace(step=np.int32(state_step))
        changed = {**batch, "images": images, "indices": batch["indices"] + shift}
        return float(step(*one_device(at, changed))[1]["loss"][0])

    # Crops are drawn anew in every step, and mirroring comes before them.
    assert loss(6) != loss(6, mirror=True)
    keys = sample_keys(still.key, 6, batch["positions"])
    images = standardise(batch["images"], still.mean, still.std)
    seen = augment(images, keys, mirrored=alternately(still.key, batch["indices"], epoch=1))
    unaugmented = pmap_first(make_train_step(task(augment=False)), parallel.AXIS, 1)
    restored = np.asarray(seen) * still.std + still.mean
    wanted = unaugmented(*one_device(start, {**batch, "images": restored}))[1]["loss"][0]
    assert loss(6) == pytest.approx(float(wanted), rel=1e-4)
    assert loss(6, shift=100) != loss(6)


def test_mirrored_predictions_are_the_mean_over_both_images(start):
    """Probabilities with `mirror` are the mean of those of the image and of its mirror image."""
    a_task, images = task(), split(4).images
    variables = {"params": start.params, "batch_stats": start.batch_stats}
    network = a_task.network.clone(axis_name=None)

    @partial(jax.jit, static_argnums=1)
    def predict(images, mirror):
        args = (images, a_task.mean, a_task.std, "float32", mirror)
        return probabilities(network, variables, *args)

    both = [predict(x, False) for x in (images, images[:, :, ::-1])]
    for level, p in predict(images, True).items():
        wanted = (both[0][level] + both[1][level]) / 2
        np.testing.assert_allclose(p, wanted, atol=1e-6)  # float32 sums
        assert np.abs(both[0][level] - both[1][level]).max() > 1e-4


@pytest.fixture(scope="module")
def renamed(start):
    """A task whose levels are not in the order of their names, and its state on all devices."""
    a_task = task(hierarchy=dataclasses.replace(HIERARCHY, levels=("tone", "colour")))
    names = {"coarse": "tone", "fine": "colour"}
    params, batch_stats = (
        {names.get(part, part): of for part, of in tree.items()}
        for tree in (start.params, start.batch_stats)
    )
    return a_task, parallel.replicate(start.replace(params=params, batch_stats=batch_stats))


@pytest.fixture(scope="module")
def expected(renamed):
    """The predictions of 50 images in batches of 8."""
    a_task, state = renamed
    return SplitPredictor(a_task, 8)(state, split(50))


@pytest.mark.parametrize("batch", [4, 12, 64])
def test_predictions_do_not_depend_on_the_batch(batch, renamed, expected):
    """Each of 50 images is predicted exactly once, alike for every batch size, and sums to 1.

    Levels come coarsest first, also if their names are in another order.
    """
    a_task, state = renamed
    found = SplitPredictor(a_task, batch)(state, split(50))
    assert list(found) == ["tone", "colour"]
    for level, size in zip(found, HIERARCHY.sizes, strict=True):
        assert found[level].shape == (50, size)
        assert found[level].dtype == np.float32
        np.testing.assert_allclose(found[level], expected[level], atol=1e-6)  # float32 sums
        np.testing.assert_allclose(found[level].sum(axis=1), 1, atol=1e-6)


def test_resnet_recipe():
    """0.01 for 400 steps, then 0.1, ÷10 at 32k and again at 48k of 64k steps (He et al. 2016)."""
    recipe = Recipe(learning_rate=0.1, warmup_steps=400, warmup_learning_rate=0.01)
    rate = make_schedule(recipe, 64_000)
    at = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_001: 0.01, 47_999: 0.01, 48_001: 0.001}
    for step, expected in at.items():
        assert float(rate(step)) == pytest.approx(expected), step


def test_shorter_runs_keep_the_schedule_s_shape():
    """A run of a tenth of the steps decays at a tenth of the steps."""
    rate = make_schedule(Recipe(learning_rate=0.1), 100)
    assert [float(rate(s)) for s in (0, 49, 51, 74, 76)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 0.001]
    )


def test_an_unknown_schedule_is_an_error():
    """A schedule that does not exist is named, and never taken for another."""
    with pytest.raises(ValueError, match="step, onecycle or linear, not 'cosine'"):
        make_schedule(Recipe(learning_rate=0.1, schedule="cosine"), 100)


@pytest.mark.parametrize("nesterov", [False, True])
def test_optimizer_is_sgd_with_l2_on_all_parameters(nesterov):
    """Three updates equal the textbook recursion with L2 in the gradient, biases included."""
    recipe = Recipe(nesterov=nesterov, weight_decay=0.1, decay_at=())
    optimizer = make_optimizer(recipe, 10)
    w, grads = {"bias": jnp.array([1.0, -2.0])}, [0.5, -0.25, 0.125]
    state, expected, velocity = optimizer.init(w), np.array([1.0, -2.0]), np.zeros(2)
    for g in grads:
        updates, state = optimizer.update({"bias": jnp.full(2, g)}, state, w)
        w = jax.tree.map(lambda x, u: x + u, w, updates)
        gradient = g + 0.1 * expected
        velocity = 0.9 * velocity + gradient
        expected = expected - 0.05 * (gradient + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(w["bias"], expected, rtol=1e-6)


def test_schedule_drops_the_last_partial_batch():
    """50 images in batches of 8 are six steps an epoch."""
    assert schedule().order(50).steps_per_epoch == 6
