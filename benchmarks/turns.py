"""Worker processes, each started once and then asked to take its turns.

A worker answers each line that it reads by a line of `ANSWER` and JSON. Its other output, such as a
message that its processes are connected, is ignored.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWER = "answer: "


class Worker:
    """A `python -m MODULE ARGUMENT` that waits for its turns.

    Args:
      module: a module whose `__main__` calls `serve`.
      argument: JSON-serialisable, for the worker to set itself up.
      environment: variables added to those of this process.
    """

    def __init__(self, module: str, argument: object, environment: dict[str, str]):
        arguments = [sys.executable, "-m", module, json.dumps(argument)]
        self._process = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """Let the worker end, and wait for it."""
        self.close()
        self.wait()

    def close(self) -> None:
        """Tell the worker that no question follows."""
        self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the worker has ended."""
        self._process.wait()

    def ask(self, question: str = "turn") -> Any:
        """Return the worker's answer to a question."""
        self.tell(question)
        return self.hear()

    def tell(self, question: str) -> None:
        """Ask a question without waiting for the answer, which `hear` returns."""
        self._process.stdin.write(question + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        """Wait for the worker's answer to the question of `tell`, and return it."""
        for line in self._process.stdout:
            if line.startswith(ANSWER):
                return json.loads(line.removeprefix(ANSWER))
        raise RuntimeError(f"{self._process.args[2:]} ended with {self._process.wait()}")


def serve(answers: dict[str, Callable[[], Any]]) -> None:
    """Answer each line of stdin, which is a key of `answers`, until stdin ends."""
    for line in sys.stdin:
        print(ANSWER + json.dumps(answers[line.strip()]()), flush=True)


def forget_peak() -> None:
    """Reset the peak of this process's memory to its present use."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Return the peak of this process's memory since `forget_peak`, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
