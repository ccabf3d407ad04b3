"""The claims of the paper's Section 4, each with the statistic that decides it."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.study.summary import Summary
from hiercls_jax.study.verdicts import (
    DIFFERENT,
    EQUAL,
    FAILS,
    HOLDS,
    LESS,
    MARGIN,
    MARGIN_ALPHA,
    MARGIN_STEP,
    NOT_RUN,
    UNDECIDED,
    Claim,
    Network,
    Setting,
    Test,
    Verdict,
    decide,
    index,
    optimum,
)

NAMES = {v: v.replace("merge", "merge-") for v in VARIANTS}


def judge(summary: Summary) -> list[tuple[str, Verdict]]:
    """Return the verdict on each claim about each network, by its name, and on both together."""
    judged = {}
    for arch in dict.fromkeys(arch for arch, _ in summary.cells):
        network = Network(summary, arch)
        judged[network] = [decide(claim, network) for claim in claims(network)]
    of_each = [(network.arch, v) for network, verdicts in judged.items() for v in verdicts]
    return of_each + [("both", v) for v in judge_both(summary, judged)]


def judge_both(summary: Summary, judged: Mapping[Network, Sequence[Verdict]]) -> list[Verdict]:
    """Return the verdict on what the paper says of its two networks beside each other.

    Args:
      summary: of both.
      judged: the verdicts on each one's own claims.
    """
    agree = Claim("The results with DenseNet are consistent with those with ResNet", ())
    better = Claim("DenseNet has lower errors than ResNet at α = 1", ())
    resnet, densenet = (
        next((n for n in judged if n.arch.startswith(family)), None)
        for family in ("resnet", "densenet")
    )
    if resnet is None or densenet is None:
        return [Verdict(claim, (), NOT_RUN) for claim in (agree, better)]
    pairs = {(a.verdict, b.verdict) for a, b in zip(judged[resnet], judged[densenet], strict=True)}
    if {(HOLDS, FAILS), (FAILS, HOLDS)} & pairs:
        agreement = FAILS
    else:
        agreement = HOLDS if all(a == b != UNDECIDED for a, b in pairs) else UNDECIDED
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
                    EQUAL,
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
