"""The page has the report's numbers, is one file of bounded size, and shows names as text.

test_page_in_browser.py tests it in a browser.
"""

import base64
import functools
import html.parser
import io
import os
import re
from pathlib import Path

import numpy as np
import pytest
from made_up import THREE, page_data, predictions, rates, unpacked
from PIL import Image

from hiercls_jax import Hierarchy, metrics
from hiercls_jax.adaptation.error_curve import winning_intervals
from hiercls_jax.adaptation.tree import adjust_tree
from hiercls_jax.evaluation import outcomes
from hiercls_jax.evaluation.evaluate import evaluate
from hiercls_jax.evaluation.outcomes import SampleOutcomes
from hiercls_jax.hierarchy import cifar100
from hiercls_jax.report import page, page_contents
from hiercls_jax.report.figures import COLOURS

RAGGED = Hierarchy(
    ("kind", "animal"), (("cat", "dog", "emu"), ("lynx", "lion", "pug")), ((0, 0, 1),), True
)
NASTY = "</script><script>alert(1)</script><!-- <b>&amp;\u2028 $title ${x} \\u003c"


@functools.cache
def evaluated(hierarchy):
    """300 made-up test images and as many for validation, and the results of their evaluation."""
    splits = {
        split: predictions(hierarchy, 300, seed)
        for seed, split in enumerate(("test", "validation"))
    }
    return splits, evaluate(splits, hierarchy)


def write(path: Path, hierarchy, title="a run", **more):
    """Write a page of made-up predictions; return the report's results and the page's text."""
    splits, results = evaluated(hierarchy)
    page.write_results(path, splits, hierarchy, results, title, **more)
    return splits, results, path.read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=[cifar100(), THREE], ids=["two levels", "three levels"])
def written(request, tmp_path_factory):
    """A hierarchy, its splits, the report's results, and the page's data."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    splits, results, text = write(path, request.param)
    return request.param, splits, results, page_data(text)


def test_errors_are_those_of_the_report(written):
    """So are those at alpha 0, 1, the largest and the chosen one, all positions of the slider."""
    hierarchy, _, results, data = written
    largest = 2 if hierarchy.num_levels == 2 else 1.5
    alphas = {"alpha=0": 0, "alpha=1": 1, f"alpha={largest:g}": largest, "tuned": results["alpha"]}
    assert alphas.keys() == results["test_error"].keys()
    for setting, alpha in alphas.items():
        found = rates(data)[:, data["alphas"].index(alpha)]
        assert found.tolist() == list(results["test_error"][setting].values())
    assert data["alphas"][data["chosen_at"]] == results["alpha"]


def test_the_page_adapts_by_the_rule_of_the_results(tmp_path):
    """The results name their rule; the page's errors are those of the same rule."""
    splits, _ = evaluated(THREE)
    results = evaluate({"test": splits["test"]}, THREE, "top_down")
    page.write_results(tmp_path / "p.html", {"test": splits["test"]}, THREE, results, "a run")
    data = page_data((tmp_path / "p.html").read_text())
    assert data["alphas"][-1] == 1
    for setting, position in (("alpha=0", 0), ("alpha=1", -1)):
        assert rates(data)[:, position].tolist() == list(results["test_error"][setting].values())


def test_positions_are_even_and_cover_the_range(written):
    """From 0 to the largest alpha in hundredths, and the chosen alpha between two of them."""
    _, _, results, data = written
    alphas = np.array(data["alphas"])
    assert (np.diff(alphas) > 0).all()
    assert np.diff(alphas).max() < 0.01 + 1e-12  # a rounding of 0.01
    others = np.delete(alphas, data["chosen_at"])
    np.testing.assert_array_equal(others, np.rint(others * 100) / 100)


def test_curves_are_the_exact_ones(written):
    """They have every step of every level's error on test and validation, and no other."""
    hierarchy, splits, results, data = written
    for split, curves in (("test", data["curves"]), ("validation", data["validation"])):
        for level, curve in zip(hierarchy.levels, curves, strict=True):
            alphas, counts = unpacked(curve["alphas"], -1), unpacked(curve["counts"], -1)
            assert curve["exact"]
            assert (curve["total"], alphas[0]) == (300, 0)
            assert (np.diff(alphas) >= 0).all()  # float32 may join two
            grid = np.array(results["curve"]["alpha"])[1:-1] + 1e-4  # off the float32 roundings
            at = np.searchsorted(alphas, grid, side="right") - 1
            probs, labels = splits[split].probs, splits[split].labels[level]
            target = np.asarray(
                adjust_tree(list(probs.values()), hierarchy, 1.0)[hierarchy.levels.index(level)]
            )
            for a, i in zip(grid[::50], at[::50], strict=True):
                mixed = (1 - a) * probs[level].astype(float) + a * target.astype(float)
                assert counts[i] == np.sum(mixed.argmax(axis=1) != labels)


def test_fixed_and_broken_are_counted(written):
    """Fixed images are wrong before and right after adaptation; broken ones the other way round."""
    hierarchy, splits, results, data = written
    levels = list(splits["test"].probs.values())
    labels = list(splits["test"].labels.values())
    shape = hierarchy.num_levels, len(data["alphas"])
    fixed, broken = unpacked(data["fixed"], *shape), unpacked(data["broken"], *shape)
    for position in (0, 40, 100, data["chosen_at"]):
        adapted = adjust_tree(levels, hierarchy, data["alphas"][position])
        for level, (p, after, y) in enumerate(zip(levels, adapted, labels, strict=True)):
            was, now = p.argmax(axis=1) == y, np.asarray(after).argmax(axis=1) == y
            assert fixed[level, position] == np.sum(~was & now)
            assert broken[level, position] == np.sum(was & ~now)


def test_errors_of_every_class_add_up_from_the_leaves(written):
    """A class of any level has the errors of the leaves below it, on any level."""
    hierarchy, splits, _, data = written
    shape = hierarchy.num_levels, len(data["totals"]), len(data["alphas"])
    wrong = unpacked(data["wrong"], *shape)
    labels, position = splits["test"].labels, data["chosen_at"]
    adapted = adjust_tree(list(splits["test"].probs.values()), hierarchy, data["alphas"][position])
    for of, level in enumerate(hierarchy.levels):
        below = np.array(data["labels"][of])
        for i in range(0, hierarchy.sizes[of], 7):
            members = labels[level] == i
            assert np.array(data["totals"])[below == i].sum() == members.sum()
            for measured, p in enumerate(adapted):
                mistaken = np.asarray(p).argmax(axis=1) != labels[hierarchy.levels[measured]]
                assert wrong[measured, below == i, position].sum() == np.sum(mistaken & members)


def test_the_scatter_moves_to_where_adaptation_puts_it(written):
    """P and Q of the points, interpolated to the target, are those of the adapted levels."""
    hierarchy, splits, _, data = written
    levels = list(splits["test"].probs.values())
    alpha = 0.7
    adapted = [np.asarray(p) for p in adjust_tree(levels, hierarchy, alpha)]
    assert len(data["scatter"]) == sum(hierarchy.sizes[:-1])
    for item in data["scatter"][::5]:
        level, i = item["level"], item["class"]
        q = metrics.child_sums(levels[level + 1], hierarchy.parents[level])[:, i]
        member = splits["test"].labels[hierarchy.levels[level]] == i
        shown = (np.maximum(levels[level][:, i], q) >= page_contents.LEAST) | member
        assert (item["seen"], item["members"]) == (shown.sum(), member.sum())
        target = unpacked(item["target"], -1) / 65535
        after = metrics.child_sums(adapted[level + 1], hierarchy.parents[level])[:, i]
        for name, wanted in (("p", adapted[level][:, i]), ("q", after)):
            found = (1 - alpha) * unpacked(item[name], -1) / 65535 + alpha * target
            order = np.argsort(member[shown], kind="stable")
            np.testing.assert_allclose(found, wanted[shown][order], atol=2 / 65535)  # two roundings


def test_reliability_is_that_of_the_metrics(written):
    """Before and after, with the calibration errors that results.json has."""
    hierarchy, _, results, data = written
    for level, diagrams in zip(hierarchy.levels, data["reliability"], strict=True):
        for when, diagram in diagrams.items():
            wanted = results["measures"][when][level]["expected_calibration_error"]
            assert diagram["error"] == pytest.approx(wanted, abs=1e-6)  # float32 probabilities
            assert sum(diagram["count"]) == 300
            assert len(diagram["accuracy"]) == np.count_nonzero(diagram["count"])
    assert data["measures"] == results["measures"]


def test_the_gallery_shows_what_changed(written):
    """Each card of a group is of its kind, and names the top classes before and after."""
    hierarchy, splits, results, data = written
    levels = list(splits["test"].probs.values())
    adapted = [np.asarray(p) for p in adjust_tree(levels, hierarchy, results["alpha"])]
    shown = set()
    for level, groups in enumerate(data["gallery"]["groups"]):
        for kind, cards in groups.items():
            all_of_kind = unpacked(data[kind], len(levels), -1)[level, data["chosen_at"]]
            assert len(cards) == min(page_contents.CARDS, all_of_kind)
            shown |= set(cards)
            for i in cards:
                card = data["gallery"]["cards"][i]
                truth = splits["test"].labels[hierarchy.levels[level]][card["row"]]
                assert data["labels"][level][card["label"]] == truth
                right = [card[when][level][0][0] == truth for when in ("before", "after")]
                assert right == ([False, True] if kind == "fixed" else [True, False])
    assert shown == set(range(len(data["gallery"]["cards"])))
    for card in data["gallery"]["cards"][::9]:
        for when, probs in (("before", levels), ("after", adapted)):
            for (best, *rest), p in zip(card[when], probs, strict=True):
                row = p[card["row"]]
                assert best[0] == row.argmax()
                assert best[1] == pytest.approx(row.max(), abs=1e-4)  # four digits
                assert sorted((v for _, v in rest), reverse=True) == [v for _, v in rest]


def test_images_are_embedded(tmp_path):
    """Small ones pixel by pixel, large ones as thumbnails, grey ones too."""
    for side, channels, kind in ((8, 3, "PNG"), (8, 1, "PNG"), (200, 3, "JPEG")):
        images = np.random.default_rng(0).integers(0, 256, (300, side, side, channels), np.uint8)
        *_, text = write(tmp_path / "p.html", THREE, images=images.__getitem__)
        cards = page_data(text)["gallery"]["cards"]
        assert cards
        for card in cards[:3]:
            head, encoded = card["image"].split(",")
            assert head == f"data:image/{kind.lower()};base64"
            with Image.open(io.BytesIO(base64.b64decode(encoded))) as picture:
                assert picture.format == kind
                assert max(picture.size) == min(side, page_contents.THUMBNAIL)
                if kind == "PNG":
                    pixels = np.asarray(picture).reshape(side, side, channels)
                    np.testing.assert_array_equal(pixels, images[card["row"]])


def test_cifar100_stays_below_5_megabytes(tmp_path):
    """All 10,000 test images, as many for validation, noise for images, and a long training."""
    hierarchy = cifar100()
    test = predictions(hierarchy, 10_000)
    splits = {"test": test, "validation": test}
    results = {"alpha": 0.9, "measures": None}
    images = np.random.default_rng(0).integers(0, 256, (10_000, 32, 32, 3), np.uint8)
    records = [
        {"split": "train", "epoch": i / 99, "loss": 1.23456789, "loss_coarse": 1.2345678 / i}
        for i in range(1, 20_001)
    ]
    page.write_results(
        tmp_path / "report.html", splits, hierarchy, results, "all of it",
        images=images.__getitem__, training={"merge1": records},
    )  # fmt: skip
    assert os.listdir(tmp_path) == ["report.html"]
    assert (tmp_path / "report.html").stat().st_size < 5e6
    data = page_data((tmp_path / "report.html").read_text())
    assert all(curve["exact"] for curve in data["curves"])
    assert page_contents.RECORDS - 1 <= len(data["training"]["merge1"]) <= page_contents.RECORDS + 1


@pytest.mark.parametrize(("per_epoch", "every"), [(13, 50), (352, 50), (98, 50), (60, 50), (7, 1)])
def test_training_curves_have_no_teeth(tmp_path, per_epoch, every):
    """A point is the mean of as many steps as any other; of the last alone it may be of more.

    The logs have a record after every `every` steps and at the end of each epoch, of what came
    since the one before it; where a step's loss is its number, a mean says of which steps it is.
    """
    total, records, before = 5 * per_epoch, [], 0
    for step in range(1, total + 1):
        if step % every == 0 or step % per_epoch == 0:
            loss = (before + 1 + step) / 2
            records.append(
                {"step": step, "epoch": step / per_epoch, "split": "train", "loss_animal": loss}
            )
            before = step
    *_, text = write(tmp_path / "p.html", THREE, training={"merge1": records})
    drawn = page_data(text)["training"]["merge1"]
    ends = np.rint([record["epoch"] * per_epoch for record in drawn])
    spans = np.diff(ends, prepend=0)
    assert ends[-1] == total
    assert (spans[:-1] == min(per_epoch, every)).all()
    assert spans[:-1].max() <= spans[-1] < 2 * spans[0]
    means = [record["loss_animal"] for record in drawn]
    np.testing.assert_allclose(means, ends - (spans - 1) / 2, rtol=1e-4)  # five digits


class Tags(html.parser.HTMLParser):
    """All tags and attributes of a page, as a parser sees them."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *pair) for pair in attrs]


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    """No address but of data, no import, and a policy that forbids any, for every later change."""
    *_, text = write(tmp_path / "report.html", THREE)
    found = Tags(text)
    for tag, name, value in found.attributes:
        if name in ("src", "href", "srcset", "action", "data", "poster"):
            assert value.startswith("data:"), (tag, name, value)
    for word in ("http:", "https:", "//cdn", "@import", "url(", "import(", "fetch(", "XMLHttp"):
        assert word not in text, word
    policies = [value for tag, name, value in found.attributes if name == "content"]
    assert any(value.startswith("default-src 'none'; img-src data:") for value in policies)


def test_names_are_text(tmp_path):
    """Whatever a class, level, title, command or network is called, the page has the same tags."""

    def named(name):
        hierarchy = Hierarchy(
            (f"upper{name}", f"lower{name}"),
            ((f"a{name}", f"b{name}"), (f"c{name}", f"d{name}", f"e{name}")),
            ((0, 0, 1),),
        )
        records = [{"split": "train", "epoch": 1.0, f"loss_upper{name}": 1.0}]
        *_, text = write(
            tmp_path / "report.html", hierarchy, title=f"title{name}", noun=f"thing{name}",
            training={f"network{name}": records}, record={"command": name, name: {name: name}},
        )  # fmt: skip
        return text

    plain, nasty = named(""), named(NASTY)
    assert Tags(nasty).tags == Tags(plain).tags
    assert Tags(nasty).tags.count("script") == 2
    data = page_data(nasty)
    assert data["title"] == f"title{NASTY}"
    assert data["names"][1][2] == f"e{NASTY}"
    assert data["record"] == {"command": NASTY, NASTY: {NASTY: NASTY}}


def test_a_ragged_hierarchy(tmp_path):
    """Leaves of the first level count there, but are not in the scatter: they have no children."""
    rng = np.random.default_rng(0)
    count = 80
    leaf_ids = rng.integers(0, RAGGED.num_leaves, count).astype(np.int32)
    before = [rng.dirichlet(np.ones(len(RAGGED.cut(level))), count) for level in range(2)]
    target = [rng.dirichlet(np.ones(len(RAGGED.cut(level))), count) for level in range(2)]
    intervals = np.stack(
        [winning_intervals(*level, 2.0)
         for level in zip(before, target, RAGGED.labels(leaf_ids), strict=True)]
    )  # fmt: skip
    ragged = SampleOutcomes(intervals, leaf_ids, np.arange(count), before, target, 2.0)
    page.write(tmp_path / "p.html", page.Page("ragged", RAGGED, ragged, 0.5, "given"))
    data = page_data((tmp_path / "p.html").read_text())
    assert data["names"] == [["cat", "dog", "emu"], ["lynx", "lion", "pug", "emu"]]
    assert [data["names"][s["level"]][s["class"]] for s in data["scatter"]] == ["cat", "dog"]
    mixed = [0.5 * b + 0.5 * t for b, t in zip(before, target, strict=True)]
    for level, (p, y) in enumerate(zip(mixed, RAGGED.labels(leaf_ids), strict=True)):
        assert rates(data)[level, data["chosen_at"]] == metrics.topk_error(p, y)


def test_too_many_scores_are_sampled(tmp_path, monkeypatch):
    """Scatter and gallery use the scores of some rows; errors are those of all rows."""
    whole = SampleOutcomes.of(evaluated(THREE)[0]["test"], THREE)
    monkeypatch.setattr(outcomes, "SCORE_BYTES", 8 * sum(THREE.sizes) * 50)
    monkeypatch.setattr(page_contents, "BREAKPOINTS", 40)
    rows = outcomes.sample_rows(np.arange(300), THREE)
    assert len(rows) == 50
    assert (np.diff(rows) > 0).all()
    some = SampleOutcomes(
        whole.intervals, whole.leaf_ids, rows, [p[rows] for p in whole.before],
        [p[rows] for p in whole.target], whole.largest, numbers=np.arange(300) + 1000,
    )  # fmt: skip
    data = []
    for name, samples in (("whole", whole), ("some", some)):
        page.write(tmp_path / name, page.Page("t", THREE, samples, 0.8, "given"))
        data.append(page_data((tmp_path / name).read_text()))
    assert data[0]["wrong"] == data[1]["wrong"]
    assert (data[0]["samples"], data[1]["sampled"]) == (300, 50)
    assert not data[0]["curves"][2]["exact"]
    assert {card["row"] - 1000 for card in data[1]["gallery"]["cards"]} <= set(rows.tolist())
    assert max(item["seen"] for item in data[1]["scatter"]) <= 50


def test_a_page_is_complete_or_absent(tmp_path, monkeypatch):
    """If writing fails, the older page stays, and no other file is left beside it."""
    write(tmp_path / "report.html", THREE)
    before = (tmp_path / "report.html").read_bytes()

    def fail(self, text, **_):
        self.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", fail)
    with pytest.raises(OSError, match="No space"):
        write(tmp_path / "report.html", THREE)
    assert (tmp_path / "report.html").read_bytes() == before
    assert os.listdir(tmp_path) == ["report.html"]


def test_the_same_predictions_give_the_same_page(tmp_path):
    """All random samples come from one seed."""
    texts = [write(tmp_path / "report.html", THREE)[-1] for _ in range(2)]
    assert texts[0] == texts[1]


def test_colours_are_those_of_the_figures():
    """The levels' colours on light ground, and no other hues for them on dark."""
    style = (Path(page.__file__).parent / "html" / "page.css").read_text()
    light, dark = style.split("@media (prefers-color-scheme: dark)")[:2]
    found = [re.findall(r"--level\d: (#\w{6});", part) for part in (light, dark)]
    assert found[0] == list(COLOURS)
    assert sorted(found[1]) == sorted(COLOURS)
