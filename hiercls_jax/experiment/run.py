"""One run of an experiment, from its config to its report: what `main` calls."""

import json
import shlex
import time
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from hiercls_jax import experiment
from hiercls_jax.data.dataset import Dataset, Samples
from hiercls_jax.errors import UserError, preview
from hiercls_jax.evaluation import predictions
from hiercls_jax.evaluation.evaluate import adapted, evaluate
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.models.costs import format_table, merge_summaries, summarise
from hiercls_jax.report import figures, page
from hiercls_jax.report.terminal import error_table
from hiercls_jax.runtime import huge_pages, parallel
from hiercls_jax.runtime.environment import environment
from hiercls_jax.training import tracking
from hiercls_jax.training.loop import SplitPredictor, newest, train
from hiercls_jax.training.state import State, create
from hiercls_jax.training.tracking import format_duration

OUTPUTS = (  # results.json is written last: where it is, the others are
    "predictions.npz", "hierarchy.json", "alpha_curve.png", "alpha_curve.svg", "scatter.png",
    "scatter.svg", "report.html", "results.json",
)  # fmt: skip


def summary(config: ConfigDict) -> tuple[dict, str]:
    """Return a config's parameters and multiply-adds, as a dict and as a table."""
    hierarchy = experiment.load_hierarchy(config)
    counts = merge_summaries(
        summarise(network, experiment.image_shape(config))
        for network in experiment.architectures(config, hierarchy).values()
    )
    return counts, format_table(counts)


def run(
    config: ConfigDict, train: bool, command: list[str], cluster: parallel.Cluster | None = None
) -> None:
    """Train what is not trained yet, predict validation and test, adapt, and write the report.

    Args:
      config: a checked config.
      train: False to take the newest checkpoints as they are.
      command: the program's arguments, for the record.
      cluster: the processes that run this together, or None for this one alone. The first of them
        writes all files and all lines.
    """
    workdir = Path(config.workdir)
    processes = (cluster.processes or 1) if cluster is not None else 1
    parallel.use_cpu_devices(config.train.batch, config.run.cpu_devices, processes)
    if cluster is not None:
        parallel.join(cluster)
    if parallel.on_primary(lambda: _finished(workdir, config, train)):
        return
    experiment.check_devices(config, parallel.device_count())
    data = experiment.load_data(config)
    if parallel.is_primary():
        print(_start_line(config, data), flush=True)
    networks = experiment.networks(config, data, parallel.AXIS)
    parallel.on_primary(lambda: claim_workdir(workdir, config) or b"")
    states, metas, began = {}, [], time.monotonic()
    for network in networks:
        states[network.name], meta = _trained(network, data, train)
        metas.append(meta)
    trained_at = time.monotonic()

    splits, test_seconds = predict(networks, states, data)
    if not parallel.is_primary():
        return
    predictions.save(workdir / "predictions.npz", splits)
    predicted_at = time.monotonic()
    results = evaluate(splits, data.hierarchy)
    adapted_at = time.monotonic()
    adapted(splits["test"], data.hierarchy, results["alpha"])  # compiled by now
    adaptation_seconds = time.monotonic() - adapted_at
    record = {
        "command": shlex.join(["python", "-m", "hiercls_jax.main", *command]),
        "config": experiment.flatten(config),
        "parameters": sum(leaf.size for state in states.values() for leaf in _leaves(state)),
        "input": {  # what a predictor needs to know of the images that the networks learned from
            "shape": list(data.train.image_shape),
            "mean": networks[0].task.mean.tolist(),
            "std": networks[0].task.std.tolist(),
        },
        "steps": {name: int(state.step) for name, state in states.items()},
        "finished": all(
            int(states[n.name].step) == n.schedule.total_steps(len(data.train)) for n in networks
        ),
        "seconds": {
            "training": sum(meta["seconds"] for meta in metas),
            "training_cpu": sum(meta.get("cpu_seconds", 0.0) for meta in metas),  # of all cores
            "this_process": trained_at - began,
            "prediction": predicted_at - trained_at,
            "adaptation_and_curve": adapted_at - predicted_at,
            "test_prediction": test_seconds,  # where validation was predicted before: compiled
            "test_adaptation": adaptation_seconds,
        },
        "environment": environment(),
        **results,
    }
    data.hierarchy.to_json(workdir / "hierarchy.json")
    title = f"{config.variant}, {config.model.arch}, {data.name}, seed {config.seed}"
    figures.draw_run(workdir, results, splits["test"], data.hierarchy, title)
    page.write_results(
        workdir / "report.html",
        splits,
        data.hierarchy,
        results,
        title,
        images=lambda row: data.test.read(np.array([row]))[0],
        training={network.name: tracking.records(network.folder) for network in networks},
        record={key: value for key, value in record.items() if key not in (*results, "input")},
    )
    _write_json(workdir / "results.json", record)
    print(f"\ntrained in {format_duration(record['seconds']['training'])}\n")
    print(error_table(results, data.hierarchy))
    print(f"\nwrote to {workdir}: {', '.join(OUTPUTS)}")


def _finished(workdir: Path, config: ConfigDict, train: bool) -> bytes:
    """Open the workdir; where its run is finished, print the results and return something."""
    check_workdir(workdir, config)
    results = finished_results(workdir) if train else None
    if results is None:
        return b""
    print(f"{workdir} is finished; its results:\n")
    print(error_table(results, Hierarchy.from_json(workdir / "hierarchy.json")))
    print("\nto train anew, as on images that were added since, choose another --config.workdir")
    return b"finished"


def finished_results(workdir: Path) -> dict | None:
    """Return what `results.json` says, where all outputs are there and all steps were taken."""
    if not all((workdir / name).exists() for name in OUTPUTS):
        return None
    try:
        results = json.loads((workdir / "results.json").read_text())
        return results if results["finished"] else None
    except (ValueError, KeyError, TypeError):  # damaged: it is written anew, from the checkpoint
        return None


def predict(
    networks, states: dict[str, State], data: Dataset
) -> tuple[dict[str, Predictions], float]:
    """Return every level's probabilities on validation (if any) and test, each image once.

    And the seconds that all networks took for the images of test.
    """
    splits: dict[str, Samples] = {"test": data.test}
    if data.validation is not None:
        splits = {"validation": data.validation, **splits}
    probs, test_seconds = {name: {} for name in splits}, 0.0
    for network in networks:
        predictor = SplitPredictor(network.task, network.schedule.batch)
        state = parallel.replicate(states[network.name])
        for name, split in splits.items():
            began = time.monotonic()
            probs[name] |= predictor(state, split)
        test_seconds += time.monotonic() - began
    labels = {
        name: dict(zip(data.hierarchy.levels, data.hierarchy.labels(split.labels), strict=True))
        for name, split in splits.items()
    }
    return {
        name: Predictions(probs[name], labels[name], split.files) for name, split in splits.items()
    }, test_seconds


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Make the folder and record the config there, once all that can be refused is past."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_json(workdir / "config.json", experiment.identity(config))
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}") from error


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Refuse the folder of another config, and what is no folder."""
    identity = experiment.identity(config)
    path = workdir / "config.json"
    there = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(
            f"workdir {workdir} cannot be used: {there} is not a folder; choose another "
            "--config.workdir"
        )
    try:
        if not path.exists():
            return
        before = {"dtype": "float32", **json.loads(path.read_text())}  # older runs do not say
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}") from error
    now = json.loads(json.dumps(identity))
    differing = [
        key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)
    ]
    if differing:
        fields = [f"{key}: {before.get(key)} there, {now.get(key)} here" for key in differing]
        raise UserError(
            f"workdir {workdir} holds a run of another config ({'; '.join(fields)}); choose "
            "another --config.workdir, or the same config"
        )


def _trained(network: experiment.Network, data: Dataset, resume: bool) -> tuple[State, dict]:
    if resume:
        return train(
            network.name, network.task, network.key, data.train, data.validation, network.schedule,
            network.folder,
        )  # fmt: skip
    template = create(
        network.task.network, network.task.optimizer, network.key, data.train.image_shape
    )
    found = newest(network.folder, jax.device_get(template))
    if found is None:
        raise UserError(f"there is no checkpoint in {network.folder} to evaluate; train it first")
    return found


def _start_line(config: ConfigDict, data: Dataset) -> str:
    validation = 0 if data.validation is None else len(data.validation)
    epochs = f"{config.train.epochs} epoch{'s' * (config.train.epochs > 1)}"
    pages = " with huge pages" if huge_pages.in_use() else ""
    return (
        f"{config.variant}: {config.model.arch} on {data.name}: {len(data.train):,} images to "
        f"train on, {validation:,} to tune alpha on, {len(data.test):,} to test on; "
        f"{epochs} on {parallel.describe_devices()}{_fewer_devices(config)}{pages}; "
        f"workdir {config.workdir}{_untested(data)}"
    )


def _fewer_devices(config: ConfigDict) -> str:
    """Return why a CPU has not a device for each core, where the batch is why; else nothing."""
    cores = parallel.cpu_cores()
    if parallel.on_accelerator() or config.run.cpu_devices or parallel.device_count() >= cores:
        return ""
    return f" (not {cores}: a batch of {config.train.batch} cannot be divided among them)"


def _untested(data: Dataset) -> str:
    """Return a line about the classes of the last level without test images; else nothing."""
    names = data.hierarchy.names[-1]
    counts = np.bincount(data.test.labels, minlength=len(names))
    left_out = [name for name, count in zip(names, counts, strict=True) if not count]
    if not left_out:
        return ""
    return (
        f"\nnote: there are no test images of {len(left_out)} of {len(names)} classes: "
        f"{preview(left_out)}; no error is measured on them"
    )


def _leaves(state: State):
    return jax.tree.leaves(state.params)


def _write_json(path: Path, value) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
