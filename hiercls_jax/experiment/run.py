"""One run of an experiment, from its config to its report."""

import dataclasses
import json
import resource
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from hiercls_jax import experiment
from hiercls_jax.data.dataset import Dataset, Samples
from hiercls_jax.errors import UserError, preview
from hiercls_jax.evaluation import predictions
from hiercls_jax.evaluation.evaluate import adapted, evaluate
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import write_json
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.models.costs import Summary, format_table, merge_summaries, summarise
from hiercls_jax.report import figures, page
from hiercls_jax.report.terminal import describe_decisions, error_table
from hiercls_jax.runtime import malloc, parallel
from hiercls_jax.runtime.environment import environment
from hiercls_jax.training import tracking
from hiercls_jax.training.checkpoint import Progress
from hiercls_jax.training.loop import newest, train
from hiercls_jax.training.split_predictor import SplitPredictor
from hiercls_jax.training.state import State, create
from hiercls_jax.training.tracking import format_duration

T = TypeVar("T")
OUTPUTS = (  # results.json is written last: if it is there, the others are
    "predictions.npz", "hierarchy.json", "alpha_curve.png", "alpha_curve.svg", "scatter.png",
    "scatter.svg", "report.html", "results.json",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Trained:
    """A trained network.

    Args:
      network: its architecture and its training.
      state: its parameters, on the host.
      progress: steps and seconds of its training.
    """

    network: experiment.Network
    state: State
    progress: Progress


def summary(config: ConfigDict) -> tuple[Summary, str]:
    """Return a config's parameters and multiply-adds, as a dict and as a table."""
    hierarchy = experiment.load_hierarchy(config)
    counts = merge_summaries(
        summarise(network, experiment.image_shape(config))
        for network in experiment.architectures(config, hierarchy).values()
    )
    return counts, format_table(counts)


def run(
    config: ConfigDict,
    resume: bool,
    command: Sequence[str],
    cluster: parallel.Cluster | None = None,
) -> None:
    """Train all networks to their end, predict validation and test, adapt, and write the report.

    Args:
      config: a checked config.
      resume: True to train, from the newest checkpoints on; False to take them as they are.
      command: the program's arguments, for the record.
      cluster: the processes that run this together, or None for this one alone. The first of them
        writes all files and prints all lines.
    """
    workdir = Path(config.workdir)
    _prepare_devices(config, cluster)
    if parallel.broadcast_bytes(lambda: _show_if_finished(workdir, config, resume)):
        return
    experiment.check_devices(config, parallel.device_count())
    data = experiment.load_data(config)
    if parallel.is_primary():
        print(_start_line(config, data), flush=True)
    networks = experiment.networks(config, data, parallel.AXIS)
    parallel.on_primary(lambda: claim_workdir(workdir, config))
    trained, training = _timed(lambda: [_trained(network, data, resume) for network in networks])
    (splits, test_prediction), prediction = _timed(lambda: predict(trained, data))
    if not parallel.is_primary():
        return
    predictions.save(workdir / "predictions.npz", splits)
    rule = config.adapt.rule
    results, evaluation = _timed(lambda: evaluate(splits, data.hierarchy, rule))
    _, adaptation = _timed(  # again, as the first time compiles
        lambda: adapted(splits["test"], data.hierarchy, results["alpha"], rule)
    )
    seconds = {
        "this_process": training,
        "prediction": prediction,
        "adaptation_and_curve": evaluation,
        "test_prediction": test_prediction,  # compiled before if there is a validation split
        "test_adaptation": adaptation,
    }
    record = _record(config, command, trained, data, seconds) | results
    _write_report(config, data, trained, splits, results, record)
    print(f"\ntrained in {format_duration(record['seconds']['training'])}\n")
    print(error_table(results, data.hierarchy))
    print(describe_decisions(results))
    print(f"\nwrote to {workdir}: {', '.join(OUTPUTS)}")


def _prepare_devices(config: ConfigDict, cluster: parallel.Cluster | None) -> None:
    processes = (cluster.processes or 1) if cluster is not None else 1
    parallel.use_cpu_devices(config.train.batch, config.run.cpu_devices, processes)
    if cluster is not None:
        parallel.join(cluster)


def _show_if_finished(workdir: Path, config: ConfigDict, resume: bool) -> bytes:
    """Check the workdir; print the results and return a byte if its run is finished."""
    check_workdir(workdir, config)
    results = finished_results(workdir) if resume else None
    if results is None:
        return b""
    print(f"{workdir} is finished; its results:\n")
    print(error_table(results, Hierarchy.from_json(workdir / "hierarchy.json")))
    print("\nto train anew, as on images that were added since, choose another --config.workdir")
    return b"1"


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what `work` returns, and the seconds that it took."""
    began = time.monotonic()
    result = work()
    return result, time.monotonic() - began


def _trained(network: experiment.Network, data: Dataset, resume: bool) -> Trained:
    """Train a network, or read its newest checkpoint."""
    if resume:
        state, progress = train(
            network.name, network.task, network.key, data.train, data.validation, network.schedule,
            network.folder,
        )  # fmt: skip
        return Trained(network, state, progress)
    template = create(
        network.task.network, network.task.optimizer, network.key, data.train.image_shape
    )
    found = newest(network.folder, jax.device_get(template))
    if found is None:
        raise UserError(f"there is no checkpoint in {network.folder} to evaluate; train it first")
    return Trained(network, *found)


def predict(trained: Sequence[Trained], data: Dataset) -> tuple[dict[str, Predictions], float]:
    """Return every level's probabilities on validation (if any) and test, each image once.

    And the seconds that all networks took for the images of test.
    """
    splits: dict[str, Samples] = {"test": data.test}
    if data.validation is not None:
        splits = {"validation": data.validation, **splits}
    probs: dict[str, dict[str, np.ndarray]] = {name: {} for name in splits}
    test_seconds = 0.0
    for one in trained:
        predictor = SplitPredictor(one.network.task, one.network.schedule.batch)
        state = parallel.replicate(one.state)
        for name, split in splits.items():
            began = time.monotonic()
            probs[name] |= predictor(state, split)
        test_seconds += time.monotonic() - began  # test is the last split
    labels = {
        name: dict(zip(data.hierarchy.levels, data.hierarchy.labels(split.labels), strict=True))
        for name, split in splits.items()
    }
    return {
        name: Predictions(probs[name], labels[name], split.files) for name, split in splits.items()
    }, test_seconds


def _record(
    config: ConfigDict,
    command: Sequence[str],
    trained: Sequence[Trained],
    data: Dataset,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """Return what `results.json` says of a run besides its results."""
    task = trained[0].network.task
    parameters = [leaf for one in trained for leaf in jax.tree.leaves(one.state.params)]
    return {
        "command": shlex.join(["python", "-m", "hiercls_jax.main", *command]),
        "config": experiment.flatten(config),
        "parameters": sum(leaf.size for leaf in parameters),
        "input": {  # a predictor needs these facts about the training images
            "shape": list(data.train.image_shape),
            "mean": task.mean.tolist(),
            "std": task.std.tolist(),
        },
        "steps": {one.network.name: int(one.state.step) for one in trained},
        "peak_memory": _peak_memory(),
        "finished": all(
            int(one.state.step) == one.network.schedule.total_steps(len(data.train))
            for one in trained
        ),
        "seconds": {
            "training": sum(one.progress.seconds for one in trained),
            "training_cpu": sum(one.progress.cpu_seconds for one in trained),  # of all cores
            **seconds,
        },
        "environment": environment(),
    }


def _peak_memory() -> int:
    """Return the most bytes of memory that this process has had so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def _write_report(
    config: ConfigDict,
    data: Dataset,
    trained: Sequence[Trained],
    splits: dict[str, Predictions],
    results: dict[str, Any],
    record: Mapping[str, Any],
) -> None:
    """Write the hierarchy, the figures, the page and, at the end, `results.json`."""
    workdir = Path(config.workdir)
    title = f"{config.variant}, {config.model.arch}, {data.name}, seed {config.seed}"
    data.hierarchy.to_json(workdir / "hierarchy.json")
    figures.draw_run(workdir, results, splits["test"], data.hierarchy, title)
    page.write_results(
        workdir / "report.html",
        splits,
        data.hierarchy,
        results,
        title,
        images=lambda row: data.test.read(np.array([row]))[0],
        training={one.network.name: tracking.records(one.network.folder) for one in trained},
        record={key: value for key, value in record.items() if key not in (*results, "input")},
    )
    write_json(workdir / "results.json", record)


def finished_results(workdir: Path) -> dict[str, Any] | None:
    """Return what `results.json` holds if all outputs are there and all steps were taken."""
    if not all((workdir / name).exists() for name in OUTPUTS):
        return None
    try:
        results = json.loads((workdir / "results.json").read_text())
        return results if results["finished"] else None
    except (ValueError, KeyError, TypeError):  # damaged: it is written anew, from the checkpoint
        return None


def claim_workdir(workdir: Path, config: ConfigDict) -> None:
    """Make the folder and record the config there, after everything that can be rejected."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        write_json(workdir / "config.json", experiment.identity(config))
    except OSError as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}") from error


def check_workdir(workdir: Path, config: ConfigDict) -> None:
    """Reject a workdir that belongs to another config, or a path that is not a directory."""
    there = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not there.is_dir():
        raise UserError(
            f"workdir {workdir} cannot be used: {there} is not a folder; choose another "
            "--config.workdir"
        )
    path = workdir / "config.json"
    try:
        if not path.exists():
            return
        before = {**experiment.ADDED_LATER, **json.loads(path.read_text())}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"workdir {workdir} cannot be used: {error}") from error
    now = json.loads(json.dumps(experiment.identity(config)))
    differing = [
        f"{field}: {before.get(field)} there, {now.get(field)} here"
        for field in sorted(before.keys() | now.keys())
        if before.get(field) != now.get(field)
    ]
    if differing:
        raise UserError(
            f"workdir {workdir} holds a run of another config ({'; '.join(differing)}); choose "
            "another --config.workdir, or the same config"
        )


def _start_line(config: ConfigDict, data: Dataset) -> str:
    """Return the line that a run prints first, with a note if test images are missing."""
    validation = 0 if data.validation is None else len(data.validation)
    epochs = f"{config.train.epochs} epoch{'s' * (config.train.epochs > 1)}"
    return (
        f"{config.variant}: {config.model.arch} on {data.name}: {len(data.train):,} images to "
        f"train on, {validation:,} to tune alpha on, {len(data.test):,} to test on; "
        f"{epochs} on {parallel.describe_devices()}{_unused_cores(config)}{malloc.describe()}; "
        f"workdir {config.workdir}{_untested_classes(data)}"
    )


def _unused_cores(config: ConfigDict) -> str:
    """Return why a CPU has fewer devices than cores, if the batch is the reason; else nothing."""
    cores = parallel.cpu_cores()
    if parallel.on_accelerator() or config.run.cpu_devices or parallel.device_count() >= cores:
        return ""
    return f" (not {cores}: a batch of {config.train.batch} cannot be divided among them)"


def _untested_classes(data: Dataset) -> str:
    """Return a line about the classes of the last level that have no test images; else nothing."""
    names = data.hierarchy.names[-1]
    counts = np.bincount(data.test.labels, minlength=len(names))
    left_out = [name for name, count in zip(names, counts, strict=True) if not count]
    if not left_out:
        return ""
    return (
        f"\nnote: there are no test images of {len(left_out)} of {len(names)} classes: "
        f"{preview(left_out)}; no error is measured on them"
    )
