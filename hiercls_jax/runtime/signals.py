"""How programs here react to SIGTERM and Ctrl-C: one way to handle them, for a limited time."""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from types import FrameType, TracebackType
from typing import Self

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
ONE_REQUEST = 1.0  # seconds in which repeated signals are one request to stop


@contextlib.contextmanager
def handled_by(
    handler: Callable[[int], object], signals: Sequence[int] = STOP_SIGNALS
) -> Iterator[None]:
    """Call `handler(signum)` for each of these signals; at the end, restore the older handlers.

    Outside the main thread Python allows no handlers, so nothing changes there.
    """

    def handle(signum: int, _: FrameType | None) -> None:
        handler(signum)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, handle) for signum in signals}
    try:
        yield
    finally:
        for signum, older in before.items():
            signal.signal(signum, older)


def exit_status(signum: int) -> int:
    """Return the exit status that shells give to a program that a signal ended.

    >>> exit_status(signal.SIGTERM)
    143
    """
    return 128 + signum


def exit_cleanly(signum: int) -> None:
    """End the program with the signal's exit status; `finally` and `with` blocks clean up."""
    sys.exit(exit_status(signum))


class StopRequest:
    """Remembers SIGTERM or SIGINT until the block can act on it; a second one ends the process.

    A context manager. `signum` is 0 until a signal comes, then its number. If the block ends
    without an exception although a signal came, the signal is sent again to the older handler.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._when = 0.0
        self._handling = handled_by(self._remember)

    def __enter__(self) -> Self:
        self._handling.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._handling.__exit__(kind, error, traceback)
        if self.signum and error is None:  # it came too late for the block to act on it
            os.kill(os.getpid(), self.signum)

    def _remember(self, signum: int) -> None:
        # A terminal signals a whole group, and a launcher may pass the same signal on.
        if self.signum and time.monotonic() - self._when > ONE_REQUEST:
            os._exit(exit_status(signum))
        self.signum, self._when = signum, time.monotonic()
