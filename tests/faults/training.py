"""A training of 18 steps that saves after nearly every step, and what remains of it."""

import atexit
import dataclasses
import fcntl
import json
import math
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import small
from forked_run import fork
from small_run import draw_nothing, train  # registers the toy family

# The command imports this only when it needs it.
import hiercls_jax.data.folder  # noqa: F401, isort: skip

ROOT = Path(__file__).parents[2]
STEPS = 18  # two epochs of nine
LIMIT = 900  # seconds after which a command counts as hanging, on a busy machine too
TREE = "class,parent\nblack,dark\ngrey,dark\nsilver,light\nwhite,light\n"


@dataclasses.dataclass
class Running:
    """A training command by one or several processes, its workdir, and what it prints."""

    pids: list[int]
    output: int
    workdir: Path
    statuses: dict[int, int] = dataclasses.field(default_factory=dict)

    def cpu_seconds(self) -> float:
        """Processor time of its first process until now."""
        try:
            fields = Path(f"/proc/{self.pids[0]}/stat").read_text().rpartition(")")[2].split()
        except FileNotFoundError:
            return math.inf
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def ended(self) -> bool:
        """Whether all of its processes have ended."""
        for pid in set(self.pids) - self.statuses.keys():
            found, status = os.waitpid(pid, os.WNOHANG)
            if found:
                self.statuses[pid] = os.waitstatus_to_exitcode(status)
        return len(self.statuses) == len(self.pids)

    def waits_for(self, holds) -> bool:
        """Wait until `holds()`; False if the command ends before."""
        while not holds():
            if self.ended():
                return False
            time.sleep(0.005)
        return True

    def opens_workdir(self) -> bool:
        """Wait until it has read its data and opened its workdir."""
        return self.waits_for((self.workdir / "config.json").exists)

    def saves(self, step: int) -> bool:
        """Wait until it has saved its state after `step` or a later step."""
        return self.waits_for(lambda: max(saved_steps(self.workdir), default=-1) >= step)

    def finish(self) -> tuple[int | None, str]:
        """Return (exit status of the last process, output of all); None: it hung, and is killed."""
        began, hung = time.monotonic(), False
        while not self.ended():
            time.sleep(0.01)
            if time.monotonic() - began > LIMIT and not hung:
                hung = True
                for pid in self.pids:
                    os.kill(pid, signal.SIGKILL)
        with open(self.output, errors="replace") as file:
            return None if hung else self.statuses[self.pids[-1]], file.read()


def prepare(folder: Path) -> None:
    """Make the images of all trainings: four classes, 96 images for training and 20 for test."""
    if not (folder / "tree.csv").exists():
        small.image_folder(folder, train=96, test=20)
        (folder / "tree.csv").write_text(TREE)


def start(images: Path, workdir: Path, fault: Callable = lambda: None, processes: int = 1):
    """Start a training by so many processes of one device each, which first call `fault()`.

    They are forked from this process, which has imported all modules of the command and used no
    device, because importing takes half of a short command's time. For the same reason nothing is
    drawn. Everything else is as if a shell had started them.
    """
    arguments = [
        f"--config={ROOT / 'configs' / 'merge1.py'}:arch=toy4,dataset=folder,epochs=2,batch=8",
        f"--config.workdir={workdir}", f"--config.data.dir={images}",
        f"--config.data.hierarchy={images / 'tree.csv'}", "--config.data.image_size=8",
        "--config.data.validation=0.25", "--config.run.log_every=4", "--config.run.cpu_devices=1",
        "--config.run.save_minutes=0.00001", "--config.optimizer.warmup_steps=3",
    ]  # fmt: skip
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            where = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
        arguments += ["--distributed", f"--processes={processes}", where]
    output, into = os.pipe()
    fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, 2**20)  # room for all output
    pids = []
    for i in range(processes):
        more = [f"--process_id={i}"] if processes > 1 else []
        pids.append(_forked(into, lambda: _command(images, fault, [*arguments, *more])))  # noqa: B023
    os.close(into)
    return Running(pids, output, workdir)


def _command(images: Path, fault: Callable, arguments: list[str]) -> None:
    os.environ |= {"XDG_CACHE_HOME": str(images / "cache"), "JAX_PLATFORMS": "cpu"}
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    draw_nothing()
    fault()
    sys.exit(train.main(["train", *arguments]))


def _forked(output: int, command: Callable) -> int:
    """Fork a process that runs `command()`, prints into `output`, and ends as a program does."""
    sys.stdout.flush()
    pid = fork()
    if pid:
        return pid
    status = 0
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        command()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def apart(function: Callable, *arguments) -> str:
    """Run a function in a process of its own, which may use devices; return its output."""
    output, into = os.pipe()
    pid = _forked(into, lambda: function(*arguments))
    os.close(into)
    with open(output) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text.strip()


def checkpoints(workdir: Path) -> list[Path]:
    """The checkpoints, oldest first."""
    found = (workdir / "checkpoints").glob("step_*")
    return sorted(path for path in found if path.name[5:].isdigit())


def saved_steps(workdir: Path) -> list[int]:
    """The steps that have a checkpoint."""
    return [int(path.name[5:]) for path in checkpoints(workdir)]


def result(workdir: Path) -> dict[str, np.ndarray]:
    """Every array of the last checkpoint and of `predictions.npz`, by name."""
    last = workdir / "checkpoints" / f"step_{STEPS:08d}" / "arrays"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        state = checkpointer.restore(last.absolute())
    leaves = jax.tree_util.tree_leaves_with_path(state)
    arrays = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    with np.load(workdir / "predictions.npz", allow_pickle=False) as file:
        return arrays | dict(file)


def records(workdir: Path) -> list[dict]:
    """The lines of `metrics.jsonl`, without speed."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines]
    return [{k: v for k, v in line.items() if k != "images_per_second"} for line in kept]


def print_difference(workdir: Path, undisturbed: Path, cut: int) -> None:
    """Print every difference, to the bit, of a finished run from the undisturbed one, or nothing.

    Up to `cut` lines of its metrics may be missing.
    """
    found, expected = result(workdir), result(undisturbed)
    if found.keys() != expected.keys():
        print(f"other arrays: {sorted(found.keys() ^ expected.keys())}")
    for name in found.keys() & expected.keys():
        a, b = found[name], expected[name]
        if a.dtype != b.dtype or a.shape != b.shape or a.tobytes() != b.tobytes():
            print(f"{name} differs")
    lines, whole = records(workdir), records(undisturbed)
    missing = [line for line in whole if line not in lines]
    if len(missing) > cut or lines != [line for line in whole if line in lines]:
        print(f"metrics.jsonl differs; it lacks {missing}")
