"""The training command: train a variant, adapt its predictions, report.

    hiercls-jax train merge1:quick
    hiercls-jax train merge1 --config.data.dir=DIR
    hiercls-jax train merge1 --mode=summary

The first word names the config: separate, merge0, merge1, merge2 or merge3, with arguments after a
colon. A config may be a file instead, and the project's folder has one for each of these names:

    python -m hiercls_jax.main --config=configs/merge1.py:quick
    python -m hiercls_jax.main --config=configs/merge1.py --config.data.dir=DIR
    python -m hiercls_jax.main --config=configs/merge1.py --mode=summary

The same command again resumes a run that was stopped. Exit status: 0 finished; 1 an error that the
last line explains; 2 a wrong command line; stopped and saved, 143 by SIGTERM and 130 by Ctrl-C.
"""

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from absl import flags

from hiercls_jax import experiment
from hiercls_jax.commands.command_line import (
    CommandFlags,
    keep_compiled_programs,
    reader_gone,
    run_command,
)
from hiercls_jax.errors import UserError
from hiercls_jax.experiment import run
from hiercls_jax.runtime.parallel import Cluster
from hiercls_jax.runtime.signals import exit_status
from hiercls_jax.training.loop import Interrupted

SEE = "\nSee: python -m hiercls_jax.main --help"
STOPPED = "stopped. The same command again goes on from what is saved."


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; what a user can mend is one line on stderr.

    Args:
      argv: the command's name, then its arguments.
    """
    return run_command(lambda: _main(argv), SEE, STOPPED)


def _main(argv: Sequence[str]) -> int:
    options = _parse(argv)
    work = partial(_train, options, argv[1:])
    return _one_of_many(work) if options["distributed"].value else work()


def _one_of_many(work: Callable[[], int]) -> int:
    """Do the work of one of several processes; if it fails, end this process at once.

    At a regular exit JAX would wait minutes for the others, which wait for this process.
    """
    try:
        status = run_command(work, SEE, STOPPED)
    except BrokenPipeError:
        status = reader_gone()
    except Exception:
        traceback.print_exc()
        status = 1
    if status in (1, exit_status(signal.SIGPIPE)):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    options = CommandFlags(__name__)
    define = options.define
    _, argv = options.define_config(
        argv, experiment.named_config, "A file of configs/, with arguments after a colon."
    )
    define(
        flags.DEFINE_enum,
        "mode",
        "train",
        ["train", "evaluate", "summary"],
        "train: train (or resume), predict, adapt, report. evaluate: the same from the newest "
        "checkpoint, without training. summary: print parameters and multiply-adds.",
    )
    define(
        flags.DEFINE_bool,
        "distributed",
        False,
        "Train together with other processes that run this command. On Cloud TPUs and under Slurm "
        "or Open MPI that is all; elsewhere give --coordinator, --processes and --process_id too.",
    )
    define(flags.DEFINE_string, "coordinator", None, "HOST:PORT of process 0.")
    define(
        flags.DEFINE_integer, "processes", None, "How many processes train together.", lower_bound=1
    )
    define(flags.DEFINE_integer, "process_id", None, "This process, from 0.", lower_bound=0)
    define(
        flags.DEFINE_bool,
        "huge_pages",  # `__main__` acts on it before anything is imported
        True,
        "On a CPU under Linux: restart once, so that malloc takes large arrays from huge pages. "
        "--nohuge_pages turns it off.",
    )
    define(
        flags.DEFINE_bool,
        "keep_memory",  # likewise
        True,
        "On a CPU under Linux: restart once, so that the process keeps memory that a step frees "
        "for the next one. --nokeep_memory turns it off.",
    )
    define(flags.DEFINE_bool, "json", False, "With --mode=summary: print JSON.")
    unexpected = options.parse(argv)
    if unexpected:
        raise UserError(
            f"unexpected argument '{unexpected[0]}'; the name of a config comes first, and every "
            "setting is a --flag"
        )
    return options.values


def _train(options: flags.FlagValues, command: Sequence[str]) -> int:
    """Do what the flags ask for and return the exit status."""
    if options.config is None:
        raise UserError("--config is missing; try --config=configs/merge1.py:quick")
    if options.json and options.mode != "summary":
        raise UserError("--json goes with --mode=summary")
    experiment.check(options.config)
    if options.mode == "summary":
        counts, table = run.summary(options.config)
        print(json.dumps(counts, indent=1) if options.json else table)
        return 0
    keep_compiled_programs()
    try:
        run.run(options.config, options.mode == "train", list(command), _cluster(options))
    except Interrupted as stop:
        print(f"{stop}. The same command again goes on from there.", file=sys.stderr)
        return stop.status
    return 0


def _cluster(options: flags.FlagValues) -> Cluster | None:
    explicit = (options.coordinator, options.processes, options.process_id)
    given = [value is not None for value in explicit]
    if any(given) and not (all(given) and options["distributed"].value):
        raise UserError(
            "--coordinator, --processes and --process_id go together, and with --distributed"
        )
    return Cluster(*explicit) if options["distributed"].value else None
