"""What the pages tell people to type exists."""

import re
from pathlib import Path

import pytest
from absl import flags

from hiercls_jax import adapt, experiment, predict
from hiercls_jax import main as main  # defines the flags of training

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
COMMAND = re.compile(r"hiercls_jax(?:\.(main)| (adapt|predict|export)\b)((?:[^\n`]|\\\n)*)")


def known_flags(command: str) -> set[str]:
    """Names of the flags that a command takes."""
    if command == "main":
        return set(flags.FLAGS)
    values = adapt._parse([command, "--help"])
    if command != "adapt":
        values, _ = predict._parse([command, "--help"])
    return set(values)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_commands_of_pages_take_their_flags(path):
    """Every flag after a command's name on a page is one that this command has."""
    for main_, other, arguments in COMMAND.findall(path.read_text(encoding="utf-8")):
        taken = known_flags(main_ or other)
        for name in re.findall(r"(?<!\S)--([a-z_]+)(?![\w.])", arguments):
            assert name in taken, f"{main_ or other} has no --{name}"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_fields_of_pages_are_in_the_config(path):
    """Every `--config.<field>` on a page is a field of the config, or an option of a model."""
    config = experiment.flatten(experiment.compose("merge1"))
    for field in re.findall(r"--config\.([a-z_]+(?:\.[a-z_]+)*)", path.read_text("utf-8")):
        assert any(f"{known}.".startswith(f"{field}.") for known in config), field


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_files_of_pages_are_in_the_project(path):
    """Every file of the project's folders that a page names is there."""
    folders = "configs|examples|launch|notebooks|hiercls_jax|benchmarks"
    for name in re.findall(rf"`((?:{folders})/[\w./]+)", path.read_text("utf-8")):
        assert (ROOT / name).exists(), name
