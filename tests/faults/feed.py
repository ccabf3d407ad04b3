"""Feed a reader inputs, and count what it does with them.

Every input must be accepted, or refused by a UserError. Nothing outside the input's folder may be
written, nothing unpickled, and memory stays under a bound.
"""

import contextlib
import dataclasses
import io
import os
import resource
import shutil
import sys
import tempfile
import unittest.mock
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import jax
from hypothesis import strategies as st

from hiercls_jax.errors import UserError, one_line
from tests.faults import MEMORY

# Limit of the address space, to protect the machine; four times, because some libraries reserve
# more than they use.
GUARD = 4 * MEMORY


@dataclasses.dataclass(frozen=True)
class Reader:
    """A line of the table.

    Args:
      name: its name in the record.
      inputs: a strategy that makes inputs.
      read: feeds it one input, in an empty folder.
      bombs: small inputs that take much memory if nothing prevents it, by name.
    """

    name: str
    inputs: st.SearchStrategy
    read: Callable[[Any, Path], None]
    bombs: dict[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class Tally:
    """How many inputs a reader refused and accepted; `failures` describes every other outcome."""

    reader: str
    refused: int = 0
    accepted: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    memory: int = 0  # bytes by which the process grew at most

    @property
    def inputs(self) -> int:
        return self.refused + self.accepted + len(self.failures)


def tally(reader: Reader, tries: int, where: Path, seed: int = 0) -> Tally:
    """Feed a reader its bombs and `tries` other inputs, in the new folder `where`."""
    result, before = Tally(reader.name), _reset_peak()
    shutil.rmtree(where, ignore_errors=True)  # of a tally that was stopped

    def feed(value: Any) -> None:
        where.mkdir(parents=True)
        try:
            with _environment(where), watched(where) as touched:
                refused = _refused(reader, value, where)
            assert not touched, f"touched {touched}"
            result.refused += refused
            result.accepted += not refused
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            result.failures.append(f"{type(error).__name__}: {error} from {value!r:.500}")
        finally:
            shutil.rmtree(where)

    for make in reader.bombs.values():
        feed(make())
    settings = hypothesis.settings(
        max_examples=tries, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    hypothesis.seed(seed)(settings(hypothesis.given(reader.inputs)(feed)))()
    result.memory = max(0, _peak() - before)
    if result.memory > MEMORY:
        result.failures.append(f"memory grew by {result.memory / 2**20:.0f} MiB")
    return result


def _refused(reader: Reader, value: Any, where: Path) -> bool:
    """Return whether a reader refuses an input with one printable line; raise any other error."""
    try:
        reader.read(value, where)
    except UserError as error:
        line = one_line(error)
        assert line.isprintable(), line
        cause = error
        while cause is not None:
            assert not isinstance(cause, MemoryError), "it took all memory that there was"
            cause = cause.__cause__ or cause.__context__
        return True
    return False


@contextlib.contextmanager
def _environment(where: Path) -> Iterator[None]:
    """Give a reader its own cache, home and temporary folder, limit its memory, and silence it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    own = {"XDG_CACHE_HOME": str(where / "cache"), "HOME": str(where / "home")}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GUARD, hard))
    try:
        with (
            unittest.mock.patch.dict(os.environ, own),
            unittest.mock.patch.object(tempfile, "tempdir", str(where)),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_WRITES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "shutil.rmtree",
}  # fmt: skip
_FOLLOWS = {"os.link", "os.truncate", "os.chmod", "os.chown", "os.utime"}  # links to their targets
_NEVER = {"pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "os.exec"}
_touched: list[str] | None = None
_inside = ""


def _audit(event: str, arguments: tuple) -> None:
    if _touched is None:
        return
    if event in _NEVER:
        _touched.append(f"{event} {arguments!r:.100}")
    elif event in _WRITES:
        paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
        if event == "os.symlink":  # a hard link is another name of a file, and a way to it
            paths = paths[-1:]
        if any(not _is_inside(path, event in _FOLLOWS) for path in paths):
            _touched.append(f"{event} {paths}")
    elif event == "open":
        path, mode, how = arguments
        writes = how & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(how, int) else 0
        if (writes or set(str(mode)) & set("wax+")) and not _is_inside(path, follow=True):
            _touched.append(f"open {path!r} {mode} {how}")


def _is_inside(path: int | str | bytes | os.PathLike, follow: bool) -> bool:
    """Whether a path leads into the watched folder; `follow` also resolves a link at its end."""
    if isinstance(path, int):  # a descriptor, of a file that was opened by its name
        return True
    path = os.fsdecode(path)
    parent, name = os.path.split(path)
    if follow or name in ("", ".", ".."):
        full = os.path.realpath(path)
    else:
        full = os.path.join(os.path.realpath(parent), name)
    own = [_inside, os.path.realpath(jax.config.jax_compilation_cache_dir or _inside)]
    return (
        any(full == folder or full.startswith(folder + os.sep) for folder in own)
        or "__pycache__" in full.split(os.sep)
        or full == os.devnull
    )


sys.addaudithook(_audit)


@contextlib.contextmanager
def watched(where: Path) -> Iterator[list[str]]:
    """Yield a list to which every write, removal or program outside a folder is added.

    Links are followed. Python reports its own actions; it does not know what a library writes, such
    as TFDS's array_record files.
    """
    global _touched, _inside
    _touched, _inside = [], os.path.realpath(where)
    try:
        yield _touched
    finally:
        _touched = None


def _reset_peak() -> int:
    """Reset the peak memory of this process, and return its current memory in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
