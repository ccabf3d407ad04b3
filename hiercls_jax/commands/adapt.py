"""The adaptation command: tables of any classifier's probabilities in, adapted tables out.

    python -m hiercls_jax adapt --hierarchy=h.json --coarse=pc.npy --fine=pf.npy --out=DIR
    python -m hiercls_jax adapt --hierarchy=h.json --coarse=pc.npy --fine=pf.npy --labels=y.npy \
--out=DIR
    python -m hiercls_jax adapt --hierarchy=tree.csv --level level1=a.parquet \
--level level2=b.csv --level level3=c.npz:probs --method=top_down --out=DIR

A table has a row per sample and a column per class: .npy, .npz (file.npz:key where it holds
several arrays), CSV or Parquet. Columns with names may stand in any order, others are in the
hierarchy's. Tables are read and written a few thousand rows at a time, so memory does not grow with
them; with labels it grows by 16 bytes per row and level, with --report by 40.

Each row of a table is finite, not negative, and sums to 1 within 0.001 (in a ragged hierarchy,
together with the leaves of the levels above); --logits takes logits instead. Rows count from 0.

DIR appears whole, or not at all: p_LEVEL (adapted probabilities, float32), predictions (a column
per level: class indices in .npy and .npz, names in CSV and Parquet), report.json and, with labels,
alpha_curve.png and .svg; with --report, report.html: one page that shows, for any alpha, what
changes and, with labels, what becomes right and wrong.

Exit status: 0 done; 1 an error that the one line on stderr explains; 2 a wrong command line; 130
stopped by Ctrl-C, 143 by SIGTERM. Whatever went wrong, nothing is left behind.
"""

import contextlib
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from hiercls_jax.adaptation.alpha import widest_midpoint
from hiercls_jax.adaptation.error_curve import StepFunction, curve_of_intervals
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.errors import UserError, one_line
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.report import figures, page
from hiercls_jax.report.terminal import error_table
from hiercls_jax.runtime.environment import environment
from hiercls_jax.tables import FORMATS, open_table, read_labels
from hiercls_jax.tables.levels import LevelTables
from hiercls_jax.tables.streaming import (
    Adapter,
    predicted,
    scores,
    winning,
    write_adapted,
)

CURVE = 401  # points at which the report gives the exact curve
SEED = 0  # of the rows that alpha is tuned on


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; what goes wrong is one line on stderr."""
    try:
        options = _parse(argv)
    except flags.Error as error:
        text = one_line(error)
        print(f"error: {text}; see python -m hiercls_jax adapt --help", file=sys.stderr)
        return 2
    if options.help:
        print(f"{__doc__}\n{options.module_help(__name__)}")
        return 0
    try:
        print(adapt(options, argv[1:]))
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # no error: `__main__` ends quietly
        raise
    except OSError as error:
        where = error.filename or options.out
        text = one_line(f"{where}: {error.strerror or error}")
        print(f"error: {text}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing was written, and the same command begins anew", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()  # the command's own: other modules' flags are not accepted here

    def define(kind, name, default, text, *args, **kwargs):
        kind(name, default, *args, text, flag_values=values, module_name=__name__, **kwargs)

    define(flags.DEFINE_bool, "help", False, "Show this help.")
    define(flags.DEFINE_string, "hierarchy", None, "The hierarchy: .json, or .csv (class,parent).")
    define(flags.DEFINE_bool, "ragged", False, "A .csv hierarchy may have leaves on any level.")
    define(flags.DEFINE_string, "coarse", None, "Table of the first of two levels.")
    define(flags.DEFINE_string, "fine", None, "Table of the second of two levels.")
    define(flags.DEFINE_multi_string, "level", [], "name=file, the table of a level by its name.")
    define(
        flags.DEFINE_string, "labels", None,
        "The samples' true classes on the finest level (any leaves in a ragged hierarchy): one "
        "column of indices or names.",
    )  # fmt: skip
    define(
        flags.DEFINE_string, "alpha", None,
        "How far to adapt: a number from 0 (not at all) over 1 (the levels agree), or 'tune': the "
        "smallest sum of the levels' errors on labelled rows. Default: tune with labels, else 1.",
    )  # fmt: skip
    define(
        flags.DEFINE_float, "tune_fraction", 0.5,
        "Share of the labelled rows, chosen at random, that alpha is tuned on; errors are measured "
        "on the others. 1 tunes and measures on all: such errors are optimistic.",
        lower_bound=0, upper_bound=1,
    )  # fmt: skip
    define(flags.DEFINE_enum, "method", "kl", "The rule that makes levels agree.", list(RULES))
    define(flags.DEFINE_bool, "logits", False, "The tables hold logits, not probabilities.")
    define(flags.DEFINE_bool, "renormalize", False, "Divide each row by its sum.")
    define(flags.DEFINE_enum, "format", None, "Of what is written; default: as read.", FORMATS)
    define(flags.DEFINE_bool, "report", False, "Write report.html too: what changed, to look at.")
    define(flags.DEFINE_string, "out", None, "Folder to write, new or empty.")
    flags.register_validator("alpha", _is_alpha, "it is a number, or 'tune'", flag_values=values)
    if "--help" in argv:
        argv = [argv[0], "--help"]
    else:
        flags.mark_flags_as_required(["hierarchy", "out"], flag_values=values)
    _, *rest = values(list(argv))
    if rest:
        raise flags.UnrecognizedFlagError(rest[0], "")
    return values


def _is_alpha(text: str | None) -> bool:
    with contextlib.suppress(ValueError):
        return text is None or text == "tune" or float(text) >= 0
    return False


def adapt(options: flags.FlagValues, command: Sequence[str]) -> str:
    """Read, check, adapt and write, and return what to tell the user.

    Args:
      options: the parsed flags.
      command: the flags as they were given, for the record.
    """
    hierarchy = Hierarchy.read(options.hierarchy, options.ragged)
    out, base = _check_out(Path(options.out))
    names = _level_files(hierarchy, options)
    opened = map(open_table, names, hierarchy.names, [base] * hierarchy.num_levels)
    tables = LevelTables(hierarchy, list(opened), options.logits, options.renormalize)
    labels = _read_labels(options.labels, tables) if options.labels else None
    adapter = _make_adapter(hierarchy, options.method, tables.rows)
    alpha = _check_alpha(options.alpha, adapter.largest_alpha, labels is not None)
    formats = [options.format or table.format for table in tables.tables]
    _check_space(base, tables, formats)

    results = {
        "hierarchy": options.hierarchy,
        "tables": dict(zip(hierarchy.levels, names, strict=True)),
        "labels": options.labels,
        "logits": options.logits,
        "renormalize": options.renormalize,
        "method": options.method,
        "rows": tables.rows,
        "alpha": alpha,
    }
    if labels is not None:
        intervals = winning(tables, adapter, labels)
        tuning, test = _parts(tables.rows, alpha is None, options.tune_fraction)
        results |= _evaluate(hierarchy, adapter.largest_alpha, intervals, tuning, test, alpha)
    with _appearing(out, base) as folder:
        results |= write_adapted(folder, tables, adapter, results["alpha"], formats)
        (folder / "report.json").write_text(json.dumps(results, indent=1) + "\n")
        if labels is not None:
            _draw(folder, results, hierarchy)
        if options.report:
            if labels is None:
                labels, test = predicted(tables, adapter), np.ones(tables.rows, bool)
                intervals, tuning = winning(tables, adapter, labels), ~test
            rows = np.flatnonzero(test)
            shown = page.sample_rows(rows, hierarchy)
            evidence = page.Evidence(
                intervals[:, test],
                labels[-1][test],
                np.searchsorted(rows, shown),
                *scores(tables, adapter, shown),
                adapter.largest_alpha,
                rows,
                labelled=options.labels is not None,
            )
            apart = tuning.any() and not (tuning & test).any()
            tuned = [
                curve_of_intervals(i[tuning], adapter.largest_alpha) for i in intervals if apart
            ]
            _write_page(folder / "report.html", evidence, hierarchy, results, tuned, command)
        written = sorted(path.name for path in folder.iterdir())
    return f"{_describe(results, hierarchy)}\nwrote to {out}: {', '.join(written)}"


def _check_out(out: Path) -> tuple[Path, Path]:
    """Return the folder to write, and the one that is there to make it in."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there and not empty; choose another, or remove it")
    return out, next(folder for folder in out.parents if folder.exists())


def _level_files(hierarchy: Hierarchy, options: flags.FlagValues) -> list[str]:
    """Return the file of each level, coarsest level first."""
    pairs = [text.partition("=")[::2] for text in options.level]
    if options.coarse or options.fine:
        if hierarchy.num_levels != 2:
            raise UserError(
                f"--coarse and --fine are for 2 levels, {options.hierarchy} has "
                f"{hierarchy.num_levels}: use --level name=file for each of "
                f"{', '.join(hierarchy.levels)}"
            )
        pairs += zip(hierarchy.levels, (options.coarse, options.fine), strict=True)
    files = {}
    for name, file in pairs:
        if not file:
            continue
        if name not in hierarchy.levels or name in files:
            what = "names no level" if name not in files else "is the second for its level"
            raise UserError(
                f"--level {name}={file} {what}; allowed is one for each of "
                f"{', '.join(hierarchy.levels)}"
            )
        files[name] = file
    missing = [name for name in hierarchy.levels if name not in files]
    if missing:
        raise UserError(
            f"no table for level {missing[0]}; give --level {missing[0]}=file"
            + (", or --coarse=file and --fine=file" if hierarchy.num_levels == 2 else "")
        )
    return [files[name] for name in hierarchy.levels]


def _read_labels(name: str, tables: LevelTables) -> tuple[np.ndarray, ...]:
    """Return int32 `[N]` per level: positions in its cut."""
    leaf_ids = read_labels(name, tables.hierarchy.leaf_names, tables.rows)
    return tables.hierarchy.labels(leaf_ids)


def _check_alpha(text: str | None, largest: float, labelled: bool) -> float | None:
    """Return alpha, or None where it is to be tuned."""
    if text == "tune" and not labelled:
        raise UserError("--alpha=tune needs --labels=file, or give a number: --alpha=1")
    if text == "tune" or (text is None and labelled):
        return None
    alpha = 1.0 if text is None else float(text)
    if not alpha <= largest:
        raise UserError(
            f"--alpha={text}: allowed is 0 to {largest:g}, up to where no probability turns "
            "negative by this method in this hierarchy"
        )
    return alpha


def _make_adapter(hierarchy: Hierarchy, method: str, rows: int) -> Adapter:
    try:
        return Adapter(hierarchy, method, rows)
    except ValueError as error:
        raise UserError(f"--method={method}: {error}") from error


def _check_space(base: Path, tables: LevelTables, formats: Sequence[str]) -> None:
    """Refuse to begin what the disk has no room for, as far as arrays have a size beforehand."""
    sizes = zip(tables.hierarchy.sizes, formats, strict=True)
    needed = sum(4 * tables.rows * n for n, format_ in sizes if format_ in ("npy", "npz"))
    free = shutil.disk_usage(base).free
    if needed > free:
        raise UserError(
            f"{base} has {free / 1e9:.2f} GB free, and the adapted probabilities need "
            f"{needed / 1e9:.2f} GB; choose an --out on a larger disk"
        )


@contextlib.contextmanager
def _appearing(out: Path, base: Path):
    """Yield a new folder in `base` that becomes `out` at the end, and is removed where it fails."""
    folder = base / f".{out.name}.{os.getpid()}.tmp"
    folder.mkdir()
    try:
        yield folder
        out.parent.mkdir(parents=True, exist_ok=True)
        os.replace(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _parts(rows: int, tune: bool, fraction: float) -> tuple[np.ndarray, np.ndarray]:
    """Return bool `[rows]` twice: which to tune alpha on, and which to measure errors on."""
    tuning = np.zeros(rows, bool)
    if tune:
        order = np.random.default_rng(SEED).permutation(rows)
        tuning = order < round(fraction * rows)
    test = ~tuning | (fraction == 1)
    if not test.any() or (tune and not tuning.any()):
        raise UserError(
            f"--tune_fraction={fraction:g} of {rows} labelled rows leaves no row to tune "
            "alpha on or to measure errors on; use 1 for both on all, or give a number: --alpha=1"
        )
    return tuning, test


def _evaluate(hierarchy: Hierarchy, largest: float, intervals, tuning, test, alpha) -> dict:
    """Return alpha, tuned where it is None, and each level's errors, before, after and between."""
    results = {"measured_on_rows": int(test.sum()), "tuned_on_rows": int(tuning.sum())}

    def errors(rows):
        return [curve_of_intervals(of_level[rows], largest) for of_level in intervals]

    def at_settings(curves):
        settings = {"alpha=0": 0, "alpha=1": 1, f"alpha={largest:g}": largest, "tuned": alpha}
        return {
            name: _by_level(hierarchy, [float(curve(at)) for curve in curves])
            for name, at in settings.items()
        }

    if alpha is None:
        curves = errors(tuning)
        alpha = widest_midpoint(sum(curves[1:], curves[0]).minimisers())
        results["validation_error"] = at_settings(curves)
    curves = errors(test)
    grid = np.linspace(0, largest, CURVE)
    by_level = zip(hierarchy.levels, curves, strict=True)
    curve = {f"test_error_{level}": error(grid).tolist() for level, error in by_level}
    return results | {
        "alpha": alpha,
        "test_error": at_settings(curves),
        "curve": {"alpha": grid.round(6).tolist(), **curve},
    }


def _by_level(hierarchy: Hierarchy, values: Sequence) -> dict:
    return dict(zip(hierarchy.levels, values, strict=True))


def _draw(folder: Path, results: dict, hierarchy: Hierarchy) -> None:
    curve = results["curve"]
    errors = {level: curve[f"test_error_{level}"] for level in hierarchy.levels}
    tuned = (results["alpha"], results["test_error"]["tuned"]) if results["tuned_on_rows"] else None
    title = f"{results['measured_on_rows']:,} samples, method {results['method']}"
    figures.alpha_curve(folder / "alpha_curve", np.array(curve["alpha"]), errors, tuned, title)


def _write_page(
    path: Path,
    evidence: page.Evidence,
    hierarchy: Hierarchy,
    results: dict,
    validation: Sequence[StepFunction],
    command: Sequence[str],
) -> None:
    tuned = results.get("tuned_on_rows", 0)
    if validation:
        chosen = f"tuned on {tuned:,} other rows"
    else:
        chosen = "tuned on these rows" if tuned else "not tuned"
    page.write(
        path,
        evidence,
        hierarchy,
        results["alpha"],
        f"{results['rows']:,} rows adapted by {results['method']}",
        chosen=chosen,
        noun="row",
        validation=validation,
        record={
            "command": shlex.join(["python", "-m", "hiercls_jax", "adapt", *command]),
            **{key: value for key, value in results.items() if key not in ("curve", "rows")},
            "environment": environment(),
        },
    )


def _describe(results: dict, hierarchy: Hierarchy) -> str:
    """Return what was done, and the report where there are labels."""
    lines = [
        f"adapted {results['rows']:,} rows by {results['method']}, alpha = {results['alpha']:.4g}"
    ]
    gap, changed = results["coherence_gap"], results["changed_predictions"]
    for pair, before in gap["before"].items():
        after = gap["after"][pair]
        lines.append(f"mass on which {pair} disagree: {before:.4f} before, {after:.4f} after")
    for level, share in changed.items():
        lines.append(f"predictions changed, {level}: {100 * share:.2f} %")
    if "test_error" in results:
        tuned, measured = results["tuned_on_rows"], results["measured_on_rows"]
        if not tuned:
            note = f"errors of all {measured:,} rows"
        elif tuned == measured == results["rows"]:
            note = f"alpha was tuned on the same {tuned:,} rows: these errors are optimistic"
        else:
            note = f"alpha was tuned on {tuned:,} random rows; errors of the other {measured:,}"
        lines += ["", error_table(results, hierarchy), note]
    return "\n".join(lines)
