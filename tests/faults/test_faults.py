"""Whatever the readers get, and however trainings are broken, nothing is lost."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import faults, feed, inputs, training

ROOT = Path(__file__).parents[2]
REFUSED = "error: File exists, and no checkpoint is whole"

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")


@pytest.mark.parametrize("reader", inputs.READERS, ids=lambda reader: reader.name)
def test_readers_accept_or_refuse_in_one_line(reader, tmp_path):
    """Each of a few damaged, odd or senseless inputs is accepted, or refused in one line.

    Nothing outside the input's folder is touched, nothing unpickled, no memory used up.
    """
    tally = feed.tally(dataclasses.replace(reader, bombs={}), 12, tmp_path / "inputs")
    assert not tally.failures
    assert tally.inputs >= 12


def through_a_link_to_a_file(own, outside):
    (own / "link").symlink_to(outside / "file")
    (own / "link").write_text("x")


def through_a_link_to_nothing(own, outside):
    (own / "link").symlink_to(outside / "new")
    (own / "link").write_text("x")


def through_a_link_to_a_folder(own, outside):
    (own / "link").symlink_to(outside)
    (own / "link" / "new").write_text("x")


def above_a_link_to_a_folder(own, outside):
    (own / "link").symlink_to(outside / "folder")
    (own / "link" / ".." / "new").write_text("x")


def rename_into_a_linked_folder(own, outside):
    (own / "link").symlink_to(outside)
    (own / "file").rename(own / "link" / "new")


def remove_from_a_linked_folder(own, outside):
    (own / "link").symlink_to(outside)
    (own / "link" / "file").unlink()


def change_the_mode_through_a_link(own, outside):
    (own / "link").symlink_to(outside / "file")
    (own / "link").chmod(0o600)


def link_hard(own, outside):
    (own / "link").hardlink_to(outside / "file")


def beside_with_a_name_that_begins_alike(own, outside):
    own.with_name(f"{own.name}-sibling.txt").write_text("x")


def make_a_folder_outside(own, outside):
    (outside / "new").mkdir()


ESCAPES = [
    through_a_link_to_a_file, through_a_link_to_nothing, through_a_link_to_a_folder,
    above_a_link_to_a_folder, rename_into_a_linked_folder, remove_from_a_linked_folder,
    change_the_mode_through_a_link, link_hard, beside_with_a_name_that_begins_alike,
    make_a_folder_outside,
]  # fmt: skip


@pytest.fixture
def own_and_outside(tmp_path):
    """Two folders, each with a file and a folder."""
    for name in ("own", "outside"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "file").write_text("precious")
    return tmp_path / "own", tmp_path / "outside"


@pytest.mark.parametrize("escape", ESCAPES, ids=lambda escape: escape.__name__)
def test_the_watch_sees_what_leaves_the_folder(own_and_outside, escape):
    """Whatever is written, removed or changed outside, by links or by a name that begins alike."""
    with feed.watched(own_and_outside[0]) as touched:
        escape(*own_and_outside)
    assert touched


def test_the_watch_sees_nothing_else(own_and_outside, tmp_path):
    """Reading anywhere, and writing in the folder by any of its names, is not reported."""
    own, outside = own_and_outside
    (tmp_path / "name").symlink_to(own)
    with feed.watched(tmp_path / "name") as touched:
        for here in (own, tmp_path / "name"):
            (here / "link").symlink_to(outside / "file")
            assert (here / "link").read_text() == "precious"
            (here / "link").rename(here / "other")  # the link itself, not what it names
            (here / "other").unlink()
            (here / "inner").symlink_to(here / "file")
            (here / "inner").write_text("x")
            (here / "inner").unlink()
            (here / "folder" / ".." / "new").mkdir()
            (here / "new").rmdir()
    assert not touched


@pytest.mark.parametrize("name", ["a file where a folder", "a bit of every checkpoint"])
@pytest.mark.parametrize(
    ("ends", "outcome"),
    [
        ([(1, REFUSED), (1, REFUSED)], "clear error"),
        ([(1, REFUSED), (0, "")], "lost"),
        ([(1, REFUSED), (1, "Traceback")], "lost"),
        ([(0, ""), (1, REFUSED)], "lost"),
        ([(1, REFUSED), (1, REFUSED), "removed"], "lost"),
    ],
    ids=["twice", "only at first", "then a traceback", "only then", "files gone"],
)
def test_an_error_that_stays_is_met_twice(tmp_path, monkeypatch, name, ends, outcome):
    """An error is clear if the same command fails again, and has removed nothing."""
    for step in (9, 18):
        file = tmp_path / "stopped" / "checkpoints" / f"step_{step:08}" / "array"
        file.parent.mkdir(parents=True)
        file.write_text("numbers")
    commands = iter(ends[:2])

    class Ended:
        def __init__(self, images, workdir, *_):
            self.workdir = workdir

        def finish(self):
            end = next(commands)
            if ends[2:] and end is ends[1]:
                shutil.rmtree(tmp_path / "try")
            return end

    monkeypatch.setattr(training, "start", Ended)
    fault = next(f for f in faults.FAULTS if f.name.startswith(name))
    assert faults.attempt(fault, 0, tmp_path, {1: 1.0})[0] == outcome
    assert next(commands, None) is None or outcome == "lost"


@pytest.mark.faults
def test_every_fault_and_every_reader(tmp_path):
    """One try of every fault, a hundred inputs and the bombs of every reader: nothing is lost."""
    command = [sys.executable, "-m", "tests.faults", "--tries=1", "--inputs=100"]
    folders = [f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'faults.md'}"]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    record = tmp_path / "faults.md"
    assert done.returncode == 0, record.read_text() if record.exists() else done.stderr
