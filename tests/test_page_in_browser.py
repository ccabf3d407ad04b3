"""The page in a real browser, a headless Chromium from the system's packages.

Every page is opened from disk without a network. It must request no other file, and print nothing
on the console.
"""

import json
import re
import shutil

import numpy as np
import pytest
from made_up import THREE, page_data, predictions

from hiercls_jax import Hierarchy
from hiercls_jax.adaptation.error_curve import winning_intervals
from hiercls_jax.adaptation.stopping import stop
from hiercls_jax.adaptation.tree import adjust_tree
from hiercls_jax.evaluation.evaluate import evaluate
from hiercls_jax.evaluation.outcomes import SampleOutcomes
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.hierarchy import cifar100
from hiercls_jax.metrics import answer_accuracy, mean_information
from hiercls_jax.report import page

try:
    from playwright import sync_api
except ImportError:  # collected, though not run, with the other tests
    sync_api = None

pytestmark = pytest.mark.browser
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update",
)  # fmt: skip
DESKTOP, PHONE = (1200, 800), (360, 740)
FEW = Hierarchy(
    ("coarse", "fine"),
    (("round", "straight"), ("zero", "six", "one", "four", "seven", "eleven")),
    ((0, 0, 1, 1, 1, 1),),
)


@pytest.fixture(scope="module")
def browser():
    """Chromium, with a profile of its own that is removed afterwards."""
    if sync_api is None:
        pytest.skip("there is no playwright; install the extra `browser`")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no Chromium; install the system's package `chromium`")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """A page of two levels, one of three, and their results, as a run writes them."""
    folder = tmp_path_factory.mktemp("reports")
    epochs = [
        {"split": split, "epoch": e, "loss_coarse": 3 / e, "loss_fine": 4 / e, "error_coarse": 0.5}
        for split in ("train", "validation")
        for e in range(1, 9)
    ]
    written = {}
    for name, hierarchy in (("two", cifar100()), ("three", THREE)):
        splits = {
            split: predictions(hierarchy, 1000, seed)
            for seed, split in enumerate(("test", "validation"))
        }
        results = json.loads(json.dumps(evaluate(splits, hierarchy)))
        page.write_results(
            folder / f"{name}.html", splits, hierarchy, results, f"made up, {name} levels",
            images=None if name == "three" else small_images(1000).__getitem__,
            training={"merge1": epochs},
            record={"command": "python -m hiercls_jax.main", "config": {"seed": 0}},
        )  # fmt: skip
        written[name] = (folder / f"{name}.html", hierarchy, results)
    return written


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    """A page of few images after one epoch: `coarse` is sure and right, of `eleven` are none.

    Alpha is all but 1, and the levels agree: what adaptation changes is `fine` alone.
    """
    split = predictions(FEW, 60)
    there = split.labels["fine"] != 5
    labels = {level: y[there] for level, y in split.labels.items()}
    sure = np.where(np.arange(2) == labels["coarse"][:, None], 0.98, 0.02).astype(np.float32)
    files = np.array([f"test/{FEW.names[1][y]}/{i}.png" for i, y in enumerate(labels["fine"])])
    split = Predictions({"coarse": sure, "fine": split.probs["fine"][there]}, labels, files)
    path = tmp_path_factory.mktemp("few") / "report.html"
    epoch = {"split": "train", "epoch": 1.0, "error_fine": 0.5, "loss_fine": 2}
    contents = page.Page(
        "few", FEW, SampleOutcomes.of(split, FEW), 1.0002, "given",
        training={"merge1": [epoch]},
        measures=evaluate({"test": split}, FEW)["measures"],
        record={"config": {"optimizer.learning_rate_of_a_long_name": 0.2}},
    )  # fmt: skip
    page.write(path, contents)
    return path


def small_images(count: int):
    """Plain images, each of another colour."""
    return np.broadcast_to(
        np.random.default_rng(0).integers(0, 256, (count, 1, 1, 3), np.uint8), (count, 8, 8, 3)
    )


@pytest.fixture
def opened(browser):
    """`opened(path, size, scheme)` opens a page, which must request and report nothing."""
    complaints, requests, contexts = [], [], []

    def open_(path, size=DESKTOP, scheme="light"):
        width, height = size
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, offline=True
        )
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        tab.on("request", lambda request: requests.append(request.url))
        tab.goto(path.as_uri())
        shows(tab, re.compile(r"\d\.\d\d"))
        return tab

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == len(contexts)


def shows(tab, alpha) -> None:
    """Wait until the page shows this alpha. (The page's policy forbids waiting by a script.)"""
    sync_api.expect(tab.locator("#value")).to_have_text(alpha)


def move(tab, alpha: float) -> None:
    """Put the slider on an alpha, as a pointer would, and wait until the page has followed."""
    tab.evaluate(
        """alpha => {
          const data = JSON.parse(document.getElementById("data").textContent);
          const slider = document.getElementById("alpha");
          slider.value = data.alphas.indexOf(alpha);
          slider.dispatchEvent(new Event("input", {bubbles: true}));
          return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
        }""",
        alpha,
    )


def column(tab, key: str) -> list[str]:
    """The texts of a column of the table of classes, from above."""
    head = tab.locator(f"#classes thead th.{key}")
    index = head.evaluate("th => [...th.parentElement.children].indexOf(th) + 1")
    return tab.locator(f"#classes tbody tr > :nth-child({index})").all_text_contents()


@pytest.mark.parametrize("name", ["two", "three"])
def test_the_slider_shows_the_numbers_of_the_results(opened, reports, name):
    """At 0, 1, the largest and the tuned alpha every level's error is that of `results.json`.

    The page opens at the tuned one.
    """
    path, hierarchy, results = reports[name]
    tab = opened(path)
    largest = 2 if name == "two" else 1.5
    settings = [("tuned", None), ("alpha=0", 0), ("alpha=1", 1), (f"alpha={largest:g}", largest),
                ("tuned", results["alpha"])]  # fmt: skip
    for setting, alpha in settings:
        if alpha is not None:
            move(tab, alpha)
        shown = results["alpha"] if alpha is None else alpha
        assert tab.locator("#value").text_content() == f"{shown:.2f}"
        for level, error in enumerate(results["test_error"][setting].values()):
            text = tab.locator(f"#rate-{level}").text_content()
            assert text == f"{100 * error:.2f} %"  # of 1000 samples: never a tie
    assert len(results["test_error"][setting]) == hierarchy.num_levels


def test_everything_moves_with_the_slider(opened, reports):
    """Counts, points, cursor, table, tree, and what is read aloud follow it."""
    path, _, results = reports["two"]
    tab = opened(path)

    def seen():
        return {
            "fixed": tab.locator("#fixed-0").text_content(),
            "broken": tab.locator("#broken-1").text_content(),
            "apart": tab.locator("#apart").text_content(),
            "points": tab.evaluate("document.querySelector('#scatter canvas').toDataURL()"),
            "cursor": tab.locator("#curves .dot").first.get_attribute("cx"),
            "table": sorted(tab.locator("#classes tbody tr").all_text_contents()),
            "tree": tab.locator("#tree .figures").first.text_content(),
            "spoken": tab.locator("#alpha").get_attribute("aria-valuetext"),
            "meter": tab.locator("#changes .meter i").get_attribute("style"),
        }

    tuned = seen()
    move(tab, 0)
    start = seen()
    assert {key for key in tuned if tuned[key] == start[key]} == set()
    assert (start["fixed"], start["broken"]) == ("0", "0")
    assert set(column(tab, "difference")) == {"±0"}
    move(tab, 1)
    assert seen()["apart"] == "0.000"  # the levels agree: all points are on the diagonal
    move(tab, results["alpha"])
    assert seen() == tuned


def test_the_keyboard_moves_the_slider(opened, reports):
    """From a fresh page, Tab reaches the slider; arrows, Home and End move it."""
    path, _, results = reports["two"]
    tab = opened(path)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.id") == "alpha"
    errors = results["test_error"]
    for key, alpha, setting in (("Home", "0.00", "alpha=0"), ("End", "2.00", "alpha=2")):
        tab.keyboard.press(key)
        shows(tab, alpha)
        assert tab.locator("#rate-1").text_content() == f"{100 * errors[setting]['fine']:.2f} %"
    tab.keyboard.press("ArrowLeft")
    shows(tab, "1.99")
    tab.keyboard.press("Tab")  # to the buttons of some alphas, the first of which is 0
    tab.keyboard.press("Enter")
    shows(tab, "0.00")


def stop_at(tab, threshold: float) -> None:
    """Put the slider of thresholds on one of its positions, as a pointer would."""
    tab.evaluate(
        """threshold => {
          const data = JSON.parse(document.getElementById("data").textContent);
          const slider = document.getElementById("threshold");
          slider.value = data.answers.thresholds.indexOf(threshold);
          slider.dispatchEvent(new Event("input", {bubbles: true}));
        }""",
        threshold,
    )


@pytest.mark.parametrize("name", ["two", "three"])
def test_answers_follow_their_threshold(opened, reports, name):
    """Counts, tiles, curve, classes and examples are those of `stop` at the slider's threshold.

    The page opens at the threshold that validation promises 90 % of right answers for. The slider
    of alpha changes none of it.
    """
    path, hierarchy, _ = reports[name]
    tab = opened(path)
    split = predictions(hierarchy, 1000, 0)
    target = [np.asarray(p) for p in adjust_tree([*split.probs.values()], hierarchy, 1.0)]
    labels = split.labels[hierarchy.levels[-1]]
    shown = page_data(path.read_text())["answers"]
    chosen = shown["thresholds"][shown["chosen_at"]]
    for threshold in (None, 0.0, 0.5, 1.0):
        if threshold is not None:
            stop_at(tab, threshold)
        theta = chosen if threshold is None else threshold
        answers = stop(target, hierarchy, theta)
        counts = np.bincount(answers.node[:, 0] + 1, minlength=hierarchy.num_levels + 1)
        for level, count in enumerate(counts):
            assert f" {count:,} " in tab.locator(f"#stop-{level}").text_content()
        right = answer_accuracy(answers.node, labels, hierarchy)
        assert tab.locator("#answers-right").text_content() == f"{100 * right:.1f} %"
        said = mean_information(answers.node, hierarchy)
        assert tab.locator("#answers-say").text_content() == f"{100 * said:.0f} %"
        assert tab.locator("#answers article").count() == 12
        marked = tab.locator("#answers li[aria-current] > span:first-child")
        stops = [sum(p >= theta for p in item["p"]) for item in shown["examples"]]
        names = [
            hierarchy.names[sure - 1][item["path"][sure - 1]]
            for item, sure in zip(shown["examples"], stops, strict=True)
            if sure
        ]
        assert [text.removeprefix("✓ ") for text in marked.all_text_contents()] == names
    tab.wait_for_timeout(600)  # twice what the page waits before it sorts
    before = tab.locator("#answers").text_content()
    move(tab, 0)
    assert tab.locator("#answers").text_content() == before
    tab.locator("#stop button", has_text="★").click()
    assert tab.locator("#sure").text_content() == f"{chosen:.2f}"
    tab.wait_for_timeout(600)
    shares = tab.locator("#answers tbody td:nth-child(3)").all_text_contents()
    assert [float(x[:-2]) for x in shares] == sorted(float(x[:-2]) for x in shares)
    assert len(shares) == hierarchy.sizes[-2]


def test_decisions_are_compared(opened, reports):
    """Each decision has a row, before and after adaptation, with the numbers of the results."""
    path, hierarchy, results = reports["three"]
    tab = opened(path)
    for button, when in ((None, "after"), ("α = 0", "before")):
        if button:
            tab.locator("#decisions button", has_text=button).first.click()
        rows = tab.locator("#decisions tbody tr").all()
        measured = results["decisions"][when]
        assert len(rows) == len(measured) == 4
        for row, values in zip(rows, measured.values(), strict=True):
            texts = row.locator("td").all_text_contents()
            wanted = [*values["error"].values(), values["path_accuracy"]]
            assert texts[: len(wanted)] == [f"{100 * x:.1f} %" for x in wanted]


def test_a_curve_can_be_pointed_at(opened, reports):
    """A click into a curve moves the slider to that alpha."""
    tab = opened(reports["two"][0])
    box = tab.locator("#curves .plot").nth(1).bounding_box()
    dot = tab.locator("#curves .dot").nth(1)
    tab.mouse.click(box["x"] + box["width"] * 0.8, box["y"] + box["height"] / 2)
    shows(tab, re.compile(r"1\.[5-9]\d"))
    assert float(dot.get_attribute("cx")) == pytest.approx(box["width"] * 0.8, abs=4)


def test_the_table_sorts(opened, reports):
    """By any column, up and down, by keyboard too; for any level's classes and errors."""
    path, hierarchy, _ = reports["two"]
    tab = opened(path)

    def numbers(key):
        texts = column(tab, key)
        return [float(re.sub("▼ ", "-", text).strip("▲ ±").replace(",", "")) for text in texts]

    assert numbers("difference") == sorted(numbers("difference"))  # what gained most comes first
    for key, first_up in (("before", True), ("now", True), ("total", False)):
        button = tab.locator(f"#classes th.{key} button")
        for up in (first_up, not first_up):
            button.press("Enter")
            assert numbers(key) == sorted(numbers(key), reverse=not up)
            head = tab.locator(f"#classes th.{key}")
            assert head.get_attribute("aria-sort") == ("ascending" if up else "descending")
    assert tab.locator("#classes th[aria-sort]").count() == 1
    move(tab, 0.5)  # once the slider rests, the order is that of the new numbers
    tab.locator("#classes th.now button").click()
    move(tab, 2)
    assert numbers("now") != sorted(numbers("now"))
    tab.wait_for_timeout(600)  # twice what the page waits
    assert numbers("now") == sorted(numbers("now"))
    tab.locator("#classes th.name button").click()
    assert column(tab, "name") == sorted(hierarchy.names[0], key=str.lower)
    tab.locator("#classes .group button", has_text="fine").first.click()
    assert len(column(tab, "name")) == 100


@pytest.mark.parametrize("name", ["two", "three"])
@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
def test_nothing_overflows(opened, reports, name, size):
    """The page is as wide as the window, opened up in every way, and so is each part in it."""
    tab = opened(reports[name][0], size)
    tab.get_by_role("button", name="Open all").click()
    tab.get_by_role("button", name="✗ broken").click()
    for summary in tab.locator("#record summary").all():
        summary.click()
    width, *wider = tab.evaluate(
        """() => [
          document.documentElement.scrollWidth,
          ...[...document.querySelectorAll("section, #bar, .card, .scroll, details, svg")]
            .filter(e => e.scrollWidth > e.clientWidth + 1
                         || e.getBoundingClientRect().right > innerWidth + 0.5)
            .map(e => (e.closest("section") ?? e).id + " " + e.className)
        ]"""
    )
    assert width == size[0]
    assert wider == []


# names that hold no blank to break a line at, and names of many words
LONG = Hierarchy(
    ("superordinate_category_of_the_taxonomy", "fine"),
    (
        (
            "large_omnivores_and_herbivores_of_the_southern_hemisphere",
            "household electrical devices",
        ),
        tuple(
            f"{name}{i}"
            for i in range(8)
            for name in (
                "PseudopseudohypoparathyroidismOfTheNorthernLesserWhiteFrontedGoose",
                "a very long name of many words, as ImageNet has them, synonyms included, ",
            )
        ),
    ),
    (np.arange(16) % 2,),
)


@pytest.mark.parametrize("size", [(400, 800), DESKTOP], ids=["400", "1200"])
def test_long_names_fit(opened, tmp_path, size):
    """With long names of classes no table, list or select is wider than its card or the window.

    Every row of the table of classes is on the page, not hidden in a box of its own.
    """
    split = predictions(LONG, 200)
    contents = page.Page(
        "long names", LONG, SampleOutcomes.of(split, LONG), 1.0, "given",
        measures=evaluate({"test": split}, LONG)["measures"],
        record={"command": "python -m hiercls_jax adapt --hierarchy=" + "a/long/path/" * 20},
        warnings=["levels 'a' and 'b' agree on 3 % of the rows: " + "X" * 200],
    )  # fmt: skip
    page.write(tmp_path / "p.html", contents)
    tab = opened(tmp_path / "p.html", size)
    tab.get_by_role("button", name="Open all").click()
    tab.locator("#classes .group button", has_text="fine").first.click()
    width, *wider = tab.evaluate(
        """() => [
          document.documentElement.scrollWidth,
          ...[...document.querySelectorAll("section, #bar, .card, .scroll, select, table, p, svg")]
            .filter(e => e.scrollWidth > e.clientWidth + 1 && e.tagName !== "SELECT"
                         || e.getBoundingClientRect().right > innerWidth + 0.5
                         || e.closest("section")
                         && e.getBoundingClientRect().right
                            > e.closest("section").getBoundingClientRect().right + 0.5)
            .map(e => (e.closest("section") ?? e).id + " " + e.tagName + " " + e.className)
        ]"""
    )
    assert width == size[0]
    assert wider == []
    box = tab.locator("#classes .scroll")
    assert box.evaluate("e => e.scrollHeight <= e.clientHeight + 1")


def test_dark_mode_is_dark(opened, reports):
    """Ground, cards and points have other colours, and text stands out on both grounds."""
    contrasts = {}
    for scheme in ("light", "dark"):
        tab = opened(reports["two"][0], scheme=scheme)
        contrasts[scheme] = tab.evaluate(
            """() => {
              const light = css => {
                const [r, g, b] = css.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
                  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b;
              };
              const card = getComputedStyle(document.querySelector("section")).backgroundColor;
              const [ground, texts] = [light(card), {}];
              for (const s of ["h2", ".lead", "td.better", "td.worse", "#tree small"]) {
                const found = document.querySelector(s);
                if (!found) continue;
                const text = light(getComputedStyle(found).color);
                texts[s] = (Math.max(text, ground) + 0.05) / (Math.min(text, ground) + 0.05);
              }
              return [ground, texts];
            }"""
        )
    assert contrasts["light"][0] > 0.9
    assert contrasts["dark"][0] < 0.05
    for _, texts in contrasts.values():
        assert {"h2", ".lead", "td.better"} <= set(texts)
        assert min(texts.values()) > 4.5  # of WCAG 2.2, level AA


def test_the_hierarchy_opens(opened, reports):
    """Branch by branch, down to the leaves, each with its error; and by keyboard."""
    path, hierarchy, results = reports["three"]
    tab = opened(path)
    tree = tab.locator("#tree")
    assert tree.locator(".name").count() == 1 + hierarchy.sizes[0]
    tree.locator("summary", has_text="rodent").press("Enter")
    tree.locator("summary", has_text="mouse").press("Enter")
    tree.locator(".leaf", has_text="dormouse").wait_for(state="visible")
    tab.get_by_role("button", name="Open all").click()
    assert tree.locator(".name").count() == 1 + sum(hierarchy.sizes)
    whole = tree.locator(".figures").first.text_content()
    for level, error in results["test_error"]["tuned"].items():
        assert re.search(rf"{level} [\d.]+ → {100 * error:.1f} %", whole), whole
    tab.get_by_role("button", name="Close all").click()
    assert tree.locator("details[open] > summary .name").all_text_contents() == ["all1,000"]


def test_the_gallery_has_images_and_both_kinds(opened, reports):
    """Cards of what was fixed and broken, on any level, more of them when asked."""
    tab = opened(reports["two"][0])
    gallery = tab.locator("#gallery")
    leads = set()
    for level in ("coarse", "fine"):
        for kind in ("fixed", "broken"):
            gallery.get_by_role("button", name=level).click()
            gallery.get_by_role("button", name=kind).click()
            leads.add(gallery.locator(".lead").text_content())
            assert (
                f"whose {level} prediction adaptation {kind}"
                in gallery.locator(".lead").text_content()
            )
            first = gallery.locator(".card").first.locator(".opinions").nth(int(level == "fine"))
            tops = first.locator("ol > li:first-child")
            right = [(top.get_attribute("class") == "true") for top in tops.all()]
            assert right == ([False, True] if kind == "fixed" else [True, False])
    assert len(leads) == 4
    assert gallery.locator("img").first.evaluate("image => image.naturalWidth") == 8
    gallery.locator(".more").click()
    assert gallery.locator(".card").count() == 24


def test_the_gallery_opens_on_something(opened, few):
    """It opens on a level and a kind with cards; buttons have counts; without cards it says so."""
    tab = opened(few)
    gallery = tab.locator("#gallery")
    fixed = tab.locator("#fixed-1").text_content()
    assert gallery.locator("[aria-pressed=true]").all_text_contents() == [
        f"✓ fixed {fixed}",
        f"fine {fixed}",
    ]
    assert gallery.locator(".card").count() == min(6, int(fixed)) > 0
    card = gallery.locator(".card").first
    name = card.locator("strong").first.text_content()
    assert re.search(rf"test/{name}/\d+\.png", card.text_content())  # not "test image 12"
    gallery.get_by_role("button", name="coarse 0").click()
    assert gallery.locator(".lead").text_content().startswith("No test image whose coarse")
    assert gallery.get_by_role("button", name="✓ fixed 0").count() == 1


def test_alphas_that_read_the_same_are_one_button(opened, few):
    """A chosen alpha of 1.0002 reads as 1.00, so it replaces the button of 1."""
    assert opened(few).locator("#presets button").all_text_contents() == ["0", "1.00 ★", "2"]


def test_the_meter_is_of_all_probability(opened, reports):
    """The bar is as long as the number beside it says, which stands beside the one at alpha 0."""
    tab = opened(reports["two"][0])
    change = tab.locator("#changes .change").last
    for alpha in (0, 0.5, 2):
        move(tab, alpha)
        now, start = map(float, re.findall(r"([\d.]+) %", change.text_content()))
        assert now == pytest.approx(abs(1 - alpha) * start, abs=0.11)  # two roundings to 0.1
        long, all_of_it = (
            tab.locator(f"#changes {part}").evaluate("part => part.getBoundingClientRect().width")
            for part in (".meter i", ".meter")
        )
        assert 100 * long / all_of_it == pytest.approx(now, abs=0.1)


def test_the_scatter_shows_where_the_points_were(opened, few):
    """At agreement all points are on the diagonal; the points of alpha 0 are shown off it."""
    tab = opened(few)
    off = tab.evaluate(
        """() => {
          const canvas = document.querySelector("#scatter canvas");
          const { width, height } = canvas;
          const { data } = canvas.getContext("2d").getImageData(0, 0, width, height);
          let off = 0;
          for (let i = 0; i < width * height; i++) {
            const away = (i % width) + Math.floor(i / width) - width;
            if (data[4 * i + 3] && Math.abs(away) > 20) off++;
          }
          return off;
        }"""
    )
    assert off > 50
    assert tab.locator("#apart").text_content() == "0.000"
    assert tab.locator("#scatter .lead").text_content().startswith("Each point is a test image:")


def test_counts_of_few_images_are_steps(opened, few):
    """Fixed and broken are drawn as the errors are: no line runs aslant."""
    paths = opened(few).locator("#changes .curve")
    assert paths.count() == 4
    for path in paths.all():
        assert re.fullmatch(r"M[\d.]+ [\d.]+([HV][\d.]+)+", path.get_attribute("d"))


def test_one_epoch_is_a_point(opened, few):
    """A curve of one record is no line, and is seen all the same."""
    tab = opened(few)
    assert tab.locator("#training .panel").count() == 2
    for plot in tab.locator("#training svg").all():
        inside, dot = plot.bounding_box(), plot.locator("circle.dot").bounding_box()
        assert inside["y"] < dot["y"] < inside["y"] + inside["height"]


def test_the_dots_of_the_classes_have_a_scale(opened, few):
    """From 0 to the largest error; a class that has no images has no dot and no change."""
    tab = opened(few)
    tab.locator("#classes .group button", has_text="fine").first.click()
    tab.locator("#classes .group button", has_text="fine").last.click()
    head = tab.locator("#classes th.move").text_content()
    found = re.fullmatch(r"0○ α = 0\s+● α = 1\.00(\d+) %", head)
    assert found, head
    scale = float(found[1])
    for row in tab.locator("#classes tbody tr").all():
        cells = row.locator("td").all_text_contents()
        if cells[0] == "0":
            assert cells[1:] == ["–", "–", "–", ""]
            assert row.locator("th").text_content() == "eleven"
            assert row.locator(".dumbbell").count() == 0
        else:
            at = float(row.locator("b.now").get_attribute("style").strip("left: %;"))
            assert at * scale / 100 == pytest.approx(float(cells[2]), abs=0.6)  # scale in percent
            assert 0 <= at <= 100


def test_the_hierarchy_stands_in_columns(opened, reports):
    """Errors of one digit or three begin and end where those of two do."""
    tab = opened(reports["three"][0])
    tab.get_by_role("button", name="Open all").click()
    assert tab.locator("#tree .lead").text_content().endswith("and on the level “animal”.")
    boxes = [figure.bounding_box() for figure in tab.locator("#tree .figure.level2").all()]
    assert len({round(box["x"]) for box in boxes}) == 1
    tab.evaluate(
        "document.querySelectorAll('#tree .figure.level2 > :last-child')"
        ".forEach((number, i) => (number.textContent = `${10 ** (i % 3)}.0 %`))"
    )
    boxes += [figure.bounding_box() for figure in tab.locator("#tree .figure.level2").all()]
    assert len({round(box["x"]) for box in boxes}) == 1


def test_measures_are_told_and_not_vacuous(opened, few):
    """No top-5 error of 2 classes; rare measures are explained, and which way is better."""
    tab = opened(few)
    names = tab.locator("#measures tbody th").all_text_contents()
    assert "fine: top-5 error" in names
    assert "coarse: top-5 error" not in names
    assert "coarse: Brier score" in names
    assert "Lower is better" in tab.locator("#measures .lead").text_content()
    for name in ("consistency rate", "mistake severity"):
        (told,) = (text for text in names if text.startswith(name))
        assert len(told) > 50


def test_reliability_of_few_is_small(opened, few):
    """Points are larger the more images they stand for, and no line joins those of one or two."""
    tab = opened(few)
    for svg, level in zip(
        tab.locator("#reliability svg").all(),
        page_data(few.read_text())["reliability"],
        strict=True,
    ):
        assert svg.locator("path").count() == 0
        radii = [float(dot.get_attribute("r")) for dot in svg.locator("circle").all()]
        counts = [n for when in ("after", "before") for n in level[when]["count"] if n]
        order = np.argsort(counts, kind="stable")
        assert (np.diff(np.array(radii)[order]) >= 0).all()
        assert len(set(radii)) == len(set(counts)) > 1


def test_lines_break_where_they_should_on_a_phone(opened, few):
    """A label stays beside its buttons; names in the record break after a sign."""
    tab = opened(few, PHONE)
    apart = tab.evaluate(
        """() => [...document.querySelectorAll(".controls .group")].flatMap(group => {
          const before = document.createRange();
          if (!group.previousSibling?.textContent) return [];
          before.selectNode(group.previousSibling);
          const [text, button] = [before, group.firstChild].map(e => e.getBoundingClientRect());
          return [text.bottom <= button.top || button.bottom <= text.top];
        })"""
    )
    assert apart == [False, False, False]
    tab.locator("#record summary").click()
    before_breaks = tab.locator("#record dt").evaluate(
        """dt => {
          const [range, found] = [document.createRange(), []];
          const texts = document.createTreeWalker(dt, NodeFilter.SHOW_TEXT);
          let last = null;
          while (texts.nextNode()) {
            [...texts.currentNode.data].forEach((sign, i) => {
              range.setStart(texts.currentNode, i);
              range.setEnd(texts.currentNode, i + 1);
              const { top } = range.getBoundingClientRect();
              if (last && top > last.top + 4) found.push(last.sign);
              last = { top, sign };
            });
          }
          return found;
        }"""
    )
    assert before_breaks
    assert set(before_breaks) <= set("._")


def test_without_labels(opened, tmp_path):
    """Without labels the page shows changes; errors, gallery and reliability are absent."""
    split = predictions(THREE, 100)
    whole = SampleOutcomes.of(split, THREE)
    before = [p.argmax(axis=1) for p in whole.before]
    intervals = np.stack(
        [winning_intervals(*level, whole.largest)
         for level in zip(whole.before, whole.target, before, strict=True)]
    )  # fmt: skip
    unlabelled = SampleOutcomes(
        intervals, before[-1], whole.rows, whole.before, whole.target, whole.largest, labelled=False
    )
    contents = page.Page("no labels", THREE, unlabelled, 1.0, "given", noun="row")
    page.write(tmp_path / "p.html", contents)
    tab = opened(tmp_path / "p.html", PHONE)
    after = whole.target
    for level, (b, a) in enumerate(zip(before, after, strict=True)):
        changed = np.mean(b != np.asarray(a).argmax(axis=1))
        assert tab.locator(f"#rate-{level}").text_content() == f"{100 * changed:.2f} %"
    for section in ("gallery", "reliability", "measures", "training", "record"):
        assert tab.locator(f"#{section}").count() == 0
    assert tab.evaluate("document.documentElement.scrollWidth") == PHONE[0]
    assert "error" not in tab.locator("main").text_content()
