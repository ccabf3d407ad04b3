"""`adapt --decision` and `--target_accuracy`, called as a function, and their numbers by hand."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from made_up import page_data, unpacked
from test_adapt import RAGGED, THREE, TWO, fails, probabilities, run, succeeds
from trees import make

from hiercls_jax.adaptation.answers import DECISIONS
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.stopping import (
    Climb,
    calibrate_threshold,
    climb_paths,
    critical_values,
    stop,
    stop_climb,
    threshold_above,
)
from hiercls_jax.adaptation.tree import adjust_tree
from hiercls_jax.evaluation import adapt_tables
from hiercls_jax.evaluation.decisions import decide_all, measure_decisions
from hiercls_jax.evaluation.outcomes import SampleOutcomes
from hiercls_jax.evaluation.sure_answers import LabelledClimb, Target
from hiercls_jax.hierarchy.nodes import node_names, node_numbers
from hiercls_jax.metrics import answer_accuracy, mean_information, path_accuracy
from hiercls_jax.report import figures
from hiercls_jax.report.answer_contents import PageAnswers, collect_answers
from hiercls_jax.tables import adapter, answer_files
from hiercls_jax.tables.table import Identifiers

SUM = 1e-6
N = 300


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch, tmp_path):
    """Several chunks, in the test's own folder, and no figures."""
    monkeypatch.setattr(adapter, "CHUNK_BYTES", 4 * 64 * 13)
    monkeypatch.setattr(figures, "alpha_curve", lambda *_: None)
    monkeypatch.chdir(tmp_path)


def save(hierarchy, labelled=True) -> tuple[list[np.ndarray], np.ndarray, list[str]]:
    """Write tables; return the levels, the labels, and the flags that name the files."""
    levels, labels = probabilities(hierarchy, count=N)
    hierarchy.to_json(Path("h.json"))
    flags = ["--hierarchy=h.json", "--out=out"]
    for name, values in zip(hierarchy.levels, levels, strict=True):
        np.save(f"{name}.npy", values)
        flags.append(f"--level={name}={name}.npy")
    if labelled:
        np.save("y.npy", labels)
        flags.append("--labels=y.npy")
    return levels, labels, flags


def read_answers(path="out/answers.csv") -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("hierarchy", [TWO, RAGGED, THREE], ids=["two", "ragged", "three"])
def test_answers_are_those_of_the_library(capsys, hierarchy):
    """The rows that calibrate, those that test, the threshold and the answers, at alpha = 1."""
    levels, labels, flags = save(hierarchy)
    printed = succeeds(capsys, *flags, "--target_accuracy=0.8")
    order = np.random.default_rng(adapt_tables.SEED).permutation(N)
    calibration, test = (order >= 100) & (order < 200), order >= 200
    target = [np.asarray(p) for p in adjust_tree(levels, hierarchy, 1.0)]
    threshold = calibrate_threshold([p[calibration] for p in target], labels[calibration],
                                    hierarchy, 0.8)  # fmt: skip
    results = json.loads(Path("out/report.json").read_text())
    found = results["answers"]
    assert found["threshold"] == pytest.approx(threshold, abs=SUM)
    assert (found["calibrated_on_rows"], found["measured_on_rows"]) == (100, 100)
    assert (results["tuned_on_rows"], results["measured_on_rows"]) == (100, 100)
    assert (found["target_accuracy"], found["confidence"], found["alpha"]) == (0.8, None, 1.0)
    wanted = stop(target, hierarchy, found["threshold"])
    names = np.array(node_names(hierarchy))[node_numbers(wanted.node, hierarchy)]
    of_level = np.array([*hierarchy.levels, ""])[wanted.node[:, 0]]
    rows = read_answers()
    assert [int(row["id"]) for row in rows] == list(range(N))
    # Rounding on another path may move an answer across the threshold, but hardly ever does.
    same = [row["answer"] == name for row, name in zip(rows, names, strict=True)]
    assert np.mean(same) > 0.99
    for row, name, level, p, equal in zip(
        rows, names, of_level, wanted.probability, same, strict=True
    ):
        if equal:
            assert (row["answer"], row["level"]) == (name, level)
            assert float(row["probability"]) == pytest.approx(p, abs=SUM)
    assert {"", hierarchy.levels[-1]} <= {row["level"] for row in rows}
    right = answer_accuracy(wanted.node[test], labels[test], hierarchy)
    assert found["accuracy"] == pytest.approx(right, abs=0.011)
    low, high = found["accuracy_interval"]
    assert low < found["accuracy"] < high
    said = mean_information(wanted.node[test], hierarchy)
    assert found["information"] == pytest.approx(said, abs=0.011)
    assert sum(found["answers_at"].values()) == pytest.approx(1)
    assert sum(of["rows"] for of in found["by_class"]) == 100
    mean = sum(of["rows"] * of["accuracy"] for of in found["by_class"]) / 100
    assert mean == pytest.approx(found["accuracy"])
    assert "answers that shall be 80 % right, on average: threshold" in printed
    assert "right on 100 other rows: " in printed


def test_answers_in_the_format_of_the_tables(capsys):
    """Beside Parquet they are Parquet, with a number for the probability; else CSV."""
    save(TWO)
    flags = ["--hierarchy=h.json", "--level=kind=kind.npy", "--level=animal=animal.npy",
             "--labels=y.npy", "--target_accuracy=0.8", "--alpha=1"]  # fmt: skip
    succeeds(capsys, *flags, "--out=a", "--format=csv")
    succeeds(capsys, *flags, "--out=b", "--format=parquet")
    rows = read_answers("a/answers.csv")
    table = pq.read_table("b/answers.parquet")
    assert table.column_names == list(rows[0]) == ["id", "answer", "level", "probability"]
    assert table["answer"].to_pylist() == [row["answer"] for row in rows]
    assert table["probability"].to_pylist() == [np.float32(row["probability"]) for row in rows]
    assert table["id"].to_pylist() == list(range(N))


def test_identifiers_come_first(tmp_path):
    """Given identifiers replace the numbers of the rows."""
    climb = Climb(np.array([0, 2]), np.array([[0.9, 0.8], [0.5, 0.5]], np.float32))
    ids = Identifiers("photo", np.dtype(object), lambda size: iter([["x,1"], ["y"]]))
    for suffix in ("csv", "parquet"):
        path = tmp_path / f"answers.{suffix}"
        answer_files.write_answers(path, climb, TWO, 0.6, ids, size=1)
    assert read_answers(tmp_path / "answers.csv") == [
        {"photo": "x,1", "answer": "lynx", "level": "animal", "probability": "0.8"},
        {"photo": "y", "answer": "", "level": "", "probability": "1.0"},
    ]
    assert pq.read_table(tmp_path / "answers.parquet")["photo"].to_pylist() == ["x,1", "y"]


@pytest.mark.parametrize("decision", DECISIONS)
@pytest.mark.parametrize("hierarchy", [TWO, RAGGED], ids=["full", "ragged"])
def test_predictions_by_any_decision(capsys, hierarchy, decision):
    """`--decision` makes the predictions, as indices and as names; a level without one is empty."""
    levels, _, flags = save(hierarchy, labelled=False)
    succeeds(capsys, *flags, f"--decision={decision}")
    adapted = [np.load(f"out/p_{level}.npy") for level in hierarchy.levels]
    rows = DECISIONS[decision](adapted, hierarchy)
    np.testing.assert_array_equal(np.load("out/predictions.npy"), rows)
    results = json.loads(Path("out/report.json").read_text())
    assert results["decision"] == decision
    before = DECISIONS[decision](levels, hierarchy)
    for i, level in enumerate(hierarchy.levels):
        share = results["changed_predictions"][level]
        assert share == pytest.approx(np.mean(before[:, i] != rows[:, i]))
    succeeds(capsys, *flags, f"--decision={decision}", "--format=csv", "--out=named")
    with open("named/predictions.csv", newline="") as file:
        table = list(csv.reader(file))[1:]
    cuts = [(*hierarchy.cut_names(i), "") for i in range(2)]
    assert table == [[cut[i] for cut, i in zip(cuts, row, strict=True)] for row in rows.tolist()]


def test_all_decisions_are_measured(capsys):
    """With labels, the report compares every decision on the test rows, at the chosen alpha."""
    levels, labels, flags = save(TWO)
    printed = succeeds(capsys, *flags, "--alpha=0.5")
    adapted = [np.asarray(p) for p in adjust_tree(levels, TWO, 0.5)]
    results = json.loads(Path("out/report.json").read_text())["decisions"]
    for when, probs in (("before", levels), ("after", adapted)):
        wanted, found = measure_decisions(decide_all(probs, TWO), labels, TWO), results[when]
        assert list(found) == list(DECISIONS)
        for name, measured in wanted.items():
            for key in measured.keys() - {"error"}:
                assert found[name][key] == pytest.approx(measured[key], abs=0.004)
            assert found[name]["error"] == pytest.approx(measured["error"], abs=0.004)
    share = 100 * found["independent"]["path_accuracy"]
    assert f"right on every level: independent {share:.2f} %, leaf " in printed
    rows, truth = DECISIONS["leaf"](adapted, TWO), np.stack(TWO.labels(labels), axis=1)
    assert wanted["leaf"]["path_accuracy"] == path_accuracy(rows, truth)
    assert wanted["leaf"]["answer_accuracy"] == wanted["leaf"]["path_accuracy"]
    assert wanted["leaf"]["information"] == 1
    assert wanted["minimum_risk"]["answer_accuracy"] > wanted["leaf"]["answer_accuracy"]
    assert wanted["independent"].keys() == {"error", "path_accuracy"}


def test_the_page_shows_the_answers(capsys):
    """Its counts are those of `answers`; without labels it has the counts of stops alone."""
    _, labels, flags = save(TWO)
    succeeds(capsys, *flags, "--target_accuracy=0.8", "--report")
    found = json.loads(Path("out/report.json").read_text())["answers"]
    shown = page_data(Path("out/report.html").read_text())["answers"]
    at = shown["chosen_at"]
    assert shown["thresholds"][at] == found["threshold"]
    assert "calibrated on 100 other rows, 80 % right, on average" in shown["chosen"]
    counts = unpacked(shown["at"], -1, 3)[at]
    assert (counts / 100).tolist() == pytest.approx(list(found["answers_at"].values()))
    assert unpacked(shown["wrong"], -1)[at] == round(100 * (1 - found["accuracy"]))
    assert unpacked(shown["information"], -1)[at] == pytest.approx(found["information"])
    classes = shown["classes"]
    assert classes["names"] == [of["class"] for of in found["by_class"]]
    wrong = unpacked(classes["wrong"], -1, 2)[at]
    assert (1 - wrong / classes["totals"]).tolist() == pytest.approx(
        [of["accuracy"] for of in found["by_class"]]
    )
    areas = [found["risk_coverage_area"], found["leaf_or_nothing"]["risk_coverage_area"]]
    assert [curve["area"] for curve in shown["curves"]] == areas
    for item in shown["examples"]:
        assert item["label"] == labels[item["row"]]
        assert item["p"] == sorted(item["p"], reverse=True)
    *_, flags = save(TWO, labelled=False)
    succeeds(capsys, *flags, "--report", "--out=plain")
    shown = page_data(Path("plain/report.html").read_text())["answers"]
    assert unpacked(shown["at"], -1, 3).sum(axis=1).tolist() == [N] * 101
    assert [shown[key] for key in ("wrong", "classes", "curves", "chosen_at")] == [None] * 4
    assert shown["examples"][0]["label"] is None


def test_the_page_counts_ties_as_the_library_does():
    """At a threshold that a wrong class has exactly, it is still the answer."""
    tree = make([[0, 0, 1, 1]])
    climb = Climb(np.array([0, 0]), np.array([[0.75, 0.5], [0.75, 0.5]], np.float32))
    empty = np.zeros((2, 0, 2))
    outcomes = SampleOutcomes(empty, np.array([1, 2]), np.arange(2), (), (), 2.0)
    shown = collect_answers(PageAnswers(climb), outcomes, tree, lambda _: {}, np.asarray)
    for threshold in (0.49, 0.5, 0.51, 0.75, 0.76):
        at = shown["thresholds"].index(threshold)
        answers = stop_climb(climb, tree, threshold)
        right = answer_accuracy(answers.node, [1, 2], tree)
        assert shown["wrong"][at] == 2 - 2 * right
        assert shown["at"][at].tolist() == np.bincount(answers.node[:, 0] + 1, minlength=3).tolist()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--target_accuracy=90"], "target_accuracy=90: allowed is a share between 0 and 1"),
        (["--target_accuracy=0.9", "--confidence=1"], "confidence=1: allowed is a share"),
        (["--confidence=0.9"], "--confidence is of --target_accuracy, which is not given"),
        (["--calibrate_fraction=0.5"], "--calibrate_fraction is for --target_accuracy"),
        (["--target_accuracy=0.9", "--alpha=0.5"], "levels that agree; use --alpha=1, or --alpha="),
        (["--target_accuracy=0.999"], "at least 999; label more, .* 100 of 300 labelled rows"),
        (["--target_accuracy=0.9", "--tune_fraction=1"], "leaves no labelled row for"),
        (["--target_accuracy=0.9", "--calibrate_fraction=0.7"], "make them smaller, or give"),
        (["--target_accuracy=0.9", "--labels="], "--target_accuracy needs --labels=file"),
    ],
)
def test_promises_that_cannot_be_kept(capsys, flags, message):
    """A target out of range, without labels, with too few, or of levels that do not agree."""
    *_, base = save(TWO)
    assert re.search(message, fails(capsys, *base, *flags))


def test_a_part_of_the_rows_has_labels(capsys):
    """All rows get answers; only those with labels tune, calibrate and test."""
    levels, labels, flags = save(TWO)
    some = np.where(np.arange(N) % 3 == 0, labels, -1)
    np.save("y.npy", some)
    printed = succeeds(capsys, *flags, "--target_accuracy=0.7", "--report")
    found = json.loads(Path("out/report.json").read_text())
    assert found["labelled_rows"] == 100
    assert [found[key] for key in ("rows", "tuned_on_rows", "measured_on_rows")] == [300, 33, 34]
    assert found["answers"]["calibrated_on_rows"] == 33
    assert "; 200 rows have no label" in printed
    assert len(read_answers()) == N
    # The labelled rows alone have the same results.
    for name, values in zip(("kind", "animal", "y"), (*levels, labels), strict=True):
        np.save(f"{name}.npy", values[::3])
    succeeds(capsys, *flags, "--target_accuracy=0.7", "--out=alone")
    alone = json.loads(Path("alone/report.json").read_text())
    assert alone["test_error"] == found["test_error"]
    assert alone["answers"]["threshold"] == pytest.approx(found["answers"]["threshold"])
    assert alone["answers"]["by_class"] == found["answers"]["by_class"]
    np.save("y.npy", np.full(100, -1))
    assert "y.npy has no label" in fails(capsys, *flags, "--out=none")


def test_a_table_with_identifiers_becomes_answers(capsys):
    """A CSV of probabilities with ids, a CSV tree and labels for a part of them: one command."""
    levels, labels, _ = save(TWO)
    names = [f"photo {i}.jpg" for i in range(N)]
    for level, values, classes in zip(TWO.levels, levels, TWO.names, strict=True):
        rows = [
            ["file", *classes],
            *([name, *row] for name, row in zip(names, values.tolist(), strict=True)),
        ]
        with open(f"{level}.csv", "w", newline="") as file:
            csv.writer(file).writerows(rows)
    tree = [(name, TWO.names[0][i]) for name, i in zip(TWO.names[1], TWO.parents[0], strict=True)]
    Path("tree.csv").write_text("".join(f"{a},{b}\n" for a, b in tree))
    known = [TWO.names[1][y] if i % 2 else "" for i, y in enumerate(labels)]
    Path("y.csv").write_text("".join(f"{name}\n" for name in known))
    flags = ["--hierarchy=tree.csv", "--coarse=kind.csv", "--fine=animal.csv", "--labels=y.csv"]
    succeeds(capsys, *flags, "--target_accuracy=0.8", "--report", "--out=out")
    rows = read_answers()
    assert [row["file"] for row in rows] == names
    assert {row["answer"] for row in rows} <= {"", *TWO.names[0], *TWO.names[1]}
    assert json.loads(Path("out/report.json").read_text())["labelled_rows"] == N // 2


def test_labels_may_all_calibrate_or_test(capsys):
    """A given alpha tunes on no row; --calibrate_fraction says how many rows calibrate."""
    *_, flags = save(TWO)
    assert run(*flags, "--alpha=1", "--target_accuracy=0.7", "--calibrate_fraction=0.9") == 0
    found = json.loads(Path("out/report.json").read_text())
    assert (found["answers"]["calibrated_on_rows"], found["measured_on_rows"]) == (270, 30)
    assert found["tuned_on_rows"] == 0


def test_500_labels_keep_the_promise():
    """Over 1,000 random splits, 500 labels give fresh answers that are right 90 % of the time.

    The levels are adapted by Algorithm 1; its probabilities need not be calibrated.
    """
    levels, labels = probabilities(THREE, count=1200)
    target = [np.asarray(p) for p in RULES["kl"].target(levels, THREE)]
    critical = critical_values(climb_paths(target, THREE), labels, THREE)
    rng, rates = np.random.default_rng(0), []
    for _ in range(1000):
        order = rng.permutation(len(critical))
        threshold = threshold_above(critical[order[:500]], 0.9)
        rates.append(np.mean(critical[order[500:]] < threshold))
    assert np.mean(rates) + 3 * np.std(rates) / np.sqrt(1000) >= 0.9
    assert np.mean(rates) < 0.91


def test_leaf_or_nothing_is_calibrated_on_its_own():
    """The flat alternative stops a wrong leaf alone, so its threshold is that of wrong leaves."""
    tree = make([[0, 0, 1, 1]])
    climb = Climb(np.zeros(9, int), np.tile([0.9, 0.6], (9, 1)))
    labelled = LabelledClimb(climb, np.array([1] * 9), tree)  # the leaf is wrong, its parent right
    assert labelled.threshold(Target(0.5)) == labelled.flat_threshold(Target(0.5))
    labelled = LabelledClimb(climb, np.array([2] * 9), tree)  # both are wrong
    assert labelled.threshold(Target(0.5)) == np.nextafter(0.9, 1)
    assert labelled.flat_threshold(Target(0.5)) == np.nextafter(0.6, 1)
