"""The grid command: trains every variant with every seed, several runs at once.

    python -m hiercls_jax grid --config=configs/grid.py:cpu
    python -m hiercls_jax grid --config=configs/grid.py:quick --config.seeds="(0, 1)" --dry_run
    python -m hiercls_jax grid --config=configs/grid.py -- --config.data.dir=DIR

Runs what is missing, resumes what was stopped, and skips what is finished: the same command again
goes on. What follows a lone -- is given to each run. A run is a process of its own, in
FOLDER/ARCH/VARIANT/seed-N, and what it says goes to log.txt there; one that fails does not stop the
others.

Exit status: 0 all runs are finished; 1 some failed, or an error that the last line explains; 2 a
wrong command line; 130 stopped by Ctrl-C, 143 by SIGTERM, when the runs have saved.
"""

import contextlib
import dataclasses
import fcntl
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from hiercls_jax import experiment
from hiercls_jax.commands.command_line import explain
from hiercls_jax.errors import UserError, one_line
from hiercls_jax.experiment import run
from hiercls_jax.models.costs import summarise
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.runtime import huge_pages, parallel, signals
from hiercls_jax.training.tracking import format_duration

BOTH = ("resnet164", "densenet100")  # the paper's two networks
PROGRAM = ("-m", "hiercls_jax.main")  # what carries out a run, as arguments of Python
POLL = 1.0  # seconds between looks at the runs
MEMORY = 8 << 30  # bytes that a run on a CPU is given: ResNet-164 takes 7 GiB


def compose(arguments: str | None = None) -> ConfigDict:
    """Return the config of a grid whose runs all have these config arguments.

    Args:
      arguments: as a variant's config takes them (`cpu,epochs=8`), but no seed.
    """
    preset, chosen = experiment.parse_arguments(arguments or "")
    if "seed" in chosen:
        raise experiment.ConfigError(
            "a grid has many seeds: set --config.seeds='(0, 1)' instead of seed=…"
        )
    arch = chosen.get("arch", preset.get("arch"))
    config = ConfigDict()
    config.variants = tuple(VARIANTS)  # of Figure 2
    config.archs = (arch,) if arch else BOTH  # networks, by name
    config.seeds = (0, 1, 2, 3, 4)  # the paper trains five of each
    config.arguments = ",".join(  # of every run's config
        word for word in (arguments or "").split(",") if word and not word.startswith("arch=")
    )
    label = "-".join(["grid", *re.findall(r"[\w.]+", (arguments or "").replace("=", "-"))])
    config.folder = str(Path("runs") / label)  # holds the runs
    return config.lock()


@dataclasses.dataclass
class Run:
    """One run of a grid.

    Args:
      name: what lines call it.
      config: its whole config.
      command: arguments of `python`.
    """

    name: str
    config: ConfigDict
    command: list[str]

    @property
    def workdir(self) -> Path:
        return Path(self.config.workdir)

    @property
    def log(self) -> Path:
        return self.workdir / "log.txt"

    def finished(self) -> bool:
        """Return whether it has taken all steps and written all outputs."""
        return run.finished_results(self.workdir) is not None

    def share_done(self) -> float:
        """Return how much of it is trained, in [0, 1], by its own records."""
        hierarchy = experiment.load_hierarchy(self.config)
        folders = [
            experiment.network_folder(self.config, self.workdir, name)
            for name in experiment.architectures(self.config, hierarchy)
        ]
        epochs = [_epochs_recorded(folder / "metrics.jsonl") for folder in folders]
        return sum(epochs) / len(epochs) / self.config.train.epochs


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; what goes wrong is one line on stderr."""
    own_argv, for_runs = _split(list(argv))
    flag_values = flags.FlagValues()  # the command's own: other modules' are not accepted here
    own = {"flag_values": flag_values, "module_name": __name__}
    flags.DEFINE_bool("help", False, "Show this help.", **own)
    config = config_flags.DEFINE_config_file(
        "config",
        None,
        "A grid's config, with arguments after a colon.",
        flag_values,
        sys_argv=own_argv,
    )
    jobs = flags.DEFINE_integer(
        "jobs",
        None,
        "Runs at once. If unset: on CUDA one per GPU; on a CPU as many as cores and memory allow, "
        "each with its share of the cores; elsewhere 1.",
        lower_bound=1,
        **own,
    )
    dry_run = flags.DEFINE_bool("dry_run", False, "Show each run's state and command only.", **own)
    try:
        unexpected = flag_values(own_argv)[1:]
        if flag_values.help:
            print(f"{__doc__}\n{flag_values.module_help(__name__)}")
            return 0
        if config.value is None:
            raise UserError("--config is missing; try --config=configs/grid.py:quick")
        if unexpected:
            raise UserError(f"unexpected argument '{unexpected[0]}'; what is for runs follows --")
        config.value.to_dict()  # a config file that is not there is noticed at its first use
        config_file = Path(flag_values["config"].config_filename)
    except Exception as error:  # a config file is a program, which may raise anything
        text = one_line(explain(error))
        print(f"error: {text}; see python -m hiercls_jax grid --help", file=sys.stderr)
        return 2
    try:
        slots = Slots.of(jobs.value)
        runs = plan(config.value, config_file, for_runs, slots)
        if dry_run.value:
            print("\n".join(map(_describe, runs)))
            return 0
        caught: list[int] = []
        with _alone_in(Path(config.value.folder)) as lock, signals.handled_by(caught.append):
            return _carry_out(runs, slots, lock, caught)
    except BrokenPipeError:  # no error: `__main__` ends quietly
        raise
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1


@dataclasses.dataclass(frozen=True)
class Slots:
    """What runs at once are carried out on.

    Args:
      environments: what is added to the environment of a run in each slot.
      cores: CPU cores of each run, or None where it may use all.
    """

    environments: tuple[dict, ...]
    cores: int | None

    @classmethod
    def of(cls, jobs: int | None) -> "Slots":
        """Return `jobs` slots, or as many as this machine has room for."""
        gpus = _visible_gpus()
        if gpus:
            jobs = jobs or len(gpus)
            return cls(
                tuple({"CUDA_VISIBLE_DEVICES": gpus[i % len(gpus)]} for i in range(jobs)), None
            )
        cores = parallel.cpu_cores()
        if jobs is None:
            room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEMORY
            jobs = 1 if huge_pages.has_accelerator() else max(1, min(cores, room))
        return cls(({},) * jobs, max(1, cores // jobs) if jobs > 1 else None)


def _visible_gpus() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES may name, without a start of CUDA."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in found if match), key=int)


def plan(grid: ConfigDict, config_file: Path, arguments: Sequence[str], slots: Slots) -> list[Run]:
    """Return the runs of a grid: all variants of a network and a seed after each other.

    Args:
      grid: what `compose` returns.
      config_file: the grid's; the variants' configs stand beside it.
      arguments: of every run's command line, behind those of the grid.
      slots: what they are carried out on.

    Raises:
      UserError: for a grid with nothing in it, a config that cannot be run, and a folder that
        holds a run of another one.
    """
    for what in ("variants", "archs", "seeds"):
        if not grid[what] or len(set(grid[what])) < len(grid[what]):
            raise UserError(f"{what} {grid[what]}: allowed are one or more, each once")
    unknown = [v for v in grid.variants if v not in VARIANTS]
    if unknown:
        raise UserError(f"variant '{unknown[0]}' is not one of {', '.join(VARIANTS)}")
    runs = []
    for arch, seed, variant in itertools.product(grid.archs, grid.seeds, grid.variants):
        words = filter(None, [grid.arguments, f"arch={arch}", f"seed={seed}"])
        folder = Path(grid.folder) / arch / variant / f"seed-{seed}"
        given = [
            f"--config={config_file.with_name(f'{variant}.py')}:{','.join(words)}",
            f"--config.workdir={folder}",
            *arguments,
        ]
        config = _read(given)
        own = {"workdir": str(folder), "variant": variant, "seed": seed, "model.arch": arch}
        changed = [k for k, v in own.items() if experiment.flatten(config).get(k) != v]
        if changed:
            raise UserError(
                f"{changed[0]} is set by the grid, for each run another; it cannot follow --"
            )
        if slots.cores is not None and config.run.cpu_devices is None:
            devices = parallel.largest_divisor(config.train.batch, slots.cores)
            given.insert(2, f"--config.run.cpu_devices={devices}")
        run.check_workdir(folder, config)
        command = [*PROGRAM, *given]
        name = f"{arch} {variant} seed {seed}"
        runs.append(Run(name, config, command))
    return runs


def _split(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return what stands before a lone -- and behind it."""
    at = argv.index("--") if "--" in argv else len(argv)
    return argv[:at], argv[at + 1 :]


def _read(arguments: Sequence[str]) -> ConfigDict:
    """Return the checked config that the training command would have with these arguments."""
    flag_values = flags.FlagValues()
    given = ["", *(a for a in arguments if a.startswith("--config"))]
    config = config_flags.DEFINE_config_file("config", None, "", flag_values, sys_argv=given)
    try:
        flag_values(given)
        experiment.check(config.value)
    except UserError:
        raise
    except Exception as error:  # a config file is a program, which may raise anything
        raise UserError(explain(error)) from error
    return config.value


def _carry_out(runs: Sequence[Run], slots: Slots, lock: int, caught: Sequence[int]) -> int:
    """Carry out what is not finished and return the exit status.

    Args:
      runs: all runs of the grid.
      slots: one run at a time in each.
      lock: a file descriptor that the runs inherit, so that the folder is in use while one lives.
      caught: the signals that have come, growing.
    """
    todo = deque(r for r in runs if not r.finished())
    progress = _Progress(runs)
    progress.say(
        f"{len(runs)} runs, {len(runs) - len(todo)} of them finished; "
        f"{min(len(slots.environments), max(1, len(todo)))} at once"
    )
    free, running = deque(slots.environments), {}
    failed, forwarded = 0, 0
    try:
        while running or (todo and not caught):
            while todo and free and not caught:
                begun = todo.popleft()
                try:
                    process = _start(begun, free[0], lock)
                except OSError as error:  # of this run's folder; the others may have none
                    failed += 1
                    progress.say(f"{begun.name}: cannot be begun: {error}")
                    continue
                running[process] = begun, free.popleft()
            if len(caught) > forwarded:
                forwarded = len(caught)
                progress.say(f"stopping: waiting for {len(running)} runs to save")
                for process in running:
                    process.send_signal(signal.SIGTERM)
            time.sleep(POLL)
            progress.show([r for r, _ in running.values()])
            for process in [p for p in running if p.poll() is not None]:
                ended, environment = running.pop(process)
                free.append(environment)
                if process.returncode == 0 and ended.finished():
                    progress.finished(ended)
                # One that has hardly begun does not catch the signal yet.
                elif not (caught and process.returncode in (128 + signal.SIGTERM, -signal.SIGTERM)):
                    failed += 1
                    progress.say(_failure(ended, process.returncode))
    finally:
        progress.close()
        for process in running:  # where an exception has come this far
            process.send_signal(signal.SIGTERM)
    if caught:
        left = sum(not r.finished() for r in runs)
        print(
            f"stopped by {signal.Signals(caught[0]).name}; {left} of {len(runs)} runs are not "
            "finished, what is trained of them is saved. The same command again goes on from "
            "there.",
            file=sys.stderr,
        )
        return 128 + caught[0]
    if failed:
        print(
            f"{failed} of {len(runs)} runs failed; the same command again tries them again",
            file=sys.stderr,
        )
        return 1
    progress.say(f"all {len(runs)} runs are finished")
    return 0


def _start(begun: Run, environment: dict, lock: int) -> subprocess.Popen:
    begun.workdir.mkdir(parents=True, exist_ok=True)
    with open(begun.log, "a", encoding="utf-8") as log:
        return subprocess.Popen(
            [sys.executable, *begun.command],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,  # a Ctrl-C at the terminal reaches it through the grid alone
            pass_fds=[lock],
        )


class _Progress:
    """What the grid says: a line per run, and where someone watches a bar with the time left."""

    def __init__(self, runs: Sequence[Run]):
        self._runs = runs
        self._work = _work(runs)
        self._done = {r.name: 1.0 if r.finished() else r.share_done() for r in runs}
        self._before, self._began = self._work_done(), time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=100, dynamic_ncols=True, leave=False, bar_format="{l_bar}{bar}|{postfix}"
            )

    def show(self, running: Sequence[Run]) -> None:
        """Look at the records of what is running."""
        for r in running:
            self._done[r.name] = r.share_done()
        if self._bar is not None:
            self._bar.n = 100 * self._work_done() / sum(self._work.values())
            parts = [f"{r.name} {100 * self._done[r.name]:.0f} %" for r in running]
            self._bar.set_postfix_str("; ".join([self._time_left(), *parts]))

    def finished(self, ended: Run) -> None:
        """Say what has come out of a run."""
        self._done[ended.name] = 1.0
        results = run.finished_results(ended.workdir)
        errors = results["test_error"]
        levels = ", ".join(
            f"{level} {100 * errors['alpha=0'][level]:.2f} → {100 * errors['tuned'][level]:.2f} %"
            for level in errors["tuned"]
        )
        count = sum(share == 1.0 for share in self._done.values())
        self.say(
            f"{ended.name}: {levels}, trained in "
            f"{format_duration(results['seconds']['training'])}; "
            f"{count} of {len(self._runs)}, {self._time_left()}"
        )

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def _work_done(self) -> float:
        return sum(self._work[name] * share for name, share in self._done.items())

    def _time_left(self) -> str:
        done = self._work_done()
        rate = (done - self._before) / (time.monotonic() - self._began)
        if rate <= 0:
            return "time left not known yet"
        return f"about {format_duration((sum(self._work.values()) - done) / rate)} left"


def _work(runs: Sequence[Run]) -> dict[str, float]:
    """Return what a run takes, by name: multiply-adds of an image, times epochs.

    Counting takes a second for a deep network, so it is done once for all seeds.
    """
    counted, work = {}, {}
    for r in runs:
        what = r.config.variant, r.config.model.arch
        if what not in counted:
            hierarchy = experiment.load_hierarchy(r.config)
            counted[what] = sum(
                summarise(network, experiment.image_shape(r.config))["multiply_adds"]
                for network in experiment.architectures(r.config, hierarchy).values()
            )
        work[r.name] = counted[what] * r.config.train.epochs
    return work


def _failure(ended: Run, status: int) -> str:
    words = ended.log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((line.strip() for line in reversed(words) if line.strip()), "it said nothing")
    how = f"exit status {status}" if status >= 0 else signal.Signals(-status).name
    return f"{ended.name}: failed ({how}): {last}; see {ended.log}"


def _describe(planned: Run) -> str:
    share = planned.share_done()
    state = "finished" if planned.finished() else f"{100 * share:.0f} %" if share else "to begin"
    return f"{state:>8}  {shlex.join(['python', *planned.command])}"


def _epochs_recorded(path: Path) -> float:
    """Return how far the newest record of a `metrics.jsonl` is; 0 where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")
    except OSError:
        return 0.0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # one that is being written
            return float(json.loads(line)["epoch"])
    return 0.0


@contextlib.contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """Yield the descriptor of a lock on the folder, which a grid and its runs hold."""
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
