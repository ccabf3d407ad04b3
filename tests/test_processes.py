"""Several processes train as one: the same losses and state, in every shape, and across shapes."""

import contextlib
import json
import os
import re
import signal
import socket
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from test_resume import (
    STEPS,
    final_state,
    finish,
    images,
    records,
    saved_steps,
    start,
    wait_for_step,
)

from hiercls_jax.runtime.parallel import HEARTBEAT

__all__ = ["images"]  # the fixture

LOCAL = Path(__file__).parents[1] / "launch" / "local.sh"
ONE = (1, 1)
SHAPES = [(1, 4), (2, 2), (4, 1)]  # processes x devices of each


def launch(images, workdir, shape, *more):
    """Start `shape[0]` processes with `shape[1]` devices each."""
    processes, devices = shape
    return start(
        images,
        workdir,
        f"--config.run.cpu_devices={devices}",
        *more,
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
def runs_and_outputs(images, tmp_path_factory):
    """Undisturbed runs by shape, and one that is stopped twice and resumed in another shape.

    That one reads its images as it needs them, but for its second part, which holds them. Beside
    each run's folder: what all its processes said, for every start.
    """
    folders, outputs = {}, {"elastic": []}
    for shape in (ONE, *SHAPES):
        folders[shape] = tmp_path_factory.mktemp("x".join(map(str, shape))) / "run"
        status, out = finish(launch(images, folders[shape], shape))
        assert status == 0, out
        outputs[shape] = [out]
    folders["elastic"] = tmp_path_factory.mktemp("elastic") / "run"
    streaming = "--config.run.streaming=True"
    for shape, stop, *more in (((2, 2), 7, streaming), (ONE, 16), ((4, 1), None, streaming)):
        process = launch(images, folders["elastic"], shape, *more)
        if stop is not None:
            wait_for_step(process, folders["elastic"], stop)
            whole = shape == ONE
            pid = process.pid if whole else process_of(folders["elastic"], shape[0] - 1)
            os.kill(pid, signal.SIGTERM)  # one of them is told, all of them stop
        status, out = finish(process)
        assert status == (0 if stop is None else 143), out
        outputs["elastic"].append(out)
    return folders, outputs


@pytest.fixture(scope="module")
def runs(runs_and_outputs):
    """The folders of the runs alone."""
    return runs_and_outputs[0]


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
    """Every image is predicted once, in order, whoever predicted it."""
    with (
        np.load(runs[ONE] / "predictions.npz", allow_pickle=False) as one,
        np.load(runs[run] / "predictions.npz", allow_pickle=False) as many,
    ):
        assert one.files == many.files
        for name in one.files:
            if one[name].dtype.kind == "U":  # names of files
                np.testing.assert_array_equal(many[name], one[name])
            else:
                np.testing.assert_allclose(many[name], one[name], atol=5e-3)
    results = json.loads((runs[run] / "results.json").read_text())
    assert results["steps"] == {"merge1": STEPS}


@pytest.mark.parametrize("run", [ONE, *SHAPES, "elastic"], ids=str)
def test_the_first_process_alone_writes_and_talks(runs_and_outputs, run):
    """One report, when a run ends; one TensorBoard file for each start; each record said once."""
    folder, outputs = (some[run] for some in runs_and_outputs)
    assert [out.count("wrote to ") for out in outputs] == [0] * (len(outputs) - 1) + [1]
    assert [out.count("; workdir ") for out in outputs] == [1] * len(outputs)
    assert len(list(folder.glob("**/events.out.tfevents.*"))) == len(outputs)
    for out in outputs:  # writers that begin in the same second share a file, but all talk
        told = re.findall(r"^merge1 \d+/\d+ \w+:", out, re.M)
        assert len(told) == len(set(told))


def test_ctrl_c_ends_all_processes_and_saves(images, tmp_path):
    """SIGINT to local.sh ends each process after the same step, saved; nothing is left running."""
    process = launch(images, tmp_path / "run", (2, 1))
    wait_for_step(process, tmp_path / "run", 5)
    pids = [process_of(tmp_path / "run", i) for i in range(2)]
    process.send_signal(signal.SIGINT)
    status, out = finish(process)
    assert status == 130, out
    assert not any(Path("/proc", str(pid)).exists() for pid in pids)
    stops = set(re.findall(r"stopped by SIGINT after step (\d+); saved", out))
    assert len(stops) == 1, out
    assert out.count("stopped by SIGINT") == 2
    assert max(saved_steps(tmp_path / "run")) == int(*stops)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_others(images, tmp_path, killed):
    """Within 10 s, as its connections close; the error says so, and local.sh which one it was."""
    process = launch(images, tmp_path / "run", (2, 1))
    wait_for_step(process, tmp_path / "run", 5)
    os.kill(process_of(tmp_path / "run", killed), signal.SIGKILL)
    began = time.monotonic()
    status, out = finish(process)
    assert time.monotonic() - began < 10
    assert status not in (0, 130, 143)  # which would ask to be started again
    assert f"local.sh: process {killed} ended with status 137" in out
    assert re.search(rf"local.sh: process {1 - killed} ended with status (1|134)$", out, re.M)
    assert re.search("Connection (reset|closed) by peer|another task died", out), out


@pytest.mark.faults
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_process_that_answers_no_more_ends_the_others(images, tmp_path, frozen):
    """One that is frozen, as by a network that is gone, is noticed by its missing heartbeats."""
    process = launch(images, tmp_path / "run", (2, 1))
    wait_for_step(process, tmp_path / "run", 5)
    pids = [process_of(tmp_path / "run", i) for i in range(2)]
    other = Path("/proc", str(pids[1 - frozen]), "stat")
    os.kill(pids[frozen], signal.SIGSTOP)
    try:
        began = time.monotonic()
        while other.exists() and other.read_text().split()[2] != "Z":
            assert time.monotonic() - began < HEARTBEAT + 10  # to notice, and to end
            time.sleep(0.1)
    finally:
        os.kill(pids[frozen], signal.SIGKILL)
        status, out = finish(process)
    assert f"local.sh: process {1 - frozen} ended with status 134" in out  # by JAX, not by Python
    assert "another task died" in out


def test_slurm_says_who_trains_with_whom(images, tmp_path):
    """What Slurm sets for each task is all that `--distributed` needs: two train together."""
    with socket.socket() as probe:  # JAX takes port 61440 and the job's number modulo 4096
        for job in range(os.getpid(), os.getpid() + 4096):
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", 61440 + job % 4096))
                break
    srun = """for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks+=($!); done
              status=0; for task in "${tasks[@]}"; do wait $task || status=$?; done; exit $status"""
    variables = [f"SLURM_JOB_ID={job}", "SLURM_NTASKS=2", "SLURM_STEP_NODELIST=localhost"]
    prefix = ["env", *variables, "bash", "-c", srun, "srun"]
    flags = ["--config.run.cpu_devices=1", "--distributed", "--config.train.epochs=1"]
    status, out = finish(start(images, tmp_path / "run", *flags, prefix=prefix))
    assert status == 0, out
    assert out.count("2 x cpu in 2 processes; workdir") == 1
    assert (tmp_path / "run" / "results.json").exists()
