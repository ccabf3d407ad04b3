"""Break trainings, feed readers, and record the outcomes.

    python -m tests.faults --tries=8 --inputs=1000 --out=results/faults.md

Every try is recorded in `--work` at once and not repeated: the same command goes on where it was
stopped. To repeat one try, give its fault (or the beginning of its name) and its seed:

    python -m tests.faults --fault="SIGKILL while" --seed=3

Tries with a full disk mount a small disk; if that is not allowed, they are left out.
"""

import argparse
import json
import os
import platform
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from hiercls_jax.files import atomic_write
from hiercls_jax.runtime.environment import commit
from tests.faults import MEMORY, faults, training

OUTCOMES = ("survived", "clear error", "lost")


def main() -> int:
    options = _parse()
    # A shell lets its background jobs ignore SIGINT, and runs would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    work = options.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    if options.fault is not None:
        fault = next(f for f in faults.FAULTS if f.name.startswith(options.fault))
        outcome, why = faults.attempt(fault, options.seed, work, _prepared(work))
        print(f"{outcome}: {why}")
        return outcome == "lost"
    if options.inputs:
        # In a process of its own, because this one is forked later and must not use devices.
        print(training.apart(_feed, options.inputs, work))
    _break(options.tries, work, lambda: _write_record(options, work))
    tries, fed = _lines(work / "tries.jsonl"), _lines(work / "inputs.jsonl")
    return int(any(t["outcome"] == "lost" for t in tries) or any(f["failures"] for f in fed))


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "python -m tests.faults", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--tries", type=int, default=8, help="of each fault")
    add("--inputs", type=int, default=1000, help="for each reader, beside its bombs")
    add("--out", type=Path, help="the record to write, in Markdown")
    add("--work", type=Path, default=Path("runs/faults"), help="a folder for unfinished work")
    add("--fault", help="make one try of this fault alone")
    add("--seed", type=int, default=0, help="of that try")
    return parser.parse_args()


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _add(path: Path, line: dict) -> None:
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def _prepared(work: Path) -> dict[int, float]:
    """The seconds of the undisturbed runs, which are made if they are missing."""
    path = work / "prepared.json"
    if not path.exists():
        path.write_text(json.dumps(faults.prepare(work)))
    return {int(processes): seconds for processes, seconds in json.loads(path.read_text()).items()}


def _feed(count: int, work: Path) -> None:
    from tests.faults import feed, inputs

    done = {line["reader"] for line in _lines(work / "inputs.jsonl")}
    for reader in inputs.READERS:
        if reader.name not in done:
            began = time.monotonic()
            found = feed.tally(reader, count, work / "inputs")
            seconds = round(time.monotonic() - began)
            line = {**vars(found), "inputs": found.inputs, "seconds": seconds, "commit": commit()}
            _add(work / "inputs.jsonl", line)


def _break(count: int, work: Path, record: Callable[[], None]) -> None:
    """Make the missing tries, one of each fault after the other."""
    path = work / "tries.jsonl"
    record()
    (work / "mount").mkdir(exist_ok=True)
    mounts = faults.can_mount(work / "mount")
    for number in range(count):
        for fault in faults.FAULTS:
            if fault.mounts and not mounts:
                continue
            made = [line for line in _lines(path) if line["fault"] == fault.name]
            while sum(line["outcome"] != "missed" for line in made) <= number:
                began = time.monotonic()
                # If the moment came too late, try another seed.
                outcome, why = faults.attempt(fault, len(made), work, _prepared(work))
                line = {"fault": fault.name, "seed": len(made), "outcome": outcome, "why": why,
                        "seconds": round(time.monotonic() - began), "commit": commit()}  # fmt: skip
                print(json.dumps(line), flush=True)
                _add(path, line)
                made.append(line)
                record()


def _write_record(options: argparse.Namespace, work: Path) -> None:
    if options.out is None:
        return
    tries, fed = _lines(work / "tries.jsonl"), _lines(work / "inputs.jsonl")
    with atomic_write(options.out) as temporary:
        temporary.write_text(_record(tries, fed, options))


def _record(tries: list[dict], fed: list[dict], options: argparse.Namespace) -> str:
    made = [line for line in tries if line["outcome"] != "missed"]
    commits = sorted({str(line["commit"]) for line in [*tries, *fed]})
    text = f"""# Faults and bad input, counted

    python -m tests.faults --tries={options.tries} --inputs={options.inputs} --out=results/faults.md

wrote this file, by commit {", ".join(commits)}, on {os.cpu_count()} CPU cores \
({platform.machine()}, {platform.system()}).

## Trainings that were broken: {len(made)} tries

A training of {training.STEPS} steps that saves after every few of them is broken, and its command
given again. *Survived*: every array of the last checkpoint, every prediction and every line of
`metrics.jsonl` (speeds aside, and aside from the one line that a fault has itself cut, which may be
missing) is, bit for bit, that of an undisturbed run. *Clear error*: it ended with a line that says
what is wrong, also when it was given again, and what was there is there. *Lost*: anything else,
such as a traceback, a hang, or another result. A seed decides the moment, the file or the bit;
seeds are those from 0 on, less those whose moment came after the end.

Commands are not started by a shell but forked from a process that has imported what they import,
and the figures that they write are empty files: nothing is drawn.

| fault | tries | survived | clear error | lost | seeds |
|---|---|---|---|---|---|
"""
    for fault in faults.FAULTS:
        of_it = [line for line in made if line["fault"] == fault.name]
        counts = [sum(line["outcome"] == outcome for line in of_it) for outcome in OUTCOMES]
        seeds = ", ".join(str(line["seed"]) for line in of_it)
        row = [fault.name, len(of_it), *counts, seeds or "not run"]
        text += f"| {' | '.join(map(str, row))} |\n"
    totals = [sum(line["outcome"] == outcome for line in made) for outcome in OUTCOMES]
    text += f"| all | {len(made)} | {' | '.join(map(str, totals))} | |\n"
    text += _listed("Lost", [f"{t['fault']}, {t['seed']}: {t['why']}" for t in made
                             if t["outcome"] == "lost"])  # fmt: skip
    text += f"""
## Readers that were fed: {sum(line["inputs"] for line in fed)} inputs

Drawn by Hypothesis with the seed 0: good files that were damaged, near-misses and nonsense, and
bombs, which are small and would take a gigabyte. *Refused*: by the one kind of error that commands
print in one line. *Memory*: by how much the process grew at most. *Else*: anything but being
refused or accepted, such as another exception, a file written or removed outside the input's folder
(by Python: what libraries write by themselves is not seen), a pickle that was loaded, or a process
that grew by more than {MEMORY >> 20} MiB.

| reader | inputs | refused | accepted | else | memory |
|---|---|---|---|---|---|
"""
    for line in fed:
        row = [line["reader"], line["inputs"], line["refused"], line["accepted"],
               len(line["failures"]), f"{line['memory'] / 2**20:.0f} MiB"]  # fmt: skip
        text += f"| {' | '.join(map(str, row))} |\n"
    return text + _listed("Else", [f"{f['reader']}: {why}" for f in fed for why in f["failures"]])


def _listed(title: str, texts: list[str]) -> str:
    lines = [f"- {' '.join(text.split())[:300]}\n" for text in texts]
    return f"\n{title}:\n\n{''.join(lines)}" if lines else ""


if __name__ == "__main__":
    sys.exit(main())
