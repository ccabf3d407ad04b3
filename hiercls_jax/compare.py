"""The compare command: figures, tables and the verdict on the paper's claims, from many runs.

    python -m hiercls_jax compare runs/grid-cpu
    python -m hiercls_jax compare results/cifar100-cpu/summary.npz --out=DIR
    python -m hiercls_jax compare part1/summary.npz runs/the-rest --out=all

Each argument is a folder with finished runs, however deep, or a summary.npz that an earlier
comparison has written. From the runs' predictions it distils summary.npz, and from that alone it
makes all else: comparison.md, the figures (SVG, PNG) and the tables (CSV, LaTeX). A run that is not
finished, or whose predictions are missing or damaged, is named and left out.

Exit status: 0 done; 1 an error that the last line explains; 2 a wrong command line.
"""

import math
import os
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from absl import flags

from hiercls_jax import experiment, run
from hiercls_jax.data.dataset import cache_folder
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation import comparison, predictions, summary
from hiercls_jax.evaluation.summary import Summary
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.models.summary import merge_summaries, summarise

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
        print(f"error: {error}; see python -m hiercls_jax compare --help", file=sys.stderr)
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
        _compare([Path(s) for s in sources], out)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _compare(sources: Sequence[Path], out: Path) -> None:
    parts = [distil(source) if source.is_dir() else summary.load(source) for source in sources]
    whole = summary.merge(parts)
    out.mkdir(parents=True, exist_ok=True)
    if len(sources) > 1 or sources[0].is_dir():
        summary.save(out / SUMMARY, whole)
        # What is shown is made from the file, so that it can be made from the file again.
        whole = summary.load(out / SUMMARY)
    written = comparison.write(out, whole)
    for cell in whole.cells.values():
        print(f"{cell.arch} {cell.variant}: seeds {', '.join(map(str, cell.seeds))}")
    print(f"wrote to {out}: {', '.join(written)}")


def distil(folder: Path) -> Summary:
    """Return the summary of all finished runs below a folder; say which are left out, and why.

    Raises:
      UserError: where no run is left, two runs are the same, or runs cannot be compared.
    """
    grouped, hierarchy, labels = defaultdict(dict), None, None
    for path in _runs(folder):
        try:
            found, results, splits = _read(path)
        except (UserError, OSError) as error:
            _leave_out(error)
            continue
        config = results["config"]
        key, seed = (config["model.arch"], config["variant"]), config["seed"]
        if seed in grouped[key]:
            raise UserError(
                f"{path} and {grouped[key][seed][0]} are the same run: {' '.join(key)}, seed {seed}"
            )
        of_test = splits["test"].labels[found.levels[-1]]
        hierarchy, labels = (found, of_test) if hierarchy is None else (hierarchy, labels)
        if found != hierarchy or not (labels.shape == of_test.shape and (labels == of_test).all()):
            raise UserError(
                f"{path} has another hierarchy or other test images than the runs before it"
            )
        grouped[key][seed] = path, results, splits
    if hierarchy is None:
        raise UserError(f"{folder} holds no finished run; train some: python -m hiercls_jax grid")
    cells = {}
    for key, runs in grouped.items():
        config = _common_config(runs)
        unflattened = experiment.unflatten(config)
        counts = merge_summaries(
            summarise(network, experiment.image_shape(unflattened))
            for network in experiment.architectures(unflattened, hierarchy).values()
        )
        costs = {
            "parameters": [counts["parameters"]] * len(runs),
            "multiply_adds": [counts["multiply_adds"]] * len(runs),
            "epochs": [config["train.epochs"]] * len(runs),
            "on_cpu": ["cpu" in runs[s][1]["environment"]["devices"] for s in sorted(runs)],
            **{name: [runs[s][1]["seconds"][name] for s in sorted(runs)] for name in TIMES},
        }
        cells[key] = summary.distil(
            *key, {seed: splits for seed, (_, _, splits) in runs.items()}, hierarchy, config, costs
        )
        print(f"distilled {' '.join(key)}: {len(runs)} runs", flush=True)
    return Summary(hierarchy, labels, summary.alpha_grid(hierarchy), cells)


def _runs(folder: Path) -> list[Path]:
    """Return all folders below that have a config.json; say which cannot be looked into."""
    walk = os.walk(folder, onerror=_leave_out)
    return sorted(Path(root) for root, _, names in walk if "config.json" in names)


def _leave_out(error: Exception) -> None:
    print(f"left out: {error}", file=sys.stderr)


def _read(folder: Path) -> tuple[Hierarchy, dict, dict]:
    """Return the hierarchy, results and predictions of a finished run."""
    results = run.finished_results(folder)
    if results is None:
        raise UserError(f"{folder} is not finished")
    try:
        config, seconds = results["config"], results["seconds"]
        missing = [name for name in TIMES if not 0 <= seconds.get(name, -1) < math.inf]
        known = config["variant"] in experiment.VARIANTS and config["train.epochs"] > 0
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
