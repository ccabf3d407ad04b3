"""Print all comparisons, and write them as JSON.

python -m benchmarks
python -m benchmarks --only=input --only=starts --rounds=9 --out=results.json
"""

import importlib.util
import json
import os
import platform
import sys
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

import jax
from absl import app, flags, logging

from benchmarks import adaptation, scaling, training
from benchmarks.timing import Row, format_row
from hiercls_jax.commands.command_line import reader_gone
from hiercls_jax.errors import UserError, one_line

PARTS = {
    "adaptation": adaptation.rows,
    "input": training.input_path,
    "merging": training.merging,
    "precision": training.precision,
    "scaling": scaling.rows,
    "starts": training.starts,
    "torch": training.beside_torch,
}
BY_NETWORK = ("precision", "starts", "torch")  # parts that take some of the networks
ONLY = flags.DEFINE_multi_enum("only", None, list(PARTS), "A part to run; all if not given.")
NETWORK = flags.DEFINE_multi_enum(
    "network",
    None,
    list(training.STEPS),
    "A network of precision, starts and torch; default: all.",
)
TURN = flags.DEFINE_integer("steps", None, "Steps in a turn of precision; default: its own.", 1)
ROUNDS = flags.DEFINE_integer("rounds", 5, "Rounds; each side takes one turn in each.", 1)
OUT = flags.DEFINE_string("out", None, "JSON file to write.")


def main(argv: list[str]) -> None:
    """Run the comparisons and print each when it is done."""
    logging.set_verbosity(logging.WARNING)  # JAX logs which backends are missing
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument '{argv[1]}'")
    print(f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}, medians of {ROUNDS.value}\n")
    parts, rows = ONLY.value or PARTS, []
    if "torch" in parts and importlib.util.find_spec("torch") is None:
        others = " ".join(f"--only={part}" for part in PARTS if part != "torch")
        sys.exit(f"error: PyTorch is not installed; pip install -e '.[bench]', or give {others}")
    try:
        for part in parts:
            chosen = {"networks": NETWORK.value} if NETWORK.value and part in BY_NETWORK else {}
            if TURN.value and part == "precision":
                chosen["steps"] = TURN.value
            for row in PARTS[part](ROUNDS.value, **chosen):
                print(format_row(row), "\n", flush=True)
                rows.append(row)
                if OUT.value:  # after each row, so that a failure later loses none of them
                    Path(OUT.value).write_text(json.dumps(_record(rows), indent=1) + "\n")
    except BrokenPipeError:
        sys.exit(reader_gone())
    except (UserError, OSError) as error:  # such as no data to read
        sys.exit(f"error: {one_line(error)}")


def _record(rows: list[Row]) -> dict[str, object]:
    return {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy")},
        "rows": [
            {**asdict(row), "median": {side: row.median(side) for side in row.seconds}}
            for row in rows
        ],
    }


if __name__ == "__main__":
    app.run(main)
