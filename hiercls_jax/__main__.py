"""`hiercls-jax` lists the commands, and `hiercls-jax adapt` is one of them.

`python -m hiercls_jax` is the same program.
"""

import contextlib
import faulthandler
import gc
import importlib
import signal
import sys
from collections.abc import Sequence

from hiercls_jax.runtime import malloc, signals

COMMANDS = ("train", "grid", "compare", "adapt", "predict", "export")
SAVE_WHEN_STOPPED = ("train", "grid")  # these have signal handlers of their own
OVERVIEW = """\
hiercls_jax: hierarchical image classification with merged networks and test-time adaptation

  hiercls-jax train merge1:quick
      train a merged network on the embedded data, adapt its predictions, report (3 minutes)
  hiercls-jax train merge1
      the paper's experiment: ResNet-164 on CIFAR-100
  hiercls-jax train merge1 --mode=summary
      parameters and multiply-adds of each stage and branch
  hiercls-jax grid cpu
      every variant with every seed, several runs at once; goes on where it was stopped
  hiercls-jax compare runs/grid-cpu
      the paper's figures and tables of all these runs, and which of its claims hold
  hiercls-jax adapt --hierarchy=h.json --coarse=pc.npy --fine=pf.npy --out=DIR
      adapt the probabilities of any classifier, from .npy, .npz, CSV or Parquet
  hiercls-jax predict --workdir=runs/merge1-quick image.png
      the classes that a trained network sees in image files, with and without adaptation
  hiercls-jax export --workdir=runs/merge1-quick --out=model.stablehlo
      write a trained network with its adaptation as one file that JAX alone can run

Each command lists its flags with --help. `python -m hiercls_jax` is the same program. In the
project's folder, a config may also be a file:

  python -m hiercls_jax.main --config=configs/merge1.py:quick
  python -m hiercls_jax grid --config=configs/grid.py:cpu"""


def main(argv: Sequence[str]) -> int:
    """Run the command that is named, or list the commands, and return the exit status."""
    if argv[1:] in ([], ["--help"]):
        print(OVERVIEW)
        return 0
    name, *_ = arguments = list(argv[1:])
    if name not in COMMANDS:
        print(f"error: there is no command '{name}'; run python -m hiercls_jax", file=sys.stderr)
        return 2
    ending = [] if name in SAVE_WHEN_STOPPED else [signal.SIGTERM]
    with signals.handled_by(signals.exit_cleanly, ending):
        command = importlib.import_module(f"hiercls_jax.commands.{name}")
        gc.freeze()  # imported modules stay: no need to look through them again while JAX traces
        return command.main(arguments)


def program(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit status.

    Args:
      argv: the program's name, then its arguments; None for this process's own.
    """
    argv = sys.argv if argv is None else argv
    try:
        if argv[1:2] == ["train"]:
            malloc.restart(list(argv))  # before the command's imports, which take seconds
        with contextlib.suppress(RuntimeError, ValueError, OSError):  # stderr may be closed
            faulthandler.enable()
        status = main(argv)
        sys.stdout.flush()
    except KeyboardInterrupt:  # during imports; each command handles the later ones
        print("stopped before anything began", file=sys.stderr)
        status = signals.exit_status(signal.SIGINT)
    except BrokenPipeError:
        from hiercls_jax.commands.command_line import reader_gone

        status = reader_gone()
    return status


if __name__ == "__main__":
    sys.exit(program())
