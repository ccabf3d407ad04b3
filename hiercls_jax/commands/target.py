"""The flags --target_accuracy and --confidence, which several commands have."""

from absl import flags

from hiercls_jax.commands.command_line import CommandFlags
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation.sure_answers import Target


def define_target(options: CommandFlags) -> None:
    """Define the flags."""
    options.define(
        flags.DEFINE_float, "target_accuracy", None,
        "How often answers shall be right, as 0.9: where the most probable leaf is not sure enough, "
        "the answer is a class above it, or nothing.",
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
    for name in ("target_accuracy", "confidence"):
        value = options[name].value
        if value is not None and not 0 < value < 1:
            raise UserError(f"--{name}={value:g}: allowed is a share between 0 and 1, such as 0.9")
    if options.target_accuracy is None:
        if options.confidence is not None:
            raise UserError("--confidence is of --target_accuracy, which is not given")
        return None
    return Target(options.target_accuracy, options.confidence)
