"""Error curves of a summary: of each seed, of all ensembles of a size, and of resampled images."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property

import numpy as np

from hiercls_jax.metrics import significance
from hiercls_jax.study.summary import Key, Summary


@dataclasses.dataclass(frozen=True)
class Setting:
    """One classifier of a comparison.

    Args:
      key: network and variant.
      level: of the hierarchy; a negative one counts from the last level.
      alpha: of the adaptation.
      size: of the ensembles; 1 for single networks.
    """

    key: Key
    level: int
    alpha: float
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Errors:
    """The error curves of one sample: of some seeds, of all test images, or of resamples of them.

    Args:
      alphas: float64 `[A]`.
      curve: returns the errors in percent of a cell, a level and an ensemble size, `[..., A]`. The
        leading axes are those of the sample.
    """

    alphas: np.ndarray
    curve: Callable[[Key, int, int], np.ndarray]

    def at(self, setting: Setting) -> np.ndarray:
        """Return the errors of one classifier, `[...]`."""
        curve = self.curve(setting.key, setting.level, setting.size)
        return curve[..., index(self.alphas, setting.alpha)]

    def best_alpha(self, key: Key, level: int, size: int = 1) -> np.ndarray:
        """Return the alphas with the least error, `[...]`."""
        return optimum(self.curve(key, level, size), self.alphas)


class ErrorCurves:
    """The cells of a summary as error curves over seeds, over images, and over resampled images."""

    def __init__(self, summary: Summary):
        self.alphas, self.cells = summary.alphas, summary.cells
        self.levels = summary.hierarchy.levels
        self.images = len(summary.labels)
        self._resampled: dict[tuple[Key, int, int], np.ndarray] = {}

    @cached_property
    def _weights(self) -> np.ndarray:
        return significance.resample_weights(self.images)

    def archs(self) -> list[str]:
        """Return the networks that the cells are of, each once."""
        return list(dict.fromkeys(arch for arch, _ in self.cells))

    def common_seeds(self, keys: Sequence[Key]) -> list[int]:
        """Return the seeds that all of some cells have: paired tests compare equal seeds."""
        return sorted(set.intersection(*(set(self.cells[key].seeds) for key in keys)))

    def of_seeds(self, keys: Sequence[Key]) -> Errors:
        """Return the curves of single networks, `[seeds, A]`, of the seeds that all cells have."""
        seeds = self.common_seeds(keys)

        def curve(key: Key, level: int, size: int) -> np.ndarray:
            cell = self.cells[key]
            rows = [cell.seeds.index(seed) for seed in seeds]
            return 100 / self.images * cell.wrong["averaged"][size][rows, level]

        return Errors(self.alphas, curve)

    def of_images(self) -> Errors:
        """Return the mean curves of all ensembles of a size, `[A]`, on all test images."""

        def curve(key: Key, level: int, size: int) -> np.ndarray:
            wrong = self.cells[key].wrong["averaged"][size][:, level]
            return 100 / self.images * wrong.sum(axis=0) / len(wrong)

        return Errors(self.alphas, curve)

    def of_resamples(self) -> Errors:
        """Return those mean curves on each of B resamples of the test images, `[B, A]`."""
        return Errors(self.alphas, self._resample)

    def _resample(self, key: Key, level: int, size: int) -> np.ndarray:
        """Compute each curve once: sums of integers below 2²⁴, exact in float32 in any order."""
        level %= len(self.levels)
        if (key, level, size) not in self._resampled:
            right = self.cells[key].right[size][:, level]
            steps = np.zeros((self.images, len(self.alphas) + 1), np.float32)
            for first, stop in np.moveaxis(right, -1, 1):
                steps[np.arange(self.images), first] += 1
                steps[np.arange(self.images), stop] -= 1
            times_right = np.cumsum(steps, axis=1)[:, :-1]
            rates = 100 / self.images / len(right) * (self._weights @ times_right)
            self._resampled[key, level, size] = 100 - rates
        return self._resampled[key, level, size]

    def best_alpha(self, key: Key, level: int) -> float:
        """Return the alpha at which single networks err least, the mean over seeds.

        Validation images choose it if any were held out, because a curve's minimum on the same data
        is optimistically biased; test images otherwise.
        """
        cell = self.cells[key]
        wrong = cell.validation if len(cell.validation) else cell.wrong["averaged"][1]
        best = optimum(wrong[:, level].sum(axis=0), self.alphas)
        return float(self.alphas[index(self.alphas, float(best))])

    def is_right(self, setting: Setting, seed: int) -> np.ndarray:
        """Return whether a single network is right on each test image, bool `[N]`."""
        cell = self.cells[setting.key]
        first, stop = cell.right[1][cell.seeds.index(seed), setting.level].T
        i = index(self.alphas, setting.alpha)
        return (first <= i) & (i < stop)


def index(alphas: np.ndarray, alpha: float) -> int:
    """Return the index of the grid's alpha that is nearest to `alpha`."""
    return int(np.abs(alphas - alpha).argmin())


def optimum(curves: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Return the alpha with the least error of each curve, `[...]` of `[..., A]`.

    If several alphas tie, their mean is returned.
    """
    least = curves == curves.min(axis=-1, keepdims=True)
    return (least * alphas).sum(axis=-1) / least.sum(axis=-1)
