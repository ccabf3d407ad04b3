"""The flags of adaptation and answers that several commands have."""

from typing import Any

from absl import flags

from hiercls_jax.adaptation.answers import DECISIONS
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.commands.command_line import CommandFlags
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation.sure_answers import Target

APPROXIMATE = (
    "their accuracy is approximate, because the validation images that chose this also chose alpha"
)


def define_decision(options: CommandFlags, default: str) -> None:
    """Define --decision."""
    options.define(
        flags.DEFINE_enum, "decision", default, list(DECISIONS),
        "How to answer: 'leaf' with the most probable leaf and the classes above it; 'top_down' "
        "with the best child at each level; 'minimum_risk' with the node, on any level, that has "
        "the least expected distance to the truth; 'independent' with the most probable class of "
        "each level, where the levels may contradict each other.",
    )  # fmt: skip


def define_adaptation(options: CommandFlags) -> None:
    """Define --alpha and --rule of a trained run."""
    options.define(
        flags.DEFINE_float, "alpha", None,
        "How far to adapt: 0 not at all, 1 until the levels agree. Default: as the run tuned it, "
        "or 1 by another rule.",
    )  # fmt: skip
    options.define(
        flags.DEFINE_enum, "rule", None, list(RULES), "How to adapt. Default: the run's rule."
    )


def define_target(options: CommandFlags) -> None:
    """Define --target_accuracy and --confidence."""
    options.define(
        flags.DEFINE_float, "target_accuracy", None,
        "How often answers shall be right, as 0.9: where the most probable leaf is not sure "
        "enough, the answer is a class above it, or nothing.",
    )  # fmt: skip
    options.define(
        flags.DEFINE_float, "confidence", None,
        "How sure that accuracy shall be, as 0.95. Without it, the accuracy is reached on average "
        "over draws of the labelled samples; with it, in this share of them.",
    )  # fmt: skip


def read_target(options: flags.FlagValues) -> Target | None:
    """Return what the flags ask for; None without --target_accuracy.

    Raises:
      UserError: for a share outside (0, 1), and a confidence alone.
    """
    if options.target_accuracy is None:
        if options.confidence is not None:
            raise UserError("--confidence is of --target_accuracy, which is not given")
        return None
    return Target(options.target_accuracy, options.confidence)


def answer_options(options: flags.FlagValues) -> dict[str, Any]:
    """Return the flags as arguments of `hiercls_jax.load`."""
    names = ("decision", "target_accuracy", "confidence", "alpha", "rule")
    return {name: options[name].value for name in names}
