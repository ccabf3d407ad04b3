"""`python -m hiercls_jax` lists the commands, and `python -m hiercls_jax adapt` is one of them."""

import signal
import sys

from hiercls_jax.commands.command_line import reader_gone
from hiercls_jax.runtime import signals

COMMANDS = """\
hiercls_jax: hierarchical image classification with merged networks and test-time adaptation

  python -m hiercls_jax.main --config=configs/merge1.py:quick
      train a merged network on the embedded data, adapt its predictions, report (3 minutes)
  python -m hiercls_jax.main --config=configs/merge1.py
      the paper's experiment: ResNet-164 on CIFAR-100
  python -m hiercls_jax.main --config=configs/merge1.py --mode=summary
      parameters and multiply-adds of each stage and branch
  python -m hiercls_jax.main --help
      all flags
  python -m hiercls_jax grid --config=configs/grid.py:cpu
      every variant with every seed, several runs at once; goes on where it was stopped
  python -m hiercls_jax compare runs/grid-cpu
      the paper's figures and tables of all these runs, and which of its claims hold
  python -m hiercls_jax adapt --hierarchy=h.json --coarse=pc.npy --fine=pf.npy --out=DIR
      adapt the probabilities of any classifier, from .npy, .npz, CSV or Parquet
  python -m hiercls_jax adapt --help
      all its flags
  python -m hiercls_jax predict --workdir=runs/merge1-quick image.png
      what a trained network sees in image files, with and without adaptation
  python -m hiercls_jax export --workdir=runs/merge1-quick --out=model.stablehlo
      a trained network, adaptation included, as one file that JAX alone can run
  python -m hiercls_jax predict --help
      all flags of both"""


def main(argv: list[str]) -> int:
    """Run the command that is named, or list the commands."""
    if argv[1:2] == ["grid"]:
        from hiercls_jax.commands import grid

        return grid.main(argv[1:])
    if argv[1:2] in (["compare"], ["adapt"], ["predict"], ["export"]):
        with signals.handled_by(signals.exit_cleanly, [signal.SIGTERM]):
            if argv[1] == "compare":
                from hiercls_jax.commands import compare as command
            elif argv[1] == "adapt":
                from hiercls_jax.commands import adapt as command
            else:
                from hiercls_jax.commands import predict as command
            return command.main(argv[1:])
    if argv[1:] in ([], ["--help"]):
        print(COMMANDS)
        return 0
    print(f"error: there is no command '{argv[1]}'; run python -m hiercls_jax", file=sys.stderr)
    return 2


if __name__ == "__main__":
    try:
        status = main(sys.argv)
        sys.stdout.flush()
    except KeyboardInterrupt:  # while modules were imported; each command has its own word
        print("stopped before anything began", file=sys.stderr)
        status = 128 + signal.SIGINT
    except BrokenPipeError:
        status = reader_gone()
    sys.exit(status)
