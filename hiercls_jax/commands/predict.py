"""The predict command: the most probable classes of image files.

    python -m hiercls_jax predict --workdir=runs/merge1-quick cat.png dog.jpg
    python -m hiercls_jax predict --workdir=runs/merge1-quick --json cat.png

    python -m hiercls_jax predict --workdir=runs/merge1-quick --target_accuracy=0.9 cat.png

It prints one answer for each image (PNG, JPEG, WebP; resized to the size that the network was
trained on): its most probable leaf and the classes above it. Below stand the most probable classes
of each level, as the network gives them and adapted with the alpha that the run tuned.

With --target_accuracy=0.9 the answer is a class above the most probable leaf, or nothing, where the
leaf is not sure enough: 90 % of the answers shall be right. The threshold is calibrated on the
run's validation images at alpha = 1. They also chose alpha, so the accuracy of other images is
approximate.

Exit status: 0 done; 1 an error that the one line on stderr explains; 2 a wrong command line; 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

import json
import shutil
import sys
import unicodedata
from collections.abc import Sequence

import numpy as np
from absl import flags

from hiercls_jax.commands.command_line import CommandFlags, keep_compiled_programs, run_command
from hiercls_jax.commands.target import (
    APPROXIMATE,
    answer_options,
    define_adaptation,
    define_decision,
    define_target,
)
from hiercls_jax.experiment import predictor
from hiercls_jax.experiment.predictor import Answer, Predictor

SEE = "; see python -m hiercls_jax predict --help"
STOPPED = "stopped; nothing was written, and the same command begins anew"
TOP = 3  # classes shown for each level
LEAST = 8  # columns of a terminal for the name of a class


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; what a user can mend is one line on stderr.

    Args:
      argv: the command's name, then its arguments.
    """
    return run_command(lambda: _predict(argv), SEE, STOPPED)


def _predict(argv: Sequence[str]) -> None:
    options = CommandFlags(__name__)
    workdir = options.define(
        flags.DEFINE_string, "workdir", None, "The --config.workdir of a finished training run."
    )
    as_json = options.define(flags.DEFINE_bool, "json", False, "Print JSON.")
    define_decision(options, "leaf")
    define_target(options)
    define_adaptation(options)
    files = options.parse(argv, required=["workdir"])
    if not files:
        raise flags.Error("no image file is named")
    keep_compiled_programs()
    trained = predictor.load(
        workdir.value, min(len(files), predictor.BATCH), **answer_options(options.values)
    )
    describe = _as_json if as_json.value else _as_table
    print(describe(trained, files, trained.of_files(files)))


def _top(p: np.ndarray, names: Sequence[str]) -> list[tuple[str, float]]:
    """Return the most probable classes of one image and level, the first in order of equals."""
    return [(names[i], float(p[i])) for i in np.argsort(-p, kind="stable")[:TOP]]


def _guesses(trained: Predictor, of_level: dict[str, np.ndarray], image: int) -> dict[str, list]:
    hierarchy = trained.hierarchy
    return {
        level: _top(of_level[level][image], names)
        for level, names in zip(hierarchy.levels, hierarchy.names, strict=True)
    }


def _as_json(trained: Predictor, files: list[str], answer: Answer) -> str:
    def listed(of_level: dict[str, np.ndarray], image: int) -> dict[str, list]:
        return {
            level: [{"class": name, "probability": p} for name, p in guesses]
            for level, guesses in _guesses(trained, of_level, image).items()
        }

    def path(image: int) -> dict[str, str]:
        return {level: str(names[image]) for level, names in answer.names.items() if names[image]}

    images = [
        {
            "file": file,
            "answer": {
                "class": str(answer.name[i]),
                "level": str(answer.level[i]),
                "probability": float(answer.probability[i]),
                "path": path(i),
            },
            "unadapted": listed(answer.unadapted, i),
            "adapted": listed(answer.adapted, i),
        }
        for i, file in enumerate(files)
    ]
    head = {
        "alpha": trained.alpha, "decision": trained.decision, "threshold": trained.threshold,
    }  # fmt: skip
    return json.dumps(head | {"images": images}, indent=1)


def _as_table(trained: Predictor, files: list[str], answer: Answer) -> str:
    """Return each image's answer below its name, then its guesses, not adapted beside adapted."""
    levels = max(map(len, trained.hierarchy.levels))
    classes = max(_columns(name) for names in trained.hierarchy.names for name in names)
    lines, heading = [], f"adapted, alpha = {trained.alpha:.2f}"
    if sys.stdout.isatty():
        room = shutil.get_terminal_size().columns - levels - len("        ")
        classes = min(classes, max(LEAST, room // 2 - len("  100.0 %")))
        if classes + len("  100.0 %") + len(heading) > room:
            lines, heading = [f"alpha = {trained.alpha:.2f}"], "adapted"
    column = classes + len("  100.0 %")
    lines.append(f"{'':{levels}}    {'not adapted':{column}}    {heading}")
    for i, file in enumerate(files):
        path = " > ".join(names[i] for names in answer.names.values() if names[i])
        sure = f"{path}  {100 * answer.probability[i]:.1f} %" if path else "nothing is sure enough"
        lines += [file, f"  answer: {sure}"]
        before, after = (_guesses(trained, p, i) for p in (answer.unadapted, answer.adapted))
        for level in trained.hierarchy.levels:
            for row, pair in enumerate(zip(before[level], after[level], strict=True)):
                cells = (f"{_padded(name, classes)}  {100 * p:5.1f} %" for name, p in pair)
                lines.append(f"  {level if row == 0 else '':{levels}}  {'    '.join(cells)}")
    if trained.threshold is not None:
        lines.append(f"answers stop below {trained.threshold:.4g}; {APPROXIMATE}")
    return "\n".join(lines)


def _padded(name: str, width: int) -> str:
    """Return a name in so many columns of a terminal; one that is longer is cut, and ends in …."""
    if _columns(name) > width:
        kept = (name[:end] for end in reversed(range(len(name))))
        name = next(start for start in kept if _columns(start) < width) + "…"
    return name + " " * (width - _columns(name))


def _columns(name: str) -> int:
    """Return how many columns of a terminal a class name takes: 2 for 猫, 1 for é as two."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in name
    )
