"""How a claim about many runs is decided: tests over seeds and over images, and their verdict.

A statistic is a function of error curves. The same function is applied to the curves of each seed
(which gives Student's t-test its numbers) and to those of resampled test images (which gives the
bootstrap its own), so that a claim is written down once. Claims about single networks are decided
over seeds; claims about ensembles, whose members they share, by the bootstrap over images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, cached_property

import numpy as np

from hiercls_jax.metrics import significance
from hiercls_jax.metrics.significance import Evidence
from hiercls_jax.study.summary import Cell, Summary

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "not decided at this scale", "not run"
MARGIN = 0.5  # percentage points of error: a smaller difference is negligible
MARGIN_STEP = 0.05  # the same for neighbouring alphas, whose errors differ by little at most
MARGIN_ALPHA = 0.25  # an optimum this near to 1 is near to 1
# What a test expects of a difference: below 0; within ± the margin; not 0.
LESS, EQUAL, DIFFERENT = "less", "equal", "different"

# Of a variant, a level and an ensemble size, errors in percent: [..., A].
Curves = Callable[[str, int, int], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Setting:
    """One classifier of the comparison: single networks of a variant at an alpha."""

    variant: str
    level: int
    alpha: float


@dataclasses.dataclass(frozen=True)
class Test:
    """One comparison.

    Args:
      what: the difference, in words.
      expects: that it is `LESS` than 0, `DIFFERENT` from 0, or within the margin (`EQUAL`).
      statistic: of `Curves`, the difference, `[...]`.
      variants: that it needs.
      size: of the ensembles that it needs; 1 is decided over seeds.
      margin: within which a difference counts as none.
      unit: of the difference.
      pair: the two classifiers whose errors it compares, for McNemar's test.
      values: `[seeds]` in place of a statistic, for what is no error.
    """

    what: str
    expects: str
    statistic: Callable[[Curves], np.ndarray] | None
    variants: tuple[str, ...]
    size: int = 1
    margin: float = MARGIN
    unit: str = "points"
    pair: tuple[Setting, Setting] | None = None
    values: Callable[["Network"], np.ndarray] | None = None


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the tests that decide it together."""

    text: str
    tests: tuple[Test, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a test found: over seeds, over images, and what follows.

    Args:
      seeds, images: evidence; None where there is none of the kind.
      p_holm: of the deciding evidence, corrected for the tests of the claim.
      mcnemar: over how many seeds, and in how many of them McNemar's test has p < 0.05.
    """

    test: Test
    seeds: Evidence | None
    images: Evidence | None
    p_holm: float
    verdict: str
    mcnemar: tuple[int, int] | None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim, its tests' results, and what they say together."""

    claim: Claim
    results: tuple[Result, ...]
    verdict: str


class Network:
    """The cells of one network, as error curves over seeds and over resampled images."""

    def __init__(self, summary: Summary, arch: str, cells: dict[str, Cell] | None = None):
        self.arch, self.alphas = arch, summary.alphas
        self.levels = summary.hierarchy.levels
        of_arch = {v: c for (a, v), c in summary.cells.items() if a == arch}
        self.cells: dict[str, Cell] = of_arch if cells is None else cells
        self.images = len(summary.labels)

    @cached_property
    def _weights(self) -> np.ndarray:
        return significance.resample_weights(self.images)

    def has(self, test: Test) -> bool:
        """Return whether all that a test needs was run."""
        cells = [self.cells.get(v) for v in test.variants]
        return all(c is not None and test.size in c.right for c in cells)

    def common_seeds(self, variants: Sequence[str]) -> list[int]:
        """Return the seeds that all of some variants have: what pairs are made of."""
        shared = set.intersection(*(set(self.cells[v].seeds) for v in variants))
        return sorted(shared)

    def of_seeds(self, variants: Sequence[str]) -> Curves:
        """Return the curves of single networks, `[seeds, A]`, of the seeds that all have."""
        seeds = self.common_seeds(variants)

        def curves(variant: str, level: int, size: int) -> np.ndarray:
            cell = self.cells[variant]
            rows = [cell.seeds.index(seed) for seed in seeds]
            return 100 / self.images * cell.wrong["averaged"][size][rows, level]

        return curves

    def of_all(self, variant: str, level: int, size: int) -> np.ndarray:
        """Return the mean curve of all ensembles of a size, `[A]`."""
        wrong = self.cells[variant].wrong["averaged"][size][:, level]
        return 100 / self.images * wrong.sum(axis=0) / len(wrong)

    @cache  # noqa: B019, of an object that lives as long as the comparison
    def resampled(self, variant: str, level: int, size: int) -> np.ndarray:
        """Return that curve of each resample of the images, `[B, A]`.

        Sums of whole numbers below 2²⁴, and so exact in float32 in whatever order.
        """
        right = self.cells[variant].right[size][:, level]
        steps = np.zeros((self.images, len(self.alphas) + 1), np.float32)
        for first, stop in np.moveaxis(right, -1, 1):
            steps[np.arange(self.images), first] += 1
            steps[np.arange(self.images), stop] -= 1
        times_right = np.cumsum(steps, axis=1)[:, :-1]
        return 100 - 100 / self.images / len(right) * (self._weights @ times_right)

    def best(self, variant: str, level: int) -> float:
        """Return the alpha at which single networks err least, the mean over seeds.

        On validation images, as the least of a curve is no fair witness of how low it is; on those
        of test where no others were held out.
        """
        cell = self.cells[variant]
        of_seeds = cell.validation if len(cell.validation) else cell.wrong["averaged"][1]
        found = optimum(of_seeds[:, level].sum(axis=0), self.alphas)
        return float(self.alphas[index(self.alphas, found)])

    def right_at(self, setting: Setting, seed: int) -> np.ndarray:
        """Return whether a single network is right on each image, bool `[N]`."""
        cell = self.cells[setting.variant]
        first, stop = cell.right[1][cell.seeds.index(seed), setting.level].T
        i = index(self.alphas, setting.alpha)
        return (first <= i) & (i < stop)


def index(alphas: np.ndarray, alpha: float) -> int:
    """Return where in the grid an alpha stands."""
    return int(np.abs(alphas - alpha).argmin())


def optimum(curves: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Return the alpha with the least error, the mean of several, `[...]` of `[..., A]`."""
    least = curves == curves.min(axis=-1, keepdims=True)
    return (least * alphas).sum(axis=-1) / least.sum(axis=-1)


def decide(claim: Claim, network: Network) -> Verdict:
    """Carry out a claim's tests, correct them as one family, and draw the conclusion.

    A claim holds where all of its tests hold, and fails where one of them fails. One that lacks
    runs for some of its tests can fail, but not hold.
    """
    found = [(t, *_evidence(t, network)) for t in claim.tests if network.has(t)]
    deciding = [seeds if t.size == 1 else images for t, seeds, images in found]
    corrected = significance.holm([evidence.p for evidence in deciding])
    results = [
        Result(t, seeds, images, float(p), _verdict(t, evidence, p), _mcnemar(t, network))
        for (t, seeds, images), evidence, p in zip(found, deciding, corrected, strict=True)
    ]
    verdicts = {r.verdict for r in results}
    if not results:
        overall = NOT_RUN
    elif FAILS in verdicts:
        overall = FAILS
    else:
        all_hold = verdicts == {HOLDS} and len(results) == len(claim.tests)
        overall = HOLDS if all_hold else UNDECIDED
    return Verdict(claim, tuple(results), overall)


def _evidence(test: Test, network: Network) -> tuple[Evidence | None, Evidence | None]:
    if test.values is not None:
        return significance.paired_t(test.values(network)), None
    seeds = None
    if test.size == 1:
        seeds = significance.paired_t(test.statistic(network.of_seeds(test.variants)))
    mean = test.statistic(network.of_all)
    return seeds, significance.bootstrap(float(mean), test.statistic(network.resampled))


def _verdict(test: Test, evidence: Evidence, p: float) -> str:
    """Return what evidence says, its p-value being corrected to `p`.

    `EQUAL` asks how large the difference is: the test holds if two one-sided tests show it to be
    within the margin, and fails if its 95 % interval lies beyond the margin. Whether it differs
    from 0 does not matter: a difference can be significant and negligible.
    """
    if test.expects == EQUAL:
        if evidence.within(test.margin):
            return HOLDS
        # One-sided at 2.5 %. A claim has at most two such tests, and so errs in 5 % of cases.
        beyond = evidence.low > test.margin or evidence.high < -test.margin
        return FAILS if beyond else UNDECIDED
    wanted = test.expects == DIFFERENT or evidence.mean < 0
    if p < significance.LEVEL:
        return HOLDS if wanted else FAILS
    # No difference worth the name; but one that only the correction took away is not refuted.
    refuted = evidence.within(test.margin) and not (wanted and evidence.p < significance.LEVEL)
    return FAILS if refuted else UNDECIDED


def _mcnemar(test: Test, network: Network) -> tuple[int, int] | None:
    if test.pair is None:
        return None
    seeds = network.common_seeds(test.variants)
    p = [
        significance.mcnemar(*(network.right_at(setting, seed) for setting in test.pair))
        for seed in seeds
    ]
    return len(p), sum(value < significance.LEVEL for value in p)
