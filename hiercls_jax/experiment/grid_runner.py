"""Carries out the runs of a grid: processes in slots, until all have ended or a signal comes."""

import contextlib
import dataclasses
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from hiercls_jax.errors import UserError
from hiercls_jax.experiment.grid import PlannedRun
from hiercls_jax.experiment.grid_progress import Progress
from hiercls_jax.runtime import signals
from hiercls_jax.runtime.slots import Slots

POLL = 1.0  # seconds between looks at the runs
# Statuses of a run that SIGTERM stopped: after saving, or before it handled the signal.
STOPPED = (signals.exit_status(signal.SIGTERM), -signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a grid.

    Args:
      failed: runs that failed.
      unfinished: runs that are not finished.
      signum: the signal that stopped the grid; 0 if none came.
    """

    failed: int
    unfinished: int
    signum: int


def carry_out(runs: Sequence[PlannedRun], slots: Slots, folder: Path) -> Outcome:
    """Carry out the runs that are not finished, and print what happens to them.

    After SIGTERM or SIGINT no run begins any more, and those that are running get SIGTERM, which
    makes them save.

    Args:
      runs: all runs of the grid.
      slots: each has one run at a time.
      folder: of the grid; one grid at a time works in it.

    Raises:
      UserError: if another grid, or one of its runs, works in the folder.
    """
    caught: list[int] = []
    with _locked(folder) as lock, signals.handled_by(caught.append):
        progress = Progress(runs)
        try:
            failed = _carry_out(runs, slots, lock, caught, progress)
        finally:
            progress.close()
        unfinished = sum(not r.finished() for r in runs)  # a second Ctrl-C must not break this off
    return Outcome(failed, unfinished, caught[0] if caught else 0)


def _carry_out(
    runs: Sequence[PlannedRun],
    slots: Slots,
    lock: int,
    caught: Sequence[int],
    progress: Progress,
) -> int:
    """Return how many runs failed.

    Args:
      runs, slots: as above.
      lock: a file descriptor that runs inherit, so that the folder stays locked while one lives.
      caught: the signals that have come; it grows.
      progress: prints.
    """
    todo = deque(r for r in runs if not r.finished())
    progress.say(
        f"{len(runs)} runs, {len(runs) - len(todo)} of them finished; "
        f"{min(len(slots.environments), max(1, len(todo)))} at once"
    )
    free = deque(slots.environments)
    running: dict[subprocess.Popen, tuple[PlannedRun, dict[str, str]]] = {}
    failed, forwarded = 0, 0
    try:
        while running or (todo and not caught):
            while todo and free and not caught:
                begun = todo.popleft()
                try:
                    process = _start(begun, free[0], lock)
                except OSError as error:  # about this run's folder; the others may be fine
                    failed += 1
                    progress.say(f"{begun.name}: cannot be begun: {error}")
                    continue
                running[process] = begun, free.popleft()
            if len(caught) > forwarded:
                forwarded = len(caught)
                progress.say(f"stopping: waiting for {len(running)} runs to save")
                _terminate(running)
            time.sleep(POLL)
            progress.show([r for r, _ in running.values()])
            for process in [p for p in running if p.poll() is not None]:
                ended, environment = running.pop(process)
                free.append(environment)
                if process.returncode == 0 and ended.finished():
                    progress.finished(ended)
                elif not (caught and process.returncode in STOPPED):
                    failed += 1
                    progress.say(_failure(ended, process.returncode))
    finally:
        _terminate(running)  # some are left after an exception
    return failed


def _start(begun: PlannedRun, environment: dict[str, str], lock: int) -> subprocess.Popen:
    begun.workdir.mkdir(parents=True, exist_ok=True)
    with open(begun.log, "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, *begun.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # a Ctrl-C at the terminal reaches it only through the grid
            pass_fds=[lock],
        )


def _terminate(processes: Iterable[subprocess.Popen]) -> None:
    for process in processes:
        process.send_signal(signal.SIGTERM)


def _failure(ended: PlannedRun, status: int) -> str:
    """Return a line that says how a run failed, with the last line of its output."""
    lines = ended.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "no output")
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    return f"{ended.name}: failed ({how}): {last}; see {ended.log}"


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[int]:
    """Lock a folder, and yield the descriptor that keeps the lock for every process that has it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "w", encoding="utf-8")  # noqa: SIM115, closed below
    except OSError as error:
        raise UserError(f"folder {folder} cannot be used: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"another grid, or a run that one left, is at work in {folder}; wait for it, or "
                "choose another --config.folder"
            ) from None
        yield file.fileno()
