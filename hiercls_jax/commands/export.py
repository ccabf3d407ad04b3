"""The export command: a trained network with its adaptation as one file.

    python -m hiercls_jax export --workdir=runs/merge1-quick --out=model.stablehlo

The file is StableHLO for CPUs, CUDA GPUs and TPUs, written by jax.export. To run it, Python needs
the packages jax and flatbuffers alone:

    program = export.deserialize(open("model.stablehlo", "rb").read())    # from jax import export
    outputs = program.call(images)           # images uint8 [N, H, W, 3]
    outputs["adapted"]["fine"]               # probabilities; or "unadapted"
    outputs["answer"]["path"]["fine"]        # the class of the most probable leaf, or above it

With --target_accuracy=0.9 the answer is a class above the most probable leaf, or nothing, where the
leaf is not sure enough: 90 % of the answers shall be right. Its path then has -1 below the answer,
and "level" and "class" say which it is; nothing has the level -1. The threshold is calibrated on
the run's validation images at alpha = 1. They also chose alpha, so the accuracy of other images is
approximate.

Exit status: 0 done; 1 an error that the one line on stderr explains; 2 a wrong command line; 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

from collections.abc import Sequence

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

SEE = "; see python -m hiercls_jax export --help"
STOPPED = "stopped; nothing was written, and the same command begins anew"


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; what a user can mend is one line on stderr.

    Args:
      argv: the command's name, then its arguments.
    """
    return run_command(lambda: _export(argv), SEE, STOPPED)


def _export(argv: Sequence[str]) -> None:
    options = CommandFlags(__name__)
    workdir = options.define(
        flags.DEFINE_string, "workdir", None, "The --config.workdir of a finished training run."
    )
    out = options.define(flags.DEFINE_string, "out", None, "The file to write.")
    define_decision(options, "leaf")
    define_target(options)
    define_adaptation(options)
    unexpected = options.parse(argv, required=["workdir", "out"])
    if unexpected:
        raise flags.UnrecognizedFlagError(unexpected[0], "")
    keep_compiled_programs()
    trained = predictor.load(workdir.value, **answer_options(options.values))
    trained.export(out.value)
    h, w, _ = trained.shape
    sizes = zip(trained.hierarchy.levels, trained.hierarchy.sizes, strict=True)
    print(
        f"wrote {out.value} for {', '.join(predictor.PLATFORMS)}: uint8 images [N, {h}, {w}, 3] "
        "to 'adapted' and 'unadapted' probabilities of "
        + ", ".join(f"'{level}' [N, {classes}]" for level, classes in sizes)
        + f", and to 'answer'; alpha = {trained.alpha:.2f}; class names are in "
        f"{workdir.value}/hierarchy.json"
    )
    if trained.threshold is not None:
        print(f"answers stop below {trained.threshold:.4g}; {APPROXIMATE}")
