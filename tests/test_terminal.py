"""Commands at a terminal: bars fit, nothing is coloured, Ctrl-C works at any time."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from pathlib import Path

import numpy as np
import pytest

from hiercls_jax import __main__
from hiercls_jax.commands.predict import _columns, _padded
from hiercls_jax.data import download
from hiercls_jax.tables import streaming
from hiercls_jax.training.tracking import Tracker

ROOT = Path(__file__).parents[1]
COLOUR = re.compile(r"\x1b\[[\d;]*m")


class Screen:
    """A terminal, seen from its other side: it collects what a program writes."""

    def __init__(self, columns: int):
        self._here, self.program_side = pty.openpty()
        size = struct.pack("4H", 24, columns, 0, 0)
        fcntl.ioctl(self.program_side, termios.TIOCSWINSZ, size)
        self._parts = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):  # raised when nobody can write any more
            while part := os.read(self._here, 4096):
                self._parts.append(part)

    def text(self) -> str:
        """Return everything that was written, after the program's side is closed."""
        self._reader.join()
        os.close(self._here)
        return b"".join(self._parts).decode()


def tracker(folder):
    """Show the training of three steps, with a long record in the bar and lines between."""
    shown = Tracker(folder, "merge1", 0, 3)
    record = {"split": "train", "error_fine": 0.5, "loss": 1.0, "images_per_second": 400.0}
    for step in (1, 2, 3):
        shown.write({"step": step, **record})
        shown.advance()
        shown._bar.refresh()
    shown.close()


def adapting(folder):
    """Go through a table in chunks."""

    class Tables:
        rows = 300

        def chunks(self, size):
            for _ in range(3):
                yield [np.zeros((size, 2))]

    for _ in streaming._chunks("adapting", Tables(), 100):
        pass


def downloading(folder):
    """Count bytes of a download."""
    with download.progress_bar(169_001_437, "B", "downloading") as bar:
        for _ in range(3):
            bar.update(50_000_000)
            bar.refresh()


@pytest.mark.parametrize("columns", [20, 120])
@pytest.mark.parametrize("work", [tracker, adapting, downloading])
def test_bars_fit_the_terminal(tmp_path, monkeypatch, work, columns):
    """A bar is rewritten in place, at most as wide as the terminal, and never coloured."""
    screen = Screen(columns)
    with os.fdopen(screen.program_side, "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        work(tmp_path)
    shown = screen.text()
    frames = re.split(r"[\r\n]+", re.sub(r"\x1b\[A", "", shown))
    assert any("%" in frame for frame in frames)
    assert max(map(len, frames)) <= columns
    assert "\x1b[" not in shown


@pytest.mark.parametrize("work", [adapting, downloading])
def test_a_pipe_gets_no_bar(tmp_path, capsys, work):
    """No bar is shown if stderr is not a terminal."""
    work(tmp_path)
    assert capsys.readouterr() == ("", "")


NARROW = ["adapt", "--hierarchy=tree.csv", "--coarse=pc.npy", "--fine=pf.npy"]


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Small tables in the current folder; the environment says 20 columns, and no colours."""
    rng = np.random.default_rng(0)
    (tmp_path / "tree.csv").write_text("animal,\nvehicle,\ncat,animal\ndog,animal\ncar,vehicle\n")
    for name, classes in (("pc", 2), ("pf", 3)):
        np.save(tmp_path / f"{name}.npy", rng.dirichlet(np.ones(classes), 50).astype(np.float32))
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "20")
    monkeypatch.setenv("TERM", "xterm-256color")


def check_narrow(shown: str) -> None:
    """The bars of `adapt` fit 20 columns, its words are whole, and nothing is coloured."""
    assert not COLOUR.search(shown)
    before, words = shown.split("adapted 50 rows by Algorithm 1 (kl), alpha = 1\r\n")
    frames = re.split(r"[\r\n]+", before)
    assert any("adapting" in frame for frame in frames)
    assert max(map(len, frames)) <= 20
    assert words.endswith("p_coarse.npy, p_fine.npy, predictions.npy, report.json\r\n")


def test_a_narrow_terminal_without_colours(tables, monkeypatch):
    """`adapt` in this process, with both streams on a terminal and NO_COLOR.

    It comes first because it fills Matplotlib's cache, about which a program would print a line.
    """
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen(20)
    with os.fdopen(screen.program_side, "w") as terminal:
        monkeypatch.setattr(sys, "stdout", terminal)
        monkeypatch.setattr(sys, "stderr", terminal)
        status = __main__.main(["hiercls-jax", *NARROW, "--out=adapted"])
    assert status == 0
    check_narrow(screen.text())


def test_a_whole_command_at_a_narrow_terminal(tables):
    """`adapt` as a program with both streams on a terminal, although colours are asked for."""
    screen = Screen(20)
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "FORCE_COLOR": "1",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "hiercls_jax", *NARROW, "--out=adapted"],
        env=environment, timeout=240, stdin=subprocess.DEVNULL,
        stdout=screen.program_side, stderr=screen.program_side,
    )  # fmt: skip
    os.close(screen.program_side)
    shown = screen.text()
    assert done.returncode == 0
    check_narrow(shown)


INTERRUPTED = """
import os, signal
os.kill(os.getpid(), signal.SIGINT)
for _ in range(10**9): pass
"""


@pytest.mark.parametrize(
    "command",
    [
        ["hiercls_jax.main", "--config=configs/merge1.py:quick"],
        ["hiercls_jax.main", "--config=configs/merge1.py:quick", "--nohuge_pages"],
        ["hiercls_jax", "train", "merge1:quick"],
        ["hiercls_jax", "grid", "--config=configs/grid.py:quick"],
        ["hiercls_jax", "compare", "runs"],
        ["hiercls_jax", "adapt", "--out=adapted"],
        ["hiercls_jax", "predict", "a.png"],
        ["hiercls_jax", "export", "--out=model"],
    ],
    ids=lambda command: " ".join(command[:2]),
)
def test_ctrl_c_while_modules_are_imported(tmp_path, command):
    """Ctrl-C before a command begins ends it with one line, status 130 and no traceback."""
    (tmp_path / "jax.py").write_text(INTERRUPTED)  # imported instead of JAX
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, env=environment, capture_output=True,
        text=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == "stopped before anything began\n"
    # Ended by the signal itself, which a shell shows as 130, or with that status.
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert done.stdout == ""


def test_names_are_padded_to_columns():
    """Wide characters take two columns of a terminal, accents that combine take none."""
    names = ["cat", "猫", "e\u0301te\u0301", "ﾈｺ"]
    assert [_columns(name) for name in names] == [3, 2, 3, 2]
    padded = [_padded(name, 4) + "|" for name in names]
    assert padded == ["cat |", "猫  |", "e\u0301te\u0301 |", "ﾈｺ  |"]
