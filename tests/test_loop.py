"""The loop and what feeds it: order of images, faults in a loss, three levels."""

import json
import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import HIERARCHY, Recipe, schedule, split, task

from hiercls_jax.data import embedded
from hiercls_jax.runtime import parallel
from hiercls_jax.training import loop
from hiercls_jax.training.feed import epoch_order, padded_batches
from hiercls_jax.training.loop import SplitPredictor, TrainingError, train

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
    """The error names level and step; no checkpoint from that step or after it is kept."""
    diverging = task(recipe=Recipe(learning_rate=1e18, decay_at=()))
    with pytest.raises(TrainingError, match=r"loss.* is (nan|inf) at step \d+") as caught:
        train("toy", diverging, KEY, split(50), None, schedule(save_minutes=1e-9), tmp_path)
    step = int(str(caught.value).split("at step ")[1].split(";")[0])
    kept = [int(path.name[5:]) for path in (tmp_path / "checkpoints").glob("step_*")]
    assert all(saved < step for saved in kept)


def test_a_state_that_is_not_finite_is_not_kept(tmp_path):
    """A step may turn parameters infinite at a finite loss: even as the last one it fails."""
    exploding = task(recipe=Recipe(learning_rate=3e38, weight_decay=1e4, decay_at=()))
    plan = schedule(epochs=1, batch=48)
    with pytest.raises(TrainingError, match="parameters are not finite after step 1"):
        train("toy", exploding, KEY, split(50), None, plan, tmp_path)
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_a_clock_that_stands_still_stops_nothing(tmp_path, monkeypatch):
    """No speed can be had from it; every step is taken, and records are written without one."""
    monkeypatch.setattr(loop.time, "monotonic", lambda: 7.0)
    _, progress = train("toy", task(), KEY, split(50), None, schedule(), tmp_path)
    assert progress.step == 24
    assert "images_per_second" not in (tmp_path / "metrics.jsonl").read_text()


def test_training_learns_and_records(tmp_path, capsys):
    """A merged network lowers its loss on easy images; records are averages over their steps."""
    state, progress = train("toy", task(), KEY, split(50), split(20, 1), schedule(), tmp_path)
    assert (int(state.step), progress.step) == (24, 24)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
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
    assert "toy 24/24 validation:" in capsys.readouterr().out


def test_a_record_is_the_average_of_its_steps(tmp_path):
    """Losses and errors of a record are means over the steps since the record before it."""
    runs = []
    for every in (1, 4):
        plan = schedule(epochs=2, log_every=every)
        train("toy", task(), KEY, split(50), None, plan, tmp_path / str(every))
        lines = (tmp_path / str(every) / "metrics.jsonl").read_text().splitlines()
        runs.append([json.loads(line) for line in lines])
    each, some = runs
    assert [record["step"] for record in each] == list(range(1, 13))
    assert [record["step"] for record in some] == [4, 6, 8, 12]
    keys = [
        "loss",
        *(f"{what}_{level}" for what in ("loss", "error") for level in HIERARCHY.levels),
    ]
    for record, start in zip(some, (0, 4, 6, 8), strict=True):
        steps = each[start : record["step"]]
        means = [np.mean([step[key] for step in steps]) for key in keys]
        assert [record[key] for key in keys] == pytest.approx(means, rel=1e-6)


def test_three_levels_train(tmp_path):
    """A network of three levels, the embedded data with super-classes above, lowers its loss."""
    hierarchy = embedded.super_hierarchy()
    data = embedded.load()["train"].take(np.arange(0, 20_000, 40))
    three = task(hierarchy=hierarchy, recipe=Recipe(learning_rate=0.1))
    plan = schedule(epochs=3, batch=20, log_every=25)
    state, _ = train("three", three, KEY, data, None, plan, tmp_path)
    assert set(state.params) == {"shared", *hierarchy.levels}
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["loss"] < records[0]["loss"] - 0.1
    parts = sum(records[0][f"loss_{level}"] for level in hierarchy.levels)
    assert records[0]["loss"] == pytest.approx(parts, rel=1e-6)
