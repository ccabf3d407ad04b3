"""The command line as a user types it: tables, whole runs, and mistakes without a traceback."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import small
from made_up import page_data

import hiercls_jax
from hiercls_jax import __main__, experiment
from hiercls_jax.commands import train
from hiercls_jax.data.dataset import Dataset, Split
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation import predictions
from hiercls_jax.experiment import run
from hiercls_jax.models import registry
from hiercls_jax.runtime import parallel
from hiercls_jax.training.loop import Interrupted

ROOT = Path(__file__).parents[1]
MERGE1 = f"--config={ROOT / 'configs' / 'merge1.py'}"
SUMMARY = "--mode=summary"

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(*arguments)` runs the command in this process: (exit status, stdout, stderr)."""
    monkeypatch.setitem(registry._FAMILIES, "toy", small.Toy)
    # The tests have their devices already, and keep their compilation cache.
    monkeypatch.setattr(parallel, "use_cpu_devices", lambda *_: None)
    cache = jax.config.jax_compilation_cache_dir

    def call(*arguments: str) -> tuple[int, str, str]:
        status = train.main(["train", *arguments])
        jax.config.update("jax_compilation_cache_dir", cache)
        return status, *capsys.readouterr()

    return call


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([], 1, "error: --config is missing; try --config=configs/merge1.py:quick"),
        (
            [MERGE1, "train"],
            1,
            "error: unexpected argument 'train'; the name of a config comes first, and every "
            "setting is a --flag",
        ),
        ([MERGE1, "--json"], 1, "error: --json goes with --mode=summary"),
        ([MERGE1, "--mode=sumary"], 2, "value should be one of <train|evaluate|summary>"),
        ([MERGE1, "--moode=train"], 2, "Unknown command line flag 'moode'"),
        ([f"{MERGE1}:quik"], 2, "unknown config argument 'quik'; allowed are quick, cpu"),
        ([f"{MERGE1}:arch=vgg16"], 2, "unknown arch 'vgg16'"),
        ([f"{MERGE1}:arch=resnet12"], 1, "ResNet has depth 9n + 2 (11, 20, …), not 12"),
        ([MERGE1, "--config.train.epoch=3"], 2, "no field 'epoch'; did you mean 'epochs'?"),
        ([MERGE1, "--config.trian.epochs=3"], 2, "no field 'trian'; did you mean 'train'?"),
        ([f"{MERGE1}:quick", "--config.optimizer.decay_at=(0.5,)"], 1,
         "decay_at=(0.5,) has no effect with optimizer.schedule=onecycle; it is for step"),
        ([MERGE1, "--config.train.epochs=abc"], 2, "--config.train.epochs=abc: invalid literal"),
        ([MERGE1, "--config.train.epochs=2.5"], 2, "--config.train.epochs=2.5: invalid literal"),
        ([MERGE1, "--config.data.final=maybe"], 2, "--config.data.final=maybe"),
        ([MERGE1, "--config.model.width=-1"], 1, "width is a positive multiplier, not -1"),
        ([MERGE1, "--config.variant=merge9"], 1, "variant must be one of separate, merge0, merge1, "
         "merge2, merge3, not 'merge9'"),
        ([MERGE1, "--config.data.hierarchy=no.json"], 1, "there is no hierarchy file no.json"),
        ([MERGE1, "--config.data.hierarchy=a\nb\x1b[2J"], 1, r"no hierarchy file a b\x1b[2J"),
        ([f"{MERGE1}:a\x1b[2J"], 2, r"unknown config argument 'a\x1b[2J'"),
        ([f"--config={ROOT / 'configs' / 'grid.py'}"], 1, "run python -m hiercls_jax grid"),
        (["--config=configs/none.py"], 2, "No such file or directory: 'configs/none.py'"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(command, arguments, status, message):
    """Each mistake ends with status 1 or 2 and an error line that says what is allowed."""
    found, out, err = (
        command(SUMMARY, *arguments) if "--json" not in arguments else command(*arguments)
    )
    assert (found, out) == (status, "")
    assert message in err
    lines = err.splitlines()
    assert lines[0].startswith("error: ")
    assert lines[1:] == (["See: python -m hiercls_jax.main --help"] if status == 2 else [])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["merge9"], "there is no config 'merge9'; allowed are separate, merge0, "),
        (["merge1:quik"], "unknown config argument 'quik'; allowed are quick, cpu"),
        (["merge1", "--config.train.epoch=3"], "no field 'epoch'; did you mean 'epochs'?"),
        (["merge1", "--config.train.epochs=abc"], "--config.train.epochs=abc: invalid literal"),
        (["merge1", MERGE1], "'merge1' names a config, and so does --config; give one of them"),
        (["merge1", "--config", "x.py"], "'merge1' names a config, and so does --config"),
    ],
)
def test_mistakes_in_a_named_config_are_like_those_in_a_file(command, arguments, message):
    """Status 2 and the same errors, though no file is read."""
    status, out, err = command(*arguments, SUMMARY)
    assert (status, out) == (2, "")
    assert message in err
    assert err.splitlines()[1:] == ["See: python -m hiercls_jax.main --help"]


def test_a_named_config_is_that_of_its_file(command):
    """Both give the same summary, also with fields changed by flags."""
    changes = ("--json", "--config.model.width=2", SUMMARY, "--config.variant=merge2")
    by_name = command("merge1:quick", *changes)
    assert by_name == command(f"{MERGE1}:quick", *changes)
    assert by_name[0] == 0
    assert json.loads(by_name[1])["parameters"] > 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("def get_config(:", "error: invalid syntax (mine.py, line 1)"),
        ("import nothing_of_this_name", "error: No module named 'nothing_of_this_name'"),
        ("def get_config(_=None):\n    return 1 // 0", "division"),
    ],
)
def test_a_broken_config_file_is_one_line(command, tmp_path, content, message):
    """An error that a config file raises is reported in one line."""
    (tmp_path / "mine.py").write_text(content)
    status, out, err = command(f"--config={tmp_path / 'mine.py'}", SUMMARY)
    assert (status, out) == (2, "")
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"finished": ', "\xff", '{"finished": true}'])
def test_a_damaged_report_is_no_finished_run(tmp_path, content):
    """A run whose `results.json` is cut or holds something else counts as unfinished."""
    for name in run.OUTPUTS:
        (tmp_path / name).touch()
    (tmp_path / "results.json").write_bytes(content.encode("latin-1"))
    assert (run.finished_results(tmp_path) is not None) == (content == '{"finished": true}')


def test_summary(command):
    """`--mode=summary` prints stages and totals as a table, with --json as JSON; no run begins."""
    status, out, err = command(MERGE1, SUMMARY, "--json")
    assert (status, err) == (0, "")
    counts = json.loads(out)
    assert counts["parameters"] == 3_349_832
    assert sum(stage["parameters"] for stage in counts["stages"].values()) == 3_349_832
    separate = f"--config={ROOT / 'configs' / 'separate.py'}:arch=toy4"
    counts = json.loads(command(separate, SUMMARY, "--json")[1])
    status, out, err = command(separate, SUMMARY)
    assert (status, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["stage", "parameters", "multiply-adds"]
    assert rows[-1] == ["total", f"{counts['parameters']:,}", f"{counts['multiply_adds']:,}"]
    assert [row[0] for row in rows[1:-1]] == list(counts["stages"])
    assert {name.split("/")[0] for name in counts["stages"]} == {"coarse", "fine"}


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (OSError(28, "No space left on device", "x.npz"), 1, "x.npz: No space left on device"),
        (Interrupted(signal.SIGTERM, 7), 143, "stopped by SIGTERM after step 7; saved. The same"),
        (Interrupted(signal.SIGINT, 7), 130, "stopped by SIGINT after step 7; saved. The same"),
        (KeyboardInterrupt(), 130, "stopped. The same command again"),
        (KeyboardInterrupt("while it read; anew"), 130, "stopped while it read; anew"),
    ],
)
def test_what_stops_a_run_is_one_line(command, monkeypatch, raised, status, message):
    """A full disk, a signal and Ctrl-C each end with their own status and one line."""

    def stop(*_, **__):
        raise raised

    monkeypatch.setattr(run, "run", stop)
    found, out, err = command(MERGE1)
    assert (found, out) == (status, "")
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder of four classes, 64 training and 20 test images, and its hierarchy."""
    root = small.image_folder(tmp_path_factory.mktemp("images"), train=64, test=20)
    small.HIERARCHY.to_json(root / "tree.json")
    return root


@pytest.fixture
def toy(images, monkeypatch):
    """The arguments of a run of the toy network on the image folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(images / "cache"))
    return [
        f"--config.data.dir={images}", f"--config.data.hierarchy={images / 'tree.json'}",
        "--config.data.image_size=8", "--config.run.log_every=4",
        "--config.optimizer.warmup_steps=0",
    ]  # fmt: skip


def test_a_whole_run_of_separate_networks_on_all_of_train(command, toy, images, tmp_path):
    """`separate` trains a network per level in a folder of its own; their report is one.

    With `data.final=True` they train on every image, and alpha is 1. The same command again says
    that the run is finished.
    """
    work = tmp_path / "work"
    config = f"--config={ROOT / 'configs' / 'separate.py'}:arch=toy4,dataset=folder"
    arguments = [f"{config},epochs=1,batch=8", *toy, f"--config.workdir={work}",
                 "--config.data.final=True"]  # fmt: skip
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert "separate: toy4 on folder: 64 images to train on, 0 to tune alpha on, 20 to test" in out
    assert "; 1 epoch on 4 x cpu" in out
    assert "chosen, alpha = 1.00" in out
    for level in ("coarse", "fine"):  # after its first steps, each predicts its duration
        assert re.search(rf"{level}: 2 steps of 8 .* images/s on 4 x cpu: about \d+ s", out), out
    assert sorted(path.name for path in work.iterdir()) == [
        "alpha_curve.png", "alpha_curve.svg", "coarse", "config.json", "fine", "hierarchy.json",
        "predictions.npz", "report.html", "results.json", "scatter.png", "scatter.svg",
    ]  # fmt: skip
    for level in ("coarse", "fine"):
        assert sorted(path.name for path in (work / level).iterdir()) == [
            "checkpoints", "metrics.jsonl", "tensorboard"
        ]  # fmt: skip
        lines = (work / level / "metrics.jsonl").read_text().splitlines()
        for record in map(json.loads, lines):
            assert record["split"] == "train"
            assert {key for key in record if key.startswith("error")} == {f"error_{level}"}

    results = json.loads((work / "results.json").read_text())
    assert (results["alpha"], results["rule"]) == (1.0, "kl")
    assert results["steps"] == {"coarse": 64 // 8, "fine": 64 // 8}
    assert results["command"].startswith(f"python -m hiercls_jax.main {config}")
    assert results["config"]["data.final"] is True
    assert results["environment"]["jax"] == jax.__version__
    assert {"commit", "python", "devices", "machine"} <= set(results["environment"])
    assert min(results["seconds"].values()) > 0
    data = page_data((work / "report.html").read_text())
    assert [data["record"][key] for key in ("command", "config", "environment")] == [
        results[key] for key in ("command", "config", "environment")
    ]
    assert list(data["training"]) == ["coarse", "fine"]
    assert data["training"]["fine"][-1]["epoch"] == 1
    assert (data["validation"], data["chosen"]) == ([], "not tuned: no validation")
    assert results["parameters"] == sum(
        leaf.size for level in ("coarse", "fine") for leaf in saved_parameters(work / level)
    )
    (split,) = predictions.load(work / "predictions.npz", small.HIERARCHY).values()
    assert list(split.probs) == ["coarse", "fine"]
    np.testing.assert_array_equal(split.labels["coarse"], split.labels["fine"] // 2)
    np.testing.assert_array_equal(split.labels["fine"], np.repeat(np.arange(4), 5))
    files = (path.relative_to(images) for path in images.glob("test/*/*.png"))
    assert split.files.tolist() == sorted(map(str, files))
    answer = hiercls_jax.load(work).of_files([images / file for file in split.files])
    for level, p in split.probs.items():
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)  # float32 softmax
        # A predictor has another batch size, so sums have another order.
        np.testing.assert_allclose(answer.unadapted[level], p, rtol=0, atol=2e-6)

    before = (work / "results.json").read_bytes()
    status, out, err = command(*arguments)
    assert (status, err) == (0, "")
    assert out.startswith(f"{work} is finished; its results:")
    assert "chosen, alpha = 1.00" in out
    assert out.endswith("to train anew, as on images that were added since, choose another "
                        "--config.workdir\n")  # fmt: skip
    assert (work / "results.json").read_bytes() == before


def saved_parameters(folder) -> list[np.ndarray]:
    """The parameters in the only checkpoint of a folder."""
    (path,) = (folder / "checkpoints").iterdir()
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        return jax.tree.leaves(checkpointer.restore(path / "arrays")["params"])


def test_a_refused_config_does_not_claim_the_workdir(command, tmp_path):
    """A rejected config leaves no trace, so the corrected command may use the same workdir."""
    workdir = tmp_path / "run"
    status, _, err = command(f"{MERGE1}:quick,batch=99", f"--config.workdir={workdir}")
    assert (status, "train.batch=99 cannot be divided among 4 devices" in err) == (1, True)
    assert not workdir.exists()


def test_a_workdir_that_cannot_be_used(command, tmp_path):
    """A workdir is rejected if it, or a path above it, is a file, or if its record is broken."""
    (tmp_path / "file").write_text("")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    for name in ("file", "file/below", "broken"):
        status, out, err = command(f"{MERGE1}:quick", f"--config.workdir={tmp_path / name}")
        assert (status, out) == (1, "")
        assert f"error: workdir {tmp_path / name} cannot be used: " in err
        assert len(err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == ""


def test_a_workdir_of_an_older_version_goes_on(tmp_path):
    """A record that lacks a newer field counts as having the value that older versions used."""
    config = experiment.compose("merge1", "quick")
    record = experiment.identity(config)
    older = {key: value for key, value in record.items() if key not in ("dtype", "adapt.rule")}
    (tmp_path / "config.json").write_text(json.dumps(older))
    run.check_workdir(tmp_path, config)
    config.adapt.rule = "top_down"
    with pytest.raises(UserError, match="of another config .adapt.rule: kl there, top_down here"):
        run.check_workdir(tmp_path, config)


def test_nothing_to_evaluate(command, toy, tmp_path, monkeypatch):
    """`--mode=evaluate` reports that a run was never trained."""
    monkeypatch.setattr(run, "create", lambda *_: None)  # takes seconds to compile
    status, _, err = command(f"{MERGE1}:arch=toy4,dataset=folder,batch=8", *toy, "--mode=evaluate",
                             f"--config.workdir={tmp_path / 'work'}")  # fmt: skip
    assert status == 1
    assert f"there is no checkpoint in {tmp_path / 'work'} to evaluate; train it first" in err


def dataset(hierarchy, test_labels) -> Dataset:
    """A data set without training images, whose test images have these labels."""
    test = Split(np.zeros((len(test_labels), 1, 1, 3), np.uint8), np.array(test_labels, np.int32))
    return Dataset("folder", hierarchy, test.take([]), None, test)


def test_classes_without_test_images_are_named():
    """Classes without test images are allowed; a line says that no error is measured on them."""
    config = experiment.compose("merge1", "quick")
    lines = run._start_line(config, dataset(small.HIERARCHY, [3, 1, 0, 0])).splitlines()
    note = (
        "note: there are no test images of 1 of 4 classes: 'silver'; no error is measured on them"
    )
    assert lines[1:] == [note]
    assert len(run._start_line(config, dataset(small.HIERARCHY, [3, 1, 0, 2])).splitlines()) == 1


@pytest.mark.parametrize(
    ("cores", "asked", "said"),
    [
        (4, None, "4 x cpu; workdir"),
        (3, None, "4 x cpu; workdir"),
        (8, None, "4 x cpu (not 8: a batch of 12 cannot be divided among them); workdir"),
        (8, 4, "4 x cpu; workdir"),
    ],
)
def test_the_start_line_names_cores_that_a_batch_leaves_idle(monkeypatch, cores, asked, said):
    """The start line names cores that the batch leaves idle, unless the user chose the number."""
    monkeypatch.setattr(parallel, "cpu_cores", lambda: cores)
    config = experiment.compose("merge1", "quick,batch=12")
    with config.unlocked():
        config.run.cpu_devices = asked
    assert said in run._start_line(config, dataset(small.HIERARCHY, [0]))


def test_a_batch_that_the_devices_do_not_divide(command, toy, tmp_path):
    """It is rejected, with what is allowed, before anything is read or compiled."""
    status, out, err = command(f"{MERGE1}:arch=toy4,dataset=folder,batch=10", *toy,
                               f"--config.workdir={tmp_path / 'work'}")  # fmt: skip
    assert (status, out) == (1, "")
    assert "train.batch=10 cannot be divided among 4 devices; allowed are multiples of 4" in err


def shell(*arguments):
    """Run Python as a user does, from the repository's root."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env=environment, timeout=240,
                          capture_output=True, text=True)  # fmt: skip


def test_the_package_lists_its_commands():
    """`python -m hiercls_jax` names the training command and its modes."""
    done = shell("-m", "hiercls_jax")
    assert (done.returncode, done.stderr) == (0, "")
    for part in ("python -m hiercls_jax.main --config=configs/merge1.py:quick", "--mode=summary"):
        assert part in done.stdout


@pytest.mark.parametrize("flag", ["--help", "--mode=summary --help"])
def test_help_has_an_example(command, flag):
    """`--help` exits with status 0 and shows an example of the command and its flags."""
    status, out, err = command(*flag.split())
    assert (status, err) == (0, "")
    for part in ("python -m hiercls_jax.main --config=configs/merge1.py:quick", "--mode: <train|"):
        assert part in out


def test_every_command_has_help(capsys):
    """`hiercls-jax NAME --help` shows an example and the flags of each command of the table."""
    for name in __main__.COMMANDS:
        assert __main__.main(["hiercls-jax", name, "--help"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert re.search(rf"(hiercls-jax|python -m hiercls_jax) {name} ", out)
        assert "--[no]help: Show this help." in out


def test_an_unknown_command_is_refused(capsys):
    """The status is 2, and the error says how to list the commands."""
    assert __main__.main(["hiercls-jax", "trian"]) == 2
    message = "error: there is no command 'trian'; run python -m hiercls_jax\n"
    assert capsys.readouterr() == ("", message)


def test_a_closed_stderr_is_no_error():
    """As some schedulers start programs, without stderr: the command works all the same."""
    done = shell("-c", "import os, sys; os.close(2); os.execv(sys.executable, [sys.executable, "
                 "'-m', 'hiercls_jax'])")  # fmt: skip
    assert (done.returncode, "hiercls-jax compare" in done.stdout) == (0, True)


def test_the_command_from_a_shell():
    """As a program: a mistake is status 2 and two lines, and no library prints more."""
    done = shell("-m", "hiercls_jax.main", "--config=configs/merge1.py", "--config.train.epoch=3")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "error: the config has no field 'epoch'; did you mean 'epochs'?\n"
        "See: python -m hiercls_jax.main --help\n"
    )


def test_a_reader_that_has_seen_enough_is_no_error():
    """`python -m hiercls_jax | head` ends without a traceback, with the status of SIGPIPE."""
    read, write = os.pipe()
    os.close(read)
    process = subprocess.run(
        [sys.executable, "-m", "hiercls_jax"],
        cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=240,
    )  # fmt: skip
    os.close(write)
    assert (process.returncode, process.stderr) == (141, b"")


@pytest.mark.parametrize("arguments", [["--help"], [f"{MERGE1}:quick", SUMMARY]])
def test_a_reader_of_training_may_leave_too(command, arguments):
    """The command reports no broken pipe: `__main__` ends the program quietly."""
    with contextlib.redirect_stdout(small.ClosedPipe()), pytest.raises(BrokenPipeError):
        command(*arguments)
