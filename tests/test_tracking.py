"""Records of a run: `metrics.jsonl` without a cut, double or missing line; a bar or plain lines."""

import errno
import io
import json
import os
import struct
import subprocess
import sys

import numpy as np
import pytest
import small
from tensorboard.compat.proto.event_pb2 import Event, SessionLog

from hiercls_jax.training import recorder as recorder_module
from hiercls_jax.training import tracking
from hiercls_jax.training.feed import Order
from hiercls_jax.training.recorder import Recorder
from hiercls_jax.training.tracking import Tracker, describe


def record(step: int, split: str = "train") -> dict:
    """A record as the loop writes them."""
    return {"step": step, "epoch": step / 10, "split": split, "loss": 1 / 3 + step}


def f32(step: int) -> float:
    """The loss of a record, as TensorBoard keeps it."""
    return float(np.float32(1 / 3 + step))


def lines(folder) -> list[dict]:
    """The records in the file; every line is whole."""
    text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def write(folder, step: int, *records: dict) -> None:
    """Open at `step`, write records, close."""
    tracker = Tracker(folder, "toy", step, 100)
    for each in records:
        tracker.write(each)
    tracker.close()


@pytest.fixture
def folder(tmp_path):
    """A run that was killed after step 30 and had its last checkpoint after step 20."""
    write(tmp_path, 0, record(10), record(10, "validation"), record(20), record(20, "validation"),
          record(30))  # fmt: skip
    return tmp_path


def test_records_after_the_checkpoint_are_dropped(folder):
    """After a resume from step 20 the file goes on as if it had no later records."""
    write(folder, 20, record(30), record(40))
    assert lines(folder) == [record(10), record(10, "validation"), record(20),
                             record(20, "validation"), record(30), record(40)]  # fmt: skip


def test_a_record_at_the_checkpoint_is_kept(folder):
    """After a resume from the last record, no line is lost or written twice."""
    before = (folder / "metrics.jsonl").read_bytes()
    write(folder, 30)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_records_are_read_up_to_a_cut(folder, tmp_path):
    """All records are read, up to a line that a kill has cut; without a file there are none."""
    content = (folder / "metrics.jsonl").read_bytes()
    written = lines(folder)
    assert tracking.records(folder) == written
    for cut in (2, 10):
        (folder / "metrics.jsonl").write_bytes(content[:-cut])
        assert tracking.records(folder) == written[:-1]
    assert tracking.records(tmp_path / "nothing") == []


def test_a_line_cut_anywhere_is_repaired(folder):
    """However many bytes of the last line reached the disk, the resumed file is repaired."""
    content = (folder / "metrics.jsonl").read_bytes()
    last = content.rindex(b"\n", 0, -1) + 1
    expected = [*lines(folder)[:-1], record(30), record(40)]
    for end in range(last, len(content) + 1):
        (folder / "metrics.jsonl").write_bytes(content[:end])
        tracking._drop_after(folder / "metrics.jsonl", 20)
        assert lines(folder) == expected[:-2], end
    (folder / "metrics.jsonl").write_bytes(content[:-9])
    write(folder, 20, record(30), record(40))
    assert lines(folder) == expected


@pytest.mark.parametrize(
    "garbage", [b"\0\0\0\0", b"\xff\xfe", b"[]\n", b"{}\n", b'{"step": "x"}\n']
)
def test_what_is_no_record_ends_the_file(folder, garbage):
    """Zeros, other bytes and other JSON after the last checkpoint are dropped, as after a crash."""
    whole = (folder / "metrics.jsonl").read_bytes()
    (folder / "metrics.jsonl").write_bytes(whole + garbage)
    write(folder, 30)
    assert (folder / "metrics.jsonl").read_bytes() == whole


def test_the_repair_is_atomic(folder, monkeypatch):
    """A kill while the file is being repaired leaves the file as it was."""
    before = (folder / "metrics.jsonl").read_bytes()

    def kill(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(tracking.os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        tracking._drop_after(folder / "metrics.jsonl", 0)
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_flushed_records_are_on_disk(tmp_path):
    """After `flush`, which precedes a checkpoint, every record can be read by others."""
    tracker = Tracker(tmp_path, "toy", 0, 100)
    tracker.write(record(10))
    tracker.flush()
    assert lines(tmp_path) == [record(10)]
    tracker.close()


def test_piped_output_is_plain_lines(tmp_path, capsys):
    """Without a terminal every record is one line on stdout, with no bar and no control code."""
    tracker = Tracker(tmp_path, "toy", 0, 100)
    for _ in range(10):
        tracker.advance()
    tracker.write({**record(10), "error_fine": 0.5, "images_per_second": 99.6})
    tracker.write({**record(10, "validation"), "error_fine": 0.25})
    tracker.say("a word")
    tracker.close()
    out, err = capsys.readouterr()
    assert out == (
        "toy 10/100 train:  loss 10.333  error fine 50.0 %  100 images/s\n"
        "toy 10/100 validation:  loss 10.333  error fine 25.0 %\n"
        "a word\n"
    )
    assert err == ""


class Terminal(io.StringIO):
    """A stream that someone watches."""

    def isatty(self) -> bool:
        """Always."""
        return True


def test_a_terminal_gets_a_bar(tmp_path, monkeypatch, capsys):
    """On a terminal the bar shows training records, and validation has a line of its own."""
    monkeypatch.setattr(sys, "stderr", Terminal())
    tracker = Tracker(tmp_path, "toy", 40, 100)
    tracker.write(record(50))
    tracker.advance()
    tracker.write(record(50, "validation"))
    tracker._bar.refresh()
    shown = sys.stderr.getvalue()
    tracker.close()
    assert "toy:  41%" in shown
    assert "41/100" in shown
    assert "train:  loss 50.333" in shown
    assert capsys.readouterr().out.strip() == "toy 50/100 validation:  loss 50.333"
    assert lines(tmp_path) == [record(50), record(50, "validation")]


def events(path) -> list[Event]:
    """The events in a TensorBoard file: length, its sum, as many bytes, their sum."""
    content, found = path.read_bytes(), []
    while content:
        (size,) = struct.unpack("<Q", content[:8])
        found.append(Event.FromString(content[12 : 12 + size]))
        content = content[16 + size :]
    return found


def numbers(found: list[Event]) -> list[tuple]:
    """(step, tag, value) of each number in events."""
    return [(e.step, v.tag, v.simple_value) for e in found for v in e.summary.value]


def test_tensorboard_shows_what_the_record_has(folder):
    """Each start has a file of its own; its first step ends the validity of older files."""
    write(folder, 20, record(30))
    old, new = (events(p) for p in sorted((folder / "tensorboard").glob("events.out.tfevents.*")))
    assert numbers(old) == [(10, "train/loss", f32(10)), (10, "validation/loss", f32(10)),
                            (20, "train/loss", f32(20)), (20, "validation/loss", f32(20)),
                            (30, "train/loss", f32(30))]  # fmt: skip
    assert numbers(new) == [(30, "train/loss", f32(30))]
    for found, first in ((old, 1), (new, 21)):
        assert found[0].file_version == "brain.Event:2"
        assert (found[1].step, found[1].session_log.status) == (first, SessionLog.START)


def test_tensorboard_is_told_at_once(tmp_path):
    """TensorBoard sees a record when it is written, not when the run ends."""
    tracker = Tracker(tmp_path, "toy", 0, 100)
    tracker.write(record(10))
    (path,) = (tmp_path / "tensorboard").iterdir()
    assert numbers(events(path)) == [(10, "train/loss", f32(10))]
    tracker.close()


@pytest.mark.parametrize("limit", [0, 100, 1000])
def test_no_space_is_one_error(tmp_path, limit):
    """If files may not grow, writing or closing raises, and no thread or exit hook prints."""
    program = f"""
import resource, signal
from pathlib import Path
from hiercls_jax.training.tracking import Tracker
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
tracker = Tracker(Path({str(tmp_path)!r}), "toy", 0, 100)
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
try:
    try:
        for step in range(100):
            tracker.write({{"step": step, "split": "train", "loss": 0.5}})
    finally:
        tracker.close()
except OSError as error:
    print(error.strerror)
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0
    assert ended.stdout.splitlines()[-1] == os.strerror(errno.EFBIG)
    assert ended.stderr == ""


def test_a_record_in_words():
    """Losses with three digits, errors in percent, whole images per second, and nothing else."""
    words = describe({"step": 1, "epoch": 0.1, "split": "train", "loss_coarse": 1.23456,
                      "error_coarse": 0.1234, "images_per_second": 1234.5})  # fmt: skip
    assert words == "train:  loss coarse 1.235  error coarse 12.3 %  1234 images/s"


def test_other_frameworks_stay_where_they_are(tmp_path):
    """Nothing here imports them even if they are installed: each start would take a second more."""
    for name in ("tensorflow", "torch"):
        (tmp_path / f"{name}.py").touch()
    program = (
        "import sys, hiercls_jax.commands.train; "
        "print({'tensorflow', 'torch'} & sys.modules.keys())"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["set()"]


def test_levels_stand_in_the_tree_s_order():
    """A record names the levels as the tree does, although a jitted step sorts its metrics."""

    class Kept(tracking.NullTracker):
        def write(self, record):
            kept.append(record)

    kept: list[dict] = []
    levels = ("order", "kind", "animal")
    recorder = Recorder("toy", Order((0,), 8, 4, 1), 1, Kept(), {}, levels)
    sums = {"count": 4.0, "loss": 6.0}
    sums |= {f"{kind}_{level}": 1.0 for kind in ("errors", "loss") for level in sorted(levels)}
    recorder.add(1, dict(sorted(sums.items())))
    named = [key for key in kept[0] if "_" in key and key != "images_per_second"]
    assert named == [f"{kind}_{level}" for kind in ("loss", "error") for level in levels]


def test_the_time_left_counts_that_images_grow(monkeypatch):
    """Steps 11 to 20 have four times the pixels of those before, and so take four times as long.

    After step 6, at a second a step, 4 seconds and 40 are left.
    """

    class Kept(tracking.NullTracker):
        def say(self, line):
            said.append(line)

    said: list[str] = []
    clock = iter(range(100))
    monkeypatch.setattr(recorder_module.time, "monotonic", lambda: float(next(clock)))
    order = Order((0,), 80, 4, 1)
    recorder = Recorder("toy", order, 100, Kept(), {}, (), lambda step: 1 if step < 10 else 4)
    for step in range(1, 8):
        recorder.add(step, {"count": 4.0, "loss": 6.0})
    (line,) = said
    assert line.startswith("toy: 14 steps of 4 images to go, 4 images/s on")
    assert line.endswith("about 44 s")


def test_a_step_s_pixels_are_those_of_its_size():
    """At 4 pixels of 8 an image has a quarter of its pixels, in the first half of the run."""
    a_schedule, images = small.schedule(sizes=((4, 0.5),)), small.split(50)
    assert [a_schedule.pixels(step, images) for step in (0, 11, 12, 23)] == [16, 16, 64, 64]
