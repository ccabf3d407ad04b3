"""The loop and its feed: order of images, faults in a loss, three levels."""

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import HIERARCHY, schedule, split, task

from hiercls_jax import Hierarchy
from hiercls_jax.runtime import parallel
from hiercls_jax.training import checkpoint, loop, tracking
from hiercls_jax.training.checkpoint import Progress
from hiercls_jax.training.feed import epoch_order, padded_batches
from hiercls_jax.training.loop import train
from hiercls_jax.training.recorder import TrainingError
from hiercls_jax.training.split_predictor import SplitPredictor
from hiercls_jax.training.state import State, create

KEY = jax.random.key(1)


@given(st.integers(1, 300), st.integers(1, 64))
def test_padded_batches_count_every_image_once(count, batch):
    """Whatever the batch, the indices that count are 0 … N-1, in order, each once."""
    seen = []
    for indices, counted in padded_batches(count, batch):
        assert indices.shape == (batch,)
        assert indices.max() < count
        seen += indices[:counted].tolist()
    assert seen == list(range(count))


def test_order_is_a_function_of_seed_and_epoch():
    """An epoch's order is a permutation, repeatable, and another for each seed and epoch."""
    orders = [
        epoch_order(seed, e, 50).tolist() for seed in ((0, 0), (0, 1), (1, 0)) for e in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 6
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert epoch_order((0, 0), 1, 50).tolist() == orders[1]


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    """The error names level and step; no checkpoint from that step or after it is kept.

    The run saves after nearly every step, and goes on from a state whose logits overflow.
    """
    state = initial_state()
    state.params["fine"]["classifier"]["kernel"][:] = 3e38
    put(tmp_path, state, 3)
    with pytest.raises(TrainingError, match=r"loss.* is (nan|inf) at step \d+") as caught:
        train("toy", task(), KEY, split(50), None, schedule(save_minutes=1e-9), tmp_path)
    step = int(str(caught.value).split("at step ")[1].split(";")[0])
    kept = [int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*")]
    assert kept
    assert all(saved < step for saved in kept)


def test_a_state_that_is_not_finite_is_not_kept(tmp_path):
    """A step may turn parameters infinite at a finite loss: even as the last one it fails.

    A bias that all classes share does not change the loss, and here the next step lets it overflow.
    """
    state = initial_state()
    largest = np.finfo(np.float32).max
    state.params["fine"]["classifier"]["bias"][:] = -largest
    state.opt_state[1].trace["fine"]["classifier"]["bias"][:] = largest
    put(tmp_path, state, 23)
    with pytest.raises(TrainingError, match="parameters are not finite after step 24"):
        train("toy", task(), KEY, split(50), None, schedule(), tmp_path)
    assert [path.name for path in tmp_path.glob("checkpoints/*")] == ["step_00000023"]
    assert all(math.isfinite(record["loss"]) for record in tracking.records(tmp_path))


def initial_state() -> State:
    """The toy network's initial state on the host, whose arrays can be written to."""
    initial = create(task().network, task().optimizer, KEY, (8, 8, 3))
    return jax.tree.map(np.array, jax.device_get(initial))


def put(folder, state: State, step: int) -> None:
    """Write a checkpoint that a run goes on from."""
    state = state.replace(step=np.int32(step))
    checkpoint.save(folder / "checkpoints", state, Progress(step))


def test_a_clock_that_stands_still_stops_nothing(tmp_path, monkeypatch):
    """No speed can be had from it; every step is taken, and records are written without one."""
    monkeypatch.setattr(loop.time, "monotonic", lambda: 7.0)
    _, progress = train("toy", task(), KEY, split(50), None, schedule(), tmp_path)
    assert progress.step == 24
    assert "images_per_second" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """One training, with a record every four steps and validation: (state, progress, records)."""
    folder = tmp_path_factory.mktemp("learned")
    state, progress = train("toy", task(), KEY, split(50), split(20, 1), schedule(), folder)
    return state, progress, tracking.records(folder)


def test_training_learns_and_records(learned):
    """A merged network lowers its loss on easy images; each epoch ends with the errors of
    validation."""
    state, progress, records = learned
    assert (int(state.step), progress.step) == (24, 24)
    losses = [r["loss"] for r in records if r["split"] == "train"]
    assert losses[-1] < 0.8 * losses[0]
    assert losses[0] == pytest.approx(math.log(2) + math.log(4), rel=0.5)
    validation = [r for r in records if r["split"] == "validation"]
    assert [r["step"] for r in validation] == [6, 12, 18, 24]
    predicted = SplitPredictor(task(), 8)(parallel.replicate(state), split(20, 1))
    for level, ids in task().ancestors.items():
        wrong = np.mean(predicted[level].argmax(axis=1) != ids[split(20, 1).labels])
        assert validation[-1][f"error_{level}"] == pytest.approx(wrong)
    assert validation[-1]["error_coarse"] < 0.25  # half by chance
    assert progress.validation_error == validation[-1]["error_fine"]


def test_a_record_is_the_average_of_its_steps(learned, tmp_path, capsys):
    """Losses and errors of a record are means over the steps since the record before it."""
    train("toy", task(), KEY, split(50), None, schedule(log_every=1), tmp_path)
    each = tracking.records(tmp_path)
    some = [record for record in learned[2] if record["split"] == "train"]
    assert [record["step"] for record in each] == list(range(1, 25))
    ends = [4, 6, 8, 12, 16, 18, 20, 24]
    assert [record["step"] for record in some] == ends
    keys = [
        "loss",
        *(f"{what}_{level}" for what in ("loss", "error") for level in HIERARCHY.levels),
    ]
    for record, start in zip(some, [0, *ends], strict=False):
        steps = each[start : record["step"]]
        means = [np.mean([step[key] for step in steps]) for key in keys]
        assert [record[key] for key in keys] == pytest.approx(means, rel=1e-6)
    assert "toy 24/24 train:" in capsys.readouterr().out


def test_three_levels_train(tmp_path):
    """A network of three levels lowers its loss, which is the sum of those of the levels."""
    hierarchy = Hierarchy(
        ("light", "tone", "colour"),
        (("off", "on"), ("dark", "grey", "bright"), ("black", "grey", "silver", "white")),
        ((0, 1, 1), (0, 1, 2, 2)),
    )
    three = task(hierarchy=hierarchy)
    plan = schedule(log_every=6)
    state, _ = train("three", three, KEY, split(50), None, plan, tmp_path)
    assert set(state.params) == {"shared", *hierarchy.levels}
    records = tracking.records(tmp_path)
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    parts = sum(records[0][f"loss_{level}"] for level in hierarchy.levels)
    assert records[0]["loss"] == pytest.approx(parts, rel=1e-6)
