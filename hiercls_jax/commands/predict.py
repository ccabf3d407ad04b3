"""The commands of a trained network: `predict` looks at image files, `export` makes it one file.

    python -m hiercls_jax predict --workdir=runs/merge1-quick cat.png dog.jpg
    python -m hiercls_jax predict --workdir=runs/merge1-quick --json cat.png
    python -m hiercls_jax export --workdir=runs/merge1-quick --out=model.stablehlo

`predict` prints the most probable classes of each image (PNG, JPEG, WebP; resized to the size that
the network was trained on) at each level, as the network gives them and adapted with the alpha that
the run tuned.

`export` writes the network with its adaptation as StableHLO for CPUs, CUDA GPUs and TPUs, by
jax.export. To run it, Python needs the packages jax and flatbuffers alone:

    program = export.deserialize(open("model.stablehlo", "rb").read())    # from jax import export
    program.call(images)["adapted"]["fine"]    # images uint8 [N, H, W, 3]; or "unadapted"

Exit status: 0 done; 1 an error that the one line on stderr explains; 2 a wrong command line; 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

import json
import sys
import unicodedata
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags, logging

from hiercls_jax.errors import UserError, one_line
from hiercls_jax.experiment import predictor
from hiercls_jax.experiment.predictor import Answer, Predictor
from hiercls_jax.files import cache_folder

TOP = 3  # classes that are shown of each level


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; what goes wrong is one line on stderr."""
    command, *_ = argv
    try:
        options, files = _parse(argv)
    except flags.Error as error:
        text = one_line(error)
        print(f"error: {text}; see python -m hiercls_jax {command} --help", file=sys.stderr)
        return 2
    if options.help:
        print(f"{__doc__}\n{options.module_help(__name__)}")
        return 0
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file that it reads
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compiled"))
    try:
        print(_predict(options, files) if command == "predict" else _export(options))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # no error: `__main__` ends quietly
        raise
    except OSError as error:
        text = one_line(f"{error.filename}: {error.strerror or error}")
        print(f"error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written, and the same command begins anew", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str]) -> tuple[flags.FlagValues, list[str]]:
    command, *_ = argv
    values = flags.FlagValues()  # the command's own: other modules' flags are not accepted here
    required = ["workdir"]

    def define(kind, name, default, text):
        kind(name, default, text, flag_values=values, module_name=__name__)

    define(flags.DEFINE_bool, "help", False, "Show this help.")
    define(flags.DEFINE_string, "workdir", None, "The --config.workdir of a finished training run.")
    if command == "predict" or "--help" in argv:
        define(flags.DEFINE_bool, "json", False, "predict: print JSON.")
    if command == "export" or "--help" in argv:
        define(flags.DEFINE_string, "out", None, "export: the file to write.")
        required.append("out")
    if "--help" in argv:
        argv = [command, "--help"]
    else:
        flags.mark_flags_as_required(required, flag_values=values)
    _, *files = values(list(argv))
    if command == "export" and files:
        raise flags.UnrecognizedFlagError(files[0], "")
    if command == "predict" and not files and not values.help:
        raise flags.Error("no image file is named")
    return values, files


def _predict(options: flags.FlagValues, files: list[str]) -> str:
    trained = predictor.load(options.workdir, min(len(files), predictor.BATCH))
    answer = trained.of_files(files)
    describe = _as_json if options.json else _as_table
    return describe(trained, files, answer)


def _export(options: flags.FlagValues) -> str:
    trained = predictor.load(options.workdir)
    trained.export(options.out)
    h, w, _ = trained.shape
    sizes = zip(trained.hierarchy.levels, trained.hierarchy.sizes, strict=True)
    return (
        f"wrote {options.out} for {', '.join(predictor.PLATFORMS)}: uint8 images [N, {h}, {w}, 3] "
        "to 'adapted' and 'unadapted' probabilities of "
        + ", ".join(f"'{level}' [N, {classes}]" for level, classes in sizes)
        + f"; alpha = {trained.alpha:.2f}; class names are in {options.workdir}/hierarchy.json"
    )


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
    def listed(of_level, image):
        return {
            level: [{"class": name, "probability": p} for name, p in guesses]
            for level, guesses in _guesses(trained, of_level, image).items()
        }

    images = [
        {
            "file": file,
            "unadapted": listed(answer.unadapted, i),
            "adapted": listed(answer.adapted, i),
        }
        for i, file in enumerate(files)
    ]
    return json.dumps({"alpha": trained.alpha, "images": images}, indent=1)


def _as_table(trained: Predictor, files: list[str], answer: Answer) -> str:
    """Return each image's guesses as rows below its name, not adapted beside adapted."""
    levels = max(map(len, trained.hierarchy.levels))
    classes = max(_columns(name) for names in trained.hierarchy.names for name in names)
    column = classes + len("  100.0 %")
    lines = [f"{'':{levels}}    {'not adapted':{column}}    adapted, alpha = {trained.alpha:.2f}"]
    for i, file in enumerate(files):
        lines.append(file)
        before, after = (_guesses(trained, p, i) for p in (answer.unadapted, answer.adapted))
        for level in trained.hierarchy.levels:
            for row, pair in enumerate(zip(before[level], after[level], strict=True)):
                cells = (f"{_padded(name, classes)}  {100 * p:5.1f} %" for name, p in pair)
                lines.append(f"  {level if row == 0 else '':{levels}}  {'    '.join(cells)}")
    return "\n".join(lines)


def _padded(name: str, width: int) -> str:
    return name + " " * (width - _columns(name))


def _columns(name: str) -> int:
    """Return how many columns of a terminal a class name takes: 2 for 猫, 1 for é as two."""
    return sum(
        0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1
        for c in name
    )
