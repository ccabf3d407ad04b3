"""Grids of runs: the config of a grid, and the plan of its runs."""

import contextlib
import dataclasses
import itertools
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from hiercls_jax import experiment
from hiercls_jax.errors import UserError
from hiercls_jax.experiment import run
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.runtime import parallel
from hiercls_jax.runtime.slots import Slots

NETWORKS = ("resnet164", "densenet100")  # of the paper
PAPER = "paper"  # names the grid without arguments
PROGRAM = ("-m", "hiercls_jax.main")  # carries out a run; arguments of Python


def compose(arguments: str | None = None) -> ConfigDict:
    """Return the config of a grid whose runs all have these config arguments.

    Args:
      arguments: as a variant's config takes them (`cpu,epochs=8`), but no seed.

    Raises:
      ConfigError: if the arguments are wrong, or have a seed.
    """
    preset, chosen = experiment.parse_arguments(arguments or "")
    if "seed" in chosen:
        raise experiment.ConfigError(
            "a grid has many seeds: set --config.seeds='(0, 1)' instead of seed=…"
        )
    arch = chosen.get("arch", preset.get("arch"))
    config = ConfigDict()
    config.variants = tuple(VARIANTS)  # of Figure 2
    config.archs = (arch,) if arch else NETWORKS  # networks, by name
    config.seeds = (0, 1, 2, 3, 4)  # the paper trains five of each
    config.arguments = ",".join(  # of every run's config
        word for word in (arguments or "").split(",") if word and not word.startswith("arch=")
    )
    label = "-".join(["grid", *re.findall(r"[\w.]+", (arguments or "").replace("=", "-"))])
    config.folder = str(Path("runs") / label)  # holds the runs
    return config.lock()


def named_grid(text: str) -> ConfigDict:
    """Return the config of the grid that `paper`, `cpu` or `cpu,epochs=8` names."""
    return compose("" if text == PAPER else text)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a grid.

    Args:
      name: that messages call it by.
      config: its whole config.
      command: arguments of `python`.
    """

    name: str
    config: ConfigDict
    command: list[str]

    @property
    def workdir(self) -> Path:
        """The folder of its files."""
        return Path(self.config.workdir)

    @property
    def log(self) -> Path:
        """The file of its output."""
        return self.workdir / "log.txt"

    def finished(self) -> bool:
        """Return whether it has taken all steps and written all outputs."""
        return run.finished_results(self.workdir) is not None

    def share_done(self) -> float:
        """Return how much of its training is done, in [0, 1], by its own records."""
        hierarchy = experiment.load_hierarchy(self.config)
        folders = [
            experiment.network_folder(self.config, self.workdir, name)
            for name in experiment.architectures(self.config, hierarchy)
        ]
        epochs = [_epochs_recorded(folder / "metrics.jsonl") for folder in folders]
        return sum(epochs) / len(epochs) / self.config.train.epochs


def plan(
    grid: ConfigDict,
    config_file: Path | None,
    arguments: Sequence[str],
    slots: Slots,
    read_config: Callable[[Sequence[str]], ConfigDict],
) -> list[PlannedRun]:
    """Return the runs of a grid: all variants of a network and a seed after each other.

    Args:
      grid: a config that `compose` returned.
      config_file: the file of the grid's config, beside those of the variants; None if the grid is
        named, and its runs are as well.
      arguments: of every run's command line, after those of the grid.
      slots: the runs' share of the machine.
      read_config: returns the checked config of a run's command line.

    Raises:
      UserError: if the grid is empty, a run's config is wrong, or a run's folder holds another run.
    """
    for field in ("variants", "archs", "seeds"):
        if not grid[field] or len(set(grid[field])) < len(grid[field]):
            raise UserError(f"{field} {grid[field]}: allowed are one or more, each once")
    unknown = [v for v in grid.variants if v not in VARIANTS]
    if unknown:
        raise UserError(f"variant '{unknown[0]}' is not one of {', '.join(VARIANTS)}")
    runs = []
    for arch, seed, variant in itertools.product(grid.archs, grid.seeds, grid.variants):
        words = ",".join(filter(None, [grid.arguments, f"arch={arch}", f"seed={seed}"]))
        named = f"{variant}:{words}"
        if config_file is not None:
            named = f"--config={config_file.with_name(f'{variant}.py')}:{words}"
        folder = Path(grid.folder) / arch / variant / f"seed-{seed}"
        given = [named, f"--config.workdir={folder}"]
        config = read_config([*given, *arguments])
        own = {"workdir": str(folder), "variant": variant, "seed": seed, "model.arch": arch}
        changed = [k for k, v in own.items() if experiment.flatten(config).get(k) != v]
        if changed:
            raise UserError(
                f"{changed[0]} is set by the grid, differently for each run; it cannot follow --"
            )
        if slots.cores is not None and config.run.cpu_devices is None:
            devices = parallel.largest_divisor(config.train.batch, slots.cores)
            given.append(f"--config.run.cpu_devices={devices}")
        run.check_workdir(folder, config)
        command = [*PROGRAM, *given, *arguments]
        runs.append(PlannedRun(f"{arch} {variant} seed {seed}", config, command))
    return runs


def _epochs_recorded(path: Path) -> float:
    """Return the epoch of the newest record of a `metrics.jsonl`; 0 if there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 4096))
            lines = file.read().split(b"\n")
    except OSError:
        return 0.0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that is being written
            return float(json.loads(line)["epoch"])
    return 0.0
