"""Faults inside the training command: functions that its process calls before the command begins.

A number decides where each happens, so that the same number repeats it.
"""

import os
import signal
import sys
import time

import numpy as np

from hiercls_jax.training import loop


def kill_at_event(number: int) -> None:
    """Send SIGKILL to this process before it touches the checkpoints for the `number`-th time.

    It touches them when it opens, makes, renames or removes a file or folder among them.
    """
    events = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "tempfile.mkdtemp"}
    left = number

    def count(event, arguments):
        nonlocal left
        if event in events and "/checkpoints/" in str(arguments[0]):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def turn_clocks(number: int) -> None:
    """Let all clocks run backwards, stand still, or jump back an hour at the `number`-th look."""
    looks = 0

    def turned(real):
        began = real()

        def now():
            nonlocal looks
            looks += 1
            elapsed = real() - began
            if number % 3 == 0:
                return began - elapsed
            return began if number % 3 == 1 else began + elapsed - 3600 * (looks >= number)

        return now

    for name in ("time", "monotonic", "perf_counter"):
        setattr(time, name, turned(getattr(time, name)))


def put_nan(number: int) -> None:
    """Put NaNs in the place of one image of the batch of the `number`-th step.

    The whole image, because augmentation may crop a single pixel away.
    """
    make_feed = loop.make_feed

    def make(split, resident):
        loop.make_feed = make_feed  # the first one is that of training
        feed = make_feed(split, resident)
        return lambda plan: _WithNaN(feed(plan), number)

    loop.make_feed = make


class _WithNaN:
    """An iterator over batches, with a NaN in one of them."""

    def __init__(self, batches, number: int):
        self._batches, self._left = batches, number

    def __getattr__(self, name):  # its state, and closing it
        return getattr(self._batches, name)

    def __next__(self) -> dict:
        batch = next(self._batches)
        self._left -= 1
        if self._left == 0:
            images = np.array(batch["images"], np.float32)
            images[..., 0, :, :, :] = np.nan
            batch["images"] = images
        return batch
