"""The claims of the paper's Section 4: a table of sentences and of the tests that decide them."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np

from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.study.curves import ErrorCurves, Errors, Setting
from hiercls_jax.study.summary import Key, Summary
from hiercls_jax.study.verdicts import (
    DIFFERENT,
    EQUAL,
    FAILS,
    HOLDS,
    LESS,
    MARGIN,
    MARGIN_ALPHA,
    MARGIN_COST,
    MARGIN_STEP,
    NOT_RUN,
    UNDECIDED,
    Claim,
    Test,
    Verdict,
    decide,
)

NAMES = {v: v.replace("merge", "merge-") for v in VARIANTS}
COARSE, FINE = -2, -1  # the last two levels of the hierarchy
LEVELS = (COARSE, FINE)
BOTH = "both"  # in place of a network: the claims about two networks beside each other


class Network:
    """One network among those of a summary: its cells, and the names of its levels."""

    def __init__(self, curves: ErrorCurves, arch: str):
        self.curves, self.arch, self.levels = curves, arch, curves.levels
        self.largest = float(curves.alphas[-1])  # alpha
        self.trained = [key for key in map(self.key, VARIANTS) if key in curves.cells]

    def key(self, variant: str) -> Key:
        """Return the key of a variant's cell."""
        return self.arch, variant


# Statistics: the difference that a test is about, of the error curves of a sample or of costs.


def difference(first: Setting, second: Setting, errors: Errors) -> np.ndarray:
    """Return the error of one classifier less that of another."""
    return errors.at(first) - errors.at(second)


def gain(key: Key, level: int, size: int, errors: Errors) -> np.ndarray:
    """Return by how much adaptation at alpha 1 lowers the error of ensembles of a size."""
    return difference(Setting(key, level, 0, size), Setting(key, level, 1, size), errors)


def adapted_change(key: Key, level: int, size: int, errors: Errors) -> np.ndarray:
    """Return the error at alpha 1 less that at alpha 0."""
    return -gain(key, level, size, errors)


def ensemble_change(key: Key, level: int, size: int, errors: Errors) -> np.ndarray:
    """Return the error of ensembles less that of single networks, without adaptation."""
    return difference(Setting(key, level, 0, size), Setting(key, level, 0), errors)


def gain_change(key: Key, level: int, size: int, errors: Errors) -> np.ndarray:
    """Return the gain of ensembles less that of single networks."""
    return gain(key, level, size, errors) - gain(key, level, 1, errors)


def gain_of_levels(key: Key, size: int, errors: Errors) -> np.ndarray:
    """Return the gain at the fine level less that at the coarse one."""
    return gain(key, FINE, size, errors) - gain(key, COARSE, size, errors)


def best_alpha(keys: Sequence[Key], level: int, size: int, errors: Errors) -> np.ndarray:
    """Return the alpha of the least error, the mean over cells."""
    return np.mean([errors.best_alpha(key, level, size) for key in keys], axis=0)


def above_1(keys: Sequence[Key], level: int, size: int, errors: Errors) -> np.ndarray:
    """Return by how much the best alpha exceeds 1."""
    return best_alpha(keys, level, size, errors) - 1


def below_1(keys: Sequence[Key], level: int, size: int, errors: Errors) -> np.ndarray:
    """Return by how much 1 exceeds the best alpha."""
    return 1 - best_alpha(keys, level, size, errors)


def best_alpha_falls(keys: Sequence[Key], level: int, size: int, errors: Errors) -> np.ndarray:
    """Return by how much the best alpha of single networks exceeds that of ensembles."""
    return best_alpha(keys, level, 1, errors) - best_alpha(keys, level, size, errors)


def best_alpha_rises(keys: Sequence[Key], level: int, size: int, errors: Errors) -> np.ndarray:
    """Return by how much the best alpha of ensembles exceeds that of single networks."""
    return best_alpha(keys, level, size, errors) - best_alpha(keys, level, 1, errors)


def relative_cost(quantity: str, key: Key, other: Key, curves: ErrorCurves) -> np.ndarray:
    """Return by how many percent a cost exceeds another cell's, for each seed that both have."""
    seeds = curves.common_seeds((key, other))
    ours, theirs = (
        cell.costs[quantity][[cell.seeds.index(seed) for seed in seeds]]
        for cell in (curves.cells[key], curves.cells[other])
    )
    return 100 * (ours / theirs - 1)


def relative_time(key: Key, other: Key, curves: ErrorCurves) -> np.ndarray:
    """Return the same for the time of training.

    If all runs of the network were on CPUs it is the time of the cores, because other work on the
    machine hardly changes that.
    """
    cells = [cell for (arch, _), cell in curves.cells.items() if arch == key[0]]
    on_cpu = all(cell.costs["on_cpu"].all() and cell.costs["training_cpu"].all() for cell in cells)
    return relative_cost("training_cpu" if on_cpu else "training", key, other, curves)


# Families of tests: the same comparison in every variant, or between variants.


def compare_alphas(network: Network, level: int, alpha: float, other: float) -> tuple[Test, ...]:
    """Test in every variant that single networks err less at one alpha than at another."""
    return tuple(_alphas(network, network.key(v), level, alpha, other) for v in VARIANTS)


def compare_steps(network: Network, level: int, step: float) -> tuple[Test, ...]:
    """Test in every trained variant that its best alpha errs less than those a step away."""
    tests = []
    for key in network.trained:
        best = network.curves.best_alpha(key, level)
        for other in (round(best - step, 6), round(best + step, 6)):
            if 0 <= other <= network.largest:
                tests.append(_alphas(network, key, level, best, other, MARGIN_STEP))
    return tuple(tests)


def _alphas(
    network: Network, key: Key, level: int, alpha: float, other: float, margin: float = MARGIN
) -> Test:
    pair = Setting(key, level, alpha), Setting(key, level, other)
    words = f"{NAMES[key[1]]}, {network.levels[level]}: α = {alpha:.4g} against {other:.4g}"
    return Test(words, LESS, (key,), partial(difference, *pair), margin=margin, pair=pair)


def compare_variants(
    network: Network,
    expects: str,
    first: Sequence[str],
    second: Sequence[str],
    alpha: float = 1,
    levels: Sequence[int] = LEVELS,
) -> tuple[Test, ...]:
    """Test the error of each of some variants against that of each of some others."""
    tests = []
    for a, b, level in itertools.product(first, second, levels):
        keys = network.key(a), network.key(b)
        pair = Setting(keys[0], level, alpha), Setting(keys[1], level, alpha)
        words = f"{NAMES[a]} against {NAMES[b]}, {network.levels[level]}, α = {alpha:g}"
        tests.append(Test(words, expects, keys, partial(difference, *pair), pair=pair))
    return tuple(tests)


def compare_best_alpha(
    network: Network,
    level: int,
    words: str,
    statistic: Callable[[Sequence[Key], int, int, Errors], np.ndarray],
    expects: str = LESS,
    size: int = 1,
    margin: float = 0.0,
) -> Test:
    """Test the best alpha, the mean over all trained variants."""
    keys = tuple(network.trained)
    return Test(
        f"{network.levels[level]}: {words}", expects, keys, partial(statistic, keys, level, size),
        size=size, margin=margin, unit="α",
    )  # fmt: skip


def compare_ensembles(
    network: Network,
    words: str,
    size: int,
    statistic: Callable[[Key, int, int, Errors], np.ndarray],
) -> tuple[Test, ...]:
    """Test in every variant and level that a statistic of ensembles is below 0."""
    return tuple(
        Test(
            f"{NAMES[v]}, {network.levels[level]}: {words}", LESS, (network.key(v),),
            partial(statistic, network.key(v), level, size), size=size,
        )
        for v, level in itertools.product(VARIANTS, LEVELS)
    )  # fmt: skip


def compare_gains_of_levels(network: Network) -> tuple[Test, ...]:
    """Test in every variant that ensembles gain less at the fine level than at the coarse one."""
    coarse, fine = (network.levels[level] for level in LEVELS)
    return tuple(
        Test(
            f"{NAMES[v]}: gain for {fine} − gain for {coarse}, {number}", LESS, (network.key(v),),
            partial(gain_of_levels, network.key(v), size), size=size,
        )
        for v, (size, number) in itertools.product(VARIANTS, ((2, "two"), (4, "four")))
    )  # fmt: skip


def compare_costs(
    network: Network, words: str, statistic: Callable[[Key, Key, ErrorCurves], np.ndarray]
) -> tuple[Test, ...]:
    """Test that merged networks, merge-0 apart, cost less than separate ones."""
    keys = [(network.key(v), network.key("separate")) for v in ("merge1", "merge2", "merge3")]
    return tuple(
        Test(
            f"{NAMES[pair[0][1]]} against separate, {words}", LESS, pair,
            costs=partial(statistic, *pair), margin=MARGIN_COST, unit="%",
        )
        for pair in keys
    )  # fmt: skip


# The claims about one network, each with its tests. To add a claim, add a row. Two claims need an
# alpha above 1, which only Algorithm 1 has; without tests, a claim is not run.
CLAIMS: tuple[tuple[str, Callable[[Network], tuple[Test, ...]]], ...] = (
    ("Adaptation at α = 1 lowers the {coarse} error", lambda n: compare_alphas(n, COARSE, 1, 0)),
    ("Adaptation at α = 1 lowers the {fine} error", lambda n: compare_alphas(n, FINE, 1, 0)),
    (
        "The best α is near 1",
        lambda n: tuple(
            compare_best_alpha(n, level, "best α − 1", above_1, EQUAL, margin=MARGIN_ALPHA)
            for level in LEVELS
        ),
    ),
    (
        "The best α is slightly above 1 for {coarse}",
        lambda n: (compare_best_alpha(n, COARSE, "1 − best α", below_1),),
    ),
    (
        "The best α is slightly below 1 for {fine}",
        lambda n: (compare_best_alpha(n, FINE, "best α − 1", above_1),),
    ),
    (
        "That distance from 1 grows with the ensemble",
        lambda n: (
            compare_best_alpha(
                n, COARSE, "best α of one − best α of four", best_alpha_falls, size=4
            ),
            compare_best_alpha(n, FINE, "best α of four − best α of one", best_alpha_rises, size=4),
        ),
    ),
    (
        "For {coarse}, sums of the {fine} probabilities (α = {largest:g}) are better than its own "
        "probabilities (α = 0)",
        lambda n: compare_alphas(n, COARSE, n.largest, 0) if n.largest > 1 else (),
    ),
    (
        "For {coarse}, both together (α = 1) are better than those sums (α = {largest:g})",
        lambda n: compare_alphas(n, COARSE, 1, n.largest) if n.largest > 1 else (),
    ),
    (
        "merge-1 and merge-2 do not differ at α = 1",
        lambda n: compare_variants(n, EQUAL, ["merge1"], ["merge2"]),
    ),
    (
        "separate and merge-0 do not differ at α = 1",
        lambda n: compare_variants(n, EQUAL, ["separate"], ["merge0"]),
    ),
    (
        "separate and merge-0 do not differ for {fine} near α = 0",
        lambda n: compare_variants(n, EQUAL, ["separate"], ["merge0"], 0, [FINE]),
    ),
    (
        "separate and merge-0 differ for {coarse} near α = 0",
        lambda n: compare_variants(n, DIFFERENT, ["separate"], ["merge0"], 0, [COARSE]),
    ),
    (
        "merge-1 and merge-2 are better than separate and merge-0 at α = 1",
        lambda n: compare_variants(n, LESS, ["merge1", "merge2"], ["separate", "merge0"]),
    ),
    (
        "merge-1 and merge-2 are better than merge-3 at α = 1",
        lambda n: compare_variants(n, LESS, ["merge1", "merge2"], ["merge3"]),
    ),
    ("±0.1 from the best α is worse for {fine}", lambda n: compare_steps(n, FINE, 0.1)),
    ("±0.2 from the best α is worse for {coarse}", lambda n: compare_steps(n, COARSE, 0.2)),
    (
        "Ensembles lower the error, without adaptation",
        lambda n: compare_ensembles(n, "four against one, α = 0", 4, ensemble_change),
    ),
    (
        "Adaptation lowers the error of ensembles further",
        lambda n: (
            *compare_ensembles(n, "two, α = 1 against 0", 2, adapted_change),
            *compare_ensembles(n, "four, α = 1 against 0", 4, adapted_change),
        ),
    ),
    (
        "Adaptation gains more for {coarse} than for {fine} with ensembles",
        compare_gains_of_levels,
    ),
    (
        "What adaptation gains gets less as the ensemble grows",
        lambda n: compare_ensembles(n, "gain of four − gain of one", 4, gain_change),
    ),
    (
        "Merging takes less training time than separate networks",
        lambda n: compare_costs(n, "training time", relative_time),
    ),
    (
        "Merging takes fewer parameters than separate networks",
        lambda n: compare_costs(n, "parameters", partial(relative_cost, "parameters")),
    ),
)


def claims(network: Network) -> list[Claim]:
    """Return the paper's claims as claims about one network."""
    coarse, fine = (network.levels[level] for level in LEVELS)
    return [
        Claim(text.format(coarse=coarse, fine=fine, largest=network.largest), tests(network))
        for text, tests in CLAIMS
    ]


def judge(summary: Summary) -> list[tuple[str, Verdict]]:
    """Return the verdict on each claim with its network's name, and those on both networks."""
    curves = ErrorCurves(summary)
    by_arch = {
        arch: [decide(claim, curves) for claim in claims(Network(curves, arch))]
        for arch in curves.archs()
    }
    of_each = [(arch, verdict) for arch, verdicts in by_arch.items() for verdict in verdicts]
    return of_each + [(BOTH, verdict) for verdict in judge_both(curves, by_arch)]


def judge_both(curves: ErrorCurves, by_arch: Mapping[str, Sequence[Verdict]]) -> list[Verdict]:
    """Return the verdicts on the two claims that set ResNet and DenseNet beside each other.

    Args:
      curves: of the cells of both.
      by_arch: by network, the verdicts on its own claims.
    """
    agree = Claim("The results with DenseNet are consistent with those with ResNet", ())
    better = "DenseNet has lower errors than ResNet at α = 1"
    resnet, densenet = (
        next((arch for arch in by_arch if arch.startswith(family)), None)
        for family in ("resnet", "densenet")
    )
    if resnet is None or densenet is None:
        return [Verdict(claim, (), NOT_RUN) for claim in (agree, Claim(better, ()))]
    pairs = [
        (a.verdict, b.verdict) for a, b in zip(by_arch[resnet], by_arch[densenet], strict=True)
    ]
    if {(HOLDS, FAILS), (FAILS, HOLDS)} & set(pairs):
        agreement = FAILS
    else:
        agreement = HOLDS if all(a == b != UNDECIDED for a, b in pairs) else UNDECIDED
    tests = []
    for v, level in itertools.product(VARIANTS, LEVELS):
        pair = Setting((densenet, v), level, 1), Setting((resnet, v), level, 1)
        words = f"{NAMES[v]}, {curves.levels[level]}: {densenet} against {resnet}, α = 1"
        tests.append(Test(words, LESS, (pair[0].key, pair[1].key), partial(difference, *pair)))
    return [Verdict(agree, (), agreement), decide(Claim(better, tuple(tests)), curves)]
