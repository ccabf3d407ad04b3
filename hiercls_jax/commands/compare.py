"""The compare command: figures, tables and the verdict on the paper's claims, from many runs.

    python -m hiercls_jax compare runs/grid-cpu
    python -m hiercls_jax compare results/cifar100-cpu/summary.npz --out=DIR
    python -m hiercls_jax compare part1/summary.npz runs/the-rest --out=all

Each argument is a folder with finished runs, however deep, or a summary.npz that an earlier
comparison has written. From the runs' predictions it distils summary.npz, and from that alone it
makes comparison.md, the figures (SVG, PNG) and the tables (CSV, LaTeX). For each variant whose runs
are there it also writes report-NETWORK-VARIANT.html, the page of the ensemble of all its seeds. A
run that is not finished, or whose predictions are missing or damaged, is named and left out.

Exit status: 0 done; 1 an error that the last line explains; 2 a wrong command line; 130 stopped by
Ctrl-C, 143 by SIGTERM. Every file is whole or not there.
"""

import contextlib
import dataclasses
import json
import math
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from hiercls_jax import experiment
from hiercls_jax.errors import UserError, one_line
from hiercls_jax.evaluation import predictions
from hiercls_jax.evaluation.evaluate import evaluate
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import cache_folder
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.models.costs import merge_summaries, summarise
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.report import page
from hiercls_jax.runtime.environment import environment
from hiercls_jax.study import comparison, ensembles, summary
from hiercls_jax.study.summary import Summary

SUMMARY = "summary.npz"
TIMES = ("training", "training_cpu", "test_prediction", "test_adaptation")


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; what goes wrong is one line on stderr."""
    flag_values = flags.FlagValues()  # the command's own: other modules' are not accepted here
    own = {"flag_values": flag_values, "module_name": __name__}
    flags.DEFINE_bool("help", False, "Show this help.", **own)
    flags.DEFINE_string(
        "out", None, "Folder to write to. If unset: the first argument's, or it itself.", **own
    )
    try:
        sources = flag_values(list(argv))[1:]
    except flags.Error as error:
        print(
            f"error: {one_line(error)}; see python -m hiercls_jax compare --help", file=sys.stderr
        )
        return 2
    if flag_values.help:
        print(f"{__doc__}\n{flag_values.module_help(__name__)}")
        return 0
    if not sources:
        print(
            "error: nothing to compare: name a folder of runs, or a summary.npz; see "
            "python -m hiercls_jax compare --help",
            file=sys.stderr,
        )
        return 2
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    try:
        first = Path(sources[0])
        out = Path(flag_values.out or (first if first.is_dir() else first.parent))
        _compare([Path(s) for s in sources], out, argv[1:])
    except BrokenPipeError:  # no error: `__main__` ends quietly
        raise
    except (UserError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stop:  # it may say where
        where = str(stop) or "before anything was written"
        print(f"stopped {where}, and the same command begins anew", file=sys.stderr)
        return 130
    return 0


@dataclasses.dataclass(frozen=True)
class Runs:
    """Finished runs with the same test images.

    Args:
      hierarchy: of all of them.
      labels: integer `[N]`, last-level labels of the test images.
      cells: by (network, variant), by seed: where the run is, its results, its predictions.
    """

    hierarchy: Hierarchy
    labels: np.ndarray
    cells: dict[tuple[str, str], dict[int, tuple[Path, dict, dict[str, Predictions]]]]


def _compare(sources: Sequence[Path], out: Path, command: Sequence[str]) -> None:
    parts, found = [], []
    for source in sources:
        with _stopping(f"while {source} was read; nothing was written"):
            if source.is_dir():
                found.append(find(source))
                parts.append(distil(found[-1]))
            else:
                parts.append(summary.load(source))
    with _stopping(f"while {out} was written; each file there is whole"):
        whole = summary.merge(parts)
        out.mkdir(parents=True, exist_ok=True)
        if found or len(sources) > 1:
            summary.save(out / SUMMARY, whole)
            # What is shown is made from the file, so that it can be made from the file again.
            whole = summary.load(out / SUMMARY)
        written = comparison.write(out, whole)
        for runs in found:
            written += write_pages(out, runs, command)
        for cell in whole.cells.values():
            print(f"{cell.arch} {cell.variant}: seeds {', '.join(map(str, cell.seeds))}")
        print(f"wrote to {out}: {', '.join(written)}")


@contextlib.contextmanager
def _stopping(where: str) -> Iterator[None]:
    """Let a Ctrl-C say what was going on."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(where) from None


def find(folder: Path) -> Runs:
    """Return all finished runs below a folder; say which are left out, and why.

    Raises:
      UserError: where no run is left, two runs are the same, or runs cannot be compared.
    """
    cells, hierarchy, labels = defaultdict(dict), None, None
    for path in _folders(folder):
        try:
            found, results, splits = _read(path)
        except (UserError, OSError) as error:
            _leave_out(error)
            continue
        config = results["config"]
        key, seed = (config["model.arch"], config["variant"]), config["seed"]
        if seed in cells[key]:
            raise UserError(
                f"{path} and {cells[key][seed][0]} are the same run: {' '.join(key)}, seed {seed}"
            )
        of_test = splits["test"].labels[found.levels[-1]]
        hierarchy, labels = (found, of_test) if hierarchy is None else (hierarchy, labels)
        if found != hierarchy or not np.array_equal(labels, of_test):
            raise UserError(
                f"{path} has another hierarchy or other test images than the runs before it"
            )
        cells[key][seed] = path, results, splits
    if hierarchy is None:
        raise UserError(f"{folder} holds no finished run; train some: python -m hiercls_jax grid")
    return Runs(hierarchy, labels, dict(cells))


def distil(runs: Runs) -> Summary:
    """Return the summary of some runs.

    Raises:
      UserError: where seeds of one variant have different configs.
    """
    cells = {}
    for key, by_seed in runs.cells.items():
        config = _common_config(by_seed)
        as_read = experiment.unflatten(config)
        counts = merge_summaries(
            summarise(network, experiment.image_shape(as_read))
            for network in experiment.architectures(as_read, runs.hierarchy).values()
        )
        results = [by_seed[seed][1] for seed in sorted(by_seed)]
        costs = {
            "parameters": [counts["parameters"]] * len(results),
            "multiply_adds": [counts["multiply_adds"]] * len(results),
            "epochs": [config["train.epochs"]] * len(results),
            "on_cpu": ["cpu" in of["environment"]["devices"] for of in results],
            **{name: [of["seconds"][name] for of in results] for name in TIMES},
        }
        predicted = {seed: splits for seed, (_, _, splits) in by_seed.items()}
        cells[key] = summary.distil(*key, predicted, runs.hierarchy, config, costs)
        print(f"distilled {' '.join(key)}: {len(results)} runs", flush=True)
    return Summary(runs.hierarchy, runs.labels, summary.alpha_grid(runs.hierarchy), cells)


def write_pages(folder: Path, runs: Runs, command: Sequence[str]) -> list[str]:
    """Write the page of each variant's ensemble of all seeds; return the files' names.

    Args:
      folder: to write to.
      runs: of all variants.
      command: the program's arguments, for the record.
    """
    written = []
    record = {
        "command": shlex.join(["python", "-m", "hiercls_jax", "compare", *command]),
        "environment": environment(),
    }
    for (arch, variant), by_seed in runs.cells.items():
        every = [splits for _, _, splits in by_seed.values()]
        averaged = {split: ensembles.average([of[split] for of in every]) for split in every[0]}
        seeds = ", ".join(map(str, sorted(by_seed)))
        page.write_results(
            folder / f"report-{arch}-{variant}.html",
            averaged,
            runs.hierarchy,
            evaluate(averaged, runs.hierarchy),
            f"{variant}, {arch}, ensemble of seeds {seeds}",
            record={**record, "config": _common_config(by_seed)},
        )
        written.append(f"report-{arch}-{variant}.html")
    return written


def _folders(folder: Path) -> list[Path]:
    """Return all folders below that have a config.json; say which cannot be looked into."""
    walk = os.walk(folder, onerror=_leave_out)
    return sorted(Path(root) for root, _, names in walk if "config.json" in names)


def _leave_out(error: Exception) -> None:
    print(f"left out: {one_line(error)}", file=sys.stderr)


def _read(folder: Path) -> tuple[Hierarchy, dict, dict]:
    """Return the hierarchy, results and predictions of a finished run."""
    path = folder / "results.json"  # written last, after all that is read here
    try:
        results = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        finished = path.exists() and results["finished"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: {error!r}") from error
    if not finished:
        raise UserError(f"{folder} is not finished")
    try:
        config, seconds = results["config"], results["seconds"]
        missing = [name for name in TIMES if not 0 <= seconds.get(name, -1) < math.inf]
        known = config["variant"] in VARIANTS and config["train.epochs"] > 0
        text = config["model.arch"] + results["environment"]["devices"]
        if not (known and text and type(config["seed"]) is int):
            raise ValueError("variant, epochs or seed")
    except Exception as error:  # anything may be in a file that has been edited
        raise UserError(f"{folder}: results.json is damaged: {error!r}") from error
    if missing:
        raise UserError(
            f"{folder}: results.json does not say {', '.join(missing)}; run it with "
            "--mode=evaluate once"
        )
    hierarchy = Hierarchy.from_json(folder / "hierarchy.json")
    splits = predictions.load(folder / "predictions.npz", hierarchy)
    if "test" not in splits:
        raise UserError(f"{folder / 'predictions.npz'} has no test split")
    for name, split in splits.items():
        of_levels = list(split.labels.values())
        if not np.array_equal(hierarchy.labels(of_levels[-1]), of_levels):
            raise UserError(f"{folder / 'predictions.npz'}: {name} has labels of other parents")
    return hierarchy, results, splits


def _common_config(runs: dict) -> dict:
    """Return what the configs of some seeds have in common, which is all but the seed and paths."""
    common = None
    for folder, results, _ in runs.values():
        config = {
            field: value
            for field, value in results["config"].items()
            if field not in ("seed", "workdir", "data.dir") and not field.startswith("run.")
        }
        if common is None:
            first, common = folder, config
        differing = sorted(k for k in common | config if common.get(k) != config.get(k))
        if differing:
            raise UserError(
                f"{folder} and {first} cannot be one cell: {', '.join(differing)} differ"
            )
    return common
