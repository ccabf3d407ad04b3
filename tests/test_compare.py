"""From runs to a summary, and from the summary alone to the same figures and tables."""

import contextlib
import csv
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import small
from made_up import page_data, rates
from made_up_runs import write_run

from hiercls_jax import experiment
from hiercls_jax.commands import compare
from hiercls_jax.errors import UserError
from hiercls_jax.study import claims, finished_runs, summary

VARIANTS = ("separate", "merge1")
# Columns of CSV files that have words.
WORDS = {"network", "variant", "level", "claim", "difference", "expected", "unit", "verdict"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two variants, two seeds each, in a grid's folders."""
    folder = tmp_path_factory.mktemp("grid")
    for variant in VARIANTS:
        for seed in (0, 1):
            cpu = 40.0 + seed if variant == "merge1" else 60.0
            write_run(folder / "resnet20" / variant / f"seed-{seed}", variant, seed,
                      training_cpu=cpu)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    """The folder that the command wrote."""
    out = tmp_path_factory.mktemp("out") / "all"
    assert compare.main(["compare", str(runs), f"--out={out}"]) == 0
    return out


def test_the_summary_alone_gives_every_file_again_byte_for_byte(compared, tmp_path):
    """The figures and the tables; the summary itself is not written again."""
    assert compare.main(["compare", str(compared / "summary.npz"), f"--out={tmp_path}"]) == 0
    names = {path.name for path in compared.iterdir() if path.suffix != ".html"}
    assert names - {"summary.npz"} == {path.name for path in tmp_path.iterdir()}
    assert {"comparison.md", "error_against_alpha-resnet20.svg", "points-resnet20.svg",
            "errors.csv", "errors.tex", "ledger.csv"} < names  # fmt: skip
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (compared / path.name).read_bytes(), path.name


def test_each_variant_with_runs_has_a_page_of_its_ensemble(runs, compared):
    """It shows the mean of both seeds' probabilities: the errors of the pair in the summary.

    Its record has the command that made it, the config, the versions and the commit.
    """
    cells = summary.load(compared / "summary.npz").cells
    for variant in VARIANTS:
        text = (compared / f"report-resnet20-{variant}.html").read_text(encoding="utf-8")
        assert f"{variant}, resnet20, ensemble of seeds 0, 1" in text
        data = page_data(text)
        record = data["record"]
        assert record["command"] == f"python -m hiercls_jax compare {runs} --out={compared}"
        assert record["config"]["train.epochs"] == 20
        assert record["environment"].keys() >= {"python", "jax", "commit"}
        wrong = cells["resnet20", variant].wrong["averaged"][2][0]
        for alpha in (0.0, 1.0, 2.0):
            errors = rates(data)[:, data["alphas"].index(alpha)]
            np.testing.assert_allclose(errors, wrong[:, round(100 * alpha)] / 300, rtol=1e-6)


def table(folder, name) -> list[dict]:
    with open(folder / f"{name}.csv", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_errors_are_means_over_ensembles_of_the_summarys_counts(compared):
    """Two single networks and one pair; standard deviations if there are several."""
    cell = summary.load(compared / "summary.npz").cells["resnet20", "merge1"]
    rows = [r for r in table(compared, "errors") if r["variant"] == "merge-1"]
    assert [(r["ensemble"], r["level"]) for r in rows] == [
        ("1", "coarse"), ("1", "fine"), ("2", "coarse"), ("2", "fine"),
    ]  # fmt: skip
    wrong = 100 / 300 * cell.wrong["averaged"][1][:, 1, 100]
    assert float(rows[1]["α = 1"]) == pytest.approx(wrong.mean(), abs=0.005)
    assert float(rows[1]["α = 1, sd"]) == pytest.approx(wrong.std(ddof=1), abs=0.005)
    tuned = cell.wrong["calibrated"][2][0, 0, cell.tuned["calibrated"][2][0]]
    assert float(rows[2]["calibrated, tuned"]) == pytest.approx(100 / 300 * tuned, abs=0.005)
    assert rows[2]["α = 1, sd"] == ""


def test_costs_are_those_of_the_records_and_the_networks(compared):
    """Parameters of both separate networks together; seconds per epoch over seeds."""
    separate, merged = table(compared, "costs")
    assert int(separate["parameters"]) > int(merged["parameters"]) > 4e5
    assert float(merged["s per epoch, cores"]) == pytest.approx(40.5 / 20, abs=0.1)
    assert float(separate["s per epoch, clock"]) == pytest.approx(60.5 / 20, abs=0.1)
    assert float(separate["ms per test image"]) == pytest.approx(2000 / 300, abs=0.001)


def test_the_ledger_has_every_claim_also_those_without_runs(compared):
    """Two variants and two seeds decide some claims; the others are `not run`."""
    rows = {row["claim"]: row for row in table(compared, "ledger")}
    assert len(rows) == len(claims.CLAIMS) + 2
    assert rows["merge-1 and merge-2 do not differ at α = 1"]["verdict"] == "not run"
    time = rows["Merging takes less training time than separate networks"]
    assert time["verdict"] == "not decided at this scale"  # merge-2 and merge-3 were not run
    assert (time["tests that hold"], time["tests"]) == ("1", "3")
    assert rows["DenseNet has lower errors than ResNet at α = 1"]["verdict"] == "not run"
    tests = table(compared, "tests")
    time = next(t for t in tests if t["difference"] == "merge-1 against separate, training time")
    assert float(time["over seeds"]) == pytest.approx(-100 * (1 - 40.5 / 60), abs=0.005)
    assert float(time["over seeds, low"]) < float(time["over seeds"])
    assert int(tests[0]["McNemar, seeds"]) == 2
    assert int(tests[0]["McNemar, significant seeds"]) in (0, 1, 2)


def test_csv_files_have_numbers_under_different_names(compared):
    """Apart from columns of words, a value is a number or empty; no two columns share a name."""
    for name in ("ledger", "errors", "control", "costs", "tests"):
        with open(compared / f"{name}.csv", encoding="utf-8", newline="") as file:
            header, *rows = csv.reader(file)
        assert len({column.strip() for column in header}) == len(header), name
        assert rows, name
        for column, *values in zip(header, *rows, strict=True):
            if column not in WORDS:
                for value in filter(None, values):
                    float(value)
                assert "−" not in "".join(values)


def test_p_values_are_not_cut_in_csv(compared):
    """A p-value below 0.001 is a number in CSV and `< 0.001` in Markdown."""
    small = [r for r in table(compared, "tests") if 0 < float(r["p over images"] or 1) < 5e-4]
    assert small
    assert "| < 0.001 " in (compared / "comparison.md").read_text(encoding="utf-8")


def test_markdown_has_all_tables_and_figures_that_exist(compared):
    """Every image that it shows lies beside it, and every table is in it."""
    text = (compared / "comparison.md").read_text(encoding="utf-8")
    shown = re.findall(r"\]\(([^)]+)\)", text)
    assert shown
    assert all((compared / name).exists() for name in shown)
    for row in table(compared, "control"):
        assert row["another's sums, random groups"] in text


def test_latex_is_plain_ascii(compared):
    """Every row has as many columns as the table declares."""
    for path in compared.glob("*.tex"):
        text = path.read_text(encoding="ascii")
        columns = re.search(r"begin\{tabular\}\{(\w+)\}", text)[1]
        for line in text.splitlines():
            assert r"\ensuremath{$" not in line  # mathematics within mathematics
            if line.endswith(r"\\"):
                assert line.count("&") == len(columns) - 1, (path.name, line)


def edit(path, change):
    """Change the text of a file."""
    path.write_text(change(path.read_text()))


def change_array(folder, name, place, value):
    """Change one entry of one array of a run's predictions."""
    with np.load(folder / "predictions.npz") as file:
        arrays = {k: a.copy() for k, a in file.items()}
    arrays[name][place] = value
    np.savez(folder / "predictions.npz", **arrays)


def change_results(folder, change):
    """Change the parsed results of a run in place."""
    results = json.loads((folder / "results.json").read_text())
    change(results)
    (folder / "results.json").write_text(json.dumps(results))


DAMAGES = {
    "missing": lambda f: (f / "predictions.npz").unlink(),
    "cut": lambda f: (f / "predictions.npz").write_bytes(
        (f / "predictions.npz").read_bytes()[:9999]
    ),
    "nan": lambda f: change_array(f, "test/p_fine", (3, 4), np.nan),
    "not finished": lambda f: edit(
        f / "results.json", lambda text: text.replace('"finished": true', '"finished": false')
    ),
    "results": lambda f: (f / "results.json").write_text('{"fini'),
    "seconds": lambda f: change_results(f, lambda r: r["seconds"].update(training=None)),
    "no config": lambda f: change_results(f, lambda r: r.pop("config")),
    "rule": lambda f: change_results(f, lambda r: r["config"].update({"adapt.rule": "none"})),
    "hierarchy": lambda f: (f / "hierarchy.json").write_text("["),
    # One label of 200: its coarse class is not 19.
    "parents": lambda f: change_array(f, "validation/labels_coarse", 7, 19),
}


def test_damaged_runs_are_named_and_left_out(runs, tmp_path, capsys):
    """The healthy seed is compared; each run that was left out, and why, is one line."""
    merge1 = runs / "resnet20" / "merge1"
    shutil.copytree(merge1 / "seed-0", tmp_path / "runs" / "seed-0")
    for name, damage in DAMAGES.items():
        bad = tmp_path / "runs" / f"seed-1, {name}"
        shutil.copytree(merge1 / "seed-1", bad)
        damage(bad)
    assert compare.main(["compare", str(tmp_path / "runs")]) == 0
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    assert len(lines) == len(DAMAGES)
    for name in DAMAGES:
        (line,) = [line for line in lines if str(tmp_path / "runs" / f"seed-1, {name}") in line]
        assert line.startswith("left out: ")
    assert "resnet20 merge1: seeds 0\n" in out


def test_runs_of_different_rules_are_refused(runs, tmp_path):
    """One comparison has one rule of adaptation; the error names both."""
    for variant, rule in (("merge1", "kl"), ("separate", "bottom_up")):
        shutil.copytree(runs / "resnet20" / variant / "seed-0", tmp_path / variant)
        change_results(tmp_path / variant, lambda r, rule=rule: r["config"].update(
            {"adapt.rule": rule}))  # fmt: skip
    found = finished_runs.find_runs(tmp_path, pytest.fail)
    cells = []
    with pytest.raises(UserError, match="different rules .*: bottom_up, kl"):
        finished_runs.summarise_runs(found, cells.append)
    assert [cell.rule for cell in cells] == ["kl"]
    assert cells[0].wrong["averaged"][1].shape[-1] == 201
    bottom_up = dataclasses.replace(found, cells={
        key: by_seed for key, by_seed in found.cells.items() if key[1] == "separate"})  # fmt: skip
    whole = finished_runs.summarise_runs(bottom_up, cells.append)
    assert whole.alphas[-1] == 1  # that rule goes no further, so two claims cannot be tested
    above_1 = [v for _, v in claims.judge(whole) if v.claim.text.startswith("For coarse")]
    assert [(v.verdict, v.claim.tests) for v in above_1] == [("not run", ())] * 2
    summary.save(tmp_path / "summary.npz", whole)
    assert summary.load(tmp_path / "summary.npz").cells["resnet20", "separate"].rule == "bottom_up"


def test_seeds_of_an_older_version_belong_to_the_same_cell(runs, tmp_path):
    """A run whose record lacks `dtype` and `adapt.rule` used their defaults, as newer seeds do.

    It has recorded the fields of its own learning-rate cycle.
    """
    added = set(experiment.ADDED_LATER) - {"optimizer.peak_at"}
    for seed in (0, 1):
        shutil.copytree(runs / "resnet20" / "merge1" / f"seed-{seed}", tmp_path / f"seed-{seed}")
    for older in (0, 1):
        change_results(tmp_path / f"seed-{older}", lambda r: [
            r["config"].pop(field) for field in added])  # fmt: skip
        cells = []
        finished_runs.summarise_runs(finished_runs.find_runs(tmp_path, pytest.fail), cells.append)
        assert [(cell.seeds, cell.rule) for cell in cells] == [((0, 1), "kl")]


def test_what_cannot_be_compared_is_one_error(runs, compared, tmp_path, capsys):
    """No runs, the same run or cell twice, or seeds with different configs."""
    one = runs / "resnet20" / "merge1" / "seed-0"

    def error(*arguments) -> str:
        assert compare.main(["compare", *map(str, arguments), f"--out={tmp_path / 'out'}"]) == 1
        return capsys.readouterr().err

    (tmp_path / "none").mkdir()
    assert "holds no finished run" in error(tmp_path / "none")
    for copy in ("a", "b"):
        shutil.copytree(one, tmp_path / "twice" / copy)
    assert "are the same run: resnet20 merge1, seed 0" in error(tmp_path / "twice")
    changed = tmp_path / "other" / "b"
    shutil.copytree(one, tmp_path / "other" / "a")
    shutil.copytree(runs / "resnet20" / "merge1" / "seed-1", changed)
    text = (changed / "results.json").read_text()
    (changed / "results.json").write_text(text.replace('"train.epochs": 20', '"train.epochs": 7'))
    assert "train.epochs differ" in error(tmp_path / "other")
    assert "is there twice" in error(compared / "summary.npz", one)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("at", "line"),
    [
        ("load", "stopped while {runs} was read; nothing was written"),
        ("write", "stopped while {out} was written; each file there is complete"),
    ],
)
def test_ctrl_c_says_where_and_how_to_go_on(runs, tmp_path, monkeypatch, capsys, at, line):
    """One line, with status 130."""

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(finished_runs.predictions if at == "load" else compare.comparison, at, stop)
    one, out = runs / "resnet20" / "merge1" / "seed-0", tmp_path / "out"
    assert compare.main(["compare", str(one), f"--out={out}"]) == 130
    line = line.format(runs=one, out=out)
    assert capsys.readouterr().err == f"{line}, and the same command begins anew\n"
    assert [path.name for path in out.glob("*")] == ["summary.npz"] * (at == "write")


def test_a_grid_in_parts_compares_like_a_whole_one(runs, compared, tmp_path):
    """The summary of one variant and the runs of the other give the same files."""
    whole, first = summary.load(compared / "summary.npz"), tmp_path / "first.npz"
    merge1 = {key: cell for key, cell in whole.cells.items() if key[1] == "merge1"}
    summary.save(first, dataclasses.replace(whole, cells=merge1))
    rest = runs / "resnet20" / "separate"
    status = compare.main(["compare", str(first), str(rest), f"--out={tmp_path}"])
    assert status == 0
    for name in ("errors.csv", "tests.csv", "ledger.csv", "error_against_alpha-resnet20.svg"):
        assert (tmp_path / name).read_bytes() == (compared / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "nothing to compare"), (["--nonsense=1"], "nonsense")]
)
def test_a_wrong_command_line_is_one_line(arguments, message, capsys):
    """Its status is 2, and it says where to look."""
    assert compare.main(["compare", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert line.endswith("see python -m hiercls_jax compare --help")


def test_a_reader_that_has_seen_enough_is_no_error(compared, tmp_path, monkeypatch):
    """`__main__` ends `compare … | head -1` without a word about the broken pipe."""
    monkeypatch.setattr(compare.comparison, "write", lambda *_: [])  # which takes seconds
    command = ["compare", str(compared / "summary.npz"), f"--out={tmp_path}"]
    with contextlib.redirect_stdout(small.ClosedPipe()), pytest.raises(BrokenPipeError):
        compare.main(command)
