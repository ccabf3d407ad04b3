"""The grid runs what is missing, resumes, skips, survives a failing run, and stops cleanly."""

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import forked_run
import pytest
import small

from hiercls_jax import experiment
from hiercls_jax.commands import grid as command
from hiercls_jax.errors import UserError
from hiercls_jax.experiment import grid, grid_runner, run
from hiercls_jax.experiment.grid_progress import work
from hiercls_jax.models import registry
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.runtime import slots
from hiercls_jax.runtime.slots import Slots

# config_flags loads a config file by a method that Python means to remove.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")
ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "grid.py"
ONE = Slots(({},), None)

# A run that takes no time: it records how it was started, and writes the files of a finished run.
STAND_IN = """
import json, os, pathlib, signal, sys, time
given = dict(a.split("=", 1) for a in sys.argv[1:] if a.startswith("--config"))
folder = pathlib.Path(given["--config.workdir"])
control = pathlib.Path(os.environ["CONTROL"])
with open(control / "begun", "a") as file:
    print(folder.parent.name, folder.name, os.environ.get("CUDA_VISIBLE_DEVICES"), file=file)
def stop(*_):
    time.sleep(0.3 * (folder.name == "seed-1"))  # one takes longer to save
    (folder / "stopped").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("here is a run")
gpu = control / ("gpu" + os.environ.get("CUDA_VISIBLE_DEVICES", str(os.getpid())))
gpu.mkdir()  # an error where another run has it
if "CUDA_VISIBLE_DEVICES" in os.environ:
    time.sleep(0.2)
if (control / "fail").exists() and (control / "fail").read_text() == folder.name:
    print("error: it is broken")
    sys.exit(1)
while (control / "wait").exists():
    time.sleep(0.02)
(folder / "metrics.jsonl").write_text(json.dumps({"epoch": 8.0}))
for name in OUTPUTS[:-1]:
    (folder / name).touch()
errors = {"coarse": 0.25, "fine": 0.5}
results = {"finished": True, "seconds": {"training": 75}}
results["test_error"] = {"alpha=0": errors, "tuned": errors}
(folder / OUTPUTS[-1]).write_text(json.dumps(results))
gpu.rmdir()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Let the grid run the stand-in; return the folder of its records."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN.replace("OUTPUTS", repr(run.OUTPUTS)))
    monkeypatch.setattr(grid, "PROGRAM", (str(program),))
    monkeypatch.setattr(grid_runner, "POLL", 0.02)
    monkeypatch.setenv("CONTROL", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def carry_out(*arguments) -> int:
    return command.main(["grid", f"--config={CONFIG}:quick", *arguments])


def plan(config, config_file, arguments, slots):
    """The runs of a grid, whose configs are read as the command reads them."""
    return grid.plan(config, config_file, arguments, slots, command.read_config)


def begun(folder) -> list[str]:
    path = folder / "begun"
    return path.read_text().splitlines() if path.exists() else []


SMALL = ("--config.variants=('separate','merge1')", "--config.seeds=(0,1)")


def test_every_variant_and_seed_runs_once_and_finished_ones_are_skipped(stand_in, capsys):
    """Each of the runs is begun once; the same command again begins none, and says so."""
    assert carry_out(*SMALL) == 0
    assert sorted(begun(stand_in)) == [
        f"{variant} seed-{seed} None" for variant in ("merge1", "separate") for seed in (0, 1)
    ]
    out = capsys.readouterr().out
    assert out.startswith("4 runs, 0 of them finished; 2 at once\n")
    assert out.count("coarse 25.00 → 25.00 %, fine 50.00 → 50.00 %, trained in 1 min 15 s") == 4
    assert carry_out(*SMALL) == 0
    assert len(begun(stand_in)) == 4
    assert capsys.readouterr().out.startswith("4 runs, 4 of them finished")


def test_a_failing_run_is_reported_and_does_not_stop_the_others(stand_in, capsys):
    """Its last line is shown, the status is 1, and the same command again runs only this run."""
    (stand_in / "fail").write_text("seed-1")
    assert carry_out("--config.variants=('merge1',)", "--config.seeds=(0,1,2)", "--jobs=1") == 1
    out, err = capsys.readouterr()
    failed = next(line for line in out.splitlines() if "failed" in line)
    assert failed.startswith("resnet11 merge1 seed 1: failed (exit status 1): error: it is broken")
    assert "1 of 3 runs failed" in err
    assert len(begun(stand_in)) == 3
    (stand_in / "fail").unlink()
    assert carry_out("--config.variants=('merge1',)", "--config.seeds=(0,1,2)", "--jobs=1") == 0
    assert [line.split()[1] for line in begun(stand_in)] == ["seed-0", "seed-1", "seed-2", "seed-1"]


def test_a_run_that_cannot_begin_does_not_stop_the_others(stand_in, capsys):
    """One whose log cannot be written is reported as failed."""
    (stand_in / "runs/grid-quick/resnet11/merge1/seed-0/log.txt").mkdir(parents=True)
    assert carry_out("--config.variants=('merge1',)", "--config.seeds=(0,1)", "--jobs=1") == 1
    out, err = capsys.readouterr()
    assert "resnet11 merge1 seed 0: cannot be begun" in out
    assert "1 of 2 runs failed" in err
    assert begun(stand_in) == ["merge1 seed-1 None"]


@pytest.mark.parametrize(
    "word", ["seed=3", "workdir=here", "variant=merge2", "model.arch=resnet20"]
)
def test_fields_that_the_grid_sets_cannot_be_given_to_all_runs(word):
    """A seed or a folder after -- would be that of every run."""
    with pytest.raises(UserError, match=f"{word.split('=')[0]} is set by the grid"):
        plan(small_grid(), CONFIG, [f"--config.{word}"], ONE)


def test_a_run_whose_results_are_damaged_is_carried_out_again(stand_in):
    """So that the training command writes the results again."""
    assert carry_out("--config.variants=('merge1',)", "--config.seeds=(0,)") == 0
    (path,) = stand_in.rglob("results.json")
    path.write_text('{"fini')
    assert carry_out("--config.variants=('merge1',)", "--config.seeds=(0,)") == 0
    assert len(begun(stand_in)) == 2
    assert json.loads(path.read_text())["finished"]


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_runs_which_save_and_begins_no_other(stand_in, capsys, signum):
    """Running ones get SIGTERM, the status is that of the signal, and no process is left over."""
    (stand_in / "wait").touch()

    def strike():
        while len(begun(stand_in)) < 2:
            time.sleep(0.02)
        time.sleep(0.1)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=strike)
    thread.start()
    assert carry_out(*SMALL, "--jobs=2") == 128 + signum
    thread.join()
    assert len(list(stand_in.rglob("stopped"))) == len(begun(stand_in)) == 2
    assert "4 of 4 runs are not finished" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_as_many_run_at_once_as_asked_each_on_its_own_gpu(stand_in, monkeypatch):
    """Two GPUs make two slots; a slot is used again only after its run has ended."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert Slots.of(None).environments == (
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "5"},
    )
    assert carry_out(*SMALL) == 0
    assert {line.split()[-1] for line in begun(stand_in)} == {"3", "5"}


def test_runs_on_a_cpu_share_its_cores(monkeypatch):
    """Each of several runs gets a share of the cores that divides its batch."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setattr(slots.parallel, "cpu_cores", lambda: 14)
    two = Slots.of(2)
    assert two == Slots(({}, {}), 7)
    planned = plan(grid.compose("quick"), CONFIG, [], two)
    assert all("--config.run.cpu_devices=5" in r.command for r in planned)  # 5 divide 100
    alone = plan(grid.compose("quick"), CONFIG, [], ONE)
    assert not any("cpu_devices" in word for r in alone for word in r.command)


def test_no_two_grids_work_in_one_folder(stand_in, capsys):
    """The second grid is refused and begins nothing, even if the first died and left a run."""
    (stand_in / "wait").touch()
    program = (
        "import sys; from hiercls_jax.commands.grid import main; "
        "from hiercls_jax.experiment import grid; "
        f"grid.PROGRAM = {grid.PROGRAM!r}; sys.exit(main(sys.argv[1:]))"
    )
    arguments = [f"--config={CONFIG}:quick", *SMALL, "--jobs=1"]
    first = subprocess.Popen(
        [sys.executable, "-c", program, "grid", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
    )
    try:
        while not begun(stand_in):
            assert first.poll() is None, "the first grid has ended"
            time.sleep(0.02)
        assert carry_out(*SMALL) == 1
        first.kill()
        first.wait()
        assert carry_out(*SMALL) == 1
        assert capsys.readouterr().err.count("is at work in runs/grid-quick") == 2
        assert len(begun(stand_in)) == 1
    finally:
        (stand_in / "wait").unlink()
        first.wait()
    while True:  # the run that was left ends by itself
        time.sleep(0.05)
        if list(stand_in.rglob("results.json")):
            break


def test_the_folder_of_other_runs_is_refused_before_anything_begins(stand_in, capsys):
    """Each field that differs is named, and nothing is begun."""
    (there,) = plan(small_grid(seeds=(0,), variants=("merge1",)), CONFIG, [], ONE)
    run.claim_workdir(there.workdir, there.config)
    assert carry_out("--", "--config.train.epochs=7") == 1
    assert "train.epochs: 6 there, 7 here" in capsys.readouterr().err
    assert not begun(stand_in)


def small_grid(**fields):
    config = grid.compose("quick")
    for name, value in fields.items():
        config[name] = value
    return config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variants": ()}, "variants"),
        ({"variants": ("merge9",)}, "merge9"),
        ({"seeds": (1, 1)}, "seeds"),
        ({"seeds": (-1,)}, "seed must be an integer"),
        ({"archs": ("resnet12",)}, "resnet12"),
    ],
)
def test_a_grid_that_cannot_be_run_is_one_error(fields, message):
    """Before anything is begun."""
    with pytest.raises(UserError, match=re.escape(message)):
        plan(small_grid(**fields), CONFIG, [], ONE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--config is missing"),
        ([f"--config={CONFIG}:seed=3"], "--config.seeds"),
        ([f"--config={CONFIG}:quick", "--config.seed=3"], "no field 'seed'; did you mean 'seeds'"),
        ([f"--config={CONFIG}:quick", "x"], "unexpected argument 'x'"),
        (["--config=nowhere/grid.py"], "No such file"),
    ],
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
    """Its status is 2, and it says where to look."""
    assert command.main(["grid", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert line.endswith("see python -m hiercls_jax grid --help")


def test_a_dry_run_shows_states_and_commands_that_main_accepts(stand_in, capsys):
    """A line for each run has its state and its command with the arguments after --."""
    assert carry_out("--dry_run", "--", "--config.train.epochs=2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 25
    assert not begun(stand_in)
    planned = plan(grid.compose("quick"), CONFIG, ["--config.train.epochs=2"], ONE)
    for line, of in zip(lines, planned, strict=True):
        assert line.split()[:3] == ["to", "begin", "python"]
        assert of.config.train.epochs == 2
        assert str(of.workdir) in line


def test_a_named_grid_needs_no_file(stand_in, capsys):
    """`grid quick` plans the runs of `--config=configs/grid.py:quick`, and names their configs."""
    own = ["--dry_run", "--jobs=2", "--config.variants=('merge1',)"]
    assert command.main(["grid", "quick", *own, "--", "--config.train.epochs=2"]) == 0
    of_file = plan(
        small_grid(variants=("merge1",)), CONFIG, ["--config.train.epochs=2"], Slots.of(2)
    )
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(of_file) == 5
    for seed, (line, other) in enumerate(zip(lines, of_file, strict=True)):
        named = f"merge1:quick,arch=resnet11,seed={seed}"
        words = shlex.split(line)[3:]
        assert words == [*grid.PROGRAM, named, *other.command[len(grid.PROGRAM) + 1 :]]
        config = command.read_config([named, *words[len(grid.PROGRAM) + 1 :]])
        config.run.cpu_devices = None  # the plan's own; it is added to the command
        assert config.to_dict() == other.config.to_dict()
    assert grid.named_grid("paper").to_dict() == grid.compose().to_dict()


def test_a_reader_that_has_seen_enough_is_no_error(stand_in):
    """`__main__` ends `grid --dry_run | head` without a word about the broken pipe."""
    with contextlib.redirect_stdout(small.ClosedPipe()), pytest.raises(BrokenPipeError):
        carry_out("--dry_run")


def test_runs_are_weighed_by_what_they_compute():
    """Separate computes as much as merge-0, and merging computes less; seeds count alike."""
    planned = plan(small_grid(seeds=(0, 1)), CONFIG, [], ONE)
    by_name = work(planned)
    of = {variant: by_name[f"resnet11 {variant} seed 1"] for variant in VARIANTS}
    assert of["separate"] == of["merge0"] > of["merge1"] > of["merge2"] > of["merge3"] > 0
    longer = plan(small_grid(), CONFIG, ["--config.train.epochs=12"], ONE)
    assert work(longer)["resnet11 merge1 seed 1"] == 2 * of["merge1"]


def test_the_papers_grid_has_both_networks_with_their_recipes():
    """Fifty runs, ResNet-164 at batch 128 and DenseNet-BC-100 at 64."""
    planned = plan(grid.compose(), CONFIG, [], ONE)
    assert len(planned) == len({r.workdir for r in planned}) == 50
    batches = {(r.config.model.arch, r.config.train.batch) for r in planned}
    assert batches == {("resnet164", 128), ("densenet100", 64)}


def test_the_share_done_comes_from_the_newest_complete_record(tmp_path):
    """Two separate networks count half each; a line that is being written is not read."""
    config = experiment.compose("separate", "quick")  # 6 epochs
    config.workdir = str(tmp_path)
    r = grid.PlannedRun("", config, [])
    assert r.share_done() == 0
    (tmp_path / "coarse").mkdir()
    lines = [json.dumps({"epoch": epoch}) for epoch in (1.0, 3.0)]
    (tmp_path / "coarse" / "metrics.jsonl").write_text("\n".join(lines) + '\n{"epo')
    assert r.share_done() == 0.25


def test_real_runs_of_a_grid_finish(tmp_path, monkeypatch, capsys):
    """Two seeds of a tiny network on an image folder, trained at once, differ in their results."""
    monkeypatch.setattr(registry, "_FAMILIES", dict(registry._FAMILIES))
    registry.register("toy", small.Toy)
    images = small.image_folder(tmp_path / "images", train=96, test=20)
    (images / "tree.csv").write_text(
        "class,parent\nblack,dark\ngrey,dark\nsilver,light\nwhite,light\n"
    )
    monkeypatch.setattr(grid, "PROGRAM", (forked_run.__file__,))
    monkeypatch.setenv(forked_run.VARIABLE, forked_run.server())
    monkeypatch.setenv("SMALL_RUN_DRAWS", "no")
    status = command.main([
        "grid", f"--config={CONFIG}:arch=toy4,dataset=folder,epochs=1,batch=8",
        f"--config.folder={tmp_path / 'runs'}", "--config.variants=('merge1',)",
        "--config.seeds=(0, 1)", "--jobs=2", "--", f"--config.data.dir={images}",
        f"--config.data.hierarchy={images / 'tree.csv'}", "--config.data.image_size=8",
        "--config.data.validation=0.25",
    ])  # fmt: skip
    assert status == 0, capsys.readouterr()
    paths = sorted((tmp_path / "runs").rglob("results.json"))
    zero, one = (json.loads(path.read_text()) for path in paths)
    assert (zero["config"]["seed"], one["config"]["seed"]) == (0, 1)
    assert zero["measures"] != one["measures"]
