"""Finished runs: found in folders, checked, summarised, and shown on a page for each ensemble."""

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from hiercls_jax import experiment
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation import predictions
from hiercls_jax.evaluation.evaluate import evaluate
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.models.costs import merge_summaries
from hiercls_jax.models.costs import summarise as count
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.report import page
from hiercls_jax.study import ensembles
from hiercls_jax.study.summary import Cell, Key, Summary, alpha_grid, check_one_rule, summarise

TIMES = ("training", "training_cpu", "test_prediction", "test_adaptation")


@dataclasses.dataclass(frozen=True, eq=False)
class FinishedRun:
    """One finished run.

    Args:
      folder: its work folder.
      results: of its `results.json`.
      splits: its predictions of `test` and, if images were held out, of `validation`.
    """

    folder: Path
    results: dict[str, Any]
    splits: dict[str, Predictions]


@dataclasses.dataclass(frozen=True, eq=False)
class Runs:
    """Finished runs with the same test images.

    Args:
      hierarchy: of all of them.
      labels: integer `[N]`, last-level labels of the test images.
      cells: the runs by network and variant, then by seed.
    """

    hierarchy: Hierarchy
    labels: np.ndarray
    cells: dict[Key, dict[int, FinishedRun]]


def find_runs(folder: Path, leave_out: Callable[[Exception], None]) -> Runs:
    """Read all finished runs below a folder.

    Args:
      folder: runs are in its subfolders, at any depth, or it is a run itself.
      leave_out: called with the reason for each run that is not finished or is damaged, and for
        each folder that cannot be read.

    Raises:
      UserError: if no run is left, two runs are the same, or runs cannot be compared.
    """
    cells: dict[Key, dict[int, FinishedRun]] = {}
    common: tuple[Hierarchy, np.ndarray] | None = None
    walk = os.walk(folder, onerror=leave_out)
    for path in sorted(Path(root) for root, _, names in walk if "config.json" in names):
        try:
            hierarchy, run = read_run(path)
        except (UserError, OSError) as error:
            leave_out(error)
            continue
        config = run.results["config"]
        key, seed = (config["model.arch"], config["variant"]), config["seed"]
        by_seed = cells.setdefault(key, {})
        if seed in by_seed:
            raise UserError(
                f"{path} and {by_seed[seed].folder} are the same run: {' '.join(key)}, seed {seed}"
            )
        labels = run.splits["test"].labels[hierarchy.levels[-1]]
        common = common or (hierarchy, labels)
        if hierarchy != common[0] or not np.array_equal(labels, common[1]):
            raise UserError(
                f"{path} has another hierarchy or other test images than the runs before it"
            )
        by_seed[seed] = run
    if common is None:
        raise UserError(f"{folder} holds no finished run; train some: python -m hiercls_jax grid")
    return Runs(*common, cells)


def read_run(folder: Path) -> tuple[Hierarchy, FinishedRun]:
    """Read and check the hierarchy, results and predictions of a finished run.

    Raises:
      UserError: if the run is not finished, or a file is missing or damaged.
    """
    path = folder / "results.json"  # written after all other files that are read here
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
        known = known and config.get("adapt.rule", "kl") in RULES
        if not (known and text and type(config["seed"]) is int):
            raise ValueError("variant, epochs, rule or seed")
    except Exception as error:  # an edited file may have anything in it
        raise UserError(f"{folder}: results.json is damaged: {error!r}") from error
    if missing:
        raise UserError(
            f"{folder}: results.json does not have the seconds of {', '.join(missing)}; run it "
            "with --mode=evaluate once"
        )
    hierarchy = Hierarchy.from_json(folder / "hierarchy.json")
    splits = predictions.load(folder / "predictions.npz", hierarchy)
    if "test" not in splits:
        raise UserError(f"{folder / 'predictions.npz'} has no test split")
    for name, split in splits.items():
        labels = list(split.labels.values())
        if not np.array_equal(hierarchy.labels(labels[-1]), labels):
            raise UserError(
                f"{folder / 'predictions.npz'}: labels of {name} contradict the hierarchy"
            )
    return hierarchy, FinishedRun(folder, results, splits)


def summarise_runs(runs: Runs, done: Callable[[Cell], None]) -> Summary:
    """Return the summary of some runs.

    Args:
      runs: of one data set.
      done: called with each cell when it is complete.

    Raises:
      UserError: if seeds of one variant have different configs, or runs have different rules.
    """
    cells: dict[Key, Cell] = {}
    for key, by_seed in runs.cells.items():
        config = common_config(by_seed)
        results = [by_seed[seed].results for seed in sorted(by_seed)]
        splits = {seed: run.splits for seed, run in by_seed.items()}
        costs = _costs(config, runs.hierarchy, results)
        cells[key] = summarise(*key, splits, runs.hierarchy, config, costs)
        check_one_rule(cells.values())
        done(cells[key])
    alphas = alpha_grid(runs.hierarchy, RULES[next(iter(cells.values())).rule])
    return Summary(runs.hierarchy, runs.labels, alphas, cells)


def _costs(
    config: dict[str, Any], hierarchy: Hierarchy, results: list[dict[str, Any]]
) -> dict[str, list[float]]:
    """Return the costs of a cell by name, a number for each of its runs."""
    whole = experiment.unflatten(config)
    counts = merge_summaries(
        count(network, experiment.image_shape(whole))
        for network in experiment.architectures(whole, hierarchy).values()
    )
    return {
        "parameters": [counts["parameters"]] * len(results),
        "multiply_adds": [counts["multiply_adds"]] * len(results),
        "epochs": [config["train.epochs"]] * len(results),
        "on_cpu": ["cpu" in of["environment"]["devices"] for of in results],
        **{name: [of["seconds"][name] for of in results] for name in TIMES},
    }


def write_pages(folder: Path, runs: Runs, record: Mapping[str, Any]) -> list[str]:
    """Write a page for each variant: the ensemble of all its seeds. Return the files' names.

    Args:
      folder: to write to.
      runs: of all variants.
      record: the command and the environment, to be shown on each page beside the config.
    """
    written = []
    for (arch, variant), by_seed in runs.cells.items():
        every = [run.splits for run in by_seed.values()]
        averaged = {split: ensembles.average([of[split] for of in every]) for split in every[0]}
        config = common_config(by_seed)
        results = evaluate(averaged, runs.hierarchy, config.get("adapt.rule", "kl"))
        seeds = ", ".join(map(str, sorted(by_seed)))
        page.write_results(
            folder / f"report-{arch}-{variant}.html",
            averaged,
            runs.hierarchy,
            results,
            f"{variant}, {arch}, ensemble of seeds {seeds}",
            record={**record, "config": config},
        )
        written.append(f"report-{arch}-{variant}.html")
    return written


def common_config(by_seed: Mapping[int, FinishedRun]) -> dict[str, Any]:
    """Return the config fields that some seeds share: all but the seed and those of the machine.

    A field that an older run did not record counts as the value that it used, so the seeds of one
    variant may be trained by different versions.

    Raises:
      UserError: if another field differs.
    """
    first, *others = by_seed.values()
    common = _comparable(first)
    known = {**experiment.ADDED_LATER, **common}
    for run in others:
        config = {**experiment.ADDED_LATER, **_comparable(run)}
        differing = sorted(k for k in known | config if known.get(k) != config.get(k))
        if differing:
            raise UserError(
                f"{run.folder} and {first.folder} cannot be one cell: {', '.join(differing)} differ"
            )
    return common


def _comparable(run: FinishedRun) -> dict[str, Any]:
    return {
        field: value
        for field, value in run.results["config"].items()
        if field not in ("seed", "workdir", "data.dir") and not field.startswith("run.")
    }
