"""The compare command: figures, tables and the verdict on the paper's claims, from many runs.

    python -m hiercls_jax compare runs/grid-cpu
    python -m hiercls_jax compare results/cifar100-cpu/summary.npz --out=DIR
    python -m hiercls_jax compare part1/summary.npz runs/the-rest --out=all

Each argument is a folder with finished runs at any depth, or the summary.npz of an earlier
comparison. The runs' predictions are summarised in summary.npz, and comparison.md, the figures
(SVG, PNG) and the tables (CSV, LaTeX) are made from that file alone. Each variant whose runs are
there also gets report-NETWORK-VARIANT.html, the page of the ensemble of all its seeds. A run that
is not finished, or whose predictions are missing or damaged, is named and left out.

Exit status: 0 done; 1 an error that the last line explains; 2 a wrong command line; 130 stopped by
Ctrl-C, 143 by SIGTERM. Every file is complete or absent.
"""

import contextlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from hiercls_jax.commands.command_line import CommandFlags, keep_compiled_programs, run_command
from hiercls_jax.errors import one_line
from hiercls_jax.runtime.environment import environment
from hiercls_jax.study import comparison, finished_runs, summary

SUMMARY = "summary.npz"
AGAIN = "the same command begins anew"


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; an error is one line on stderr."""
    return run_command(
        lambda: _parse_and_compare(argv),
        "; see python -m hiercls_jax compare --help",
        f"stopped before anything was written, and {AGAIN}",
    )


def _parse_and_compare(argv: Sequence[str]) -> None:
    options = CommandFlags(__name__)
    text = "Folder to write to. If unset: the first argument, or the folder of the file that it is."
    options.define(flags.DEFINE_string, "out", None, text)
    sources = [Path(word) for word in options.parse(argv)]
    if not sources:
        raise flags.Error("nothing to compare: name a folder of runs, or a summary.npz")
    keep_compiled_programs()
    first = sources[0]
    out = Path(options.values.out or (first if first.is_dir() else first.parent))
    compare(sources, out, argv[1:])


def compare(sources: Sequence[Path], out: Path, command: Sequence[str]) -> None:
    """Summarise runs, write the comparison, and say what was compared and written.

    Args:
      sources: folders with runs, and summaries.
      out: the folder to write to.
      command: the program's arguments, for the record.
    """
    parts, found = [], []
    for source in sources:
        with _stopping(f"while {source} was read; nothing was written"):
            if source.is_dir():
                found.append(finished_runs.find_runs(source, _leave_out))
                parts.append(finished_runs.summarise_runs(found[-1], _summarised))
            else:
                parts.append(summary.load(source))
    with _stopping(f"while {out} was written; each file there is complete"):
        whole = summary.merge(parts)
        out.mkdir(parents=True, exist_ok=True)
        if found or len(sources) > 1:
            summary.save(out / SUMMARY, whole)
            # Read the file again, so that it alone determines all tables and figures.
            whole = summary.load(out / SUMMARY)
        written = comparison.write(out, whole)
        record = {
            "command": shlex.join(["python", "-m", "hiercls_jax", "compare", *command]),
            "environment": environment(),
        }
        for runs in found:
            written += finished_runs.write_pages(out, runs, record)
        for cell in whole.cells.values():
            print(f"{cell.arch} {cell.variant}: seeds {', '.join(map(str, cell.seeds))}")
        print(f"wrote to {out}: {', '.join(written)}")


@contextlib.contextmanager
def _stopping(when: str) -> Iterator[None]:
    """Add to a KeyboardInterrupt what the command was doing."""
    try:
        yield
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{when}, and {AGAIN}") from None


def _leave_out(error: Exception) -> None:
    print(f"left out: {one_line(error)}", file=sys.stderr)


def _summarised(cell: summary.Cell) -> None:
    print(f"summarised {cell.arch} {cell.variant}: {len(cell.seeds)} runs", flush=True)
