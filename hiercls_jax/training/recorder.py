"""Sums of the steps' metrics, their records, and an estimate of the time left."""

import math
import time
from collections.abc import Callable, Sequence

from hiercls_jax.errors import UserError
from hiercls_jax.runtime import parallel
from hiercls_jax.training.feed import Order
from hiercls_jax.training.tracking import NullTracker, Tracker, format_duration

TIMED_STEPS = 6  # steps after which the time left is estimated; the first one compiles


class TrainingError(UserError):
    """Training cannot go on: a number is not finite, or the checkpoint is of other images."""


class Recorder:
    """Sums the metrics of the steps and writes a record every so many steps.

    Args:
      name: the network's name in progress lines.
      order: the images of every step.
      every: steps between records; one is also written at the end of every epoch.
      tracker: where to write.
      sums: metrics of the steps since the last record.
      levels: names of the levels, in whose order a record names them.
      pixels: returns how many pixels an image has in a step, as the time of a step grows with them;
        None if it is the same in all.
    """

    def __init__(
        self,
        name: str,
        order: Order,
        every: int,
        tracker: Tracker | NullTracker,
        sums: dict[str, float],
        levels: Sequence[str] = (),
        pixels: Callable[[int], float] | None = None,
    ) -> None:
        self._pixels = pixels or (lambda step: 1)
        self.sums = dict(sums)
        self._levels = tuple(levels)
        self._name, self._order, self._every, self._tracker = name, order, every, tracker
        self._times: list[float] = []  # when the first steps of this process ended
        self._counted_from: tuple[float, int] | None = None  # (time, step), for images per second

    def add(self, step: int, metrics: dict[str, float]) -> None:
        """Add a step's metrics; write a record if it is time.

        Raises:
          TrainingError: if one is not finite.
        """
        for key, value in metrics.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"{key.replace('_', ' of level ', 1)} is {value} at step {step}; all steps "
                    "after the last checkpoint are dropped. Lower optimizer.learning_rate, in a "
                    "new workdir"
                )
            self.sums[key] = self.sums.get(key, 0) + value
        self._tracker.advance()
        self._estimate_once(step)
        if step % self._every == 0 or step % self._order.steps_per_epoch == 0:
            self._write(step)

    def write_validation(self, step: int, errors: dict[str, float]) -> None:
        """Write the error rates of an evaluation, by level."""
        record = self._record(step, "validation")
        self._tracker.write(record | {f"error_{level}": e for level, e in errors.items()})

    def flush(self) -> None:
        """Put the records on disk."""
        self._tracker.flush()

    def skip_pause(self, step: int) -> None:
        """Leave out of images per second what happened between `step` and now."""
        self._counted_from = time.monotonic(), step

    def _write(self, step: int) -> None:
        """Write the averages since the last record, and begin the next."""
        record = self._record(step, "train")
        count = self.sums.pop("count")
        # A jitted step returns its metrics in alphabetical order.
        by_level = [f"{kind}_{level}" for kind in ("loss", "errors") for level in self._levels]
        ordered = [key for key in by_level if key in self.sums]
        for key in [*(key for key in self.sums if key not in ordered), *ordered]:
            record[key.replace("errors", "error")] = self.sums[key] / count
        now = time.monotonic()
        if self._counted_from is not None:
            began, first = self._counted_from
            if now > began:  # a clock may stand still
                images = (step - first) * self._order.batch
                record["images_per_second"] = images / (now - began)
        self._counted_from, self.sums = (now, step), {}
        self._tracker.write(record)

    def _record(self, step: int, split: str) -> dict[str, int | float | str]:
        return {"step": step, "epoch": step / self._order.steps_per_epoch, "split": split}

    def _estimate_once(self, step: int) -> None:
        """Say how long the rest will take, once a few steps after the compiled one are timed."""
        if len(self._times) == TIMED_STEPS:
            return
        self._times.append(time.monotonic())
        began, now = self._times[min(1, len(self._times) - 1)], self._times[-1]
        if len(self._times) == TIMED_STEPS and now > began:
            batch, left = self._order.batch, len(self._order) - step
            rate = (TIMED_STEPS - 2) * batch / (now - began)
            work = sum(map(self._pixels, range(step, len(self._order)))) / self._pixels(step - 1)
            self._tracker.say(
                f"{self._name}: {left} steps of {batch} images to go, {rate:.0f} images/s on "
                f"{parallel.describe_devices()}: about {format_duration(work * batch / rate)}"
            )
