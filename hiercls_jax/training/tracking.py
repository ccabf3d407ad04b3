"""What a run says while it runs: `metrics.jsonl` (the record), TensorBoard (the view), progress."""

import json
import os
import socket
import sys
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter
from tqdm import tqdm


class Tracker:
    """Writes records to `metrics.jsonl` and TensorBoard, and shows progress on the terminal.

    Opened at `step`, it first drops records from after it (a run that was killed had gone on
    since its last checkpoint), so that the file has no step twice.
    """

    def __init__(self, folder: Path, name: str, step: int, total: int):
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        _keep_until(self._path, step)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115, closed by close()
        self._board = _Board(folder / "tensorboard", step)
        self._name, self._total, self._started = name, total, time.monotonic()
        # A bar where someone watches; plain lines in a pipe.
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=step, desc=name, unit="step", dynamic_ncols=True, leave=False
            )

    def advance(self) -> None:
        """Count one finished step."""
        if self._bar is not None:
            self._bar.update()

    def write(self, record: dict) -> None:
        """Add a record: `step`, `split` and numbers."""
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
        """Put what was written on disk, as a checkpoint that follows must find it there."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Flush and close everything."""
        self.flush()
        self._file.close()
        self._board.close()
        if self._bar is not None:
            self._bar.close()


class _Board:
    """A TensorBoard event file, written at once and by the thread that asks for it.

    The package's own writer has a thread and a hook at exit, where a full disk becomes tracebacks
    that nothing can catch.

    Args:
      folder: gets one more event file.
      step: TensorBoard forgets what older files of the folder say of later steps.
    """

    def __init__(self, folder: Path, step: int):
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{step}"
        self._file = RecordWriter(open(folder / name, "wb"))  # noqa: SIM115, closed by close()
        self._add(Event(file_version="brain.Event:2"))
        self._add(Event(step=step + 1, session_log=SessionLog(status=SessionLog.START)))
        self._file.flush()

    def write(self, record: dict) -> None:
        """Add a record's numbers, for whoever watches."""
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
    """The tracker of a process that neither writes nor talks."""

    def advance(self) -> None: ...

    def write(self, record: dict) -> None: ...

    def say(self, line: str) -> None: ...

    def flush(self) -> None: ...

    def close(self) -> None: ...


def records(folder: Path) -> list[dict]:
    """Return what a tracker has written to a folder; nothing, where it has written nothing."""
    return [record for _, record in _whole_lines(folder / "metrics.jsonl")]


def describe(record: dict) -> str:
    """Return a record in words: split, losses, errors in percent, images per second."""
    parts = [f"{record['split']}:"]
    for key, value in record.items():
        if key.startswith("loss"):
            parts.append(f"{key.replace('_', ' ')} {value:.3f}")
        elif key.startswith("error"):
            parts.append(f"{key.replace('_', ' ')} {100 * value:.1f} %")
        elif key == "images_per_second":
            parts.append(f"{value:.0f} images/s")
    return "  ".join(parts)


def _keep_until(path: Path, step: int) -> None:
    if not path.exists():
        return
    kept = [line + "\n" for line, record in _whole_lines(path) if record["step"] <= step]
    temporary = path.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    os.replace(temporary, path)


def _whole_lines(path: Path) -> list[tuple[str, dict]]:
    """Return each line and its record, up to one that a kill has cut; none without a file.

    What follows a cut is younger than the newest checkpoint.
    """
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                int(record["step"])
            except (ValueError, KeyError, TypeError):
                break
            found.append((line, record))
    return found


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
