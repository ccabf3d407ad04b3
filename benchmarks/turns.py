"""Sides that need a process of their own: started once, then told to take their turns.

A worker answers each line that it reads with one line, `ANSWER` and JSON. What else it prints, such
as that its processes are connected, is passed over.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ANSWER = "answer: "


class Worker:
    """A `python -m MODULE ARGUMENT` that waits for its turns.

    Args:
      module: a module whose `__main__` calls `serve`.
      argument: JSON-serialisable, what it is to set up.
      environment: added to this process's.
    """

    def __init__(self, module: str, argument, environment: dict[str, str]):
        arguments = [sys.executable, "-m", module, json.dumps(argument)]
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Let the worker end."""
        self.close()
        self.wait()

    def close(self) -> None:
        """Ask no more."""
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the worker has ended."""
        self._process.wait()

    def ask(self, question: str = "turn"):
        """Return the worker's answer, once it has it."""
        self.tell(question)
        return self.hear()

    def tell(self, question: str) -> None:
        """Ask, and do not wait for the answer: `hear` does."""
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()

    def hear(self):
        """Return the worker's answer to what it was told, once it has it."""
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{self._process.args[2:]} ended with {self._process.wait()}")


def serve(answers: dict[str, Callable]) -> None:
    """Answer each line of stdin, a key of `answers`, until there are no more."""
    for line in sys.stdin:
        print(ANSWER + json.dumps(answers[line.strip()]()), flush=True)


def forget_peak() -> None:
    """Let the peak of this process's memory be what it uses now."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the most bytes that this process had in memory since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
