"""Each claim's verdict on error curves that make it hold, fail, or stay undecided.

An image of difficulty u is right if |alpha - best| < (u - base) / slope. So the share of wrong
images is exactly base + slope · |alpha - best|, for any base, slope and best.
"""

import dataclasses
from functools import cache

import numpy as np
import pytest

from hiercls_jax.hierarchy import cifar100
from hiercls_jax.metrics import significance
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.study import claims, curves, ensembles
from hiercls_jax.study import verdicts as deciding
from hiercls_jax.study.claims import Network
from hiercls_jax.study.curves import ErrorCurves
from hiercls_jax.study.summary import SIZES, Cell, Summary, alpha_grid
from hiercls_jax.study.verdicts import FAILS, HOLDS, NOT_RUN, UNDECIDED

CIFAR = cifar100()
ALPHAS = alpha_grid(CIFAR)
IMAGES, SEEDS = 1000, 5
U = (np.random.default_rng(0).permutation(IMAGES) + 0.5) / IMAGES
OTHER = (np.random.default_rng(1).permutation(IMAGES) + 0.5) / IMAGES

# Settings of single networks and of ensembles of 2 and 4: base and slope in percent, for coarse and
# fine. If a best alpha is a pair, the images take turns.
ONE = {"base": [40, 50], "slope": [8, 8], "best": [1.1, 0.9], "other": False}
FOUR = {"base": [35, 45], "slope": [4, 2], "best": [1.2, 0.8], "other": False}
BASES = {"separate": 0, "merge0": 0, "merge1": -2, "merge2": -2, "merge3": 1}


@cache
def right_and_wrong(base, slope, best, other):
    """Return the alphas at which each image is right, and the counts of wrong images."""
    best = np.resize(best, IMAGES)
    reach = (100 * (OTHER if other else U) - base) / max(slope, 1e-9)
    within = np.abs(ALPHAS - best[:, None]) < reach[:, None]
    first = within.argmax(axis=1)
    ends = np.stack([first, first + within.sum(axis=1)], 1)
    right = np.where(within.any(axis=1)[:, None], ends, 0).astype(np.uint8)
    return right, ensembles.wrong_counts(right, len(ALPHAS))


def build(change=None, seeds=range(SEEDS), arch="resnet20", shift=0) -> Summary:
    """Return a summary of all variants in which every claim holds unless `change` breaks it.

    Args:
      change: called with each network's settings (a dict of variant, size, `base`, …, `costs`).
      seeds: of the networks for which it is called; for ensembles it is called if 0 is among them.
      arch: name of the network.
      shift: added to all bases.
    """
    cells = {}
    for order, variant in enumerate(VARIANTS):
        right, wrong, costs = {}, {}, []
        for size in SIZES:
            sets = []
            for member in range(len(ensembles.members(SEEDS, size))):
                settings = {**(ONE if size == 1 else FOUR), "variant": variant, "size": size}
                settings["base"] = [b + BASES[variant] + shift for b in settings["base"]]
                if variant == "merge0" and size == 1:  # differs near alpha 0, for coarse alone
                    settings["slope"] = [9, 8]
                settings["costs"] = {
                    "training_cpu": 100.0 - 10 * order,
                    "parameters": 1000.0 - 100 * order,
                }
                if change is not None and (member if size == 1 else 0) in seeds:
                    change(settings)
                names = ("base", "slope", "best")
                sets.append([
                    right_and_wrong(*(settings[name][v] for name in names), settings["other"])
                    for v in range(2)
                ])  # fmt: skip
                if size == 1:
                    costs.append(settings["costs"])
            right[size], wrong[size] = (np.stack([np.stack(x) for x in y]) for y in zip(
                *(zip(*of_levels, strict=True) for of_levels in sets), strict=True))  # fmt: skip
        by_name = {name: np.array([c[name] for c in costs]) for name in costs[0]}
        by_name["on_cpu"] = np.ones(SEEDS)
        none = np.zeros((0, 21, 2, len(ALPHAS)), np.int64)
        points = np.zeros((IMAGES, 20, 2), np.uint8)
        cells[arch, variant] = Cell(
            arch, variant, tuple(range(SEEDS)), {}, right, {"averaged": wrong}, {}, none[:, 0],
            none, points, by_name,
        )  # fmt: skip
    return Summary(CIFAR, np.arange(IMAGES) % 100, ALPHAS, cells)


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch):
    weights = significance.resample_weights(IMAGES, 100)
    monkeypatch.setattr(significance, "resample_weights", lambda count: weights)


def judge(summary: Summary, arch: str = "resnet20") -> list[deciding.Verdict]:
    """Return the verdict on each claim about one network."""
    curves = ErrorCurves(summary)
    return [deciding.decide(claim, curves) for claim in claims.claims(Network(curves, arch))]


@cache
def judged_true(arch: str) -> list[deciding.Verdict]:
    """Return the verdicts on data that make every claim hold."""
    return judge(build(arch=arch), arch)


def verdict(text: str, summary: Summary) -> deciding.Verdict:
    """Return the verdict on the claim that begins with `text`."""
    curves = ErrorCurves(summary)
    (claim,) = [c for c in claims.claims(Network(curves, "resnet20")) if c.text.startswith(text)]
    return deciding.decide(claim, curves)


def change(variants, size=1, **values):
    """Return a `change` that sets values of some variants; `base=[3, 3]` is added to the base."""

    def apply(settings):
        if settings["variant"] in variants and (settings["size"] == 1) == (size == 1):
            for name, value in values.items():
                if name == "base":
                    settings[name] = [a + b for a, b in zip(settings[name], value, strict=True)]
                elif name == "costs":
                    settings[name] = {**settings[name], **value}
                else:
                    settings[name] = list(value) if isinstance(value, tuple) else value

    return apply


def test_all_hold_where_all_are_true():
    """On the data that the cases below start from, every claim about one network holds."""
    found = judged_true("resnet20")
    assert {v.claim.text: v.verdict for v in found if v.verdict != HOLDS} == {}
    assert len(found) == 22


ALL = VARIANTS
# A change that makes each claim false. In all seeds the claim fails; in every other seed nothing is
# decided.
FALSE = {
    "Adaptation at α = 1 lowers the coarse": change(["merge1"], best=(0, 0.9)),
    "Adaptation at α = 1 lowers the fine": change(["merge3"], best=(1.1, 0)),
    "The best α is near 1": change(ALL, best=(1.1, 0.4)),
    "The best α is slightly above 1 for coarse": change(ALL, best=(0.8, 0.9)),
    "The best α is slightly below 1 for fine": change(ALL, best=(1.1, 1.2)),
    "For coarse, sums": change(["separate"], best=(0.8, 0.9)),
    "For coarse, both": change(["merge2"], best=(1.9, 0.9)),
    "merge-1 and merge-2 do not differ": change(["merge2"], base=[0, 3]),
    "separate and merge-0 do not differ at": change(["merge0"], base=[3, 0]),
    "separate and merge-0 do not differ for fine": change(["merge0"], base=[0, 3]),
    "separate and merge-0 differ for coarse": change(["merge0"], slope=(8, 8)),
    "merge-1 and merge-2 are better than separate": change(["merge1"], base=[10, 10]),
    "merge-1 and merge-2 are better than merge-3": change(["merge3"], base=[-10, 0]),
    "±0.1 from the best α": change(["merge1"], slope=(8, 0)),
    "±0.2 from the best α": change(["merge1"], slope=(0, 8)),
    "Merging takes less training time": change(["merge3"], costs={"training_cpu": 170.0}),
    "Merging takes fewer parameters": change(["merge1"], costs={"parameters": 1500.0}),
}


@pytest.mark.parametrize("text", FALSE)
def test_a_claim_about_networks_fails_or_stays_open_by_seeds(text):
    """If it is false in all seeds it fails; if in every other one, it stays open."""
    assert verdict(text, build(FALSE[text])).verdict == FAILS
    assert verdict(text, build(FALSE[text], seeds=(1, 3))).verdict == UNDECIDED


# Of ensembles: a change that makes the claim false, and one that leaves it to the choice of images.
OF_ENSEMBLES = {
    "That distance from 1 grows": (
        change(ALL, 4, best=(1.0, 1.0)),
        change(ALL, 4, best=(1.1, 0.9)),
    ),
    "Ensembles lower the error": (
        change(["merge0"], 4, base=[16, 16]),
        change(["merge0"], 4, base=[10.4, 10], other=True),
    ),
    "Adaptation lowers the error of ensembles": (
        change(["merge1"], 4, best=(0, 0.8)),
        change(["merge1"], 4, best=((0, 1), 0.8), slope=(20, 3)),
    ),
    "Adaptation gains more for coarse": (
        change(["merge2"], 4, slope=(2, 8)),
        change(["merge2"], 4, slope=(2, 2), best=(0.98, 0.98)),
    ),
    "What adaptation gains gets less": (
        change(["merge1"], 4, slope=(12, 12)),
        change(["merge1"], 4, best=((0.44, 2.2), (0.34, 1.8)), slope=(16, 16)),
    ),
}


@pytest.mark.parametrize("text", OF_ENSEMBLES)
def test_a_claim_about_ensembles_fails_or_stays_open_by_images(text):
    """If it is false for all images it fails; if for half of them, it stays open."""
    false, open_ = OF_ENSEMBLES[text]
    assert verdict(text, build(false)).verdict == FAILS
    found = verdict(text, build(open_))
    assert found.verdict == UNDECIDED, [
        (r.test.difference, r.images, r.verdict) for r in found.results
    ]


def test_a_claim_without_its_runs_is_not_run():
    """Without merge-3, or without the ensembles that it needs."""
    summary = build()
    del summary.cells["resnet20", "merge3"]
    assert verdict("merge-1 and merge-2 are better than merge-3", summary).verdict == NOT_RUN
    alone = build()
    for cell in alone.cells.values():
        for size in (2, 4):
            del cell.right[size], cell.wrong["averaged"][size]
    assert verdict("Ensembles lower the error", alone).verdict == NOT_RUN


def test_a_claim_without_some_of_its_runs_fails_but_does_not_hold():
    """If merge-2 is missing, merge-1 alone may contradict the paper, but not confirm it."""
    text = "merge-1 and merge-2 are better than separate"
    for changed, expected in ((None, UNDECIDED), (FALSE[text], FAILS)):
        summary = build(changed)
        del summary.cells["resnet20", "merge2"]
        found = verdict(text, summary)
        assert (found.verdict, len(found.results), len(found.claim.tests)) == (expected, 4, 8)


def test_without_a_common_seed_nothing_is_decided():
    """Two variants without a common seed have no pairs, and so no test over seeds."""
    summary = build()
    cell = summary.cells["resnet20", "merge2"]
    summary.cells["resnet20", "merge2"] = dataclasses.replace(cell, seeds=(5, 6, 7, 8, 9))
    both, tested = {("resnet20", "merge1"), ("resnet20", "merge2")}, 0
    study = ErrorCurves(summary)
    for claim in claims.claims(Network(study, "resnet20")):
        pairs = [t for t in claim.tests if t.size == 1 and both <= set(t.needs)]
        for r in deciding.decide(dataclasses.replace(claim, tests=tuple(pairs)), study).results:
            assert (r.verdict, r.mcnemar) in ((UNDECIDED, (0, 0)), (UNDECIDED, None))
            assert np.isnan(r.seeds.p)
            tested += 1
    assert tested == 6


def test_the_best_alpha_is_chosen_on_validation():
    """Steps start from the alpha that validation images chose; test images prefer another."""
    summary = build()
    key, at = ("resnet20", "merge1"), curves.index(ALPHAS, 0.6)
    validation = np.full((SEEDS, 2, len(ALPHAS)), 50)
    validation[:, 1, at] = 40  # of test it is 0.9
    summary.cells[key] = dataclasses.replace(summary.cells[key], validation=validation)
    best_alpha = ErrorCurves(summary).best_alpha
    assert best_alpha(key, 1) == best_alpha(key, -1) == 0.6
    assert best_alpha(("resnet20", "merge2"), 1) == pytest.approx(0.9, abs=0.02)  # none held out
    found = verdict("±0.1 from the best α is worse for fine", summary)
    assert found.verdict == FAILS
    wrong = [r.test.pair[1].alpha for r in found.results if r.verdict == FAILS]
    assert wrong == [0.7]


def judged(expects, mean, half, p, holm, margin=0.5):
    """Return the verdict on a 95 % interval of mean ± half; the 90 % interval is 0.8 as wide."""
    test = deciding.Test("", expects, (), margin=margin)
    ends = (mean - half, mean + half, mean - 0.8 * half, mean + 0.8 * half)
    return deciding.judge(test, significance.Evidence(mean, *ends, p), holm)


@pytest.mark.parametrize(
    ("expects", "evidence", "expected"),
    [
        (deciding.LESS, (-1, 0.3, 0.01, 0.04), HOLDS),
        (deciding.LESS, (1, 0.3, 0.01, 0.04), FAILS),
        (deciding.LESS, (-1, 0.9, 0.04, 0.2), UNDECIDED),
        (deciding.LESS, (-0.1, 0.2, 0.3, 0.3), FAILS),  # none worth the name
        (deciding.LESS, (-0.3, 0.2, 0.02, 0.1), UNDECIDED),  # small, and there but for Holm
        (deciding.LESS, (0.3, 0.2, 0.02, 0.1), FAILS),
        (deciding.DIFFERENT, (1, 0.3, 0.01, 0.04), HOLDS),
        (deciding.DIFFERENT, (0.1, 0.2, 0.3, 0.3), FAILS),
        (deciding.DIFFERENT, (0.3, 0.2, 0.02, 0.1), UNDECIDED),
        (deciding.EQUAL, (0.3, 0.2, 0.02, 0.02), HOLDS),  # significant and negligible
        (deciding.EQUAL, (0.3, 0.2, 0.001, 0.001), HOLDS),
        (deciding.EQUAL, (0.3, 0.5, 0.2, 0.2), UNDECIDED),
        (deciding.EQUAL, (0.6, 0.3, 0.02, 0.08), UNDECIDED),
        (deciding.EQUAL, (0.6, 0.3, 0.001, 0.001), UNDECIDED),  # not 0, but perhaps negligible
        (deciding.EQUAL, (0.9, 0.3, 0.001, 0.001), FAILS),
        (deciding.EQUAL, (-0.9, 0.3, 0.001, 0.001), FAILS),
        (deciding.LESS, (np.nan, np.inf, np.nan, np.nan), UNDECIDED),
        (deciding.EQUAL, (np.nan, np.inf, np.nan, np.nan), UNDECIDED),
    ],
)
def test_the_verdict_on_an_interval(expects, evidence, expected):
    """Evidence: mean, half of the 95 % interval, p, p after Holm's correction; margin 0.5."""
    assert judged(expects, *evidence) == expected


def test_a_claim_of_no_difference_is_corrected_for_its_tests():
    """Of two tests, the smaller p-value is doubled."""
    rng = np.random.default_rng(5)
    noise = iter(rng.normal(0, 1, size=100).tolist())
    summary = build(lambda s: s["variant"] == "merge2" and s.update(
        base=[b + 1 + next(noise) for b in s["base"]]))  # fmt: skip
    found = verdict("merge-1 and merge-2 do not differ", summary).results
    p = [r.seeds.p for r in found]
    assert min(r.p_holm for r in found) == pytest.approx(min(1, 2 * min(p)))


def test_pairs_are_the_seeds_that_both_have():
    """Seeds 0 to 4 and 2 to 6 give three differences, each between networks of the same seed."""
    summary = build(change(["merge1", "merge2"], base=[0, 3]), seeds=(2,))
    cell = summary.cells["resnet20", "merge2"]
    shifted = dataclasses.replace(cell, seeds=(2, 3, 4, 5, 6))
    summary.cells["resnet20", "merge2"] = shifted
    keys = ("resnet20", "merge1"), ("resnet20", "merge2")
    assert ErrorCurves(summary).common_seeds(keys) == [2, 3, 4]
    errors = ErrorCurves(summary).of_seeds(keys)
    one, other = (curves.Setting(key, 1, 0.9) for key in keys)
    difference = errors.at(one) - errors.at(other)
    # merge-1's third is seed 2, merge-2's third is seed 4.
    np.testing.assert_allclose(difference, [3, 0, -3], atol=0.1)


def test_resampled_curves_are_those_of_the_images_drawn():
    """They equal counts over the images of a resample; their mean is near the full curve."""
    study, key = ErrorCurves(build()), ("resnet20", "merge1")
    weights = significance.resample_weights(IMAGES)
    of_right = study.cells[key].right[4][:, 1]
    resampled = study.of_resamples().curve(key, 1, 4)
    for b in (0, 7):
        drawn = np.repeat(np.arange(IMAGES), weights[b].astype(int))
        counts = ensembles.wrong_counts(of_right[:, drawn], len(ALPHAS))
        np.testing.assert_allclose(resampled[b], 100 / IMAGES * counts.mean(axis=0), atol=1e-4)
    mean = study.of_images().curve(key, 1, 4)
    np.testing.assert_allclose(resampled.mean(axis=0), mean, atol=0.3)


def test_mcnemar_counts_seeds_in_which_images_differ():
    """Two of five seeds have an error at alpha 1 far from that at 0."""
    summary = build(change(ALL, slope=(0.1, 0.1)), seeds=(0, 1, 2))
    found = verdict("Adaptation at α = 1 lowers the coarse", summary)
    assert {r.mcnemar for r in found.results} == {(2, 5)}


def test_the_optimum_of_a_flat_bottom_is_its_middle():
    """Ties count alike, for any leading axes."""
    errors = np.array([[3, 1, 1, 1, 2], [1, 2, 3, 4, 1]])
    assert curves.optimum(errors, np.arange(5.0)).tolist() == [2, 2]


@pytest.mark.parametrize(
    ("shift", "expected"), [(-3, HOLDS), (3, FAILS), (None, NOT_RUN)], ids=["better", "worse", "-"]
)
def test_two_networks_beside_each_other(shift, expected):
    """DenseNet is better or worse by three points; equal verdicts are consistent."""
    summary, by_arch = build(), {"resnet20": judged_true("resnet20")}
    if shift is not None:
        summary.cells.update(build(arch="densenet40", shift=shift).cells)
        # The claims about one network are not about errors as such: a shift changes no verdict.
        by_arch["densenet40"] = judge(summary, "densenet40") if shift < 0 else by_arch["resnet20"]
    agree, better = claims.judge_both(ErrorCurves(summary), by_arch)
    assert better.verdict == expected
    assert agree.verdict == (NOT_RUN if shift is None else HOLDS)


def agreement(of_resnet, of_densenet) -> str:
    """The verdict on two networks' verdicts agreeing; on no runs, which it does not ask for."""
    summary = Summary(CIFAR, np.arange(IMAGES) % 100, ALPHAS, {})
    by_arch = {"resnet20": of_resnet, "densenet40": of_densenet}
    return claims.judge_both(ErrorCurves(summary), by_arch)[0].verdict


def replaced(text: str, *verdicts: str) -> list[list[deciding.Verdict]]:
    """All verdicts `holds`, but for that on one claim; a list for each of `verdicts`."""
    true = judged_true("resnet20")
    assert sum(v.claim.text.startswith(text) for v in true) == 1
    return [
        [
            dataclasses.replace(v, verdict=other) if v.claim.text.startswith(text) else v
            for v in true
        ]
        for other in verdicts
    ]


def test_contradicting_networks_are_not_consistent():
    """One claim that holds in one network and fails in the other is enough."""
    true, false = replaced("The best α is near 1", HOLDS, FAILS)
    assert agreement(true, false) == agreement(false, true) == FAILS
    assert agreement(false, false) == HOLDS


def test_what_neither_network_decides_is_no_agreement():
    """If neither network was run for a claim, that is no disagreement."""
    true, undecided, not_run = replaced("±0.1 from the best α", HOLDS, UNDECIDED, NOT_RUN)
    assert agreement(true, undecided) == agreement(undecided, undecided) == UNDECIDED
    assert agreement(not_run, not_run) == HOLDS
    assert agreement(true, not_run) == UNDECIDED
