"""The command `python -m hiercls_jax adapt`, called as a function unless a process matters.

Tolerance: results are float32 sums of a few rounded terms of at most 1 (SUM); padding a chunk can
change the order in which XLA adds.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import small
from made_up import page_data, unpacked

from hiercls_jax import __main__
from hiercls_jax.adaptation.alpha import alpha_search
from hiercls_jax.adaptation.priors import estimate_prior, restrict, reweight
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.tree import adjust_tree, interpolate, marginals
from hiercls_jax.commands import adapt
from hiercls_jax.evaluation import adapt_tables
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics import topk_error
from hiercls_jax.report import figures
from hiercls_jax.tables import adapter, streaming

SUM = 1e-6
N = 50
TWO = Hierarchy(
    ("kind", "animal"),
    (("cat", "dog"), ("lynx", "pug", "lion", "poodle", "ocelot")),
    ((0, 1, 0, 1, 0),),
)
THREE = Hierarchy(
    ("order", "kind", "animal"),
    (
        ("carnivore", "rodent"),
        ("cat", "dog", "mouse"),
        ("lynx", "lion", "pug", "house", "dormouse"),
    ),
    ((0, 0, 1), (0, 0, 1, 2, 2)),
)
RAGGED = Hierarchy(
    ("kind", "animal"), (("cat", "dog", "emu"), ("lynx", "lion", "pug")), ((0, 0, 1),), True
)
"""The emu is a leaf of the first level."""


def logits(hierarchy, seed=0, count=N) -> tuple[list[np.ndarray], np.ndarray]:
    """Float32 logits of every level that know the labels a little, and the leaves' labels `[N]`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, hierarchy.num_leaves, count)
    levels = []
    for size, true in zip(hierarchy.sizes, hierarchy.labels(labels), strict=True):
        levels.append(rng.normal(0, 1.5, (count, size)).astype(np.float32))
        known = true < size
        levels[-1][known, true[known]] += 1.5
    return levels, labels


def softmax(x):
    """Probabilities, float32, of logits `[N, K]`."""
    e = np.exp(x - x.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def probabilities(hierarchy, **kwargs):
    """Probabilities of every level, and the labels."""
    levels, labels = logits(hierarchy, **kwargs)
    return [np.array(p) for p in marginals([softmax(x) for x in levels], hierarchy)], labels


def save(path: Path, values, names, order=slice(None)) -> Path:
    """Write a table as another program would: by NumPy, by hand, by pyarrow."""
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, values)
    elif path.suffix == ".csv":
        rows = [list(names)[order], *(map(repr, row[order]) for row in values.tolist())]
        path.write_text("".join(",".join(row) + "\n" for row in rows))
    else:
        columns = {name: values[:, i] for i, name in list(enumerate(names))[order]}
        pq.write_table(pa.table(columns), path, row_group_size=7)
    return path


def load(path: Path) -> np.ndarray:
    """Read a table that the command wrote, with other programs."""
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return file[path.stem]
    if path.suffix == ".csv":
        return np.loadtxt(path, np.float32, delimiter=",", skiprows=1)
    return np.stack(pq.read_table(path).columns, axis=1)


def errors_of(out: str) -> dict:
    """The errors in a report."""
    return json.loads(Path(f"{out}/report.json").read_text())["test_error"]


ALPHA_CURVE = figures.alpha_curve
"""Draws the figure, which takes a second: only in tests that look at it."""


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch, tmp_path):
    """Several chunks, the last of them padded; in the test's own folder, and with no figures."""
    monkeypatch.setattr(adapter, "CHUNK_BYTES", 4 * 8 * 13)
    monkeypatch.setattr(figures, "alpha_curve", lambda *_: None)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def inputs(tmp_path):
    """Files of two levels and their labels, as `.npy`, and their contents."""
    levels, labels = probabilities(TWO)
    TWO.to_json(tmp_path / "h.json")
    for name, values in zip(("pc", "pf"), levels, strict=True):
        np.save(tmp_path / f"{name}.npy", values)
    np.save(tmp_path / "y.npy", labels)
    return levels, labels


BASE = ("--hierarchy=h.json", "--coarse=pc.npy", "--fine=pf.npy", "--out=out")
"""Flags for the files of `inputs`."""


def run(*flags: str) -> int:
    """Run the command."""
    return adapt.main(["adapt", *flags])


def succeeds(capsys, *flags: str) -> str:
    """Run the command and return what it prints."""
    status = run(*flags)
    printed = capsys.readouterr()
    assert (status, printed.err) == (0, "")
    return printed.out


def fails(capsys, *flags: str, status=1) -> str:
    """Run the command, which fails with one line and leaves nothing behind; return the line."""
    before = sorted(Path.cwd().rglob("*"))
    assert run(*flags) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert re.fullmatch(r"(error: |stopped).+\n", printed.err)
    assert sorted(Path.cwd().rglob("*")) == before
    return printed.err


# Its outputs.


def test_writes_what_the_library_returns(inputs, capsys):
    """Without labels: Algorithm 1 at alpha 1, its predictions, and its effect on the levels."""
    levels, _ = inputs
    printed = succeeds(capsys, *BASE)
    wanted = [np.asarray(p) for p in adjust_tree(levels, TWO, 1.0)]
    for name, p in zip(("p_kind", "p_animal"), wanted, strict=True):
        got = np.load(f"out/{name}.npy")
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, p, atol=SUM)
    predictions = np.load("out/predictions.npy")
    assert predictions.dtype == np.int32
    np.testing.assert_array_equal(predictions, np.stack([p.argmax(1) for p in wanted], 1))
    results = json.loads(Path("out/report.json").read_text())
    assert (results["alpha"], results["rule"], results["rows"]) == (1.0, "kl", N)
    assert results["coherence_gap"]["after"]["kind/animal"] < SUM
    gap = np.abs(levels[0] - levels[1] @ np.eye(2)[TWO.fine_to_coarse]).sum(1).mean() / 2
    assert results["coherence_gap"]["before"]["kind/animal"] == pytest.approx(gap, abs=SUM)
    for level, before, after in zip(TWO.levels, levels, wanted, strict=True):
        share = np.mean(before.argmax(1) != after.argmax(1))
        assert results["changed_predictions"][level] == pytest.approx(share)
    assert sorted(os.listdir("out")) == [
        "p_animal.npy", "p_kind.npy", "predictions.npy", "report.json"
    ]  # fmt: skip
    assert f"adapted {N} rows by Algorithm 1 (kl), alpha = 1" in printed


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_and_alpha(inputs, capsys, rule):
    """`--rule` and `--alpha` choose any of the library's rules, and how far to go."""
    levels, _ = inputs
    succeeds(capsys, *BASE, f"--rule={rule}", "--alpha=0.5")
    wanted = interpolate(levels, RULES[rule].target(levels, TWO), 0.5)
    for name, p in zip(("p_kind", "p_animal"), wanted, strict=True):
        np.testing.assert_allclose(np.load(f"out/{name}.npy"), p, atol=SUM)


def test_method_is_another_name_of_rule(inputs, capsys):
    """`--method`, the older name, stays; the report has the rule under both."""
    succeeds(capsys, *BASE, "--method=top_down")
    results = json.loads(Path("out/report.json").read_text())
    assert results["rule"] == results["method"] == "top_down"


@pytest.mark.parametrize("suffix", ["npy", "npz", "csv", "parquet"])
def test_formats_agree(inputs, capsys, tmp_path, suffix):
    """Each format is read, columns with names in any order, and written in the same format."""
    levels, labels = inputs
    succeeds(capsys, *BASE[:3], "--out=wanted")
    backwards = slice(None, None, -1)
    for name, values, names in zip(("pc", "pf"), levels, TWO.names, strict=True):
        save(tmp_path / f"{name}.{suffix}", values, names, backwards)
    succeeds(
        capsys, "--hierarchy=h.json", f"--coarse=pc.{suffix}", f"--fine=pf.{suffix}", "--out=out"
    )
    for name in ("p_kind", "p_animal"):
        wanted = np.load(f"wanted/{name}.npy")
        np.testing.assert_array_equal(load(tmp_path / "out" / f"{name}.{suffix}"), wanted)
    predictions = np.load("wanted/predictions.npy")
    named = [[names[i] for i, names in zip(row, TWO.names, strict=True)] for row in predictions]
    if suffix == "csv":
        rows = [line.split(",") for line in Path("out/predictions.csv").read_text().split()]
        assert rows == [list(TWO.levels), *named]
    elif suffix == "parquet":
        table = pq.read_table("out/predictions.parquet")
        assert [list(row.values()) for row in table.to_pylist()] == named
        assert table.column_names == list(TWO.levels)
    else:
        np.testing.assert_array_equal(load(tmp_path / "out" / f"predictions.{suffix}"), predictions)


def test_format_of_the_output(inputs, capsys, tmp_path):
    """`--format` writes another format than was read; levels may come from different ones."""
    levels, _ = inputs
    save(tmp_path / "pf.parquet", levels[1], TWO.names[1])
    flags = ("--hierarchy=h.json", "--coarse=pc.npy", "--fine=pf.parquet")
    succeeds(capsys, *flags, "--out=mixed")
    assert {"p_kind.npy", "p_animal.parquet", "predictions.parquet"} < set(os.listdir("mixed"))
    succeeds(capsys, *flags, "--out=out", "--format=npz")
    assert {"p_kind.npz", "p_animal.npz", "predictions.npz"} < set(os.listdir("out"))
    np.testing.assert_array_equal(
        load(tmp_path / "out/p_animal.npz"), load(tmp_path / "mixed/p_animal.parquet")
    )


def test_progress(inputs, capsys, monkeypatch):
    """On a terminal a bar counts the rows, and is gone at the end."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert run(*BASE, "--labels=y.npy") == 0
    shown = capsys.readouterr().err
    assert re.search(rf"measuring: .*0/{N} .*adapting: .*0/{N} ", shown, re.DOTALL)
    assert shown.endswith("\r")


def test_a_reader_that_has_seen_enough_is_no_error(inputs, capsys):
    """All is written; the broken pipe is not reported, and `__main__` ends the command."""
    with contextlib.redirect_stdout(small.ClosedPipe()), pytest.raises(BrokenPipeError):
        run(*BASE)
    assert capsys.readouterr().err == ""
    assert (Path("out") / "report.json").exists()


def test_three_levels(capsys, tmp_path):
    """Any number of levels by `--level name=file`, in any order."""
    levels, labels = probabilities(THREE)
    THREE.to_json("h.json")
    for name, values in zip(THREE.levels, levels, strict=True):
        np.save(f"{name}.npy", values)
    np.save("y.npy", labels)
    flags = [f"--level={name}={name}.npy" for name in reversed(THREE.levels)]
    succeeds(capsys, "--hierarchy=h.json", *flags, "--labels=y.npy", "--alpha=1.2", "--out=out")
    for name, p in zip(THREE.levels, adjust_tree(levels, THREE, 1.2), strict=True):
        np.testing.assert_allclose(np.load(f"out/p_{name}.npy"), p, atol=SUM)
    results = json.loads(Path("out/report.json").read_text())
    assert set(results["test_error"]) == {"alpha=0", "alpha=1", "alpha=1.5", "given"}


def test_logits(capsys, tmp_path):
    """With `--logits` each level's softmax is taken; a class of logit -inf has no mass."""
    levels, _ = logits(TWO)
    levels[1][3] = [0, -np.inf, 800, 800, -800]
    TWO.to_json("h.json")
    np.save("pc.npy", levels[0])
    np.save("pf.npy", levels[1])
    succeeds(capsys, *BASE, "--logits")
    wanted = adjust_tree([softmax(x) for x in levels], TWO, 1.0)
    for name, p in zip(("p_kind", "p_animal"), wanted, strict=True):
        np.testing.assert_allclose(np.load(f"out/{name}.npy"), p, atol=SUM)


def test_renormalize(inputs, capsys):
    """With `--renormalize` rows of any sum, tiny or huge, are divided by it."""
    levels, _ = inputs
    scale = np.logspace(-30, 30, N, dtype=np.float32)[:, None]
    np.save("pf.npy", levels[1] * scale)
    succeeds(capsys, *BASE, "--renormalize")
    wanted = adjust_tree(levels, TWO, 1.0)
    np.testing.assert_allclose(np.load("out/p_animal.npy"), wanted[1], atol=SUM)


def test_ragged_hierarchy(capsys):
    """A leaf above the last level counts in the sum of that level's rows, and can be predicted."""
    levels, labels = probabilities(RAGGED)
    RAGGED.to_json("h.json")
    np.save("pc.npy", levels[0])
    np.save("pf.npy", levels[1])
    Path("y.csv").write_text("\n".join(RAGGED.leaf_names[i] for i in labels))
    Path("h.csv").write_text("cat,\nlynx,cat\nlion,cat\ndog,\npug,dog\nemu,\n")
    flags = (*BASE[1:3], "--labels=y.csv", "--alpha=1", "--format=csv")
    levels_in_csv = ("--level=coarse=pc.npy", "--level=fine=pf.npy")
    succeeds(capsys, "--hierarchy=h.json", *flags, "--out=out")
    succeeds(capsys, "--hierarchy=h.csv", "--ragged", *levels_in_csv, "--format=csv", "--out=csv")
    assert Path("csv/p_fine.csv").read_text() == Path("out/p_animal.csv").read_text()
    wanted = adjust_tree(levels, RAGGED, 1.0)
    cut = np.concatenate([wanted[1], wanted[0][:, 2:]], axis=1)
    fine = [RAGGED.leaf_names[i] for i in cut.argmax(axis=1)]
    rows = [line.split(",") for line in Path("out/predictions.csv").read_text().split()][1:]
    assert [row[1] for row in rows] == fine
    assert "emu" in fine
    results = json.loads(Path("out/report.json").read_text())
    assert results["test_error"]["given"]["animal"] == pytest.approx(topk_error(cut, labels))
    assert results["coherence_gap"]["after"]["kind/animal"] < SUM
    logits_too, _ = logits(RAGGED)
    np.save("pc.npy", logits_too[0])
    np.save("pf.npy", logits_too[1])
    succeeds(capsys, *BASE[:3], "--logits", "--out=out2")
    np.testing.assert_allclose(np.load("out2/p_animal.npy"), wanted[1], atol=SUM)


# Nothing wrong in silence: the order of columns, and identifiers.


def test_the_order_of_columns_is_stated_or_the_table_is_refused(inputs, capsys, tmp_path):
    """The trap: a CSV that names coarse classes as parents alone states no order of theirs.

    Their columns, here in alphabetical order, were scrambled without a word. Each remedy of the
    error gives the same result, whatever the order of the columns.
    """
    levels, _ = inputs
    succeeds(capsys, *BASE[:3], "--out=wanted")
    children = "pug,dog\nlynx,cat\nlion,cat\npoodle,dog\nocelot,cat\n"
    order = [TWO.names[1].index(name) for name in ("pug", "lynx", "lion", "poodle", "ocelot")]
    np.save("pf.npy", levels[1][:, order])
    Path("h.csv").write_text(children)
    error = fails(capsys, "--hierarchy=h.csv", *BASE[1:])
    assert (
        "h.csv does not state the order of level 'coarse', because it names 'dog', 'cat'" in error
    )
    for remedy in ("--names coarse=FILE", "such as 'dog,'", "as JSON", "header of a CSV or Parq"):
        assert remedy in error
    Path("roots.csv").write_text(f"cat,\ndog,\n{children}")
    Path("names.txt").write_text("cat\ndog\n")
    save(tmp_path / "pc.csv", levels[0], TWO.names[0])
    save(tmp_path / "pc.parquet", levels[0], TWO.names[0])
    Hierarchy.read("roots.csv").to_json("roots.json")
    for i, flags in enumerate(
        (
            ("--hierarchy=roots.csv", "--coarse=pc.npy"),
            ("--hierarchy=roots.json", "--coarse=pc.npy"),
            ("--hierarchy=h.csv", "--coarse=pc.npy", "--names=coarse=names.txt"),
            ("--hierarchy=h.csv", "--coarse=pc.csv"),
            ("--hierarchy=h.csv", "--coarse=pc.parquet"),
        )
    ):
        succeeds(capsys, *flags, "--fine=pf.npy", "--format=parquet", f"--out=out{i}")
        for written, wanted, names in zip(
            ("p_coarse", "p_fine"), ("p_kind", "p_animal"), TWO.names, strict=True
        ):
            table = pq.read_table(f"out{i}/{written}.parquet").select(names)
            np.testing.assert_array_equal(
                np.stack(table.columns, axis=1), np.load(f"wanted/{wanted}.npy")
            )
    error = fails(capsys, *BASE, "--names=kind=missing.txt")
    assert "missing.txt cannot be read" in error
    error = fails(capsys, *BASE, "--names=colour=names.txt")
    assert "--names colour=names.txt names no level; allowed is one for each of kind, an" in error


def test_levels_in_different_orders(capsys):
    """Columns in a wrong order are a warning on the terminal, in the report and on its page."""
    levels, labels = probabilities(TWO, count=400)
    TWO.to_json("h.json")
    np.save("pc.npy", levels[0][:, ::-1])
    np.save("pf.npy", levels[1])
    np.save("y.npy", labels)
    assert run(*BASE, "--report", "--labels=y.npy") == 0
    error = capsys.readouterr().err
    assert "warning: levels 'kind' and 'animal' agree on " in error
    assert "'cat' as 'dog', 'dog' as 'cat'; check the order of the columns" in error
    (warning,) = json.loads(Path("out/report.json").read_text())["warnings"]
    assert error == f"warning: {warning}\n"
    assert page_data(Path("out/report.html").read_text())["warnings"] == [warning]
    np.save("pc.npy", levels[0])
    succeeds(capsys, *BASE[:3], "--out=right")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_identifiers_go_through(inputs, capsys, tmp_path, suffix):
    """The column that identifies the rows is the first of all that is written."""
    levels, _ = inputs
    succeeds(capsys, *BASE[:3], f"--format={suffix}", "--out=wanted")
    names = [f"{i}.png" for i in range(N)]
    for name, values, classes in zip(("pc", "pf"), levels, TWO.names, strict=True):
        table = pa.table({"file": names} | dict(zip(classes, values.T, strict=True)))
        if suffix == "csv":
            pa.csv.write_csv(table, f"{name}.csv")
        else:
            pq.write_table(table, f"{name}.parquet")
    flags = ("--hierarchy=h.json", f"--coarse=pc.{suffix}", f"--fine=pf.{suffix}")
    succeeds(capsys, *flags, "--out=out")
    succeeds(capsys, *flags, "--format=npy", "--out=arrays")
    for file in ("p_kind", "p_animal", "predictions"):
        read = pa.csv.read_csv if suffix == "csv" else pq.read_table
        written, wanted = (read(f"{out}/{file}.{suffix}") for out in ("out", "wanted"))
        assert written.column_names == ["file", *wanted.column_names]
        assert written["file"].to_pylist() == names
        assert written.drop_columns("file") == wanted
    assert Path("arrays/ids.csv").read_text() == "\n".join(["file", *names, ""])
    assert json.loads(Path("out/report.json").read_text())["id"] == "file"
    assert "--id=key: no table has a column of that name" in fails(
        capsys, *flags, "--id=key", "--out=other"
    )


def test_tables_identify_the_same_rows(inputs, capsys):
    """Two tables whose rows have other identifiers are refused, at the first row that differs."""
    for name, values, classes in zip(("pc", "pf"), inputs[0], TWO.names, strict=True):
        ids = [f"{i}.png" for i in range(N)]
        if name == "pf":
            ids[30], ids[31] = ids[31], ids[30]
        pq.write_table(
            pa.table({"file": ids} | dict(zip(classes, values.T, strict=True))), f"{name}.parquet"
        )
    error = fails(
        capsys, "--hierarchy=h.json", "--coarse=pc.parquet", "--fine=pf.parquet", "--out=out"
    )
    assert "row 30 (from 0) is '30.png' in pc.parquet but '31.png' in pf.parquet" in error


def test_a_column_that_is_called_like_a_level(inputs, capsys, tmp_path):
    """Identifiers in a column `animal` stand beside the predictions of the level `animal`."""
    columns = dict(zip(TWO.names[1], inputs[0][1].T, strict=True)) | {"animal": np.arange(N)}
    pq.write_table(pa.table(columns), "pf.parquet")
    flags = (*BASE[:2], "--fine=pf.parquet", "--out=out")
    assert "give --id=animal" in fails(capsys, *flags)
    succeeds(capsys, *flags, "--id=animal")
    table = pq.read_table("out/predictions.parquet")
    assert table.column_names == ["animal_id", "kind", "animal"]
    assert table["animal_id"].to_pylist() == list(range(N))


def test_a_softmax_over_all_leaves_of_a_ragged_tree(capsys, tmp_path):
    """The last level may have a column for every leaf: then leaves above are their own children."""
    rng = np.random.default_rng(3)
    coarse, fine = (rng.dirichlet(np.ones(k), N).astype(np.float32) for k in (3, 4))
    RAGGED.to_json("h.json")
    np.save("pc.npy", coarse)
    np.save("pf.npy", fine)
    save(tmp_path / "pf.csv", fine, RAGGED.leaf_names, slice(None, None, -1))
    flags = ("--hierarchy=h.json", "--coarse=pc.npy")
    error = fails(capsys, *flags, "--fine=pf.npy", "--out=out")
    assert "nothing states the order of the 4 leaves 'lynx', 'lion', 'pug' and 1 more" in error
    succeeds(capsys, *flags, "--fine=pf.csv", "--out=out")
    full = Hierarchy(RAGGED.levels, (RAGGED.names[0], RAGGED.leaf_names), ([0, 0, 1, 2],))
    wanted = adjust_tree([coarse, fine], full, 1.0)
    assert Path("out/p_animal.csv").read_text().startswith("lynx,lion,pug,emu\n")
    np.testing.assert_allclose(load(tmp_path / "out/p_animal.csv"), wanted[1], atol=SUM)
    np.testing.assert_allclose(np.load("out/p_kind.npy"), wanted[0], atol=SUM)
    Path("names.txt").write_text("emu\npug\nlion\nlynx\n")
    np.save("pf.npy", fine[:, ::-1])
    succeeds(capsys, *flags, "--fine=pf.npy", "--names=animal=names.txt", "--out=named")
    np.testing.assert_array_equal(
        np.load("named/p_animal.npy"), load(tmp_path / "out/p_animal.csv")
    )


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_labels_of_some_rows_by_their_identifiers(inputs, capsys, suffix):
    """Two columns hold labels of any rows in any order: the same as one column with empty cells.

    Labels of no row are a warning; two labels for one row, or labels of other rows alone, an error.
    """
    levels, labels = inputs
    ids = [f"{i}.png" for i in range(N)]
    columns = {"file": ids} | dict(zip(TWO.names[1], levels[1].T, strict=True))
    pq.write_table(pa.table(columns), "pf.parquet")
    given = np.random.default_rng(0).permutation(N)[:30]
    flags = (*BASE[:2], "--fine=pf.parquet", "--format=csv")
    in_order = ["" if i not in given else TWO.names[1][labels[i]] for i in range(N)]
    Path("in_order.csv").write_text("label\n" + "".join(f'"{y}"\n' for y in in_order))
    succeeds(capsys, *flags, "--labels=in_order.csv", "--out=wanted")

    def save_labels(name, some_ids, values):
        table = pa.table({"label": values, "file": some_ids})
        if suffix == "csv":
            pa.csv.write_csv(table, name)
        else:
            pq.write_table(table, name)
        return f"--labels={name}"

    wanted = json.loads(Path("wanted/report.json").read_text())
    for i, values in enumerate((labels[given], [TWO.names[1][y] for y in labels[given]])):
        flag = save_labels(f"y{i}.{suffix}", [ids[j] for j in given], values)
        succeeds(capsys, *flags, flag, f"--out=out{i}")
        results = json.loads(Path(f"out{i}/report.json").read_text())
        for key in ("alpha", "test_error", "labelled_rows", "tuned_on_rows", "warnings"):
            assert results[key] == wanted[key], key
    flag = save_labels(f"y.{suffix}", ["0.png", "x.png"], ["lynx", "pug"])
    assert run(*flags, flag, "--alpha=1", "--out=more") == 0
    error = capsys.readouterr().err
    assert error == f"warning: 1 of 2 labels of y.{suffix} are of no row of the tables: 'x.png'\n"
    for some_ids, values, message in (
        (
            ["x.png"],
            ["pug"],
            "none of its rows, such as 'x.png', is in the tables",
        ),
        (["0.png", "0.png"], ["pug", "lynx"], "'0.png' has two different labels"),
        (["0.png"], ["wolf"], "unknown class 'wolf'"),
    ):
        flag = save_labels(f"y.{suffix}", some_ids, values)
        assert message in fails(capsys, *flags, flag, "--out=bad")
    flag = save_labels(f"y.{suffix}", ids[:2], ["lynx", "pug"])
    error = fails(capsys, *BASE[:3], flag, "--out=bad")
    assert "identifies its rows, but no table does" in error


def test_labels_beside_the_index_of_pandas(inputs, capsys):
    """An index that pandas wrote is no identifier if the tables have none: labels are in order."""
    labels = inputs[1]
    Path("y.csv").write_text(",label\n" + "".join(f"{i},{y}\n" for i, y in enumerate(labels)))
    succeeds(capsys, *BASE[:3], "--labels=y.npy", "--out=wanted")
    succeeds(capsys, *BASE[:3], "--labels=y.csv", "--out=out")
    assert errors_of("out") == errors_of("wanted")
    Path("y.csv").write_text(",label\n0,1\n")
    error = fails(capsys, *BASE[:3], "--labels=y.csv", "--out=bad")
    assert "y.csv has 1 rows, allowed is one for each of 50" in error


def test_numbers_count_the_columns_that_are_named(inputs, capsys):
    """Indices among the labels count the columns as --names has them."""
    levels, labels = inputs
    order = [3, 0, 4, 2, 1]
    succeeds(capsys, *BASE[:3], "--labels=y.npy", "--out=wanted")
    np.save("pf.npy", levels[1][:, order])
    np.save("y.npy", np.argsort(order)[labels])
    Path("names.txt").write_text("\n".join(TWO.names[1][i] for i in order))
    succeeds(capsys, *BASE[:3], "--names=animal=names.txt", "--labels=y.npy", "--out=out")
    assert errors_of("out") == errors_of("wanted")


def test_labels_in_another_order(capsys):
    """Labels that count the classes in another order than the columns are a warning."""
    levels, labels = probabilities(TWO, count=600)
    TWO.to_json("h.json")
    np.save("pc.npy", levels[0])
    np.save("pf.npy", levels[1])
    swapped = np.array([0, 1, 2, 4, 3])[labels]
    swapped[::2] = -1  # only rows with odd numbers have labels
    np.save("y.npy", swapped)
    assert run(*BASE, "--labels=y.npy") == 0
    error = capsys.readouterr().err
    assert "warning: the labels and the answers of level 'animal' agree on " in error
    assert "'poodle' as 'ocelot', 'ocelot' as 'poodle'; check which class each number" in error
    np.save("y.npy", np.where(swapped < 0, -1, labels))
    succeeds(capsys, *BASE[:3], "--labels=y.npy", "--out=right")


def test_answers_have_identifiers(capsys, tmp_path):
    """answers.csv has the tables' identifiers as its first column, in their order."""
    levels, labels = probabilities(TWO, count=90)
    TWO.to_json("h.json")
    np.save("pc.npy", levels[0])
    columns = dict(zip(TWO.names[1], levels[1].T, strict=True))
    columns["level"] = [f"{i}.png" for i in range(90)]
    pa.csv.write_csv(pa.table(columns), "pf.csv")
    np.save("y.npy", labels)
    flags = ("--fine=pf.csv", "--labels=y.npy", "--target_accuracy=0.6", "--out=out")
    assert run(*BASE[:2], *flags) == 0
    table = pa.csv.read_csv("out/answers.csv")
    assert table.column_names == ["level_id", "answer", "level", "probability"]
    assert table["level_id"].to_pylist() == columns["level"]


# Other classes than in training.


def test_only_some_classes(inputs, capsys):
    """`--only` leaves classes out on all levels: the library's numbers, and no mass for the others.

    A group whose kept child has no mass is shared among all of its children by the rule; that mass
    does not leak to those that are left out.
    """
    levels, labels = inputs
    levels[1][0] = [0, 0.5, 0, 0.25, 0.25]  # of the cats the ocelot alone has mass
    levels[1][1] = [0, 0.5, 0, 0.5, 0]  # no cat has any: equal shares
    np.save("pf.npy", levels[1])
    Path("only.txt").write_text("lynx\nlion\ndog\n")
    printed = succeeds(capsys, *BASE, "--only=only.txt")
    assert "kept 4 of 5 leaves, as only.txt lists" in printed
    kind, animal = np.load("out/p_kind.npy"), np.load("out/p_animal.npy")
    assert not animal[:, 4].any()
    for p in (kind, animal):
        np.testing.assert_allclose(p.sum(axis=1), 1, atol=SUM)
    kept = restrict(levels, TWO, ["lynx", "lion", "dog"])
    wanted = restrict(adjust_tree(kept, TWO, 1.0), TWO, ["lynx", "lion", "dog"])
    for p, w in zip((kind, animal), wanted, strict=True):
        np.testing.assert_allclose(p, w, atol=SUM)
    results = json.loads(Path("out/report.json").read_text())
    assert results["only"] == {"file": "only.txt", "leaves": 4, "of": 5}
    error = fails(capsys, *BASE[:3], "--out=two", "--only=only.txt", "--labels=y.npy")
    row = int(np.flatnonzero(labels == 4)[0])
    assert f"y.npy, row {row} (from 0): class 'ocelot' is left out by --only or --prior" in error
    Path("only.txt").write_text("ocelot\n")
    error = fails(capsys, *BASE[:3], "--out=two", "--only=only.txt")
    assert "pf.npy, row 1 (from 0) has no mass left on level 'animal'" in error
    Path("only.txt").write_text("wolf\n")
    assert "unknown class 'wolf'" in fails(capsys, *BASE[:3], "--out=two", "--only=only.txt")


def test_other_class_frequencies(inputs, capsys):
    """`--prior` gives the library's numbers; training frequencies are equal unless given."""
    levels, _ = inputs
    Path("new.csv").write_text("class,count\nlynx,1\npug,2\nlion,3\npoodle,4\nocelot,10\n")
    Path("old.json").write_text(json.dumps(dict(zip(TWO.names[1], (3, 1, 1, 1, 4), strict=True))))
    for i, (flags, old) in enumerate(
        (((), np.ones(5)), (("--train_prior=old.json",), [3, 1, 1, 1, 4]))
    ):
        printed = succeeds(capsys, *BASE[:3], "--prior=new.csv", *flags, f"--out=out{i}")
        assert "class frequencies of new.csv: ocelot 50.0 %, poodle 20.0 %, lion 15.0 %" in printed
        wanted = adjust_tree(reweight(levels, TWO, old, [1, 2, 3, 4, 10]), TWO, 1.0)
        for name, p in zip(("p_kind", "p_animal"), wanted, strict=True):
            np.testing.assert_allclose(np.load(f"out{i}/{name}.npy"), p, atol=SUM)
    assert "needs the frequencies now" in fails(capsys, *BASE, "--train_prior=old.json")
    Path("new.csv").write_text("lynx,1\npug,2\n")
    error = fails(capsys, *BASE, "--prior=new.csv")
    assert "new.csv: no frequency of class 'lion', 'poodle', 'ocelot'" in error


def test_frequencies_are_estimated(inputs, capsys):
    """`--prior=estimate` runs EM on the rows before adaptation, among the classes that are kept."""
    levels, _ = inputs
    printed = succeeds(capsys, *BASE[:3], "--prior=estimate", "--out=out")
    assert f"class frequencies estimated on {N} rows: " in printed
    results = json.loads(Path("out/report.json").read_text())["prior"]
    wanted = estimate_prior(levels[1], np.ones(5))
    assert list(results["new_prior"].values()) == pytest.approx(wanted, abs=1e-5)
    assert (results["estimated_on_rows"], results["train_prior"]) == (N, "equal frequencies")
    adapted = adjust_tree(reweight(levels, TWO, np.ones(5), wanted), TWO, 1.0)
    np.testing.assert_allclose(np.load("out/p_animal.npy"), adapted[1], atol=1e-5)
    Path("only.txt").write_text("cat\npug\n")
    succeeds(capsys, *BASE[:3], "--prior=estimate", "--only=only.txt", "--out=both")
    results = json.loads(Path("both/report.json").read_text())["prior"]
    assert results["new_prior"]["poodle"] == 0
    assert not np.load("both/p_animal.npy")[:, 3].any()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.csv", "lynx,1\nlynx,2\npug,1\nlion,1\npoodle,1\nocelot,1\n", "a class stands twice"),
        ("p.csv", "lynx\n", "expected class,number in a row"),
        ("p.csv", "lynx,1\npug,-1\nlion,1\npoodle,1\nocelot,1\n", "-1.0 for class 'pug', allowed"),
        ("p.csv", "lynx,0\npug,0\nlion,0\npoodle,0\nocelot,0\n", "every class has frequency 0"),
        ("p.json", "[1]", "allowed is a JSON object"),
        ("p.json", '{"wolf": 1}', "unknown class 'wolf'"),
        ("p.json", '{"lynx": "1", "pug": 1, "lion": 1, "poodle": 1, "ocelot": 1}', "'1' for class"),
        ("p.json", "{", "p.json cannot be read"),
    ],
)
def test_frequencies_that_are_none(inputs, capsys, name, text, message):
    """A file of frequencies that is damaged or does not fit the leaves is refused by its name."""
    Path(name).write_text(text)
    assert message in fails(capsys, *BASE, f"--prior={name}")


# Labels: the report and the choice of alpha.


def test_reports_errors(inputs, capsys, monkeypatch):
    """With labels and an alpha: the errors of the written predictions on all rows, and a curve."""
    monkeypatch.setattr(figures, "alpha_curve", ALPHA_CURVE)
    levels, labels = inputs
    printed = succeeds(capsys, *BASE, "--labels=y.npy", "--alpha=0.7")
    results = json.loads(Path("out/report.json").read_text())
    errors, true = results["test_error"], TWO.labels(labels)
    predictions = np.load("out/predictions.npy")
    for level, (name, p) in enumerate(zip(TWO.levels, levels, strict=True)):
        assert errors["alpha=0"][name] == pytest.approx(topk_error(p, true[level]))
        assert errors["given"][name] == pytest.approx(np.mean(predictions[:, level] != true[level]))
        curve = results["curve"][f"test_error_{name}"]
        for alpha, error in list(zip(results["curve"]["alpha"], curve, strict=True))[::40]:
            wanted = topk_error(adjust_tree(levels, TWO, alpha)[level], true[level])
            assert error == pytest.approx(wanted), alpha
    assert (results["measured_on_rows"], results["tuned_on_rows"]) == (N, 0)
    assert f"errors of all {N} rows" in printed
    assert {"alpha_curve.png", "alpha_curve.svg"} < set(os.listdir("out"))


def test_tunes_on_one_half_and_measures_on_the_other(inputs, capsys):
    """By default labels choose alpha on a random half; the errors are those of the other half."""
    levels, labels = inputs
    printed = succeeds(capsys, *BASE, "--labels=y.npy")
    results = json.loads(Path("out/report.json").read_text())
    assert (results["tuned_on_rows"], results["measured_on_rows"]) == (N // 2, N // 2)
    assert results["split_seed"] == adapt_tables.SEED
    assert "alpha was tuned on 25 random rows; errors of the other 25" in printed
    tuned = np.random.default_rng(adapt_tables.SEED).permutation(N) < N // 2
    true = TWO.labels(labels)

    def error(alpha, rows):
        adapted = adjust_tree(levels, TWO, alpha)
        return [
            topk_error(np.asarray(p)[rows], y[rows]) for p, y in zip(adapted, true, strict=True)
        ]

    target = RULES["kl"].target(levels, TWO)
    tuning = [[np.asarray(x)[tuned] for x in xs] for xs in (levels, target, true)]
    # A target that differs by a rounding moves the ends of an interval by about as much.
    assert results["alpha"] == pytest.approx(alpha_search(*tuning, largest=2).alpha, abs=1e-5)
    grid = [sum(error(alpha, tuned)) for alpha in np.linspace(0, 2, 81)]
    assert sum(error(results["alpha"], tuned)) <= min(grid) + 1e-9
    assert list(results["validation_error"]["tuned"].values()) == error(results["alpha"], tuned)
    assert list(results["test_error"]["tuned"].values()) == error(results["alpha"], ~tuned)
    wanted = adjust_tree(levels, TWO, results["alpha"])
    for name, p in zip(("p_kind", "p_animal"), wanted, strict=True):
        np.testing.assert_allclose(np.load(f"out/{name}.npy"), p, atol=SUM)
    succeeds(capsys, *BASE[:3], "--labels=y.npy", "--out=again")
    assert json.loads(Path("again/report.json").read_text()) == results


def test_tuned_and_measured_on_the_same_rows(inputs, capsys):
    """`--tune_fraction=1` uses all rows for both, and says that the errors are optimistic."""
    printed = succeeds(capsys, *BASE, "--labels=y.npy", "--tune_fraction=1", "--alpha=tune")
    assert f"alpha was tuned on the same {N} rows: these errors are optimistic" in printed
    results = json.loads(Path("out/report.json").read_text())
    assert results["test_error"] == results["validation_error"]


# Rejected inputs.


def spoil(name, row, value, column=None):
    """Return a function that overwrites a row, or one of its numbers, in an `.npy` file."""

    def change():
        values = np.load(name)
        values[row if column is None else (row, column)] = value
        np.save(name, values)

    return change


def shorten(name, keep):
    """Return a function that cuts a file to so many bytes."""
    return lambda: Path(name).write_bytes(Path(name).read_bytes()[:keep])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            spoil("pf.npy", 31, np.nan, 2),
            "pf.npy, row 31 .*: nan for class 'lion', allowed are num",
        ),
        (spoil("pc.npy", 0, -0.25, 1), "pc.npy, row 0 .*: -0.25 for class 'dog', allowed are .* 0"),
        (spoil("pf.npy", 49, np.inf, 0), "pf.npy, row 49 .*: inf for class 'lynx'"),
        (spoil("pf.npy", 17, 0.21), "pf.npy, row 17 .*: sums to 1.05, allowed is 1 .* --renormal"),
        (spoil("pf.npy", 17, 0), "pf.npy, row 17 .*: sums to 0, allowed is 1 within 0.001"),
        (lambda: np.save("pf.npy", np.load("pf.npy")[:-1]), "pf.npy has 49 rows but pc.npy has 50"),
        (
            lambda: np.save("pf.npy", np.load("pf.npy")[:, 1:]),
            r"pf.npy: shape \[50, 4\], allowed is",
        ),
        (
            lambda: np.save("y.npy", np.arange(49) % 5),
            "y.npy .*49.* allowed is one for each of 50 samples",
        ),
        (lambda: np.save("y.npy", np.arange(50) % 6), "y.npy, row 5 .*: unknown class 5; allowed"),
        (lambda: np.save("y.npy", np.array([{}] * 50)), "y.npy holds Python objects, which are ne"),
        (
            lambda: np.save("pf.npy", np.array([[{}] * 5] * 50)),
            "pf.npy holds Python objects, which",
        ),
        (shorten("pf.npy", 128 + 20 * 40 + 3), "pf.npy is truncated: it ends in row 40"),
        (shorten("h.json", 30), "h.json is not JSON"),
        (lambda: Path("pc.npy").unlink(), "pc.npy cannot be read: No such file"),
        (lambda: Path("h.json").unlink(), "there is no hierarchy file h.json"),
        (lambda: Path("out").write_text(""), "out is there and not empty; choose another"),
        (
            lambda: (Path("out").mkdir(), Path("out/x").touch()),
            "out is there and not empty; choose",
        ),
    ],
)
def test_bad_input(inputs, capsys, change, message):
    """One line with the file, the row and what is allowed; and nothing is left behind."""
    change()
    assert re.search(message, fails(capsys, *BASE, "--labels=y.npy"))


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
@pytest.mark.parametrize(
    ("value", "message"),
    [(np.nan, "nan for class 'pug'"), (-1, "-1 for class 'pug'"), (9, "sums to")],
)
def test_bad_values_in_every_format(inputs, capsys, suffix, value, message):
    """Rows are counted from 0 and from the first row of numbers, in every format."""
    values = inputs[0][1]
    values[33, 1] = value
    save(Path(f"pf.{suffix}"), values, TWO.names[1])
    error = fails(capsys, *BASE[:2], f"--fine=pf.{suffix}", "--out=out")
    assert f"pf.{suffix}, row 33 (from 0): {message}" in error


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
def test_truncated_in_every_format(inputs, capsys, suffix):
    """A file that ends too early is refused by its name."""
    path = save(Path(f"pf.{suffix}"), inputs[0][1], TWO.names[1])
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    assert f"pf.{suffix}" in fails(capsys, *BASE[:2], f"--fine=pf.{suffix}", "--out=out")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_unknown_classes(inputs, capsys, suffix):
    """Columns that are no classes of the level are named."""
    save(Path(f"pf.{suffix}"), inputs[0][1], ("lynx", "pug", "lion", "poodle", "wolf"))
    error = fails(capsys, *BASE[:2], f"--fine=pf.{suffix}", "--out=out")
    assert f"pf.{suffix}: unknown class 'wolf'; allowed is one column for each" in error


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0, 0, np.nan, 0, 0], "nan for class 'lion', allowed are numbers or -inf"),
        ([0, np.inf, 0, 0, 0], "inf for class 'pug'"),
        ([-np.inf] * 5, "-inf for every class"),
    ],
)
def test_bad_logits(inputs, capsys, row, message):
    """NaN and infinity are no logits, nor are rows without a finite one."""
    spoil("pf.npy", 20, row)()
    assert f"pf.npy, row 20 (from 0): {message}" in fails(capsys, *BASE, "--logits")


def test_renormalize_needs_something_to_divide_by(inputs, capsys):
    """Neither a row of zeros nor a negative number is mended by `--renormalize`."""
    spoil("pf.npy", 5, 0)()
    assert "row 5 (from 0): sums to 0, allowed is 1" in fails(capsys, *BASE, "--renormalize")
    spoil("pf.npy", 5, -1)()
    assert "row 5 (from 0): -1 for class 'lynx'" in fails(capsys, *BASE, "--renormalize")


def test_ragged_sums(capsys):
    """In a ragged hierarchy a level's rows sum to because the leaves above have the rest."""
    levels, _ = probabilities(RAGGED)
    RAGGED.to_json("h.json")
    np.save("pc.npy", levels[0])
    levels[1][4] /= levels[1][4].sum()
    np.save("pf.npy", levels[1])
    error = fails(capsys, *BASE)
    room = 1 - levels[0][4, 2]
    assert f"row 4 (from 0): sums to 1, allowed is {room:.4f}"[:-1] in error
    assert "because the leaves above have the rest" in error
    succeeds(capsys, *BASE, "--renormalize")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--alpha=2.5"], "--alpha=2.5: allowed is 0 to 2"),
        (["--alpha=1.5", "--rule=top_down"], "--alpha=1.5: allowed is 0 to 1"),
        (["--alpha=nan"], "it is a number"),
        (["--alpha=tune"], "--alpha=tune needs --labels=file, or give a number: --alpha=1"),
        (["--level", "kind=pc.npy"], "--level kind=pc.npy is the second for its level"),
        (["--level", "sort=pc.npy"], "--level sort=pc.npy names no level; .* kind, animal"),
        (["--labels=y.npy", "--tune_fraction=0.001"], "leaves no row to tune alpha on"),
        (["--labels=y.npy", "--tune_fraction=0.999"], "or to measure errors on"),
    ],
)
def test_flags_that_do_not_fit(inputs, capsys, flags, message):
    """Flags that do not suit the files are one line, which says what is allowed."""
    status = 2 if "nan" in flags[0] else 1
    assert re.search(message, fails(capsys, *BASE, *flags, status=status))


def test_levels_that_do_not_fit(inputs, capsys):
    """Every level needs one table; --coarse and --fine are for two levels."""
    assert "no table for level animal; give --level animal=file" in fails(
        capsys, "--hierarchy=h.json", "--coarse=pc.npy", "--out=out"
    )
    THREE.to_json("h.json")
    assert "--coarse and --fine are for 2 levels, h.json has 3: use --level name=file" in fails(
        capsys, *BASE
    )
    for name, values in zip(THREE.levels, probabilities(THREE)[0], strict=True):
        np.save(f"{name}.npy", values)
    flags = [f"--level={name}={name}.npy" for name in THREE.levels]
    error = fails(capsys, "--hierarchy=h.json", *flags, "--rule=euclidean_projection", "--out=out")
    assert "--rule=euclidean_projection: " in error
    assert "two levels" in error


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--hierarchy=h.json"], "--out"),
        (["--out=out"], "--hierarchy"),
        ([*BASE, "--colour=red"], "colour"),
        ([*BASE, "extra"], "extra"),
        ([*BASE, "--alpha=much"], "alpha"),
        ([*BASE, "--rule=magic"], "magic"),
        ([*BASE, "--tune_fraction=2"], "tune_fraction"),
    ],
)
def test_a_wrong_command_line(inputs, capsys, flags, message):
    """A flag that is missing, unknown or has a wrong value gives status 2."""
    error = fails(capsys, *flags, status=2)
    assert message in error
    assert "adapt --help" in error


# A complete folder, or none.


def test_the_folder_may_be_deep_or_empty(inputs, capsys):
    """Folders above DIR are made with it, and an empty DIR is taken."""
    succeeds(capsys, *BASE[:3], "--out=a/b/c")
    Path("empty").mkdir()
    succeeds(capsys, *BASE[:3], "--out=empty")
    assert sorted(os.listdir("a/b/c")) == sorted(os.listdir("empty"))


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(28, "No space left on device", "x/p"), 1, "x/p: No space left on device"),
        (KeyboardInterrupt(), 130, "stopped; nothing was written"),
    ],
)
def test_stopped_in_the_middle(inputs, capsys, monkeypatch, error, status, message):
    """A full disk or Ctrl-C after some chunks: one line, and nothing is left behind."""
    calls = []

    def gaps(*args):
        assert any(Path.cwd().glob(".out.*"))
        calls.append(args)
        if len(calls) == 5:
            raise error
        return {"kind/animal": 0.0}

    monkeypatch.setattr(streaming, "coherence_gaps", gaps)
    assert message in fails(capsys, *BASE, status=status)


def test_a_write_that_fails(inputs, capsys):
    """A real failure of the system's: files may not grow beyond 100 bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
    try:
        assert "File too large" in fails(capsys, *BASE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, handler)


def test_too_little_space(inputs, capsys, monkeypatch):
    """A disk too small for the result is named before the work begins."""
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    assert "GB free, and the adapted probabilities need 0.00 GB; choose" in fails(capsys, *BASE)


def test_nothing_appears_before_all_is_there(inputs, capsys, monkeypatch):
    """DIR is not there while its last file is written."""
    draw = figures.draw_curve

    def draw_before(*args):
        assert any(Path.cwd().glob(".out.*/report.json"))
        assert not Path("out").exists()
        draw(*args)
        assert not Path("out").exists()

    monkeypatch.setattr(figures, "draw_curve", draw_before)
    succeeds(capsys, *BASE, "--labels=y.npy")
    assert Path("out").exists()


# The page.


@pytest.mark.parametrize(
    ("hierarchy", "method", "largest"),
    [(TWO, "kl", 2), (THREE, "kl", 1.5), (RAGGED, "top_down", 1)],
)
def test_the_page_has_the_numbers_of_the_report(tmp_path, capsys, hierarchy, method, largest):
    """`--report` writes a page whose errors, at every setting, are those of report.json.

    With a part of the rows' scores alone, from several chunks of the tables.
    """
    levels, labels = probabilities(hierarchy)
    hierarchy.to_json(tmp_path / "h.json")
    np.save(tmp_path / "y.npy", labels)
    tables = []
    for level, p in zip(hierarchy.levels, levels, strict=True):
        np.save(tmp_path / f"{level}.npy", p)
        tables.append(f"--level={level}={level}.npy")
    flags = ("--hierarchy=h.json", *tables, "--labels=y.npy", f"--rule={method}", "--out=out")
    assert "report.html" in succeeds(capsys, *flags, "--report")
    results = json.loads(Path("out/report.json").read_text())
    data = page_data(Path("out/report.html").read_text())
    shape = hierarchy.num_levels, len(data["totals"]), len(data["alphas"])
    rates = unpacked(data["wrong"], *shape).sum(axis=1) / results["measured_on_rows"]
    settings = {
        "alpha=0": 0,
        "alpha=1": 1,
        f"alpha={largest:g}": largest,
        "tuned": results["alpha"],
    }
    for setting, alpha in settings.items():
        wanted = list(results["test_error"][setting].values())
        assert rates[:, data["alphas"].index(alpha)].tolist() == wanted
    measured = np.random.default_rng(adapt_tables.SEED).permutation(N) >= N // 2
    for card in data["gallery"]["cards"]:
        assert measured[card["row"]]
        assert labels[card["row"]] == card["label"]
        tops = [p[card["row"]].argmax() for p in hierarchy.cut_probs(levels)]
        assert [best[0] for best, *_ in card["before"]] == tops
    assert data["chosen"] == f"tuned on {N // 2} other rows"
    assert len(data["validation"]) == hierarchy.num_levels
    command = " ".join(["python -m hiercls_jax adapt", *flags, "--report"])
    assert data["record"]["command"] == command


def test_the_page_without_labels(inputs, capsys):
    """It counts changed predictions in place of errors: as many as the report has."""
    levels, _ = inputs
    succeeds(capsys, *BASE, "--alpha=1.4", "--report")
    results = json.loads(Path("out/report.json").read_text())
    data = page_data(Path("out/report.html").read_text())
    assert not data["labelled"]
    assert data["gallery"] is None
    shape = 2, len(data["totals"]), len(data["alphas"])
    changed = unpacked(data["wrong"], *shape).sum(axis=1) / N
    assert changed[:, 0].tolist() == [0, 0]
    wanted = list(results["changed_predictions"].values())
    assert changed[:, data["chosen_at"]].tolist() == wanted
    predicted = np.bincount(levels[1].argmax(axis=1), minlength=TWO.sizes[1])
    assert data["totals"] == predicted.tolist()


# The program.


def test_commands(capsys, monkeypatch):
    """Without arguments the commands are listed; an unknown one is refused."""
    assert __main__.main(["hiercls_jax"]) == 0
    assert "hiercls-jax adapt --hierarchy" in capsys.readouterr().out
    assert __main__.main(["hiercls_jax", "adopt"]) == 2
    assert "there is no command 'adopt'" in capsys.readouterr().err


def test_help(capsys):
    """`--help` tells of every flag, also beside others."""
    assert run("--help", "--alpha=x") == 0
    printed = capsys.readouterr().out
    for flag in ("--hierarchy", "--coarse", "--level", "--labels", "--alpha", "--rule", "--out"):
        assert f"  {flag}: " in printed


def test_sigterm_cleans_up(monkeypatch):
    """SIGTERM leaves by way of everything that cleans up, with status 143."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(adapt, "main", lambda _: os.kill(os.getpid(), signal.SIGTERM))
    try:
        with pytest.raises(SystemExit) as stopped:
            __main__.main(["hiercls_jax", "adapt"])
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert stopped.value.code == 143


MEASURE = """
import re, sys, threading, time
from hiercls_jax.commands import adapt

peak = 0
def watch():
    global peak
    while True:
        status = open("/proc/self/status").read()
        peak = max(peak, int(re.search(r"RssAnon:\\s+(\\d+) kB", status)[1]))
        time.sleep(0.002)

threading.Thread(target=watch, daemon=True).start()
# The peak of few rows is short, and may be missed once.
for i, name in enumerate(("few", "few", "few", "many")):
    assert adapt.main(["adapt", *sys.argv[1:], f"--fine={name}_fine.npy",
                       f"--coarse={name}_coarse.npy", f"--out=out_{i}"]) == 0
    print("peak", peak)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_table(tmp_path):
    """Twenty times the rows, 96 MB of them, need no more memory that is not page cache.

    RssAnon of /proc/self/status, every 2 ms: memory of the process that no file backs. The first
    table has one whole chunk; the peak after the second may be larger by 32 MB.
    """
    sizes = (20, 200)
    hierarchy = Hierarchy(
        ("coarse", "fine"),
        [[f"{level}{i}" for i in range(size)] for level, size in zip("cf", sizes, strict=True)],
        (np.arange(200) % 20,),
    )
    hierarchy.to_json("h.json")
    rows = np.random.default_rng(0).random((1000, 200), np.float32)
    for name, repeats in (("few", 6), ("many", 120)):
        for level, size in zip(hierarchy.levels, sizes, strict=True):
            part = rows[:, :size] / rows[:, :size].sum(axis=1, keepdims=True)
            np.save(f"{name}_{level}.npy", np.tile(part, (repeats, 1)))
    assert os.path.getsize("many_fine.npy") > 3 * 32e6 - 1e6
    root = str(Path(adapt.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "--hierarchy=h.json"],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": root},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *_, few, many = (1024 * int(kb) for kb in re.findall(r"peak (\d+)", done.stdout))
    assert many - few < 32e6, (few, many)
