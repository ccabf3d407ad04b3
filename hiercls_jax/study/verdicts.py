"""Deciding a claim about many runs: tests over seeds and over images, and their verdict.

A statistic is a function of error curves. The same function is applied to the curves of each seed,
for Student's t-test, and to those of resampled test images, for the bootstrap, so that a claim is
written down once. Seeds decide claims about single networks. The bootstrap over images decides
claims about ensembles, because ensembles of the same seeds share members.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from hiercls_jax.metrics import significance
from hiercls_jax.metrics.significance import Evidence
from hiercls_jax.study.curves import ErrorCurves, Errors, Setting
from hiercls_jax.study.summary import Key

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "not decided at this scale", "not run"
# What a test expects of a difference: below 0; within ± the margin; not 0.
LESS, EQUAL, DIFFERENT = "less", "equal", "different"
MARGIN = 0.5  # percentage points of error: a smaller difference is negligible
MARGIN_STEP = 0.05  # the same between neighbouring alphas, whose errors differ by little
MARGIN_ALPHA = 0.25  # an optimum this near to 1 is near to 1
MARGIN_COST = 1.0  # percent of a cost


@dataclasses.dataclass(frozen=True)
class Test:
    """One comparison: a difference, and its expected sign.

    Args:
      difference: in words.
      expects: `LESS`, `EQUAL` or `DIFFERENT`.
      needs: the cells that it compares.
      statistic: the difference `[...]` of error curves, `[..., A]` each.
      costs: the difference `[seeds]` of costs; a test has this or a statistic.
      size: of the ensembles that it needs. Seeds decide a test of size 1, images a larger one.
      margin: a difference within ± this is negligible.
      unit: of the difference.
      pair: the two classifiers whose errors it compares, for McNemar's test.
    """

    difference: str
    expects: str
    needs: tuple[Key, ...]
    statistic: Callable[[Errors], np.ndarray] | None = None
    costs: Callable[[ErrorCurves], np.ndarray] | None = None
    size: int = 1
    margin: float = MARGIN
    unit: str = "points"
    pair: tuple[Setting, Setting] | None = None

    def can_run(self, curves: ErrorCurves) -> bool:
        """Return whether the cells and ensembles that it needs are there."""
        cells = [curves.cells.get(key) for key in self.needs]
        return all(cell is not None and self.size in cell.right for cell in cells)


@dataclasses.dataclass(frozen=True)
class Claim:
    """A sentence of the paper, and the tests that decide it together."""

    text: str
    tests: tuple[Test, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a test.

    Args:
      seeds, images: evidence over seeds and over images; None if there is none of the kind.
      p_holm: p-value of the deciding evidence, corrected for the tests of the claim.
      mcnemar: in how many seeds McNemar's test has p < 0.05, and over how many seeds.
    """

    test: Test
    seeds: Evidence | None
    images: Evidence | None
    p_holm: float
    verdict: str
    mcnemar: tuple[int, int] | None

    @property
    def deciding(self) -> Evidence:
        """The evidence that the verdict rests on."""
        evidence = self.seeds if self.test.size == 1 else self.images
        assert evidence is not None
        return evidence


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A claim, the results of those tests that could be carried out, and the conclusion."""

    claim: Claim
    results: tuple[Result, ...]
    verdict: str


def decide(claim: Claim, curves: ErrorCurves) -> Verdict:
    """Carry out a claim's tests, correct them as one family, and draw the conclusion.

    A claim holds if all of its tests hold, and fails if one of them fails. A claim that lacks the
    runs for some of its tests can fail, but not hold.
    """
    done = [
        Result(test, *_evidence(test, curves), np.nan, UNDECIDED, _mcnemar(test, curves))
        for test in claim.tests
        if test.can_run(curves)
    ]
    corrected = significance.holm([result.deciding.p for result in done])
    results = tuple(
        dataclasses.replace(
            result, p_holm=float(p), verdict=judge(result.test, result.deciding, float(p))
        )
        for result, p in zip(done, corrected, strict=True)
    )
    verdicts = {result.verdict for result in results}
    if not results:
        overall = NOT_RUN
    elif FAILS in verdicts:
        overall = FAILS
    else:
        all_hold = verdicts == {HOLDS} and len(results) == len(claim.tests)
        overall = HOLDS if all_hold else UNDECIDED
    return Verdict(claim, results, overall)


def judge(test: Test, evidence: Evidence, p: float) -> str:
    """Return the verdict of a test.

    `EQUAL` asks how large the difference is: the test holds if two one-sided tests show it to be
    within the margin, and fails if its 95 % interval lies beyond the margin. Whether it differs
    from 0 does not matter: a difference can be significant and negligible.

    `LESS` and `DIFFERENT` ask whether there is a difference: the test holds if it is significant
    and has the expected sign, and fails if it is significant with the other sign, or shown to be
    within the margin. A difference of the expected sign that only the correction made
    insignificant is not refuted.

    Args:
      test: the comparison.
      evidence: over seeds or over images.
      p: its p-value after the correction.
    """
    if test.expects == EQUAL:
        if evidence.within(test.margin):
            return HOLDS
        # One-sided at 2.5 %. A claim has at most two such tests, and so errs in 5 % of cases.
        beyond = evidence.low > test.margin or evidence.high < -test.margin
        return FAILS if beyond else UNDECIDED
    expected_sign = test.expects == DIFFERENT or evidence.mean < 0
    if p < significance.LEVEL:
        return HOLDS if expected_sign else FAILS
    there_but_for_holm = expected_sign and evidence.p < significance.LEVEL
    return FAILS if evidence.within(test.margin) and not there_but_for_holm else UNDECIDED


def _evidence(test: Test, curves: ErrorCurves) -> tuple[Evidence | None, Evidence | None]:
    """Return the evidence over seeds and over images."""
    if test.costs is not None:
        return significance.paired_t(test.costs(curves)), None
    assert test.statistic is not None
    seeds = None
    if test.size == 1:
        seeds = significance.paired_t(test.statistic(curves.of_seeds(test.needs)))
    mean = float(test.statistic(curves.of_images()))
    return seeds, significance.bootstrap(mean, test.statistic(curves.of_resamples()))


def _mcnemar(test: Test, curves: ErrorCurves) -> tuple[int, int] | None:
    if test.pair is None:
        return None
    first, second = test.pair
    p_values = [
        significance.mcnemar(curves.is_right(first, seed), curves.is_right(second, seed))
        for seed in curves.common_seeds(test.needs)
    ]
    return sum(p < significance.LEVEL for p in p_values), len(p_values)
