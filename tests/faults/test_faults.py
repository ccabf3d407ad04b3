"""Whatever readers are fed, and however trainings are broken, nothing is lost."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import inputs

ROOT = Path(__file__).parents[2]

# How ml_collections reads a config file.
pytestmark = pytest.mark.filterwarnings(r"ignore:the load_module\(\) method:DeprecationWarning")


@pytest.mark.parametrize("reader", inputs.READERS, ids=lambda reader: reader.name)
def test_readers_accept_or_refuse_in_one_line(reader, tmp_path):
    """Of a few damaged, odd and senseless inputs, each is accepted, or refused by one line.

    Nothing outside the input's folder is touched, nothing unpickled, no memory eaten up.
    """
    tally = inputs.tally(dataclasses.replace(reader, bombs={}), 12, tmp_path / "inputs")
    assert not tally.failures
    assert tally.inputs >= 12


@pytest.mark.faults
def test_every_fault_and_every_reader(tmp_path):
    """One try of every fault, a hundred inputs and the bombs of every reader: nothing is lost."""
    command = [sys.executable, "-m", "tests.faults", "--tries=1", "--inputs=100"]
    folders = [f"--work={tmp_path / 'work'}", f"--out={tmp_path / 'faults.md'}"]
    done = subprocess.run([*command, *folders], cwd=ROOT, capture_output=True, text=True)
    record = tmp_path / "faults.md"
    assert done.returncode == 0, record.read_text() if record.exists() else done.stderr
