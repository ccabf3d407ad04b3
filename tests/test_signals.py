"""SIGTERM and Ctrl-C are handled for a limited time, and a second request ends the process."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from hiercls_jax.runtime import signals
from hiercls_jax.runtime.signals import StopRequest, handled_by


@pytest.mark.parametrize("signum", signals.STOP_SIGNALS)
def test_a_handler_is_called_and_the_older_one_comes_back(signum):
    """Inside the block the handler gets each signal, outside it the older one does."""
    outer, inner = [], []
    with handled_by(outer.append):
        with handled_by(inner.append):
            os.kill(os.getpid(), signum)
            os.kill(os.getpid(), signum)
        os.kill(os.getpid(), signum)
    assert (inner, outer) == ([signum, signum], [signum])


def test_only_the_named_signals_are_handled():
    """A handler of SIGTERM alone leaves Ctrl-C as it is."""
    before = signal.getsignal(signal.SIGINT)
    with handled_by(signals.exit_cleanly, [signal.SIGTERM]):
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(SystemExit) as ended:
            os.kill(os.getpid(), signal.SIGTERM)
    assert ended.value.code == 143


def test_outside_the_main_thread_nothing_changes():
    """There Python allows no handlers: the block runs all the same."""
    before, seen = signal.getsignal(signal.SIGTERM), []

    def block():
        with StopRequest() as stop:
            seen.append((stop.signum, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=block)
    thread.start()
    thread.join()
    assert seen == [(0, before)]


def test_a_request_is_remembered_and_repeated_if_nobody_acted_on_it():
    """If a block ends although a signal came, the signal is sent again; not if the block raises."""
    passed_on = []

    def save_and_raise():
        with StopRequest():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError("saved")

    with handled_by(passed_on.append):
        with StopRequest() as stop:
            assert stop.signum == 0
            os.kill(os.getpid(), signal.SIGTERM)
            assert (stop.signum, passed_on) == (signal.SIGTERM, [])
        assert passed_on == [signal.SIGTERM]
        with pytest.raises(ValueError, match="saved"):
            save_and_raise()
    assert passed_on == [signal.SIGTERM]


@pytest.mark.parametrize(("seconds", "status"), [(0.5, 0), (1.5, 143)])
def test_a_second_request_ends_the_process(seconds, status):
    """Signals within a second are one request, as a terminal and a launcher both send it."""
    program = f"""
import os, signal, time
from hiercls_jax.runtime import signals
clock = [7.0]
time.monotonic = lambda: clock[0]
with signals.handled_by(lambda signum: None), signals.StopRequest():
    os.kill(os.getpid(), signal.SIGTERM)
    clock[0] += {seconds}
    os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60).returncode == status
