"""The progress of a grid: a line per run, and on a terminal a bar with the time that is left."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from hiercls_jax import experiment
from hiercls_jax.experiment import run
from hiercls_jax.experiment.grid import PlannedRun
from hiercls_jax.models.costs import summarise
from hiercls_jax.training.tracking import format_duration


class Progress:
    """Prints what happens to the runs of a grid, and estimates the time that is left."""

    def __init__(self, runs: Sequence[PlannedRun]) -> None:
        self._runs = runs
        self._work = work(runs)
        self._done = {r.name: 1.0 if r.finished() else r.share_done() for r in runs}
        self._before, self._began = self._work_done(), time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=100, dynamic_ncols=True, leave=False, bar_format="{l_bar}{bar}|{postfix}"
            )

    def show(self, running: Sequence[PlannedRun]) -> None:
        """Read the records of the runs that are running, and move the bar."""
        for r in running:
            self._done[r.name] = r.share_done()
        if self._bar is not None:
            self._bar.n = 100 * self._work_done() / sum(self._work.values())
            parts = [f"{r.name} {100 * self._done[r.name]:.0f} %" for r in running]
            self._bar.set_postfix_str("; ".join([self._time_left(), *parts]))

    def finished(self, ended: PlannedRun) -> None:
        """Print the errors of a run that has finished."""
        results = run.finished_results(ended.workdir)
        assert results is not None, ended.name
        self._done[ended.name] = 1.0
        before, tuned = results["test_error"]["alpha=0"], results["test_error"]["tuned"]
        levels = ", ".join(
            f"{level} {100 * before[level]:.2f} → {100 * tuned[level]:.2f} %" for level in tuned
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
        """Remove the bar."""
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


def work(runs: Sequence[PlannedRun]) -> dict[str, float]:
    """Return the work of each run by name: multiply-adds of an image, times epochs.

    Counting takes a second for a deep network, so it is done once for all seeds.
    """
    multiply_adds: dict[tuple[str, str], float] = {}
    by_name = {}
    for r in runs:
        key = r.config.model.arch, r.config.variant
        if key not in multiply_adds:
            hierarchy = experiment.load_hierarchy(r.config)
            multiply_adds[key] = sum(
                summarise(network, experiment.image_shape(r.config))["multiply_adds"]
                for network in experiment.architectures(r.config, hierarchy).values()
            )
        by_name[r.name] = multiply_adds[key] * r.config.train.epochs
    return by_name
