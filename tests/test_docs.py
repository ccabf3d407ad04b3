"""What the pages tell people to type exists."""

import contextlib
import functools
import io
import re
from pathlib import Path

import pytest
from absl import flags

from hiercls_jax import __main__ as commands
from hiercls_jax import (
    experiment,  # defines the flags of training
)
from hiercls_jax.commands import grid

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = ("grid", "compare", "adapt", "predict", "export")
COMMAND = re.compile(rf"hiercls_jax(?:\.(main)| ({'|'.join(NAMES)})\b)((?:[^\n`]|\\\n)*)")


@functools.cache
def known_flags(command: str) -> set[str]:
    """Names of the flags that a command takes; by its own help, for all but training."""
    if command == "main":
        return set(flags.FLAGS)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert commands.main(["hiercls_jax", command, "--help"]) == 0
    found = set(re.findall(r"^  --(?:\[no\])?(\w+):", out.getvalue(), re.M))
    assert found
    return found


def test_every_command_is_on_its_page():
    """The commands that there are are those that are tested here, and the reference has them."""
    assert set(re.findall(r"hiercls_jax (\w+)", commands.COMMANDS)) == set(NAMES)
    page = (ROOT / "docs" / "reference" / "commands.md").read_text("utf-8")
    for name in {"train", *NAMES} - {"export"}:  # which `predict` describes
        assert f"::: hiercls_jax.commands.{name}\n" in page, name


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_of_pages_take_their_flags(path):
    """Every flag after a command's name on a page is one that this command has."""
    for main_, other, arguments in COMMAND.findall(path.read_text(encoding="utf-8")):
        own, _, of_runs = arguments.partition(" -- ")  # a grid's runs take those of training
        for command, given in ((main_ or other, own), ("main", of_runs)):
            for name in re.findall(r"(?<!\S)--([a-z_]+)(?![\w.])", given):
                assert name in known_flags(command), f"{command} has no --{name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_fields_of_pages_are_in_the_config(path):
    """Every `--config.<field>` on a page is a field of a config, or an option of a model."""
    config = {**experiment.flatten(experiment.compose("merge1")), **grid.compose()}
    for field in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", path.read_text("utf-8")):
        assert any(f"{known}.".startswith(f"{field}.") for known in config), field


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_files_of_pages_are_in_the_project(path):
    """Every file of the project's folders that a page names is there."""
    folders = "configs|examples|launch|notebooks|hiercls_jax|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w./]+)", path.read_text("utf-8")):
        assert (ROOT / name).exists(), name
