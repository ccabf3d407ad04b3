"""The figures are complete, valid files that depend on their data alone."""

import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hiercls_jax.report import figures

ALPHAS = np.linspace(0, 2, 21)
ERRORS = {"coarse": 0.4 - 0.05 * ALPHAS, "fine": 0.5 + 0.02 * (ALPHAS - 1) ** 2}
SVG = "{http://www.w3.org/2000/svg}"


TUNED = (1.1, {"coarse": 0.345, "fine": 0.5002})


def curve(path, tuned=TUNED, errors=ERRORS, title="merge1, seed 0"):
    figures.alpha_curve(path, ALPHAS, errors, tuned, title)


def scatter(path, name="trees", level="coarse"):
    rng = np.random.default_rng(0)
    p, q = rng.random((2, 30))
    panels = {"before": (p, q), "after adaptation": ((p + q) / 2, (p + q) / 2)}
    figures.scatters(path, panels, p > 0.5, name, level)


def variants(path):
    rng = np.random.default_rng(0)
    by_variant = {"merge-1": rng.random((5, len(ALPHAS))), "separate": rng.random((1, len(ALPHAS)))}
    of_levels = {"coarse": by_variant, "fine": by_variant}
    figures.variant_curves(path, ALPHAS, {1: of_levels, 2: of_levels}, "resnet20")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which both figures are drawn once."""
    path = tmp_path_factory.mktemp("drawn")
    curve(path / "curve")
    scatter(path / "scatter")
    variants(path / "variants")
    return path


@pytest.fixture
def svg_alone(monkeypatch):
    """Write no PNG, which takes as long as the SVG."""
    monkeypatch.setattr(figures, "FILES", {".svg": figures.FILES[".svg"]})


def text(path) -> str:
    """All letters of an SVG: matplotlib notes the text of every glyph run beside it."""
    return path.with_suffix(".svg").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["curve", "scatter", "variants"])
def test_files_are_valid_images(folder, name):
    """The PNG decodes to an image that is not blank, the SVG parses."""
    with Image.open(folder / f"{name}.png") as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 300
    assert 0.001 < np.mean(pixels < 128) < 0.5
    root = ET.parse(folder / f"{name}.svg").getroot()
    assert root.tag == f"{SVG}svg"
    assert len(list(root.iter(f"{SVG}path"))) > 10


def test_the_same_data_gives_the_same_bytes(folder, tmp_path):
    """Drawn again by a user with a style of their own, every file is the same bytes.

    The files have no date, no random ids, and nothing of a user's matplotlibrc.
    """
    with figures.plt.rc_context({"lines.linewidth": 9, "font.family": "monospace"}):
        curve(tmp_path / "curve")
        scatter(tmp_path / "scatter")
        variants(tmp_path / "variants")
    files = sorted(path.name for path in tmp_path.iterdir())
    names = "curve", "scatter", "variants"
    assert files == [f"{name}{suffix}" for name in names for suffix in (".png", ".svg")]
    for name in files:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name
    for name in names:
        root = ET.parse(folder / f"{name}.svg").getroot()
        assert not list(root.iter("{http://purl.org/dc/elements/1.1/}date"))
    assert figures.plt.get_fignums() == []  # a loop over runs does not fill the memory


def test_the_curve_says_what_it_shows(folder):
    """Levels, the title, and the tuned alpha with its error are written into the figure."""
    for words in ("coarse", "fine", "merge1, seed 0", "α = 1.10", "tuned on validation", "34.50 %"):
        assert words in text(folder / "curve"), words


def test_the_variants_figure_says_what_it_shows(folder):
    """Levels, ensemble sizes and variants are written into the figure."""
    for words in ("coarse", "fine", "ensemble-1", "ensemble-2", "merge-1", "separate", "α"):
        assert words in text(folder / "variants"), words


def test_a_variant_has_one_colour_in_all_panels(tmp_path, monkeypatch):
    """Also if another variant has too few runs for an ensemble of the size."""
    monkeypatch.setattr(figures, "FILES", {})
    drawn = {}
    plot = figures.plt.Axes.plot

    def note(self, *args, color=None, label=None, **rest):
        drawn.setdefault(label, set()).add(color)
        return plot(self, *args, color=color, label=label, **rest)

    monkeypatch.setattr(figures.plt.Axes, "plot", note)
    one, two = {"a": np.ones((1, 21)), "b": np.ones((2, 21))}, {"b": np.ones((1, 21))}
    figures.variant_curves(tmp_path / "v", ALPHAS, {1: {"l": one}, 2: {"l": two}}, "t")
    assert [len(colours) for colours in drawn.values()] == [1, 1]
    assert drawn["a"] != drawn["b"]


@pytest.mark.usefixtures("svg_alone")
def test_ensembles_that_are_adapted_first_are_dashed(tmp_path, monkeypatch):
    """Panels of several members have their mean in the variant's colour; the legend names it."""
    dashed = []

    def note(ax, *args, plot=figures.plt.Axes.plot, **kwargs):
        if kwargs.get("ls") == "--":
            dashed.append((np.asarray(args[1]).tolist(), kwargs["color"]))
        return plot(ax, *args, **kwargs)

    monkeypatch.setattr(figures.plt.Axes, "plot", note)
    averaged = {n: {"l": {"a": np.ones((2, 21))}} for n in (1, 2)}
    first = {1: averaged[1], 2: {"l": {"a": np.stack([ALPHAS, 3 * ALPHAS])}}}
    figures.variant_curves(tmp_path / "v", ALPHAS, averaged, "t", first)
    assert dashed == [((2 * ALPHAS).tolist(), figures.COLOURS[0])]
    assert "adapted, then averaged" in text(tmp_path / "v")


def test_the_scatter_says_what_it_shows(folder):
    """The class, its level, and both moments are written into the figure."""
    for words in ("P(trees)", "Q: sum over the classes below trees", "other coarse classes",
                  "before", "after adaptation"):  # fmt: skip
        assert words in text(folder / "scatter"), words


@pytest.mark.usefixtures("svg_alone")
def test_names_are_not_mathematics(tmp_path):
    """A class, level or run may have any name, even with dollar signs and broken TeX."""
    name = r"5$ {and \frac 10$ & <x_y^"
    scatter(tmp_path / "scatter", name, name)
    assert r"P(5$ {and \frac 10$" in text(tmp_path / "scatter")
    curve(tmp_path / "curve", (1.1, {name: 0.5}), {name: ERRORS["fine"]}, title=name)
    assert text(tmp_path / "curve").count(r"5$ {and \frac 10$") >= 2


@pytest.mark.usefixtures("svg_alone")
def test_every_level_has_a_panel(tmp_path):
    """A seventh level, an error that is constant or 0, and no tuned alpha can be drawn."""
    errors = {f"level{i}": np.full(21, 0.1 * (i % 3)) for i in range(7)}
    curve(tmp_path / "curve", None, errors)
    assert all(level in text(tmp_path / "curve") for level in errors)
    assert "tuned" not in text(tmp_path / "curve")


def test_a_figure_is_complete_or_absent(tmp_path, monkeypatch):
    """If writing fails, the older figure stays, and no other file is left beside it."""
    for suffix in figures.FILES:
        (tmp_path / f"curve{suffix}").write_text("older")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(self, file, **_):
        Path(file).write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figures.plt.Figure, "savefig", fail)
    with pytest.raises(OSError, match="No space"):
        curve(tmp_path / "curve")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert figures.plt.get_fignums() == []
