"""Records of a run while it trains: `metrics.jsonl`, TensorBoard, and progress on the terminal."""

import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm

from hiercls_jax.files import atomic_write

Record = dict[str, Any]  # `step`, `split` (str), and numbers by name


class Tracker:
    """Writes records to `metrics.jsonl` and TensorBoard, and shows progress on the terminal.

    It first drops the records of steps after `step`, so that the file has no step twice: a run
    that was killed had gone on after its last checkpoint.

    Args:
      folder: gets `metrics.jsonl` and `tensorboard/`.
      name: the network's name in progress lines.
      step: steps taken so far.
      total: steps of the whole run.
    """

    def __init__(self, folder: Path, name: str, step: int, total: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _drop_after(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        self._board = _TensorBoard(folder / "tensorboard", step)
        self._name, self._total, self._started = name, total, time.monotonic()
        # A bar on a terminal; plain lines in a pipe.
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=step, desc=name, unit="step", dynamic_ncols=True, leave=False
            )

    def advance(self) -> None:
        """Count one finished step."""
        if self._bar is not None:
            self._bar.update()

    def write(self, record: Record) -> None:
        """Add a record."""
        self._file.write(json.dumps(record) + "\n")
        self._board.write(record)
        if self._bar is None or record["split"] != "train":
            self.say(f"{self._name} {record['step']}/{self._total} {describe(record)}")
        else:
            self._bar.set_postfix_str(describe(record), refresh=False)

    def say(self, line: str) -> None:
        """Print a line without breaking the bar."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def flush(self) -> None:
        """Force all records to disk; a checkpoint must not be newer than its records."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close everything."""
        self.flush()
        self._file.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()


class _TensorBoard:
    """A TensorBoard event file that is written at once, by the calling thread.

    TensorBoard's own writer has a thread and a hook at exit. There a full disk raises errors that
    nothing can catch.

    Args:
      folder: gets one more event file.
      step: TensorBoard ignores steps after it in older files of the folder.
    """

    def __init__(self, folder: Path, step: int) -> None:
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{step}"
        self._file = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115, closed by close()
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def write(self, record: Record) -> None:
        """Add a record's numbers."""
        values = [
            Summary.Value(tag=f"{record['split']}/{key}", simple_value=value)
            for key, value in record.items()
            if key not in ("step", "epoch", "split")
        ]
        self._add(Event(step=record["step"], summary=Summary(value=values)))
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def _add(self, event: Event) -> None:
        event.wall_time = time.time()
        self._file.write(event.SerializeToString())


class NullTracker:
    """The tracker of a process that neither writes nor prints."""

    def advance(self) -> None: ...

    def write(self, record: Record) -> None: ...

    def say(self, line: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def records(folder: Path) -> list[Record]:
    """Return the records that a tracker has written to a folder, or none."""
    return [record for _, record in _complete_lines(folder / "metrics.jsonl")]


def describe(record: Record) -> str:
    """Return a record as a line: split, losses, errors in percent, images per second."""
    parts = [f"{record['split']}:"]
    for key, value in record.items():
        if key.startswith("loss"):
            parts.append(f"{key.replace('_', ' ')} {value:.3f}")
        elif key.startswith("error"):
            parts.append(f"{key.replace('_', ' ')} {100 * value:.1f} %")
        elif key == "images_per_second":
            parts.append(f"{value:.0f} images/s")
    return "  ".join(parts)


def _drop_after(path: Path, step: int) -> None:
    """Remove the records of later steps from `metrics.jsonl`, atomically."""
    if not path.exists():
        return
    kept = [line + "\n" for line, record in _complete_lines(path) if record["step"] <= step]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


def _complete_lines(path: Path) -> list[tuple[str, Record]]:
    """Return each line and its record, up to a line that a kill has cut; none without a file.

    Records after the cut are newer than the newest checkpoint.
    """
    lines = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                int(record["step"])
            except (ValueError, KeyError, TypeError):
                break
            lines.append((line, record))
    return lines


def format_duration(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> format_duration(75), format_duration(8000), format_duration(200000)
    ('1 min 15 s', '2 h 13 min', '2 d 7 h')
    """
    seconds = round(seconds)
    units = [("d", 86400), ("h", 3600), ("min", 60), ("s", 1)]
    for (name, size), (lower, part) in zip(units, units[1:], strict=False):
        if seconds >= size:
            return f"{seconds // size} {name} {seconds % size // part} {lower}"
    return f"{seconds} s"
