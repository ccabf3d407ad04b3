"""The grid command: trains every variant with every seed, several runs at once.

    hiercls-jax grid cpu
    hiercls-jax grid quick --config.seeds="(0, 1)" --dry_run
    hiercls-jax grid paper -- --config.data.dir=DIR

The first word has the config arguments of all runs; `paper` stands for none, which is the paper's
experiment. The config may be a file instead, and the runs' configs are then the files beside it:

    python -m hiercls_jax grid --config=configs/grid.py:cpu

The grid runs what is missing, resumes what was stopped, and skips what is finished, so the same
command again continues. Arguments after a lone -- are given to each run. A run is a process of its
own, in FOLDER/ARCH/VARIANT/seed-N, and its output goes to log.txt there. A run that fails does not
stop the others.

Exit status: 0 all runs are finished; 1 some failed, or an error that the last line explains; 2 a
wrong command line; 130 stopped by Ctrl-C, 143 by SIGTERM, when the runs have saved.
"""

import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from hiercls_jax import experiment
from hiercls_jax.commands.command_line import CommandFlags, run_command
from hiercls_jax.errors import UserError
from hiercls_jax.experiment.grid import PlannedRun, named_grid, plan
from hiercls_jax.experiment.grid_runner import carry_out
from hiercls_jax.runtime.signals import exit_status
from hiercls_jax.runtime.slots import Slots


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; an error is one line on stderr."""
    see = "; see python -m hiercls_jax grid --help"
    return run_command(lambda: _main(argv), see, "stopped before anything began")


def _main(argv: Sequence[str]) -> int:
    at = argv.index("--") if "--" in argv else len(argv)
    own, for_runs = list(argv[:at]), list(argv[at + 1 :])
    options = CommandFlags(__name__)
    config, words = options.define_config(
        own, named_grid, "A grid's config, with arguments after a colon."
    )
    text = (
        "Runs at once. If unset: on CUDA one per GPU; on a CPU as many as cores and memory allow, "
        "each with its share of the cores; elsewhere 1."
    )
    options.define(flags.DEFINE_integer, "jobs", None, text, lower_bound=1)
    text = "Show each run's state and command only."
    options.define(flags.DEFINE_bool, "dry_run", False, text)
    unexpected = options.parse(words)
    if config.value is None:
        raise flags.Error("--config is missing; try --config=configs/grid.py:quick")
    if unexpected:
        raise flags.Error(f"unexpected argument '{unexpected[0]}'; arguments for runs follow --")
    named = len(words) < len(own)
    config_file = (
        None if named else Path(config_flags.get_config_filename(options.values["config"]))
    )
    slots = Slots.of(options.values.jobs)
    runs = plan(config.value, config_file, for_runs, slots, read_config)
    if options.values.dry_run:
        print("\n".join(map(_describe, runs)))
        return 0
    outcome = carry_out(runs, slots, Path(config.value.folder))
    if outcome.signum:
        print(
            f"stopped by {signal.Signals(outcome.signum).name}; {outcome.unfinished} of "
            f"{len(runs)} runs are not finished, what is trained of them is saved. The same "
            "command again continues from there.",
            file=sys.stderr,
        )
        return exit_status(outcome.signum)
    if outcome.failed:
        print(
            f"{outcome.failed} of {len(runs)} runs failed; the same command again tries them again",
            file=sys.stderr,
        )
        return 1
    print(f"all {len(runs)} runs are finished")
    return 0


def read_config(words: Sequence[str]) -> ConfigDict:
    """Return the checked config that the training command has with these arguments.

    Raises:
      UserError: if the training command would not accept them.
    """
    first, *others = words
    given = ["train", first, *(word for word in others if word.startswith("--config"))]
    options = CommandFlags(__name__)
    try:
        config, rest = options.define_config(given, experiment.named_config, "")
        options.parse(rest)
    except flags.Error as error:
        raise UserError(str(error)) from error
    experiment.check(config.value)
    return config.value


def _describe(planned: PlannedRun) -> str:
    """Return a line with a run's state and command."""
    share = planned.share_done()
    state = "finished" if planned.finished() else f"{100 * share:.0f} %" if share else "to begin"
    return f"{state:>8}  {shlex.join(['python', *planned.command])}"
