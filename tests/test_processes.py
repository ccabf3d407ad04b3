"""Several processes train as one: the same losses and state, in every shape, and across shapes."""

import contextlib
import json
import os
import signal
from pathlib import Path

import jax
import numpy as np
import pytest
from test_resume import STEPS, final_state, finish, images, records, start, wait_for_step

__all__ = ["images"]  # the fixture

LOCAL = Path(__file__).parents[1] / "launch" / "local.sh"
ONE = (1, 1)
SHAPES = [(1, 4), (2, 2), (4, 1)]  # processes x devices of each


def launch(images, workdir, shape):
    """Start `shape[0]` processes with `shape[1]` devices each."""
    processes, devices = shape
    return start(
        images,
        workdir,
        f"--config.run.cpu_devices={devices}",
        prefix=[str(LOCAL), str(processes)] if processes > 1 else [],
    )


def process_of(workdir, process_id) -> int:
    """The pid of one of the processes that train in `workdir`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = path.read_bytes().decode(errors="replace").split("\0")
            if {f"--config.workdir={workdir}", f"--process_id={process_id}"} <= set(words):
                return int(path.parent.name)
    raise AssertionError(f"no process {process_id} in {workdir}")


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """Undisturbed runs by shape, and one that is stopped twice and resumed in another shape."""
    folders = {}
    for shape in (ONE, *SHAPES):
        folders[shape] = tmp_path_factory.mktemp("x".join(map(str, shape))) / "run"
        status, out = finish(launch(images, folders[shape], shape))
        assert status == 0, out
    folders["elastic"] = tmp_path_factory.mktemp("elastic") / "run"
    for shape, stop in (((2, 2), 7), (ONE, 16), ((4, 1), None)):
        process = launch(images, folders["elastic"], shape)
        if stop is not None:
            wait_for_step(process, folders["elastic"], stop)
            whole = shape == ONE
            pid = process.pid if whole else process_of(folders["elastic"], shape[0] - 1)
            os.kill(pid, signal.SIGTERM)  # one of them is told, all of them stop
        status, out = finish(process)
        assert status == (0 if stop is None else 143), out
    return folders


@pytest.mark.parametrize("run", [*SHAPES, "elastic"], ids=str)
def test_shape_does_not_change_training(runs, run):
    """Losses and final state are those of one process with one device, resumed elsewhere or not.

    Only the order of float32 sums differs: 1e-6 a step, grown by 36 steps through the statistics of
    batches of 8 images, which a step at a higher learning rate would grow further.
    """
    one, many = final_state(runs[ONE]), final_state(runs[run])
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=2e-2, atol=2e-3)
    records_one, records_many = records(runs[ONE]), records(runs[run])
    assert [(r["step"], r["split"]) for r in records_many] == [
        (r["step"], r["split"]) for r in records_one
    ]
    losses = [
        [r["loss"] for r in some if r["split"] == "train"] for some in (records_one, records_many)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


@pytest.mark.parametrize("run", [*SHAPES, "elastic"], ids=str)
def test_shape_does_not_change_predictions(runs, run):
    """Every image is predicted once, in order, whoever predicted it; one report is written."""
    with (
        np.load(runs[ONE] / "predictions.npz", allow_pickle=False) as one,
        np.load(runs[run] / "predictions.npz", allow_pickle=False) as many,
    ):
        assert one.files == many.files
        for name in one.files:
            np.testing.assert_allclose(many[name], one[name], atol=5e-3)
    results = json.loads((runs[run] / "results.json").read_text())
    assert results["steps"] == {"merge1": STEPS}
