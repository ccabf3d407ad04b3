"""Checks, benchmarks and training runs that fit into some minutes of one GPU.

    launch/one_gpu.sh                            ten minutes, CIFAR-100 of TFDS's folder
    launch/one_gpu.sh --minutes=30 --data=DIR    longer, with the data of another folder
    launch/one_gpu.sh --dry_run                  print the commands and how long each may take
    launch/one_gpu.sh --rehearsal --minutes=2    the same on a CPU: small networks, embedded data
    launch/one_gpu.sh --pack=DIR                 write CIFAR-100 into files of 60 MB, to send

A data folder is TFDS's, with CIFAR-100 in it, or one that --pack has filled. Every part has a share
of the minutes. A part that takes longer is stopped, and results.json says so; so it does of a part
that fails, and the next part follows. Training comes last and gets all the time that is left.

OUT gets results.json (what ran, for how long, with what result), benchmarks.json, checks.xml, and a
log of each part; OUT/runs has the runs' folders. The same command again goes on with the training.

Exit status: 0 every part ran; 1 a part failed, or had too little time to give any result; 2 a wrong
command line.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PART_BYTES = 60_000_000  # of a file that --pack writes
CHECKED = ("adjust", "layers", "step")  # test files that run on the device
SEEDS = tuple(range(100))  # more than fit
REHEARSED = "quick,epochs=1,width=0.25"
GRACE = 20  # seconds that a part has to save and end when it is asked to stop
FINISHED, STOPPED, FAILED = "finished", "stopped when its time was over", "failed"


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of the work.

    Args:
      name: of its log and its entry in the results.
      arguments: of Python.
      share: the greatest fraction of the minutes that it may take.
      environment: variables that it needs.
    """

    name: str
    arguments: list[str]
    share: float
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def parts(out: Path, data: Path | None, rehearsal: bool) -> list[Part]:
    """Return the parts in order.

    Args:
      out: the folder of all results.
      data: folder of the images; None for the default of TFDS.
      rehearsal: on a CPU, with small networks and the embedded data.
    """
    tests = [f"tests/test_{name}.py" for name in CHECKED]
    checks = ["-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", "-m", "not devices", *tests]
    checks.append(f"--junitxml={out / 'checks.xml'}")
    benchmarks = ["-m", "benchmarks", "--only=precision", "--rounds=3"]
    benchmarks.append(f"--out={out / 'benchmarks.json'}")
    grid = ["-m", "hiercls_jax", "grid"]
    grid.append(REHEARSED if rehearsal else _run_of(data))
    grid += [f"--config.folder={out / 'runs'}", f"--config.seeds={SEEDS}", "--jobs=1"]
    if rehearsal:
        checks += ["-k", "test_adjust and alpha or formulas or schedule"]
        benchmarks += ["--network=ResNet-20, stem stride 2", "--steps=1", "--rounds=1"]
        grid += ["--config.variants=('merge2', 'merge3')"]
    elif data is not None:
        grid += ["--", f"--config.data.dir={data}"]
        if _is_packed(data):
            grid.append(f"--config.data.hierarchy={data / 'hierarchy.json'}")
    platform = "cpu" if rehearsal else "cuda,cpu"
    exact = {  # float32 products in full; tests count on that. Their other devices are CPUs.
        "JAX_PLATFORMS": platform, "JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "",
    }  # fmt: skip
    return [
        Part("checks", checks, 0.2 if rehearsal else 0.3, exact),
        Part("benchmarks", benchmarks, 0.4 if rehearsal else 0.3),
        Part("training", grid, 1.0),
    ]


def main(argv: list[str]) -> int:
    """Run the parts and write the results; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="launch/one_gpu.sh", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--minutes", type=_minutes, default=10.0, help="of all parts together")
    parser.add_argument("--data", type=Path, help="folder of CIFAR-100; TFDS's default if unset")
    parser.add_argument("--out", type=Path, default=Path("runs/one_gpu"), help="results' folder")
    parser.add_argument("--dry_run", action="store_true", help="print the commands only")
    parser.add_argument("--rehearsal", action="store_true", help="small, on a CPU")
    parser.add_argument(
        "--pack", type=Path, metavar="DIR", help="write the data into files to send"
    )
    options = parser.parse_args(argv)
    if options.pack is not None:
        return pack(options.data, options.pack)
    os.chdir(ROOT)
    out = options.out.resolve()
    data = None if options.data is None else options.data.resolve()
    if data is not None and not data.is_dir():
        parser.error(f"--data={data} is not a folder")
    todo = parts(out, data, options.rehearsal)
    if options.dry_run:
        for part in todo:
            seconds = 60 * options.minutes * part.share
            variables = [f"{k}={shlex.quote(v)}" for k, v in part.environment.items()]
            words = " ".join([*variables, shlex.join([sys.executable, *part.arguments])])
            print(f"# {part.name}: at most {seconds:.0f} s\n{words}")
        return 0
    out.mkdir(parents=True, exist_ok=True)
    return carry_out(todo, out, time.monotonic() + 60 * options.minutes)


def carry_out(todo: list[Part], out: Path, until: float) -> int:
    """Run the parts, each within its share of the time, and write the results after each.

    Args:
      todo: the parts in order.
      out: an existing folder.
      until: when all must be over, by `time.monotonic`.
    """
    for name in ("checks.xml", "benchmarks.json"):  # of an earlier command; its runs go on
        (out / name).unlink(missing_ok=True)
    results: dict[str, Any] = {"device": _device(), "parts": {}}
    whole = until - time.monotonic()
    for part in todo:
        left = until - time.monotonic() - GRACE
        state, seconds = run(part, min(part.share * whole, left), out / f"{part.name}.log")
        print(f"{part.name}: {state} after {seconds:.0f} s", flush=True)
        results["parts"][part.name] = {
            "command": shlex.join(["python", *part.arguments]), "state": state, "seconds": seconds,
        }  # fmt: skip
        results |= collect(out)
        temporary = out / ".results.json"
        temporary.write_text(json.dumps(results, indent=1) + "\n")
        temporary.replace(out / "results.json")
    print(f"wrote {out / 'results.json'}")
    gave_nothing = [name for name in ("checks", "benchmarks", "runs") if not results[name]]
    failed = [name for name, part in results["parts"].items() if part["state"].startswith(FAILED)]
    for name in (*failed, *gave_nothing):
        print(f"one_gpu: {name}: no result, or a failure; see its log in {out}", file=sys.stderr)
    return 1 if failed or gave_nothing else 0


def run(part: Part, seconds: float, log: Path) -> tuple[str, float]:
    """Run a part, its output in a log, for at most so many seconds; return (state, seconds)."""
    began = time.monotonic()
    with open(log, "a") as file:
        process = subprocess.Popen(
            [sys.executable, *part.arguments], stdout=file, stderr=subprocess.STDOUT,
            env={**os.environ, **part.environment}, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(max(0.0, seconds))
            state = FINISHED if status == 0 else f"{FAILED} with status {status}"
        except subprocess.TimeoutExpired:
            state = STOPPED
            process.terminate()  # a grid passes it on to its runs, which save
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what is left, such as workers
            process.wait()
    return state, time.monotonic() - began


def collect(out: Path) -> dict[str, Any]:
    """Return the results that are there: of the checks, the benchmarks and each finished run."""
    checks, benchmarks = out / "checks.xml", out / "benchmarks.json"
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("runs/**/results.json"))]
    kept = ("alpha", "seconds", "steps", "parameters", "environment")
    return {
        "checks": _counts(checks) if checks.exists() else None,
        "benchmarks": json.loads(benchmarks.read_text()) if benchmarks.exists() else None,
        "runs": [
            {
                "variant": run["config"]["variant"], "seed": run["config"]["seed"],
                "arch": run["config"]["model.arch"], "command": run["command"],
                **{key: run[key] for key in kept}, "test_error": run["test_error"],
            }
            for run in runs if run["finished"]
        ],
    }  # fmt: skip


def pack(data: Path | None, folder: Path) -> int:
    """Write CIFAR-100 of a TFDS folder as arrays, in files that are small enough to send."""
    sys.path.insert(0, str(ROOT))
    from hiercls_jax.data import arrays, cifar100
    from hiercls_jax.errors import UserError

    try:
        splits = cifar100.load(data)
        for name, split in splits.items():
            for path in arrays.write(folder, name, split, PART_BYTES):
                print(f"{path}: {path.stat().st_size:,} bytes")
        cifar100.hierarchy().to_json(folder / "hierarchy.json")
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run_of(data: Path | None) -> str:
    return "fast,dataset=arrays" if data is not None and _is_packed(data) else "fast"


def _is_packed(data: Path) -> bool:
    return (data / "hierarchy.json").exists() and any(data.glob("train*.npz"))


def _counts(path: Path) -> dict[str, Any]:
    """Return how many tests ran, and the names of those that failed, of a JUnit XML file."""
    root = ET.parse(path).getroot()  # noqa: S314  # pytest has just written it
    cases = list(root.iter("testcase"))
    bad = [case.get("name") for case in cases if any(e.tag in ("failure", "error") for e in case)]
    skipped = sum(any(e.tag == "skipped" for e in case) for case in cases)
    return {"tests": len(cases), "skipped": skipped, "failed": bad}


def _device() -> str:
    """Return what kind of device JAX finds, by a process that leaves its memory free again."""
    code = "import jax; print(jax.devices()[0].device_kind)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or f"none: {done.stderr.strip().splitlines()[-1:]}"


def _minutes(text: str) -> float:
    minutes = float(text)
    if not 1 <= minutes <= 24 * 60:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 1440")
    return minutes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
