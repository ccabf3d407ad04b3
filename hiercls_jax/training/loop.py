"""The training loop: resumable at any step, bit for bit."""

import contextlib
import dataclasses
import functools
import hashlib
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from hiercls_jax.data.augment import standardise
from hiercls_jax.data.dataset import Samples
from hiercls_jax.runtime import parallel
from hiercls_jax.runtime.signals import StopRequest, exit_status
from hiercls_jax.training import checkpoint
from hiercls_jax.training.checkpoint import Progress
from hiercls_jax.training.feed import Order, fed, make_feed
from hiercls_jax.training.recorder import Recorder, TrainingError
from hiercls_jax.training.split_predictor import SplitPredictor
from hiercls_jax.training.state import State, create
from hiercls_jax.training.step import Task, make_train_step
from hiercls_jax.training.tracking import NullTracker, Tracker

CONSTANTS_FROM = 5000  # images; a whitening kernel is the same from more (Jordan, 2024)
LAG = 2  # steps between sending one and reading its metrics, so that the device never waits
SAVE = 1  # a request to save; a greater request is the number of the signal that asks to stop

TrainStep = Callable[[State, dict], tuple[State, dict]]


class Interrupted(Exception):
    """A signal asked the run to stop, and the state has been saved.

    Args:
      signum: the signal's number; `status` is the process's exit status.
      step: the last step taken.
    """

    def __init__(self, signum: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name} after step {step}; saved")
        self.status = exit_status(signum)


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How long to train, in which order of the images, and how often to record and save.

    Args:
      epochs: passes over the training split.
      batch: images per step over all devices; an epoch's last partial batch is dropped.
      seed: integers that the order of every epoch is drawn from.
      log_every: steps between training records.
      save_minutes: minutes between checkpoints; one is also saved after every epoch.
      sizes: (pixels, fraction of the run), in order: images are resized to so many pixels until
        that fraction of the steps is taken. Later steps have the images as they are.
    """

    epochs: int
    batch: int
    seed: tuple[int, ...]
    log_every: int
    save_minutes: float
    sizes: tuple[tuple[int, float], ...] = ()

    def order(self, images: int) -> Order:
        """Return the indices of the images that each step takes, in a split of so many images."""
        return Order(self.seed, images, self.batch, self.epochs)

    def total_steps(self, images: int) -> int:
        """Return the number of steps of the whole schedule."""
        return len(self.order(images))

    def size(self, step: int, images: int) -> int | None:
        """Return the pixels that images are resized to in a step; None if they are not resized."""
        done = step / self.total_steps(images)
        return next((pixels for pixels, until in self.sizes if done < until), None)

    def pixels(self, step: int, split: Samples) -> float:
        """Return how many pixels an image of a split has in a step."""
        height, width, _ = split.image_shape
        size = self.size(step, len(split))
        scale = 1.0 if size is None else size / min(height, width)
        return height * width * scale**2


def train(
    name: str,
    task: Task,
    key: jax.Array,
    train_split: Samples,
    validation: Samples | None,
    schedule: Schedule,
    folder: Path,
) -> tuple[State, Progress]:
    """Train a network to the end of its schedule, from its newest checkpoint if there is one.

    Args:
      name: the network's name in progress lines.
      task: network, optimizer and constants.
      key: random key of the initial values.
      train_split: images to learn from.
      validation: images to evaluate after each epoch, or None.
      schedule: how long and in what order.
      folder: holds `checkpoints/`, `metrics.jsonl` and `tensorboard/`.

    Returns:
      The final state on the host, and the `Progress` of its checkpoint.

    Raises:
      TrainingError: if a loss is not finite, and then nothing after that step is saved; or if the
        newest checkpoint is of other images.
      Interrupted: after SIGTERM or SIGINT, when the state has been saved.
    """
    order = schedule.order(len(train_split))
    initial = jax.device_get(create(task.network, task.optimizer, key, train_split.image_shape))
    state, progress = newest(folder, initial) or _of_primary(
        _with_constants(initial, task, train_split)
    )
    if progress.step >= len(order):
        return state, progress
    position, digest = {"next_index": progress.step}, _digest(train_split, task)
    if progress.iterator not in (None, position) or progress.images not in (None, digest):
        raise TrainingError(
            f"the checkpoint of step {progress.step} in {folder} was trained on other images, or "
            "in another order; put its images back, or choose another --config.workdir"
        )
    progress.iterator, progress.images = position, digest
    tracker: Tracker | NullTracker = NullTracker()
    if parallel.is_primary():
        tracker = Tracker(folder, name, progress.step, len(order))
    if progress.step:
        tracker.say(f"{name}: resuming after step {progress.step} of {len(order)}")
    with contextlib.closing(tracker), StopRequest() as stop:
        recorder = Recorder(
            name, order, schedule.log_every, tracker, progress.sums, tuple(task.ancestors),
            functools.partial(schedule.pixels, split=train_split),
        )  # fmt: skip
        evaluate = None
        if validation is not None:
            evaluate = _make_evaluation(task, validation, schedule.batch)
        batches = make_feed(train_split, resident=parallel.on_accelerator())(order)
        batches.set_state(progress.iterator)
        with contextlib.closing(batches):
            saver = _Saver(folder / "checkpoints", schedule.save_minutes)
            size = functools.partial(schedule.size, images=len(train_split))
            run = _Run(task, order, size, batches, state, progress, recorder, saver, evaluate)
            return run.take_remaining_steps(stop)


def newest(folder: Path, template: State) -> tuple[State, Progress] | None:
    """Return the newest undamaged checkpoint in `folder / "checkpoints"`, or None if it has none.

    Process 0 reads it and sends it to the others, because only process 0 may have the folder.
    """

    def read() -> bytes:
        restored = checkpoint.restore(folder / "checkpoints", template)
        return b"" if restored is None else checkpoint.pack(*restored)

    packed = parallel.broadcast_bytes(read)
    return checkpoint.unpack(packed, template) if packed else None


def _with_constants(initial: State, task: Task, split: Samples) -> State:
    """Return the state with the constants of the data that the network's family computes, if any.

    They are computed from images that are spread evenly over the split.
    """
    family = task.network.family
    if not hasattr(family, "with_constants"):
        return initial
    count = min(len(split), CONSTANTS_FROM)
    images = split.read(np.linspace(0, len(split) - 1, count).astype(int))
    standardised = np.asarray(standardise(images, task.mean, task.std))
    batch_stats = family.with_constants(initial.batch_stats, standardised)
    return dataclasses.replace(initial, batch_stats=batch_stats)


def _of_primary(initial: State) -> tuple[State, Progress]:
    """Return process 0's initial state: between kinds of processors values may differ in a bit."""
    packed = parallel.broadcast_bytes(lambda: checkpoint.pack(initial, Progress()))
    return checkpoint.unpack(packed, initial)


def _digest(samples: Samples, task: Task) -> str:
    """Return a digest of all that is known of the images without reading them."""
    known = (samples.labels, task.mean, task.std)
    return hashlib.sha256(b"".join(array.tobytes() for array in known)).hexdigest()


def _with_request(step: TrainStep) -> TrainStep:
    """Let a step carry each process's request to stop or save, and return the greatest of all.

    So every process acts after the same step, whichever of them got the signal.

    The maximum over the devices waits for the loss, although it does not need it. Each device must
    take part in the same order in all exchanges between devices. XLA sees to that, but on CPUs not
    for a program that it reads from the compilation cache: with this one independent of those in
    a loop, two devices waited for each other for ever.
    """

    def step_with_request(state: State, batch: dict) -> tuple[State, dict]:
        request = batch.pop("request")
        state, metrics = step(state, batch)
        request = jnp.where(metrics["loss"] < -1, 0, request)  # a loss is not negative
        return state, {**metrics, "request": lax.pmax(request, parallel.AXIS)}

    return step_with_request


def _make_evaluation(task: Task, split: Samples, batch: int) -> Callable[[State], dict[str, float]]:
    """Return `evaluate(replicated state)`: the error rate on a split by level, coarsest first."""
    predictor = SplitPredictor(task, batch)

    def evaluate(replicated: State) -> dict[str, float]:
        return {
            level: float(np.mean(np.argmax(p, axis=-1) != task.ancestors[level][split.labels]))
            for level, p in predictor(replicated, split).items()
        }

    return evaluate


class _Run:
    """One process's part of a training run: the steps, and when to evaluate, save and stop.

    Args:
      task: network, optimizer and constants.
      order: the images of every step.
      size: returns the pixels that a step's images are resized to, or None.
      batches: their batches from the feed, from the next step on.
      state: after the last step, on the host.
      progress: of that step.
      recorder: gets the metrics of every step.
      saver: gets the state after every epoch and on request.
      evaluate: returns the validation error by level, or None without validation.
    """

    def __init__(
        self,
        task: Task,
        order: Order,
        size: Callable[[int], int | None],
        batches: grain.DatasetIterator,
        state: State,
        progress: Progress,
        recorder: Recorder,
        saver: "_Saver",
        evaluate: Callable[[State], dict[str, float]] | None,
    ) -> None:
        self._task, self._size = task, size
        self._train_steps: dict[int | None, TrainStep] = {}  # one program for each size of images
        self._order, self._batches = order, batches
        self._state, self._step = parallel.replicate(state), progress.step
        self._progress = progress  # of the last checkpoint, until it is saved anew
        self._recorder, self._saver, self._evaluate = recorder, saver, evaluate
        self._in_flight: deque[tuple[int, dict]] = deque()  # steps whose metrics are not read yet
        self._request = 0  # the greatest that has come back with a step

    def take_remaining_steps(self, stop: StopRequest) -> tuple[State, Progress]:
        """Take all remaining steps.

        Returns:
          The final state on the host, and the `Progress` of its checkpoint.

        Raises:
          Interrupted: if a process was asked to stop; the state is saved.
        """
        while self._step < len(self._order):
            batch = next(self._batches)
            request = stop.signum or (SAVE if self._saver.is_due() else 0)
            batch["request"] = parallel.per_device(request)
            train_step = self._train_step(self._size(self._step))
            self._state, metrics = train_step(self._state, batch)
            self._step += 1
            self._in_flight.append((self._step, metrics))
            if len(self._in_flight) > LAG:
                self._read_oldest_metrics()
            epoch_ends = self._step % self._order.steps_per_epoch == 0
            if epoch_ends:
                self._validate()
            if epoch_ends or self._request:
                self._save()
            self._stop_if_asked(self._request)
        self._stop_if_asked(parallel.max_over_processes(stop.signum))
        return parallel.unreplicate(self._state), self._progress

    def _train_step(self, size: int | None) -> TrainStep:
        if size not in self._train_steps:
            step = _with_request(fed(make_train_step(self._task, size)))
            self._train_steps[size] = parallel.pmap(step, donate=True)
        return self._train_steps[size]

    def _stop_if_asked(self, request: int) -> None:
        if request > SAVE:
            raise Interrupted(request, self._step)

    def _read_oldest_metrics(self) -> None:
        step, on_devices = self._in_flight.popleft()
        metrics = {key: value.item() for key, value in parallel.unreplicate(on_devices).items()}
        self._request = max(self._request, metrics.pop("request"))
        self._recorder.add(step, metrics)

    def _read_all_metrics(self) -> None:
        while self._in_flight:
            self._read_oldest_metrics()

    def _validate(self) -> None:
        self._read_all_metrics()
        if self._evaluate is not None:
            errors = self._evaluate(self._state)
            self._recorder.write_validation(self._step, errors)
            self._progress.validation_error = list(errors.values())[-1]  # at the finest level

    def _save(self) -> None:
        self._read_all_metrics()
        self._recorder.flush()
        progress = self._progress
        if self._step % self._order.steps_per_epoch:
            progress.validation_error = None
        progress.step, progress.sums = self._step, self._recorder.sums
        progress.iterator = self._batches.get_state()
        self._saver.save(parallel.unreplicate(self._state), progress)
        if self._request == SAVE:
            self._request = 0
        self._recorder.skip_pause(self._step)


class _Saver:
    """Saves checkpoints, knows when the next one is due, and counts the seconds of training.

    Args:
      folder: of the checkpoints.
      minutes: between two of them.
    """

    def __init__(self, folder: Path, minutes: float) -> None:
        self._folder, self._seconds = folder, 60 * minutes
        self._start_clocks()

    def is_due(self) -> bool:
        """Return whether the last checkpoint, or the start, is longer ago than `minutes`."""
        return time.monotonic() - self._began > self._seconds

    def save(self, state: State, progress: Progress) -> None:
        """Save a host state; `progress` gets the seconds since the last checkpoint.

        Raises:
          TrainingError: if a value of the state is not finite.
        """
        progress.seconds += time.monotonic() - self._began
        progress.cpu_seconds += time.process_time() - self._cpu_began
        if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
            raise TrainingError(
                f"the parameters are not finite after step {progress.step}, though the loss was; "
                "all steps after the last checkpoint are dropped. Lower optimizer.learning_rate, "
                "in a new workdir"
            )
        parallel.on_primary(lambda: checkpoint.save(self._folder, state, progress))
        self._start_clocks()

    def _start_clocks(self) -> None:
        self._began, self._cpu_began = time.monotonic(), time.process_time()
