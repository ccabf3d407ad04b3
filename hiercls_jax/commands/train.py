"""The training command: train a variant, adapt its predictions, report.

    python -m hiercls_jax.main --config=configs/merge1.py:quick
    python -m hiercls_jax.main --config=configs/merge1.py --config.data.dir=DIR
    python -m hiercls_jax.main --config=configs/merge1.py --mode=summary

The same command again resumes what was stopped. Exit status: 0 finished, 1 an error that the last
line explains, 2 a wrong command line, 143 stopped by SIGTERM and saved, 130 by Ctrl-C likewise.
"""

import gc
import json
import os
import signal
import sys
import traceback

from absl import app, flags, logging
from ml_collections import config_flags

from hiercls_jax import experiment
from hiercls_jax.commands.command_line import explain, reader_gone
from hiercls_jax.errors import UserError, one_line
from hiercls_jax.experiment import run
from hiercls_jax.runtime.parallel import Cluster
from hiercls_jax.training.loop import Interrupted

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/, with arguments after a colon.", lock_config=True
)
MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "summary"],
    "train: train (or resume), predict, adapt, report. evaluate: the same from the newest "
    "checkpoint, without training. summary: print parameters and multiply-adds.",
)
DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Train together with other processes that run this command. On Cloud TPUs and under Slurm or "
    "Open MPI that is all; elsewhere give --coordinator, --processes and --process_id too.",
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.")
PROCESSES = flags.DEFINE_integer("processes", None, "How many processes train together.", 1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.", 0)
flags.DEFINE_bool(
    "huge_pages",
    True,
    "On a CPU under Linux: restart once, so that malloc takes large arrays from huge pages. "
    "--nohuge_pages turns it off.",
)
JSON = flags.DEFINE_bool("json", False, "With --mode=summary: print JSON.")


def main(argv: list[str]) -> int:
    """Run the command; what goes wrong by a user's mistake is one line on stderr."""
    try:
        status = _main(argv)
    except Exception:
        if not DISTRIBUTED.value:
            raise
        traceback.print_exc()
        status = 1
    if status in (1, 128 + signal.SIGPIPE) and DISTRIBUTED.value:
        # At a regular exit JAX would wait minutes for the others, who wait for this process.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    return status


def _main(argv: list[str]) -> int:
    logging.set_verbosity(logging.WARNING)  # Orbax reports every file that it writes
    try:
        if len(argv) > 1:
            raise UserError(f"unexpected argument '{argv[1]}'; every setting is a --flag")
        if CONFIG.value is None:
            raise UserError("--config is missing; try --config=configs/merge1.py:quick")
        if JSON.value and MODE.value != "summary":
            raise UserError("--json goes with --mode=summary")
        experiment.check(CONFIG.value)
        if MODE.value == "summary":
            counts, table = run.summary(CONFIG.value)
            print(json.dumps(counts, indent=1) if JSON.value else table)
        else:
            run.run(CONFIG.value, MODE.value == "train", sys.argv[1:], _cluster())
    except BrokenPipeError:
        return reader_gone()
    except (UserError, OSError) as error:  # such as a full disk
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except Interrupted as stop:
        print(f"{stop}. The same command again goes on from there.", file=sys.stderr)
        return stop.status
    except KeyboardInterrupt as stop:  # outside of training; it may say where
        where = f" {stop}" if stop.args else ". The same command again goes on from what is saved."
        print(f"stopped{where}", file=sys.stderr)
        return 130
    return 0


def _cluster() -> Cluster | None:
    explicit = (COORDINATOR.value, PROCESSES.value, PROCESS_ID.value)
    given = [value is not None for value in explicit]
    if any(given) and not (all(given) and DISTRIBUTED.value):
        raise UserError(
            "--coordinator, --processes and --process_id go together, and with --distributed"
        )
    return Cluster(*explicit) if DISTRIBUTED.value else None


def parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; a config that cannot be read is one line, not a traceback."""
    if {"--help", "--helpshort"} & set(argv):
        print(f"{__doc__}\n{flags.FLAGS.module_help(__name__)}")
        sys.exit(0)
    try:
        rest = flags.FLAGS(argv)
        if CONFIG.value is not None:
            CONFIG.value.to_dict()  # a config file that is not there is noticed at its first use
        return rest
    except BrokenPipeError:
        raise
    except SystemExit as stop:  # absl's status after help is 1
        sys.exit(0 if "--helpfull" in argv else stop.code)
    except Exception as e:  # a config file is a program, which may raise anything
        print(f"error: {one_line(explain(e))}", file=sys.stderr)
        print("See: python -m hiercls_jax.main --help", file=sys.stderr)
        sys.exit(2)


def program() -> None:
    """Run the command as a program: parse the flags, run, and exit."""
    gc.freeze()  # what was imported stays: no need to look through it again while JAX traces
    try:
        try:
            app.run(main, flags_parser=parse_flags)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        sys.exit(reader_gone())
