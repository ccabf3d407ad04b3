"""The commands, settings, files, links and names that the pages mention exist."""

import contextlib
import functools
import io
import pkgutil
import re
from pathlib import Path

import pytest

from hiercls_jax import __main__ as commands
from hiercls_jax import experiment
from hiercls_jax.experiment import grid

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").rglob("*.md"))
READMES = [ROOT / "README.md", *sorted(ROOT.glob("*/README.md"))]


def by_path(paths: list[Path]) -> list:
    """Return pages as parameters of a test."""
    return [pytest.param(path, id=str(path.relative_to(ROOT))) for path in paths]


GUIDES = [ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
PAGES = by_path([*READMES, *GUIDES, *DOCS])


def printed(*arguments: str) -> str:
    """Return what a command prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert commands.main(["hiercls_jax", *arguments]) == 0
    return out.getvalue()


COMMAND = re.compile(
    rf"(?:hiercls_jax\.main|hiercls[-_]jax ({'|'.join(commands.COMMANDS)})\b)((?:[^\n`]|\\\n)*)"
)


@functools.cache
def known_flags(command: str) -> set[str]:
    """Return the names of a command's flags, which its help lists or, as --config, describes."""
    text = printed(command, "--help")
    listed = set(re.findall(r"^  --(?:\[no\])?(\w+):", text, re.M))
    assert "help" in listed
    return listed | set(re.findall(r" --(config)=", text))


def slug(heading: str) -> str:
    """Return the anchor that GitHub and MkDocs give to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_every_command_is_on_its_page():
    """The overview lists every command, and the reference describes each of them."""
    assert set(re.findall(r"hiercls-jax (\w+)", printed())) == set(commands.COMMANDS)
    page = (ROOT / "docs" / "reference" / "commands.md").read_text("utf-8")
    for name in commands.COMMANDS:
        assert f"::: hiercls_jax.commands.{name}\n" in page, name


@pytest.mark.parametrize("path", PAGES)
def test_commands_of_pages_take_their_flags(path):
    """A command on a page has every flag that the page gives it."""
    for name, arguments in COMMAND.findall(path.read_text("utf-8")):
        own, _, of_runs = arguments.partition(" -- ")  # `grid` passes the rest to its trainings
        for command, given in ((name or "train", own), ("train", of_runs)):
            for flag in re.findall(r"(?<!\S)--([a-z_]+)(?![\w.])", given):
                assert flag in known_flags(command), f"{command} has no --{flag}"


@pytest.mark.parametrize("path", PAGES)
def test_fields_of_pages_are_in_the_config(path):
    """Every `--config.<field>` on a page is a field of a config, or an option of a model."""
    config = {**experiment.flatten(experiment.compose("merge1")), **grid.compose()}
    for field in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", path.read_text("utf-8")):
        assert any(f"{known}.".startswith(f"{field}.") for known in config), field


@pytest.mark.parametrize("path", PAGES)
def test_files_of_pages_are_in_the_project(path):
    """Every file of the project's folders that a page names exists."""
    folders = "configs|examples|launch|notebooks|hiercls_jax|benchmarks|results|tests"
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)", path.read_text("utf-8")):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("path", PAGES)
def test_names_of_pages_are_in_the_package(path):
    """Every dotted name of the package on a page can be imported, and so can what follows it.

    Names that follow are written as in "`hiercls_jax.adaptation.rules`: `RULES`".
    """
    text = path.read_text("utf-8")
    for dotted, names in re.findall(r"`(hiercls_jax(?:\.\w+)+)`(?:: ((?:`\w+`(?:, )?)+))?", text):
        found = pkgutil.resolve_name(dotted)
        for name in re.findall(r"\w+", names):
            assert hasattr(found, name), f"{dotted} has no {name}"


@pytest.mark.parametrize("path", by_path([*READMES, *GUIDES]))
def test_links_of_pages_lead_somewhere(path):
    """Every relative link leads to a file, and its anchor to a heading of that file.

    `mkdocs build --strict` checks the links of docs/.
    """
    text = re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = target.partition("#")
        if name.startswith("https:"):
            continue
        page = path.parent / name if name else path
        assert page.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", page.read_text("utf-8"), re.M)
            assert anchor in map(slug, headings), target
