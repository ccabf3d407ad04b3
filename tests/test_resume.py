"""A run that is killed, stopped and resumed is the run that was never stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import forked_run
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small
from small_run import train  # registers the toy family

from hiercls_jax.report import figures
from hiercls_jax.runtime import parallel

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")

HERE = Path(__file__).parent
CONFIG = HERE.parent / "configs" / "merge1.py"
STEPS = 18  # two epochs of nine steps


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder of four classes, 24 training and 5 test images each, and its hierarchy."""
    root = small.image_folder(tmp_path_factory.mktemp("images"), train=96, test=20)
    (root / "tree.csv").write_text(
        "class,parent\nblack,dark\ngrey,dark\nsilver,light\nwhite,light\n"
    )
    return root


def arguments(images, workdir, *more) -> list[str]:
    """The flags of a run that saves a checkpoint after nearly every step."""
    return [
        f"--config={CONFIG}:arch=toy4,dataset=folder,epochs=2,batch=8",
        f"--config.workdir={workdir}", f"--config.data.dir={images}",
        f"--config.data.hierarchy={images / 'tree.csv'}", "--config.data.image_size=8",
        "--config.data.validation=0.25", "--config.run.log_every=4", "--config.run.cpu_devices=4",
        "--config.run.save_minutes=0.00001", "--config.optimizer.warmup_steps=3", *more,
    ]  # fmt: skip


def start(images, workdir, *more, prefix=(), draws="no", forked=True):
    """Start a run as a process of its own; if it is not forked, by an interpreter of its own."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
        "XDG_CACHE_HOME": str(images / "cache"),
        "SMALL_RUN_DRAWS": draws,
        forked_run.VARIABLE: forked_run.server(),
    }
    program = "forked_run.py" if forked else "small_run.py"
    return subprocess.Popen(
        [*prefix, sys.executable, str(HERE / program), *arguments(images, workdir, *more)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip


@pytest.fixture
def command(images, monkeypatch, capsys):
    """`command(workdir, *more)` runs the command in this process: (exit status, output)."""
    monkeypatch.setattr(parallel, "use_cpu_devices", lambda *_: None)  # there are 4 already
    monkeypatch.setattr(figures, "draw_run", lambda *_: None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(images / "cache"))
    cache = jax.config.jax_compilation_cache_dir

    def call(workdir, *more) -> tuple[int, str]:
        status = train.main(["train", *arguments(images, workdir, *more)])
        jax.config.update("jax_compilation_cache_dir", cache)
        return status, "".join(capsys.readouterr())

    return call


def finish(process) -> tuple[int, str]:
    out, _ = process.communicate(timeout=240)
    return process.returncode, out


def wait_for_step(process, workdir, step):
    """Wait until this process has saved its state after `step`, or a later step."""
    found = saved_steps(workdir)
    while process.poll() is None:
        new = saved_steps(workdir) - found
        if new and max(new) >= step:
            return
        time.sleep(0.005)
    raise AssertionError(f"the run ended before step {step}: {process.stdout.read()}")


def saved_steps(workdir) -> set[int]:
    """The steps that have a checkpoint."""
    return {int(path.name[5:13]) for path in (workdir / "checkpoints").glob("step_*")}


def final_state(workdir) -> dict:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return checkpointer.restore(workdir / "checkpoints" / f"step_{STEPS:08d}" / "arrays")


def records(workdir) -> list[dict]:
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{k: v for k, v in r.items() if k != "images_per_second"} for r in kept]


@pytest.fixture(scope="module")
def runs(images, tmp_path_factory):
    """One run left alone; one killed at two steps, stopped at a third, and then left alone."""
    whole = tmp_path_factory.mktemp("whole") / "run"
    status, out = finish(start(images, whole, draws="yes", forked=False))
    assert status == 0, out
    broken = tmp_path_factory.mktemp("broken") / "run"
    rng = np.random.default_rng(time.time_ns())  # other steps in every run of this test
    # The third is in the second epoch, which has another order of images.
    steps = [*np.sort(rng.integers(1, 10, 2)), rng.integers(10, STEPS - 5)]
    for step in steps[:2]:
        process = start(images, broken)
        wait_for_step(process, broken, step)
        os.kill(forked_run.pid_of_run(process.pid), signal.SIGKILL)  # at once, not passed on
        assert finish(process)[0] == -signal.SIGKILL
    process = start(images, broken)
    wait_for_step(process, broken, steps[2])
    os.kill(forked_run.pid_of_run(process.pid), signal.SIGTERM)
    stopped = finish(process)
    evaluated = finish(start(images, broken, "--mode=evaluate"))
    ended = finish(start(images, broken))
    return {
        "whole": whole,
        "broken": broken,
        "stopped": stopped,
        "evaluated": evaluated,
        "ended": ended,
        "steps": steps,
    }


def test_resumed_parameters_are_bit_for_bit_those_of_an_undisturbed_run(runs):
    """After SIGKILL at two random steps and SIGTERM at a third, every array is the same bits."""
    whole, broken = final_state(runs["whole"]), final_state(runs["broken"])
    assert jax.tree.structure(whole) == jax.tree.structure(broken)
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(broken), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(runs["steps"]))


def test_metrics_have_no_line_twice_or_missing(runs):
    """`metrics.jsonl` of the broken run holds the records of the undisturbed one, in order."""
    whole = records(runs["whole"])
    assert [r["step"] for r in whole if r["split"] == "train"] == [4, 8, 9, 12, 16, 18]
    assert records(runs["broken"]) == whole, runs["steps"]


def test_sigterm_saves_and_exits_with_143(runs):
    """SIGTERM ends the run with status 143 and a line that says where, and what to do."""
    status, out = runs["stopped"]
    assert status == 143, out
    assert "stopped by SIGTERM after step" in out
    assert "same command again" in out


def test_evaluating_an_unfinished_run_does_not_finish_it(runs):
    """`--mode=evaluate` reports on what there is; the training command then still goes on."""
    status, out = runs["evaluated"]
    assert (status, "tuned, alpha" in out) == (0, True), out
    assert runs["ended"][0] == 0
    assert "resuming after step" in runs["ended"][1]


def test_a_run_leaves_every_file_and_says_that_it_is_finished(command, runs):
    """All outputs are there, nothing half-written beside them; the same command says finished."""
    left = {path.name for path in runs["whole"].iterdir()}
    assert left == {
        "alpha_curve.png", "alpha_curve.svg", "checkpoints", "config.json", "hierarchy.json",
        "metrics.jsonl", "predictions.npz", "report.html", "results.json", "scatter.png",
        "scatter.svg", "tensorboard",
    }  # fmt: skip
    before = (runs["whole"] / "results.json").read_bytes()
    status, out = command(runs["whole"])
    assert (status, "is finished" in out) == (0, True), out
    assert (runs["whole"] / "results.json").read_bytes() == before


def test_results_hold_what_the_predictions_say(runs):
    """Errors in `results.json` at alpha 0 are those of the arrays in `predictions.npz`."""
    results = json.loads((runs["whole"] / "results.json").read_text())
    assert results["images"] == {"test": 20, "validation": 24}
    assert results["steps"] == {"merge1": STEPS}
    with np.load(runs["whole"] / "predictions.npz", allow_pickle=False) as file:
        for level in ("coarse", "fine"):
            p, labels = file[f"test/p_{level}"], file[f"test/labels_{level}"]
            assert p.dtype == np.float32
            expected = np.mean(p.argmax(axis=1) != labels)
            assert results["test_error"]["alpha=0"][level] == pytest.approx(expected)


def test_evaluate_repeats_the_report_from_the_checkpoint(command, runs):
    """`--mode=evaluate` predicts the same from the last checkpoint, without training.

    This process has as many devices as the one that trained.
    """
    folder = runs["broken"]
    expected = dict(np.load(folder / "predictions.npz", allow_pickle=False))
    (folder / "predictions.npz").unlink()
    status, out = command(folder, "--mode=evaluate")
    assert status == 0, out
    found = dict(np.load(folder / "predictions.npz", allow_pickle=False))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        np.testing.assert_array_equal(found[key], value)


def test_a_workdir_of_another_config_is_refused(command, runs):
    """Another learning rate in the same workdir is refused in one line, with what differs."""
    more = "--config.optimizer.learning_rate=0.5"
    status, out = command(runs["whole"], more)
    assert status == 1
    last = out.splitlines()[-1]
    assert "a run of another config (optimizer.learning_rate: 0.1 there, 0.5 here)" in last
    assert "Traceback" not in out
