"""The claims of the paper's Section 4, each with the statistic that decides it, and the verdict.

A statistic is a function of error curves. The same function is applied to the curves of each seed
(which gives Student's t-test its numbers) and to those of resampled test images (which gives the
bootstrap its own), so that a claim is written down once. Claims about single networks are decided
over seeds; claims about ensembles, whose members they share, by the bootstrap over images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache, cached_property, partial

import numpy as np

from hiercls_jax.evaluation import significance
from hiercls_jax.evaluation.significance import Evidence
from hiercls_jax.evaluation.summary import VARIANTS, Cell, Summary

HOLDS, FAILS, UNDECIDED, NOT_RUN = "holds", "fails", "not decided at this scale", "not run"
MARGIN = 0.5  # percentage points of error: less is no difference
MARGIN_STEP = 0.05  # the same for neighbouring alphas, whose errors differ by little at most
MARGIN_ALPHA = 0.25  # an optimum this near to 1 is near to 1
# What a test expects of a difference: below 0; none; none to speak of; some.
LESS, EQUAL, NEAR, DIFFERENT = "less", "equal", "near", "different"

NAMES = {v: v.replace("merge", "merge-") for v in VARIANTS}

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
      expects: that it is `LESS` than 0, `DIFFERENT` from 0, or within the margin: `EQUAL` is
        refuted by any difference that is significant, `NEAR` by one that is beyond the margin.
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


def judge(network: Network) -> list[Verdict]:
    """Return the verdict on each of the paper's claims about one network."""
    return [decide(claim, network) for claim in claims(network)]


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
    """Return what evidence says, its p-value being corrected to `p`."""
    if test.expects in (EQUAL, NEAR):
        if evidence.within(test.margin):
            return HOLDS
        if test.expects == NEAR:
            beyond = evidence.low > test.margin or evidence.high < -test.margin
        else:
            beyond = p < significance.LEVEL
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


def judge_both(summary: Summary, networks: Sequence[Network]) -> list[Verdict]:
    """Return the verdict on what the paper says of its two networks beside each other."""
    agree = Claim("The results with DenseNet are consistent with those with ResNet", ())
    better = Claim("DenseNet has lower errors than ResNet at α = 1", ())
    resnet, densenet = (
        next((n for n in networks if n.arch.startswith(family)), None)
        for family in ("resnet", "densenet")
    )
    if resnet is None or densenet is None:
        return [Verdict(claim, (), NOT_RUN) for claim in (agree, better)]
    pairs = {(a.verdict, b.verdict) for a, b in zip(judge(resnet), judge(densenet), strict=True)}
    pairs.discard((NOT_RUN, NOT_RUN))
    if {(HOLDS, FAILS), (FAILS, HOLDS)} & pairs:
        agreement = FAILS
    else:
        agreed = bool(pairs) and all(a == b != UNDECIDED for a, b in pairs)
        agreement = HOLDS if agreed else UNDECIDED
    cells = {f"{n.arch} {v}": c for n in (resnet, densenet) for v, c in n.cells.items()}
    both = Network(summary, "", cells)
    at = index(resnet.alphas, 1.0)
    tests = tuple(
        Test(
            f"{NAMES[v]}, {resnet.levels[level]}: {densenet.arch} against {resnet.arch}, α = 1",
            LESS,
            lambda curves, v=v, level=level: (
                curves(f"{densenet.arch} {v}", level, 1)[..., at]
                - curves(f"{resnet.arch} {v}", level, 1)[..., at]
            ),
            (f"{resnet.arch} {v}", f"{densenet.arch} {v}"),
        )
        for v in VARIANTS
        for level in (len(resnet.levels) - 2, len(resnet.levels) - 1)
    )
    return [Verdict(agree, (), agreement), decide(dataclasses.replace(better, tests=tests), both)]


# The claims. Coarse is the level above the last, fine the last one.


def claims(network: Network) -> list[Claim]:
    """Return the paper's claims as far as they speak of one network."""
    coarse, fine = len(network.levels) - 2, len(network.levels) - 1
    largest, alphas = float(network.alphas[-1]), network.alphas
    name = {coarse: network.levels[coarse], fine: network.levels[fine]}
    present = [v for v in VARIANTS if v in network.cells]

    def versus(expects, first: Setting, second: Setting, margin=MARGIN) -> Test:
        def difference(curves):
            a, b = (
                curves(s.variant, s.level, 1)[..., index(alphas, s.alpha)] for s in (first, second)
            )
            return a - b

        if first.variant == second.variant:
            what = (
                f"{NAMES[first.variant]}, {name[first.level]}: α = {first.alpha:.4g} against "
                f"{second.alpha:.4g}"
            )
        else:
            what = (
                f"{NAMES[first.variant]} against {NAMES[second.variant]}, {name[first.level]}, "
                f"α = {first.alpha:g}"
            )
        needed = tuple(dict.fromkeys((first.variant, second.variant)))
        return Test(what, expects, difference, needed, margin=margin, pair=(first, second))

    def alpha_against(level, alpha, other) -> tuple[Test, ...]:
        return tuple(
            versus(LESS, Setting(v, level, alpha), Setting(v, level, other)) for v in VARIANTS
        )

    def variants_at_1(expects, first, second) -> list[Test]:
        return [
            versus(expects, Setting(first, level, 1.0), Setting(second, level, 1.0))
            for level in (coarse, fine)
        ]

    def mean_optimum(curves, level, size=1):
        return sum(optimum(curves(v, level, size), alphas) for v in present) / len(present)

    def about_optimum(what, expects, statistic, size=1, margin=MARGIN_ALPHA) -> Test:
        return Test(what, expects, statistic, tuple(present), size, margin, "α")

    def steps_from_optimum(level, step) -> tuple[Test, ...]:
        best = {v: network.best(v, level) for v in present}
        return tuple(
            versus(LESS, Setting(v, level, best[v]), Setting(v, level, other), MARGIN_STEP)
            for v in present
            for other in (round(best[v] - step, 6), round(best[v] + step, 6))
            if 0 <= other <= largest
        )

    def error_of(v, level, size, alpha, curves):
        return curves(v, level, size)[..., index(alphas, alpha)]

    def gain(v, level, size, curves):
        return error_of(v, level, size, 0, curves) - error_of(v, level, size, 1, curves)

    def ensembles(what, statistic, size, variants=VARIANTS) -> tuple[Test, ...]:
        return tuple(
            Test(
                f"{NAMES[v]}, {name[level]}: {what}", LESS, partial(statistic, v, level), (v,), size
            )
            for v in variants
            for level in (coarse, fine)
        )

    def saved(v, quantity) -> Test:
        def relative(network: Network) -> np.ndarray:
            ours, theirs = (_cost(network, x, quantity, (v, "separate")) for x in (v, "separate"))
            return 100 * (ours / theirs - 1)

        return Test(
            f"{NAMES[v]} against separate, {quantity.replace('_', ' ')}", LESS, None,
            (v, "separate"), margin=1.0, unit="%", values=relative,
        )  # fmt: skip

    merged = ("merge1", "merge2")
    return [
        Claim(f"Adaptation at α = 1 lowers the {name[coarse]} error", alpha_against(coarse, 1, 0)),
        Claim(f"Adaptation at α = 1 lowers the {name[fine]} error", alpha_against(fine, 1, 0)),
        Claim(
            "The best α is near 1",
            tuple(
                about_optimum(
                    f"{name[level]}: best α − 1",
                    NEAR,
                    lambda curves, level=level: mean_optimum(curves, level) - 1,
                )
                for level in (coarse, fine)
            ),
        ),
        Claim(
            f"The best α is slightly above 1 for {name[coarse]}",
            (
                about_optimum(
                    f"{name[coarse]}: 1 − best α",
                    LESS,
                    lambda curves: 1 - mean_optimum(curves, coarse),
                    margin=0.0,
                ),
            ),
        ),
        Claim(
            f"The best α is slightly below 1 for {name[fine]}",
            (
                about_optimum(
                    f"{name[fine]}: best α − 1",
                    LESS,
                    lambda curves: mean_optimum(curves, fine) - 1,
                    margin=0.0,
                ),
            ),
        ),
        Claim(
            "That distance from 1 grows with the ensemble",
            (
                about_optimum(
                    f"{name[coarse]}: best α of one − best α of four",
                    LESS,
                    lambda curves: mean_optimum(curves, coarse) - mean_optimum(curves, coarse, 4),
                    4,
                    0.0,
                ),
                about_optimum(
                    f"{name[fine]}: best α of four − best α of one",
                    LESS,
                    lambda curves: mean_optimum(curves, fine, 4) - mean_optimum(curves, fine),
                    4,
                    0.0,
                ),
            ),
        ),
        Claim(
            f"For {name[coarse]}, sums of the {name[fine]} probabilities (α = {largest:g}) are "
            "better than its own probabilities (α = 0)",
            alpha_against(coarse, largest, 0),
        ),
        Claim(
            f"For {name[coarse]}, both together (α = 1) are better than those sums "
            f"(α = {largest:g})",
            alpha_against(coarse, 1, largest),
        ),
        Claim(
            "merge-1 and merge-2 do not differ at α = 1",
            tuple(variants_at_1(EQUAL, "merge1", "merge2")),
        ),
        Claim(
            "separate and merge-0 do not differ at α = 1",
            tuple(variants_at_1(EQUAL, "separate", "merge0")),
        ),
        Claim(
            f"separate and merge-0 do not differ for {name[fine]} near α = 0",
            (versus(EQUAL, Setting("separate", fine, 0), Setting("merge0", fine, 0)),),
        ),
        Claim(
            f"separate and merge-0 differ for {name[coarse]} near α = 0",
            (versus(DIFFERENT, Setting("separate", coarse, 0), Setting("merge0", coarse, 0)),),
        ),
        Claim(
            "merge-1 and merge-2 are better than separate and merge-0 at α = 1",
            tuple(
                test
                for v in merged
                for other in ("separate", "merge0")
                for test in variants_at_1(LESS, v, other)
            ),
        ),
        Claim(
            "merge-1 and merge-2 are better than merge-3 at α = 1",
            tuple(test for v in merged for test in variants_at_1(LESS, v, "merge3")),
        ),
        Claim(
            f"±0.1 from the best α is worse for {name[fine]}",
            steps_from_optimum(fine, 0.1),
        ),
        Claim(
            f"±0.2 from the best α is worse for {name[coarse]}",
            steps_from_optimum(coarse, 0.2),
        ),
        Claim(
            "Ensembles lower the error, without adaptation",
            ensembles(
                "four against one, α = 0",
                lambda v, level, c: error_of(v, level, 4, 0, c) - error_of(v, level, 1, 0, c),
                4,
            ),
        ),
        Claim(
            "Adaptation lowers the error of ensembles further",
            ensembles("two, α = 1 against 0", lambda v, level, c: -gain(v, level, 2, c), 2)
            + ensembles("four, α = 1 against 0", lambda v, level, c: -gain(v, level, 4, c), 4),
        ),
        Claim(
            f"Adaptation gains more for {name[coarse]} than for {name[fine]} with ensembles",
            tuple(
                Test(
                    f"{NAMES[v]}: gain for {name[fine]} − gain for {name[coarse]}, "
                    f"{'two' if size == 2 else 'four'}",
                    LESS,
                    lambda c, v=v, size=size: gain(v, fine, size, c) - gain(v, coarse, size, c),
                    (v,),
                    size,
                )
                for v in VARIANTS
                for size in (2, 4)
            ),
        ),
        Claim(
            "What adaptation gains gets less as the ensemble grows",
            ensembles(
                "gain of four − gain of one",
                lambda v, level, c: gain(v, level, 4, c) - gain(v, level, 1, c),
                4,
            ),
        ),
        Claim(
            "Merging takes less training time than separate networks",
            tuple(saved(v, "training_time") for v in ("merge1", "merge2", "merge3")),
        ),
        Claim(
            "Merging takes fewer parameters than separate networks",
            tuple(saved(v, "parameters") for v in ("merge1", "merge2", "merge3")),
        ),
    ]


def optimum(curves: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    """Return the alpha with the least error, the mean of several, `[...]` of `[..., A]`."""
    least = curves == curves.min(axis=-1, keepdims=True)
    return (least * alphas).sum(axis=-1) / least.sum(axis=-1)


def _cost(network: Network, variant: str, quantity: str, together: Sequence[str]) -> np.ndarray:
    """Return a cost of each seed that both variants have."""
    cell = network.cells[variant]
    rows = [cell.seeds.index(seed) for seed in network.common_seeds(together)]
    if quantity == "training_time":
        # On CPUs what the cores worked, which other work on the machine hardly changes.
        on_cpu = all(
            c.costs["on_cpu"].all() and c.costs["training_cpu"].all()
            for c in network.cells.values()
        )
        quantity = "training_cpu" if on_cpu else "training"
    return cell.costs[quantity][rows]
