"""The training loop: resumable at any step, bit for bit."""

import contextlib
import dataclasses
import hashlib
import math
import signal
import time
from collections import deque
from pathlib import Path

import jax
import numpy as np
from jax import lax

from hiercls_jax.data.dataset import Samples
from hiercls_jax.errors import UserError
from hiercls_jax.runtime import parallel
from hiercls_jax.runtime.signals import StopRequest, exit_status
from hiercls_jax.training import checkpoint
from hiercls_jax.training.feed import (
    Order,
    fed,
    make_feed,
    padded_batches,
)
from hiercls_jax.training.state import State, create
from hiercls_jax.training.step import Task, make_predict_step, make_train_step
from hiercls_jax.training.tracking import NullTracker, Tracker, format_duration

LAG = 2  # steps between sending one and reading its metrics, so that the device never waits
SAVE = 1  # a request to save; greater ones are the numbers of the signals that ask to stop


class TrainingError(UserError):
    """Training that cannot go on."""


class Interrupted(Exception):
    """A signal asked for a stop, and the state has been saved; holds the process's exit status."""

    def __init__(self, signum: int, step: int):
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; saved")
        self.status = exit_status(signum)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train, on what order of the images, and how often to record and save.

    Args:
      epochs: passes over the training split.
      batch: images per step over all devices; an epoch's last partial batch is dropped.
      seed: integers that the order of every epoch is drawn from.
      log_every: steps between training records.
      save_minutes: minutes between checkpoints; one is also saved after every epoch.
    """

    epochs: int
    batch: int
    seed: tuple[int, ...]
    log_every: int
    save_minutes: float

    def steps_per_epoch(self, images: int) -> int:
        """Return the number of whole batches in `images`."""
        return images // self.batch

    def total_steps(self, images: int) -> int:
        """Return the number of steps of the whole schedule."""
        return self.epochs * self.steps_per_epoch(images)

    def order(self, images: int) -> Order:
        """Return which of so many images each step takes."""
        return Order(self.seed, images, self.batch, self.epochs)


def train(
    name: str,
    task: Task,
    key: jax.Array,
    train_split: Samples,
    validation: Samples | None,
    schedule: Schedule,
    folder: Path,
) -> tuple[State, dict]:
    """Train a network to the end of its schedule, from its newest checkpoint where there is one.

    Args:
      name: what progress lines call it.
      task: network, optimizer and constants.
      key: random key of the initial values.
      train_split: images to learn from.
      validation: images to evaluate after each epoch, or None.
      schedule: how long and in what order.
      folder: holds `checkpoints/`, `metrics.jsonl` and `tensorboard/`.

    Returns:
      (final state on the host, meta of its checkpoint: `step`, `seconds` on the clock and
      `cpu_seconds` of the first process's cores, both with compiling and validation, and
      `validation_error`).

    Raises:
      TrainingError: when a loss is not finite; nothing from after that step is saved. And where
        a checkpoint is of other images.
      Interrupted: after SIGTERM or SIGINT, when the state has been saved.
    """
    total = schedule.total_steps(len(train_split))
    initial = jax.device_get(create(task.network, task.optimizer, key, train_split.image_shape))
    fresh = {"step": 0, "seconds": 0.0, "cpu_seconds": 0.0, "validation_error": None, "sums": {}}
    state, meta = newest(folder, initial, (initial, fresh))
    if meta["step"] >= total:
        return state, meta
    # Older checkpoints do not say where in which images they go on.
    here = {"iterator": {"next_index": meta["step"]}, "images": _images_sum(task, train_split)}
    meta = {**here, **meta}
    if {key: meta[key] for key in here} != here:
        raise TrainingError(
            f"the checkpoint of step {meta['step']} in {folder} does not go on in these images: it "
            "was trained on others, or in another order. Put back what was there, or choose "
            "another --config.workdir"
        )
    tracker = Tracker(folder, name, meta["step"], total) if parallel.is_primary() else NullTracker()
    if meta["step"]:
        tracker.say(f"{name}: resuming after step {meta['step']} of {total}")
    try:
        with StopRequest() as stop:
            run = _Run(name, task, state, meta, train_split, validation, schedule, folder, tracker)
            with contextlib.closing(run.batches):
                return run.to(total, stop)
    finally:
        tracker.close()


def newest(folder: Path, template: State, otherwise=None) -> tuple[State, dict] | None:
    """Return the newest whole checkpoint (state, meta) in `folder / "checkpoints"`, or `otherwise`.

    Process 0 reads it, and every process gets what process 0 has: only there is the folder, and
    initial values may differ in a bit between processors of different kinds.
    """
    found = parallel.broadcast_bytes(
        lambda: checkpoint.pack(checkpoint.restore(folder / "checkpoints", template) or otherwise)
    )
    return checkpoint.unpack(found, template)


def _images_sum(task: Task, samples: Samples) -> str:
    """Return a sum of all that is known of the images without reading them."""
    known = (samples.labels, task.mean, task.std)
    return hashlib.sha256(b"".join(array.tobytes() for array in known)).hexdigest()


def _carrying_requests(step):
    """Let a step carry each process's request to stop or save, and tell all of them the greatest.

    So that every process acts after the same step, whichever of them was signalled.
    """

    def carrying(state, batch):
        requests = batch.pop("request")
        state, metrics = step(state, batch)
        return state, {**metrics, "request": lax.pmax(requests, parallel.AXIS)}

    return carrying


class _Run:
    """One process's part of a training run: what is on the devices, in flight, and unwritten."""

    def __init__(self, name, task, state, meta, train_split, validation, schedule, folder, tracker):
        self.name, self.task, self.schedule = name, task, schedule
        self.folder, self.tracker, self.validation = folder, tracker, validation
        self.images = len(train_split)
        self.state = parallel.replicate(state)
        self.step, self.meta = meta["step"], dict(meta)
        self.requested = 0  # the greatest request that has come back with a step
        feed = make_feed(train_split, resident=parallel.on_accelerator())
        self.batches = feed(schedule.order(self.images))
        self.batches.set_state(meta["iterator"])
        self.take = parallel.pmap(_carrying_requests(fed(make_train_step(task))), donate=True)
        self.predictor = None if validation is None else SplitPredictor(task, schedule.batch)
        self.in_flight = deque()
        self.sums = dict(meta["sums"])  # of the record that is being filled
        self.began = self.saved = time.monotonic()
        self.cpu_began = time.process_time()
        self.booked = []  # times of this process's first steps, for the estimate
        self.line_start = None  # (time, step) that images per second are counted from

    def to(self, total: int, stop: StopRequest) -> tuple[State, dict]:
        per_epoch = self.schedule.steps_per_epoch(self.images)
        while self.step < total:
            batch = next(self.batches)
            batch["request"] = parallel.per_device(self._request(stop))
            self.state, metrics = self.take(self.state, batch)
            self.step += 1
            self.in_flight.append((self.step, metrics))
            if len(self.in_flight) > LAG:
                self._book(total, per_epoch)
            ended = self.step % per_epoch == 0
            if ended:
                self._validate(total, per_epoch)
            if ended or self.requested:
                self._save(total, per_epoch)
            self._stop_if(self.requested)
        self._stop_if(parallel.max_over_processes(stop.signum))
        return self._host_state(), self.meta

    def _request(self, stop: StopRequest) -> int:
        """Return the signal that asks this process to stop, or SAVE if it is time, or 0."""
        due = time.monotonic() - self.saved > 60 * self.schedule.save_minutes
        return stop.signum or (SAVE if due else 0)

    def _stop_if(self, request: int) -> None:
        if request > SAVE:
            raise Interrupted(request, self.step)

    def _book(self, total: int, per_epoch: int) -> None:
        """Read the oldest step in flight; write a record where one is full."""
        step, metrics = self.in_flight.popleft()
        metrics = {key: value.item() for key, value in parallel.unreplicate(metrics).items()}
        self.requested = max(self.requested, metrics.pop("request"))
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{key.replace('_', ' of level ', 1)} is {value} at step {step}; nothing from "
                    f"after the last checkpoint is kept. Lower optimizer.learning_rate "
                    "in a new workdir"
                )
            self.sums[key] = self.sums.get(key, 0) + value
        self.tracker.advance()
        self._estimate(total, step)
        if step % self.schedule.log_every == 0 or step % per_epoch == 0:
            count = self.sums["count"]
            record = {"step": step, "epoch": step / per_epoch, "split": "train"}
            for key, value in self.sums.items():
                if key != "count":
                    record[key.replace("errors", "error")] = value / count
            now = time.monotonic()
            if self.line_start is not None and now > self.line_start[0]:  # a clock may stand still
                images = (step - self.line_start[1]) * self.schedule.batch
                record["images_per_second"] = images / (now - self.line_start[0])
            self.line_start, self.sums = (now, step), {}
            self.tracker.write(record)

    def _estimate(self, total: int, step: int) -> None:
        if len(self.booked) > 5:
            return
        self.booked.append(time.monotonic())
        if len(self.booked) == 6 and self.booked[5] > self.booked[1]:
            rate = 4 * self.schedule.batch / (self.booked[5] - self.booked[1])
            seconds = (total - step) * self.schedule.batch / rate
            self.tracker.say(
                f"{self.name}: {total - step} steps of {self.schedule.batch} images to go, "
                f"{rate:.0f} images/s on {parallel.describe_devices()}: about "
                f"{format_duration(seconds)}"
            )

    def _drain(self, total: int, per_epoch: int) -> None:
        while self.in_flight:
            self._book(total, per_epoch)

    def _validate(self, total: int, per_epoch: int) -> None:
        self._drain(total, per_epoch)
        if self.validation is None:
            return
        probabilities = self.predictor(self.state, self.validation)
        record = {"step": self.step, "epoch": self.step / per_epoch, "split": "validation"}
        for level, p in probabilities.items():
            labels = self.task.ancestors[level][self.validation.labels]
            record[f"error_{level}"] = float(np.mean(np.argmax(p, axis=-1) != labels))
        # Best is by the finest level this network predicts.
        self.meta["validation_error"] = record[f"error_{list(probabilities)[-1]}"]
        self.tracker.write(record)

    def _save(self, total: int, per_epoch: int) -> None:
        self._drain(total, per_epoch)
        self.tracker.flush()
        if self.step % per_epoch:
            self.meta["validation_error"] = None
        now = time.monotonic()
        self.meta.update(step=self.step, sums=self.sums, iterator=self.batches.get_state())
        self.meta["seconds"] += now - self.began
        # Older checkpoints do not say; such a run counts from where it goes on.
        cpu_seconds = self.meta.get("cpu_seconds", 0.0) + time.process_time() - self.cpu_began
        self.meta["cpu_seconds"] = cpu_seconds
        state = self._host_state()
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
            raise TrainingError(
                f"the parameters are not finite after step {self.step}, though the loss was; "
                "nothing from after the last checkpoint is kept. Lower optimizer.learning_rate in "
                "a new workdir"
            )
        parallel.on_primary(lambda: checkpoint.save(self.folder / "checkpoints", state, self.meta))
        self.began = self.saved = time.monotonic()
        self.cpu_began = time.process_time()
        self.requested = self.requested if self.requested > SAVE else 0
        self.line_start = time.monotonic(), self.step

    def _host_state(self) -> State:
        return parallel.unreplicate(self.state)


class SplitPredictor:
    """Predicts every image of a split exactly once, whatever the batch; compiles once."""

    def __init__(self, task: Task, batch: int):
        self._step = parallel.pmap(fed(make_predict_step(task)))
        self._batch = batch
        # In this order, coarsest first; JAX sorts the names in what a step returns.
        self._levels = [level for level, _ in task.network.heads]

    def __call__(self, replicated: State, split: Samples) -> dict[str, np.ndarray]:
        """Return probabilities float32 `[N, classes]` by level name, in the order of `split`."""
        plan, counts = zip(*padded_batches(len(split), self._batch), strict=True)
        parts = []
        with contextlib.closing(make_feed(split, resident=False)(plan)) as batches:
            for batch, count in zip(batches, counts, strict=True):
                positions, probs = parallel.unreplicate(self._step(replicated, batch))
                counted = np.argsort(positions)[:count]
                parts.append({level: p[counted] for level, p in probs.items()})
        result = {level: np.concatenate([part[level] for part in parts]) for level in self._levels}
        for level, p in result.items():
            assert len(p) == len(split), f"{level}: predicted {len(p)} of {len(split)} images"
        return result
