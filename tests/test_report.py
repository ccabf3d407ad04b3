"""Evaluation: errors worked out by hand, alpha chosen on validation alone, table and figures."""

import dataclasses
import json

import numpy as np
import pytest
from small import HIERARCHY

from hiercls_jax import Hierarchy
from hiercls_jax.evaluation.evaluate import evaluate
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.report import figures
from hiercls_jax.report.terminal import error_table

# Two images on (dark: black, grey) and (light: silver, white). With β = α/2, the first one's
# coarse answer is right from .6 - .4 β < .5, α > .5, and its fine one until
# .1 (1 + 2 β) > .5 (1 - β/2), α = 1.78; the second one's fine answer is right from
# .3 (1 + 7/11 β) > .4 (1 - 7/9 β), α = .40, and its coarse one always.
BY_HAND = (
    [[0.6, 0.4], [0.9, 0.1]],
    [[0.1, 0.1, 0.5, 0.3], [0.3, 0.25, 0.4, 0.05]],
    [2, 0],
)
# Two equal images whose coarse answer is right from .56 - .1 β < .5, α > 1.2, and their fine one
# until .23 (1 + 5/23 β) > .3 (1 - 5/27 β), α = 1.33. (Two, so that they share BY_HAND's compiled
# code.)
LATE = ([[0.56, 0.44]] * 2, [[0.23, 0.23, 0.3, 0.24]] * 2, [2, 2])


def predictions(coarse, fine, labels) -> Predictions:
    coarse_labels, fine_labels = HIERARCHY.labels(np.asarray(labels, np.int32))
    return Predictions(
        {"coarse": np.asarray(coarse, np.float32), "fine": np.asarray(fine, np.float32)},
        {"coarse": coarse_labels, "fine": fine_labels},
    )


def noise(hierarchy: Hierarchy, count: int = 40, seed: int = 0) -> Predictions:
    """Random answers that lean to the truth."""
    rng = np.random.default_rng(seed)
    labels = hierarchy.labels(rng.integers(0, hierarchy.sizes[-1], count).astype(np.int32))
    probs = [rng.dirichlet(np.ones(n), count) + 0.3 * np.eye(n)[y]
             for n, y in zip(hierarchy.sizes, labels, strict=True)]  # fmt: skip
    probs = [(p / p.sum(axis=1, keepdims=True)).astype(np.float32) for p in probs]
    levels = hierarchy.levels
    return Predictions(
        dict(zip(levels, probs, strict=True)), dict(zip(levels, labels, strict=True))
    )


@pytest.fixture(scope="module")
def late():
    """The two images by hand as the test split, alpha tuned on the late one."""
    splits = {"validation": predictions(*LATE), "test": predictions(*BY_HAND)}
    return evaluate(splits, HIERARCHY)


@pytest.fixture(scope="module")
def final():
    """The two images by hand without a validation split."""
    return evaluate({"test": predictions(*BY_HAND)}, HIERARCHY)


def test_measures_by_hand(late):
    """Likelihood, consistency and severity, before adaptation and after it at the tuned alpha.

    Before, the first image's levels contradict each other (dark, silver) and its fine answer is
    right; the second one's do too (dark, silver), and its mistake is one family off: height 2.
    After it, both levels of both images are right.
    """
    before, after = late["measures"]["before"], late["measures"]["after"]
    wanted = -np.log([0.4, 0.9]).mean()
    assert before["coarse"]["negative_log_likelihood"] == pytest.approx(wanted)
    assert before["coarse"]["brier_score"] == pytest.approx((2 * 0.6**2 + 2 * 0.1**2) / 2)
    assert (before["consistency_rate"], before["mistake_severity"]) == (0.0, 2.0)
    assert (after["consistency_rate"], after["mistake_severity"]) == (1.0, None)
    assert "top5_error" not in before["fine"]  # of four classes it is 0


def test_errors_by_hand(late):
    """Errors of both levels at α = 0, 1, 2 and the tuned one, on test and validation."""
    assert late["test_error"] == {
        "alpha=0": {"coarse": 0.5, "fine": 0.5},
        "alpha=1": {"coarse": 0.0, "fine": 0.0},
        "alpha=2": {"coarse": 0.0, "fine": 0.5},
        "tuned": {"coarse": 0.0, "fine": 0.0},
    }
    assert late["validation_error"] == {
        "alpha=0": {"coarse": 1.0, "fine": 0.0},
        "alpha=1": {"coarse": 1.0, "fine": 0.0},
        "alpha=2": {"coarse": 0.0, "fine": 1.0},
        "tuned": {"coarse": 0.0, "fine": 0.0},
    }
    assert late["images"] == {"validation": 2, "test": 2}


def test_the_curve_by_hand(late):
    """The curve of test errors from 0 to 2 has its steps where they were worked out."""
    curve = late["curve"]
    alphas = np.array(curve["alpha"])
    assert (alphas[0], alphas[-1]) == (0, 2)
    assert np.all(np.diff(alphas) > 0)
    assert np.diff(alphas).max() <= 0.1
    away = np.all([np.abs(alphas - at) > 0.02 for at in (0.5, 0.4, 1.78)], axis=0)
    coarse = np.where(alphas < 0.5, 0.5, 0.0)
    fine = np.where((alphas < 0.4) | (alphas > 1.78), 0.5, 0.0)
    np.testing.assert_array_equal(np.array(curve["test_error_coarse"])[away], coarse[away])
    np.testing.assert_array_equal(np.array(curve["test_error_fine"])[away], fine[away])


def test_alpha_is_tuned_on_validation(late):
    """Alpha lies where validation has no error, which excludes 1; the source of it is recorded."""
    assert 1.2 < late["alpha"] < 1.33
    assert late["alpha_chosen_on"] == "validation"


def test_alpha_does_not_see_the_test_split(late):
    """Other test labels, or other test images, do not change alpha; other validation labels do."""
    validation = predictions(*LATE)
    test = predictions(BY_HAND[0], BY_HAND[1], [3, 1])
    assert evaluate({"validation": validation, "test": test}, HIERARCHY)["alpha"] == (late["alpha"])
    other = predictions(LATE[0], LATE[1], [0, 0])
    alpha = evaluate({"validation": other, "test": test}, HIERARCHY)["alpha"]
    assert not 1.2 < alpha < 1.33


def test_without_validation_alpha_is_1(final):
    """As in the paper's own comparison; no validation error is made up."""
    assert final["alpha"] == 1.0
    assert "validation" not in final["alpha_chosen_on"].split()[0]
    assert "validation_error" not in final
    assert final["images"] == {"test": 2}
    assert final["test_error"]["tuned"] == final["test_error"]["alpha=1"]


def test_tuned_alpha_is_the_best_on_validation():
    """No alpha of the curve has a smaller sum of both errors than the tuned one has."""
    split = noise(HIERARCHY, 200)
    results = evaluate({"validation": split, "test": split}, HIERARCHY)
    total = sum(np.array(results["curve"][f"test_error_{v}"]) for v in HIERARCHY.levels)
    tuned = sum(results["validation_error"]["tuned"].values())
    assert tuned <= total.min() + 1e-12
    assert tuned < total[0]
    assert results["validation_error"] == results["test_error"]
    for level in HIERARCHY.levels:
        # Errors at alpha 0 are those of the probabilities as they are.
        wrong = split.probs[level].argmax(axis=1) != split.labels[level]
        assert results["test_error"]["alpha=0"][level] == wrong.mean()


def test_coherence_gap_by_hand(final):
    """Before, the levels disagree on (.4 + .35) / 2 of their mass; at α = 1 on nothing."""
    assert final["coherence_gap"]["before"]["coarse/fine"] == pytest.approx(0.375, rel=1e-6)
    # float32 sums of masses up to 1
    assert final["coherence_gap"]["after"]["coarse/fine"] == pytest.approx(0, abs=1e-6)


def test_results_are_json(late):
    """The results survive a round trip through JSON."""
    assert json.loads(json.dumps(late)) == late


@pytest.fixture(scope="module")
def three():
    """A hierarchy of three levels, its predictions and their report."""
    hierarchy = Hierarchy(
        ("all", *HIERARCHY.levels),
        (("grey", "other"), ("dark", "light", "red"), (*HIERARCHY.names[1], "pink")),
        ((0, 0, 1), (0, 0, 1, 1, 2)),
    )
    test = noise(hierarchy)
    return hierarchy, test, evaluate({"test": test}, hierarchy)


def test_three_levels(three):
    """Levels are data: each has its errors, the largest alpha is 1.5, every pair its gap."""
    hierarchy, _, results = three
    assert list(results["test_error"]) == ["alpha=0", "alpha=1", "alpha=1.5", "tuned"]
    assert all(list(errors) == list(hierarchy.levels) for errors in results["test_error"].values())
    assert results["curve"]["alpha"][-1] == 1.5
    gaps = results["coherence_gap"]
    assert set(gaps["before"]) == {"all/coarse", "coarse/fine"}
    assert min(gaps["before"].values()) > 0.1
    assert max(gaps["after"].values()) < 1e-6


def test_table(late, final):
    """One row per setting and one column per level, in percent with two decimals, aligned."""
    lines = error_table(late, HIERARCHY).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[-2:] == ["coarse", "fine"]
    cells = [line.split("  ") for line in lines[1:]]
    cells = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert cells == [
        ["alpha = 0", "50.00 %", "50.00 %"],
        ["alpha = 1", "0.00 %", "0.00 %"],
        ["alpha = 2", "0.00 %", "50.00 %"],
        [f"tuned, alpha = {late['alpha']:.2f}", "0.00 %", "0.00 %"],
    ]
    # An alpha that was not tuned is called chosen.
    assert "chosen, alpha = 1.00" in error_table(final, HIERARCHY).splitlines()[-1]


def test_table_of_long_names(three):
    """A level's long name widens its column."""
    hierarchy, _, results = three
    long = "a level with a long name"
    renamed = dataclasses.replace(hierarchy, levels=(long, *hierarchy.levels[1:]))
    results = json.loads(json.dumps(results).replace('"all"', f'"{long}"'))
    lines = error_table(results, renamed).splitlines()
    assert long in lines[0]
    assert len({len(line) for line in lines}) == 1


def test_draw_writes_the_figures(tmp_path, late):
    """Both figures as `.png` and `.svg`, and nothing beside them."""
    figures.draw_run(tmp_path, late, predictions(*BY_HAND), HIERARCHY, "two images")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "alpha_curve.png", "alpha_curve.svg", "scatter.png", "scatter.svg",
    ]  # fmt: skip


def test_draw_shows_the_class_of_most_disagreement(tmp_path, monkeypatch, three):
    """The scatter has P against Q of the class on which two levels differ most, before and after.

    At α = 1 they agree afterwards: the points lie on the diagonal.
    """
    hierarchy, test, results = three
    drawn = []
    monkeypatch.setattr(figures, "alpha_curve", lambda *args: drawn.append(args))
    monkeypatch.setattr(figures, "scatters", lambda *args: drawn.append(args))
    figures.draw_run(tmp_path, results, test, hierarchy, "three levels")
    (_, alphas, errors, tuned, _), (_, panels, member, name, level) = drawn
    (p, q), (after_p, after_q) = panels.values()
    assert list(errors) == list(hierarchy.levels)
    assert len(alphas) == len(errors["fine"])
    assert tuned is None
    coarse, fine = test.probs["coarse"], test.probs["fine"]
    sums = np.stack([fine[:, hierarchy.parents[1] == c].sum(axis=1) for c in range(3)], axis=1)
    shown = int(np.abs(coarse - sums).mean(axis=0).argmax())
    assert (name, level) == (hierarchy.names[1][shown], "coarse")
    np.testing.assert_array_equal(p, coarse[:, shown])
    np.testing.assert_allclose(q, sums[:, shown], atol=1e-6)  # float32 sums of masses up to 1
    np.testing.assert_allclose(after_p, after_q, atol=1e-6)
    np.testing.assert_array_equal(member, test.labels["coarse"] == shown)


def test_draw_adapts_by_the_rule_of_the_results(tmp_path, monkeypatch):
    """By `bottom_up`, at alpha 1 both P and Q become the sums over the fine classes."""
    test, drawn = predictions(*BY_HAND), []
    results = evaluate({"test": test}, HIERARCHY, "bottom_up")
    monkeypatch.setattr(figures, "alpha_curve", lambda *_: None)
    monkeypatch.setattr(figures, "scatters", lambda path, panels, *_: drawn.append(panels))
    figures.draw_run(tmp_path, results, test, HIERARCHY, "two images")
    ((_, q), (after_p, after_q)) = drawn[0].values()
    np.testing.assert_allclose(after_p, q, atol=1e-6)  # float32 sums of masses up to 1
    np.testing.assert_allclose(after_q, q, atol=1e-6)
