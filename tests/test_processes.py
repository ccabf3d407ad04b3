"""Several processes train as one: the same losses and state, in every shape, and across shapes."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import socket
import time
from functools import cache
from pathlib import Path

import forked_run
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
SHAPES = [(1, 4), (2, 2)]  # processes x devices of each
SLURM = """for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i "$@" & tasks+=($!); done
           status=0; for task in "${tasks[@]}"; do wait $task || status=$?; done; exit $status"""


def launch(images, workdir, shape, *more, prefix=None, forked=True):
    """Start `shape[0]` processes with `shape[1]` devices each."""
    processes, devices = shape
    if prefix is None:
        prefix = [str(LOCAL), str(processes)] if processes > 1 else []
    devices = f"--config.run.cpu_devices={devices}"
    return start(images, workdir, devices, *more, prefix=prefix, forked=forked)


def under_slurm() -> list[str]:
    """A command that starts two tasks with the variables that Slurm sets for each."""
    with socket.socket() as probe:  # JAX takes port 61440 and the job's number modulo 4096
        for job in range(os.getpid(), os.getpid() + 4096):
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", 61440 + job % 4096))
                break
    variables = [f"SLURM_JOB_ID={job}", "SLURM_NTASKS=2", "SLURM_STEP_NODELIST=localhost"]
    return ["env", *variables, "bash", "-c", SLURM, "srun"]


def process_of(workdir, process_id) -> int:
    """The pid of one of the processes that train in `workdir`."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            words = path.read_bytes().decode(errors="replace").split("\0")
            if {f"--config.workdir={workdir}", f"--process_id={process_id}"} <= set(words):
                return forked_run.pid_of_run(int(path.parent.name))
    raise AssertionError(f"no process {process_id} in {workdir}")


@dataclasses.dataclass
class Run:
    """The workdir of a run that was started until its end, and what each start printed."""

    folder: Path
    outputs: list[str]


@dataclasses.dataclass
class CtrlC:
    """What a run of two processes left when its launcher got SIGINT."""

    status: int
    output: str
    left: list[int]  # processes that still run
    saved: int  # newest step with a checkpoint


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory, request):
    """Return `runs(name)`, the `Run` of a shape or of "elastic", which is made when it is needed.

    Slurm's variables start the undisturbed run of two processes, `local.sh` all others.
    """

    @cache
    def of(name) -> Run:
        if name == "elastic":
            return request.getfixturevalue("elastic")[0]
        folder = tmp_path_factory.mktemp("x".join(map(str, name))) / "run"
        slurm = {} if name[0] == 1 else {"prefix": under_slurm()}
        process = launch(images, folder, name, *(["--distributed"] if slurm else []), **slurm)
        status, out = finish(process)
        assert status == 0, out
        return Run(folder, [out])

    return of


@pytest.fixture(scope="module")
def elastic(images, tmp_path_factory):
    """Return a `Run` that is stopped twice and resumed in other shapes, and its `CtrlC`.

    It is stopped by Ctrl-C, then by SIGTERM to one of four processes. Its first and last part read
    images as they need them, the second holds them. The first part starts as users' runs do; all
    other runs here are forked.
    """
    folder, streaming = tmp_path_factory.mktemp("elastic") / "run", "--config.run.streaming=True"

    process = launch(images, folder, (2, 2), streaming, forked=False)
    wait_for_step(process, folder, 3)
    pids = [process_of(folder, i) for i in range(2)]
    process.send_signal(signal.SIGINT)
    status, out = finish(process)
    left = [pid for pid in pids if Path("/proc", str(pid)).exists()]
    ctrl_c = CtrlC(status, out, left, max(saved_steps(folder)))
    outputs = [out]

    process = launch(images, folder, (4, 1))
    wait_for_step(process, folder, ctrl_c.saved + 1)
    os.kill(process_of(folder, 3), signal.SIGTERM)  # one of them is told, all of them stop
    status, out = finish(process)
    assert status == 143, out
    outputs.append(out)

    status, out = finish(launch(images, folder, ONE, streaming))
    assert status == 0, out
    return Run(folder, [*outputs, out]), ctrl_c


@pytest.mark.parametrize("run", [*SHAPES, "elastic"], ids=str)
def test_shape_does_not_change_training(runs, run):
    """Losses and final state are those of one process with one device, resumed elsewhere or not.

    Only the order of float32 sums differs: 1e-6 a step, which 18 steps enlarge through the
    statistics of batches of 8 images, and a higher learning rate would enlarge further.
    """
    one, many = final_state(runs(ONE).folder), final_state(runs(run).folder)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(np.asarray(b), np.asarray(a), rtol=2e-2, atol=2e-3)
    records_one, records_many = records(runs(ONE).folder), records(runs(run).folder)
    assert [(r["step"], r["split"]) for r in records_many] == [
        (r["step"], r["split"]) for r in records_one
    ]
    losses = [
        [r["loss"] for r in some if r["split"] == "train"] for some in (records_one, records_many)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-3)


@pytest.mark.parametrize("run", [*SHAPES, "elastic"], ids=str)
def test_shape_does_not_change_predictions(runs, run):
    """Every image is predicted once, in order, whichever process predicts it."""
    with (
        np.load(runs(ONE).folder / "predictions.npz", allow_pickle=False) as one,
        np.load(runs(run).folder / "predictions.npz", allow_pickle=False) as many,
    ):
        assert one.files == many.files
        for name in one.files:
            if one[name].dtype.kind == "U":  # names of files
                np.testing.assert_array_equal(many[name], one[name])
            else:
                np.testing.assert_allclose(many[name], one[name], atol=5e-3)
    results = json.loads((runs(run).folder / "results.json").read_text())
    assert results["steps"] == {"merge1": STEPS}


@pytest.mark.parametrize("run", [ONE, *SHAPES, "elastic"], ids=str)
def test_the_first_process_alone_writes_and_talks(runs, run):
    """One report when a run ends, one TensorBoard file for each start, each record printed once."""
    folder, outputs = dataclasses.astuple(runs(run))
    assert [out.count("wrote to ") for out in outputs] == [0] * (len(outputs) - 1) + [1]
    assert [out.count("; workdir ") for out in outputs] == [1] * len(outputs)
    assert len(list(folder.glob("**/events.out.tfevents.*"))) == len(outputs)
    for out in outputs:  # writers that begin in the same second share a file, but all talk
        told = re.findall(r"^merge1 \d+/\d+ \w+:", out, re.M)
        assert len(told) == len(set(told))


def test_ctrl_c_ends_all_processes_and_saves(elastic):
    """SIGINT to local.sh ends each process after the same step, saved; nothing is left running."""
    ctrl_c = elastic[1]
    assert ctrl_c.status == 130, ctrl_c.output
    assert not ctrl_c.left
    stops = set(re.findall(r"stopped by SIGINT after step (\d+); saved", ctrl_c.output))
    assert len(stops) == 1, ctrl_c.output
    assert ctrl_c.output.count("stopped by SIGINT") == 2
    assert ctrl_c.saved == int(*stops)


@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_is_killed_ends_the_others(images, tmp_path, killed):
    """They end within 10 s, because its connections close; local.sh names the killed process."""
    process = launch(images, tmp_path / "run", (2, 1))
    wait_for_step(process, tmp_path / "run", 3)
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
    """A frozen process, as after a loss of the network, is noticed by its missing heartbeats."""
    process = launch(images, tmp_path / "run", (2, 1))
    wait_for_step(process, tmp_path / "run", 3)
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


def test_slurm_says_who_trains_with_whom(runs):
    """Slurm's variables for each task suffice for `--distributed`: two train together."""
    (out,) = runs((2, 2)).outputs
    assert out.count("4 x cpu in 2 processes; workdir") == 1
    assert (runs((2, 2)).folder / "results.json").exists()
