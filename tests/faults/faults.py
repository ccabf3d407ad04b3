"""The table of faults: how each is inflicted on a training, and what must hold afterwards.

A seed decides where: the moment, the file, the bit. The same seed gives the same step, system event
or byte again, but only about the same moment on the clock.
"""

import dataclasses
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tests.faults import inside, training
from tests.faults.training import Running

NOTICED = 10  # seconds within which a process must end after another one was killed


class Missed(Exception):
    """The training ended before the fault came, so this is no try."""


@dataclasses.dataclass
class Scene:
    """One try: its folder, the runs that it is compared with, its random numbers."""

    workdir: Path  # of the command that gets the fault
    images: Path
    stopped: Path  # the workdir of a run that was stopped half-way
    seconds: float  # of the processor, from the opened workdir to the end of an undisturbed run
    rng: np.random.Generator
    processes: int
    unharmed: Callable[[], bool] = lambda: True  # whether all files from before are still there

    def start(self, fault: Callable = lambda: None) -> Running:
        return training.start(self.images, self.workdir, fault, self.processes)

    def start_until(self, reached: Callable[[Running], bool]) -> Running:
        """Start a training, and wait until `reached` returns."""
        running = self.start()
        if not reached(running):
            raise Missed
        return running


Ended = tuple[int | None, str]  # exit status (None: it hung) and output


def signalled(signum: int) -> Callable[[Scene], Ended]:
    """A signal at any moment from the opened workdir to the end."""

    def inflict(scene: Scene) -> Ended:
        running = scene.start_until(Running.opens_workdir)
        moment = running.cpu_seconds() + scene.rng.random() * scene.seconds
        running.waits_for(lambda: running.cpu_seconds() >= moment)
        if running.ended() or (running.workdir / "results.json").exists():  # written last
            raise Missed
        os.kill(running.pids[0], signum)
        return running.finish()

    return inflict


def killed_while_saving(scene: Scene) -> Ended:
    """SIGKILL before one of the about 250 times that a training touches its checkpoints."""
    number = int(scene.rng.integers(1, 250))
    status, out = scene.start(lambda: inside.kill_at_event(number)).finish()
    if status == 0:
        raise Missed
    return status, out


def one_of_two_killed(scene: Scene) -> Ended:
    running = scene.start_until(lambda run: run.saves(int(scene.rng.integers(1, 14))))
    killed, other = scene.rng.permutation(running.pids).tolist()
    os.kill(killed, signal.SIGKILL)
    began = time.monotonic()
    _, out = running.finish()
    seconds = time.monotonic() - began
    status = running.statuses[other] if seconds < NOTICED else None
    return status, f"{out}\nthe other one ended after {seconds:.1f} s"


def file_size_limited(scene: Scene) -> Ended:
    """From a step on, no file may outgrow a limit, as under a quota."""
    running = scene.start_until(lambda run: run.saves(int(scene.rng.integers(1, 14))))
    limit = int(scene.rng.integers(0, 20_000))
    resource.prlimit(running.pids[0], resource.RLIMIT_FSIZE, (limit, limit))
    return running.finish()


def disk_full(scene: Scene) -> Ended:
    """The workdir is a disk of 64 to 800 KiB; a finished run has 600 KiB."""
    scene.workdir.mkdir()
    _mount(scene.workdir, f"size={scene.rng.integers(16, 200) * 4}k")
    status, out = scene.start().finish()
    _mount(scene.workdir, "remount,size=64m")
    if status == 0:
        raise Missed
    return status, out


def _mount(folder: Path, options: str, check: bool = True) -> bool:
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    return subprocess.run(command, check=check, capture_output=True).returncode == 0


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small disk there; containers' root often may not."""
    mounted = os.geteuid() == 0 and _mount(folder, "size=4k", check=False)
    if mounted:
        subprocess.run(["umount", folder], check=True)
    return mounted


def nan_in_a_batch(scene: Scene) -> Ended:
    number = int(scene.rng.integers(1, training.STEPS + 1))
    return scene.start(lambda: inside.put_nan(number)).finish()


def clock_turned(scene: Scene) -> Ended:
    number = int(scene.rng.integers(1, 200))
    return scene.start(lambda: inside.turn_clocks(number)).finish()


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _damage(path: Path, rng: np.random.Generator, truncate: bool) -> None:
    content = bytearray(path.read_bytes())
    if truncate:
        content = content[: rng.integers(len(content))]
    else:
        content[rng.integers(len(content))] ^= 1 << rng.integers(8)
    path.write_bytes(content)


def newest_damaged(truncate: bool) -> Callable[[Scene], Ended]:
    """A file of the newest checkpoint, any of them, is cut short, or one bit of it flipped."""

    def inflict(scene: Scene) -> Ended:
        files = [path for path in _files(training.checkpoints(scene.workdir)[-1]) if
                 path.stat().st_size]  # fmt: skip
        _damage(files[scene.rng.integers(len(files))], scene.rng, truncate)
        return scene.start().finish()

    return inflict


def all_damaged(scene: Scene) -> Ended:
    """One bit of every checkpoint."""
    before = {path.stat().st_ino for path in _files(scene.workdir / "checkpoints")}
    for checkpoint in training.checkpoints(scene.workdir):
        files = [path for path in _files(checkpoint) if path.stat().st_size]
        _damage(files[scene.rng.integers(len(files))], scene.rng, truncate=False)

    def unharmed() -> bool:
        return before <= {path.stat().st_ino for path in _files(scene.workdir / "checkpoints")}

    scene.unharmed = unharmed
    return scene.start().finish()


def metrics_cut(scene: Scene) -> Ended:
    """The last line of the metrics is cut anywhere, as by a power cut if the disk does not sync."""
    path = scene.workdir / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[-1] = lines[-1][: scene.rng.integers(1, len(lines[-1]))]
    path.write_bytes(b"".join(lines))
    return scene.start().finish()


def in_the_way(scene: Scene) -> Ended:
    """A file where the workdir or a folder of it should be, or a folder where a file should."""
    place = ["", "run", "checkpoints", "tensorboard", "config.json", "metrics.jsonl",
             "predictions.npz"][scene.rng.integers(7)]  # fmt: skip
    obstacle = scene.workdir / place if place else scene.workdir
    obstacle.parent.mkdir(parents=True, exist_ok=True)
    if "." in place:
        obstacle.mkdir()
        obstacle = obstacle / "precious"
    obstacle.write_text("precious")
    if place in ("", "run"):
        scene.workdir = scene.workdir / "run"
    scene.unharmed = lambda: obstacle.is_file() and obstacle.read_text() == "precious"
    return scene.start().finish()


@dataclasses.dataclass(frozen=True)
class Fault:
    """A line of the table.

    Args:
      name: what the record calls it.
      inflict: inflicts the fault, and returns how the command ended that got it.
      statuses: allowed exit statuses; 1 is an error that one line explains.
      says: a pattern that the output must match if the status is 0 or 1.
      processes: how many train together.
      stopped: whether it happens to a run that was stopped half-way, between two commands.
      resumes: whether the same command again ends as if there had been no fault; otherwise the
        error stays, and so do all files.
      cut: lines of the metrics that the fault itself removes.
      mounts: whether it mounts a disk.
    """

    name: str
    inflict: Callable[[Scene], Ended]
    statuses: tuple[int, ...]
    says: str = ""
    processes: int = 1
    stopped: bool = False
    resumes: bool = True
    cut: int = 0
    mounts: bool = False


FULL = "File too large|could not be written|No space left"
FAULTS = (
    Fault("SIGKILL at a random moment", signalled(signal.SIGKILL), (-9,)),
    Fault("SIGKILL while a checkpoint is written", killed_while_saving, (-9,)),
    Fault("SIGTERM", signalled(signal.SIGTERM), (143, -15)),
    Fault("SIGINT", signalled(signal.SIGINT), (130,)),
    Fault("one of two processes killed", one_of_two_killed, (1, -6),
          "Connection (reset|closed) by peer|another task died", processes=2),
    Fault("file size limited while running", file_size_limited, (1,), FULL),
    Fault("disk full while running", disk_full, (1,), FULL, mounts=True),
    Fault("a file of the newest checkpoint truncated", newest_damaged(truncate=True), (0,),
          "is damaged .* trying the one before it", stopped=True),
    Fault("a bit of the newest checkpoint flipped", newest_damaged(truncate=False), (0,),
          "is damaged .* trying the one before it", stopped=True),
    Fault("a bit of every checkpoint flipped", all_damaged, (1,), "is whole", stopped=True,
          resumes=False),
    Fault("metrics cut in the last line", metrics_cut, (0,), stopped=True, cut=1),
    Fault("a file where a folder should be, or the reverse", in_the_way, (1,),
          "cannot be used|could not be written|Is a directory|Not a directory|File exists",
          resumes=False),
    Fault("NaN in a batch", nan_in_a_batch, (1,), "is nan at step"),
    Fault("clock backwards, still, or an hour back", clock_turned, (0,)),
)  # fmt: skip


def prepare(work: Path) -> dict[int, float]:
    """Make the images, the undisturbed runs and a stopped one; return the runs' seconds."""
    images, seconds = work / "images", {}
    training.prepare(images)
    for processes in (1, 2):
        for _ in range(2):  # the first one compiles
            workdir = work / f"undisturbed-{processes}"
            shutil.rmtree(workdir, ignore_errors=True)
            before = _children_seconds()
            running = training.start(images, workdir, processes=processes)
            assert running.opens_workdir()
            opened = running.cpu_seconds()
            status, out = running.finish()
            assert status == 0, out
            seconds[processes] = (_children_seconds() - before) / processes - opened
    shutil.rmtree(work / "stopped", ignore_errors=True)
    running = training.start(images, work / "stopped")
    assert running.saves(6)
    os.kill(running.pids[0], signal.SIGTERM)
    status, out = running.finish()
    assert status == 143, out
    return seconds


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def attempt(fault: Fault, seed: int, work: Path, seconds: dict[int, float]) -> tuple[str, str]:
    """Inflict a fault once and go on; return (outcome, why).

    The outcome is 'survived', 'clear error', 'missed' or 'lost'.
    """
    folder = work / "try"
    _clear(folder)
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, FAULTS.index(fault)])
    stopped = work / "stopped"
    scene = Scene(
        folder / "run", work / "images", stopped, seconds[fault.processes], rng, fault.processes
    )
    if fault.stopped:
        shutil.copytree(stopped, scene.workdir)
    try:
        status, out = fault.inflict(scene)
        fate = _complaint(fault, scene, status, out)
        if fate is not None:
            return "lost", f"{fate}: {out[-2000:]}"
        if not fault.resumes:
            status, out = scene.start().finish()
            fate = _complaint(fault, scene, status, out)
            if fate is not None:
                return "lost", f"given again, {fate}: {out[-2000:]}"
            return "clear error", _last_line(out)
        if status != 0:
            said = _last_line(out)
            status, out = scene.start().finish()
            if status != 0:
                return "lost", f"it does not go on, status {status}: {out[-2000:]}"
        else:
            said = ""
        undisturbed = work / f"undisturbed-{fault.processes}"
        check = training.print_difference
        other = training.apart(check, scene.workdir, undisturbed, fault.cut)
        return ("lost", other) if other else ("survived", said)
    except Missed:
        return "missed", ""
    finally:
        _clear(folder)


def _clear(folder: Path) -> None:
    if (folder / "run").is_mount():
        subprocess.run(["umount", folder / "run"], check=True)
    shutil.rmtree(folder, ignore_errors=True)


def _last_line(out: str) -> str:
    return out.strip().splitlines()[-1] if out.strip() else ""


def _complaint(fault: Fault, scene: Scene, status: int | None, out: str) -> str | None:
    """What is wrong with the end of a command, or None."""
    if status is None:
        return "it hung"
    if status not in fault.statuses:
        return f"status {status}"
    if fault.processes == 1 and "Traceback" in out:
        return "a traceback"
    if not scene.unharmed():
        return "files are gone"
    if status in (0, 1) and not re.search(fault.says, out):
        return "it does not say why"
    if fault.processes == 1 and status == 1 and not _last_line(out).startswith("error: "):
        return "its last line is no error"
    return None
