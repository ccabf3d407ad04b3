"""The adaptation command: tables of any classifier's probabilities in, adapted tables out.

    python -m hiercls_jax adapt --hierarchy=h.json --coarse=pc.npy --fine=pf.npy --out=DIR
    python -m hiercls_jax adapt --hierarchy=h.json --coarse=pc.npy --fine=pf.npy --labels=y.npy \
--out=DIR
    python -m hiercls_jax adapt --hierarchy=tree.csv --level level1=a.parquet \
--level level2=b.csv --level level3=c.npz:probs --rule=top_down --out=DIR

A table has a row per sample and a column per class. It is an .npy, .npz, CSV or Parquet file; if an
.npz file has several arrays, name one: file.npz:key. Columns with names may have any order. Columns
without names are taken only if the order of the classes is stated: in a JSON hierarchy, by a row
for each class in a CSV hierarchy (`fish,` for one without a parent), or by --names LEVEL=file.

A column of text that is no class identifies the rows, and so does the column that --id names. It is
copied into all that is written; beside arrays it is in ids.csv.

Each row of a table is finite, not negative, and sums to 1 within 0.001 (in a ragged hierarchy,
together with the leaves of the levels above). With --logits the tables hold logits instead. Rows
count from 0.

Tables are read and written a few thousand rows at a time, so memory does not grow with them. With
labels it grows by 60 bytes per row and level, with --report or --target_accuracy by 80.

DIR gets these files: p_LEVEL (adapted probabilities, float32); predictions (a column per level:
class indices in .npy and .npz, names in CSV and Parquet); report.json; with labels, alpha_curve.png
and .svg; with --target_accuracy, answers.csv or answers.parquet; with --report, report.html, one
page that shows for any alpha how predictions change and, with labels, which become right and wrong.
DIR appears when all of them are complete; if anything goes wrong, nothing is left behind.

--target_accuracy=0.9 gives each row one answer that is right 90 % of the time: its most probable
leaf if that is sure enough, else the nearest class above it that is, or nothing at all. Answers use
alpha = 1, where the levels agree. The labelled rows are split in three: alpha is tuned on the first
third, the least probability of an answer is chosen on the second, and all is measured on the last.

Exit status: 0 done; 1 an error that the one line on stderr explains; 2 a wrong command line; 130
stopped by Ctrl-C, 143 by SIGTERM.
"""

import contextlib
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.commands.command_line import CommandFlags, run_command
from hiercls_jax.commands.target import define_decision, define_target, read_target
from hiercls_jax.errors import UserError, one_line
from hiercls_jax.evaluation import own_classes
from hiercls_jax.evaluation.adapt_answers import SureAnswers, find_answers
from hiercls_jax.evaluation.adapt_tables import (
    Inputs,
    Measured,
    measure,
    read_level_labels,
    sample_outcomes,
)
from hiercls_jax.evaluation.decisions import Tally
from hiercls_jax.evaluation.own_classes import OwnClasses
from hiercls_jax.evaluation.sure_answers import Target, select
from hiercls_jax.files import atomic_folder
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.report import figures, page
from hiercls_jax.report.answer_contents import PageAnswers
from hiercls_jax.report.page_contents import Page
from hiercls_jax.report.terminal import describe_adaptation
from hiercls_jax.runtime.environment import environment
from hiercls_jax.tables import FORMATS, open_table
from hiercls_jax.tables.adapter import Adapter, chunk_size
from hiercls_jax.tables.answer_files import answer_format, write_answers
from hiercls_jax.tables.columns import read_names
from hiercls_jax.tables.levels import LevelTables, level_columns
from hiercls_jax.tables.streaming import climb, write_adapted

SEE = "; see python -m hiercls_jax adapt --help"
STOPPED = "stopped; nothing was written, and the same command begins anew"


def main(argv: Sequence[str]) -> int:
    """Run the command and return its exit status; an error is one line on stderr.

    Args:
      argv: the command's name, then its arguments.
    """
    return run_command(lambda: _run(argv), SEE, STOPPED)


def _run(argv: Sequence[str]) -> None:
    options = _parse(argv)
    try:
        print(_adapt(options, argv[1:]))
    except BrokenPipeError:  # of the print
        raise
    except OSError as error:
        error.filename = error.filename or options.out
        raise


def _parse(argv: Sequence[str]) -> flags.FlagValues:
    options = CommandFlags(__name__)
    define = options.define
    define(flags.DEFINE_string, "hierarchy", None, "The hierarchy: .json, or .csv (class,parent).")
    define(flags.DEFINE_bool, "ragged", False, "A .csv hierarchy may have leaves on any level.")
    define(flags.DEFINE_string, "coarse", None, "Table of the first of two levels.")
    define(flags.DEFINE_string, "fine", None, "Table of the second of two levels.")
    define(flags.DEFINE_multi_string, "level", [], "name=file, the table of a level by its name.")
    define(
        flags.DEFINE_multi_string, "names", [],
        "LEVEL=file, the names of a table's columns that have none, in their order: one class a "
        "line, or a JSON list.",
    )  # fmt: skip
    define(
        flags.DEFINE_string, "id", None,
        "The column that identifies the rows; it goes through to what is written. Default: the "
        "first column of text that is no class, or the index that pandas writes.",
    )  # fmt: skip
    define(
        flags.DEFINE_string, "labels", None,
        "The samples' true classes on the finest level (any leaves in a ragged hierarchy): one "
        "column of names, or of indices in the hierarchy's order or, if given, in that of --names. "
        "A row without a label has -1, or an empty cell. With a second column, which "
        "identifies rows, labels of some rows in any order.",
    )  # fmt: skip
    define(
        flags.DEFINE_string, "alpha", None,
        "How far to adapt: a number, or 'tune'. At 0 nothing changes; at 1 the levels agree; "
        "'tune' minimises the sum of the levels' errors on labelled rows. Default: tune if there "
        "are labels, else 1.",
    )  # fmt: skip
    define(
        flags.DEFINE_float, "tune_fraction", None,
        "Share of the labelled rows, chosen at random, that alpha is tuned on; errors are measured "
        "on the others. 1 tunes and measures on all rows: such errors are optimistic. Default: "
        "0.5, or a third with --target_accuracy.",
        lower_bound=0, upper_bound=1,
    )  # fmt: skip
    define(flags.DEFINE_enum, "rule", "kl", list(RULES), "The rule that makes levels agree.")
    define(flags.DEFINE_alias, "method", "rule")
    define_decision(options, "independent")
    define_target(options)
    define(
        flags.DEFINE_float, "calibrate_fraction", None,
        "Share of the labelled rows that --target_accuracy calibrates on, chosen at random among "
        "those that alpha is not tuned on. Default: half of those.",
        lower_bound=0, upper_bound=1,
    )  # fmt: skip
    define(flags.DEFINE_bool, "logits", False, "The tables hold logits, not probabilities.")
    define(flags.DEFINE_bool, "renormalize", False, "Divide each row by its sum.")
    define(
        flags.DEFINE_string, "only", None,
        "A file of the classes that can occur, one a line, of any level: all others are left out "
        "on every level, before adaptation.",
    )  # fmt: skip
    define(
        flags.DEFINE_string, "prior", None,
        "How frequent the leaves are now: a file of class,number rows, or 'estimate', from the "
        "rows themselves.",
    )  # fmt: skip
    define(
        flags.DEFINE_string, "train_prior", None,
        "How frequent the leaves were in training, a file of class,number rows. Default: equally.",
    )  # fmt: skip
    define(flags.DEFINE_enum, "format", None, FORMATS, "Format to write; default: as read.")
    define(flags.DEFINE_bool, "report", False, "Also write report.html, which shows the changes.")
    define(flags.DEFINE_string, "out", None, "Folder to write, new or empty.")
    flags.register_validator(
        "alpha", _is_alpha, "it is a number, or 'tune'", flag_values=options.values
    )
    words = options.parse(argv, required=["hierarchy", "out"])
    if words:
        raise flags.UnrecognizedFlagError(words[0], "")
    return options.values


def _is_alpha(text: str | None) -> bool:
    with contextlib.suppress(ValueError):
        return text is None or text == "tune" or float(text) >= 0
    return False


def _adapt(options: flags.FlagValues, arguments: Sequence[str]) -> str:
    """Read, measure, adapt and write, and return the text for the user.

    Args:
      options: the parsed flags.
      arguments: the flags as they were given, for the record.
    """
    out, base = _check_out(Path(options.out))
    hierarchy = Hierarchy.read(options.hierarchy, options.ragged)
    files = _level_files(hierarchy, options)
    inputs = _open_inputs(hierarchy, files, options, base)
    hierarchy = inputs.tables.hierarchy
    target = read_target(options)
    given = _given_alpha(options.alpha, inputs)
    if target:
        _check_target(inputs, given)
    formats = [options.format or table.format for table in inputs.tables.tables]
    _check_space(base, inputs.tables, formats)

    measured = measure(inputs, given, *_fractions(options, given, target))
    answers = find_answers(inputs, measured, target) if target else None
    tally = None
    if inputs.labels is not None:
        tally = Tally(measured.test, inputs.labels[-1], hierarchy)
    with atomic_folder(out, inside=base) as folder:
        written = write_adapted(
            folder, inputs.tables, inputs.adapter, measured.alpha, formats, options.decision,
            tally.add if tally else None, inputs.labels[-1] if inputs.labels else None,
        )  # fmt: skip
        if answers:
            path = folder / f"answers.{answer_format(formats[-1])}"
            ids = inputs.tables.ids
            write_answers(
                path, answers.climb, hierarchy, answers.threshold, ids, inputs.adapter.size
            )
        results = {
            "hierarchy": options.hierarchy,
            "tables": dict(zip(hierarchy.levels, files, strict=True)),
            "labels": options.labels,
            "logits": options.logits,
            "renormalize": options.renormalize,
            "rule": options.rule,
            "method": options.rule,  # the older name
            "decision": options.decision,
            "rows": inputs.tables.rows,
            "id": inputs.tables.ids and inputs.tables.ids.name,
            "alpha": measured.alpha,
            **inputs.changed,
            **measured.results,
            **written,
            "warnings": [*inputs.warnings, *written["warnings"]],
            **({"decisions": tally.results()} if tally else {}),
            **({"answers": answers.results} if answers else {}),
        }
        (folder / "report.json").write_text(json.dumps(results, indent=1) + "\n")
        if options.labels:
            title = f"{results['measured_on_rows']:,} samples, rule {options.rule}"
            figures.draw_curve(folder, results, hierarchy, title)
        if options.report:
            shown = _page(inputs, measured, answers, results, arguments)
            page.write(folder / "report.html", shown)
        for warning in results["warnings"]:
            print(f"warning: {one_line(warning)}", file=sys.stderr)
        names = ", ".join(sorted(path.name for path in folder.iterdir()))
    return f"{describe_adaptation(results, hierarchy)}\nwrote to {out}: {names}"


def _check_out(out: Path) -> tuple[Path, Path]:
    """Return the folder to write, and its nearest ancestor that exists, to make it in."""
    out = out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"--out={out} is there and not empty; choose another, or remove it")
    return out, next(folder for folder in out.parents if folder.exists())


def _level_files(hierarchy: Hierarchy, options: flags.FlagValues) -> list[str]:
    """Return the file of each level, coarsest level first."""
    given = list(options.level)
    if options.coarse or options.fine:
        if hierarchy.num_levels != 2:
            raise UserError(
                f"--coarse and --fine are for 2 levels, {options.hierarchy} has "
                f"{hierarchy.num_levels}: use --level name=file for each of "
                f"{', '.join(hierarchy.levels)}"
            )
        pairs = zip(hierarchy.levels, (options.coarse, options.fine), strict=True)
        given += [f"{level}={file}" for level, file in pairs if file]
    files = _by_level(hierarchy, "--level", given)
    missing = [name for name in hierarchy.levels if name not in files]
    if missing:
        raise UserError(
            f"no table for level {missing[0]}; give --level {missing[0]}=file"
            + (", or --coarse=file and --fine=file" if hierarchy.num_levels == 2 else "")
        )
    return [files[name] for name in hierarchy.levels]


def _by_level(hierarchy: Hierarchy, flag: str, given: Sequence[str]) -> dict[str, str]:
    """Return the files of a flag `LEVEL=file` by level."""
    files: dict[str, str] = {}
    for text in given:
        name, _, file = text.partition("=")
        if not file:
            continue
        if name not in hierarchy.levels or name in files:
            what = "names no level" if name not in files else "is the second for its level"
            raise UserError(
                f"{flag} {name}={file} {what}; allowed is one for each of "
                f"{', '.join(hierarchy.levels)}"
            )
        files[name] = file
    return files


def _open_inputs(
    hierarchy: Hierarchy, files: Sequence[str], options: flags.FlagValues, scratch: Path
) -> Inputs:
    """Open the tables, read the labels, and compile the rule."""
    names = {
        level: read_names(file)
        for level, file in _by_level(hierarchy, "--names", options.names).items()
    }
    columns = level_columns(hierarchy, options.hierarchy, names, options.id)
    opened = [
        open_table(file, of_level, scratch) for file, of_level in zip(files, columns, strict=True)
    ]
    if options.id and not any(table.ids and table.ids.name == options.id for table in opened):
        raise UserError(f"--id={options.id}: no table has a column of that name")
    tables = LevelTables(hierarchy, opened, options.logits, options.renormalize)
    own = OwnClasses(options.only, options.prior, options.train_prior)
    tables, changed = own_classes.apply(tables, own, chunk_size(tables.hierarchy, tables.rows))
    kept = None if tables.weights is None else tables.weights > 0
    labels, unused = None, list[str]()
    if options.labels:
        labels, unused = read_level_labels(options.labels, tables, names.get(hierarchy.levels[-1]))
        out = np.zeros(1, bool) if kept is None else ~kept[labels[-1]] & (labels[-1] >= 0)
        if out.any():
            row = int(out.argmax())
            raise UserError(
                f"{options.labels}, row {row} (from 0): class "
                f"'{tables.hierarchy.leaf_names[labels[-1][row]]}' is left out by --only or "
                "--prior; keep it, or leave out the rows that have it"
            )
    try:
        adapter = Adapter(tables.hierarchy, options.rule, tables.rows, kept)
    except ValueError as error:
        raise UserError(f"--rule={options.rule}: {error}") from error
    return Inputs(tables, adapter, labels, changed, unused)


def _given_alpha(text: str | None, inputs: Inputs) -> float | None:
    """Return the alpha that the flags ask for; None if it shall be tuned."""
    labelled, largest = inputs.labels is not None, inputs.adapter.largest_alpha
    if text == "tune" and not labelled:
        raise UserError("--alpha=tune needs --labels=file, or give a number: --alpha=1")
    if text == "tune" or (text is None and labelled):
        return None
    alpha = 1.0 if text is None else float(text)
    if not alpha <= largest:
        raise UserError(
            f"--alpha={text}: allowed is 0 to {largest:g}; a larger alpha can make probabilities "
            "negative by this rule in this hierarchy"
        )
    return alpha


def _check_target(inputs: Inputs, alpha: float | None) -> None:
    """Reject a target accuracy without labels, and one of levels that do not agree."""
    if inputs.labels is None:
        raise UserError("--target_accuracy needs --labels=file, from which it learns when to stop")
    if alpha not in (None, 1.0):
        raise UserError(
            f"--target_accuracy with --alpha={alpha:g}: its promise needs levels that agree; use "
            "--alpha=1, or --alpha=tune, which tunes alpha for the tables alone"
        )


def _fractions(
    options: flags.FlagValues, alpha: float | None, target: Target | None
) -> tuple[float, float]:
    """Return the shares of the labelled rows to tune alpha on, and to calibrate on."""
    tune, calibrate = options.tune_fraction, options.calibrate_fraction
    if target is None:
        if calibrate is not None:
            raise UserError("--calibrate_fraction is for --target_accuracy, which is not given")
        return 0.5 if tune is None else tune, 0.0
    tune = 1 / 3 if tune is None else tune
    if tune == 1 and alpha is None:
        raise UserError(
            "--tune_fraction=1 leaves no labelled row for --target_accuracy to calibrate on; use "
            "less, or give a number: --alpha=1"
        )
    rest = 1 - tune if alpha is None else 1.0
    return tune, rest / 2 if calibrate is None else calibrate


def _check_space(base: Path, tables: LevelTables, formats: Sequence[str]) -> None:
    """Reject a disk without room for the arrays; other formats have no size beforehand."""
    sizes = zip(tables.hierarchy.sizes, formats, strict=True)
    needed = sum(4 * tables.rows * n for n, format_ in sizes if format_ in ("npy", "npz"))
    free = shutil.disk_usage(base).free
    if needed > free:
        raise UserError(
            f"{base} has {free / 1e9:.2f} GB free, and the adapted probabilities need "
            f"{needed / 1e9:.2f} GB; choose an --out on a larger disk"
        )


def _page(
    inputs: Inputs,
    measured: Measured,
    answers: SureAnswers | None,
    results: dict[str, Any],
    arguments: Sequence[str],
) -> Page:
    validation, tuned = measured.held_out_curves(), int(measured.tuning.sum())
    if validation:
        chosen = f"tuned on {tuned:,} other rows"
    else:
        chosen = "tuned on these rows" if tuned else "not tuned"
    paths = answers.climb if answers else climb(inputs.tables, inputs.adapter)
    shown = PageAnswers(select(paths, measured.test))
    if answers:
        promise = Target(answers.results["target_accuracy"], answers.results["confidence"])
        on = f"calibrated on {answers.results['calibrated_on_rows']:,} other rows, {promise}"
        shown = PageAnswers(shown.climb, answers.threshold, on)
    return Page(
        f"{results['rows']:,} rows adapted by {results['rule']}",
        inputs.tables.hierarchy,
        sample_outcomes(inputs, measured),
        measured.alpha,
        chosen,
        noun="row",
        validation=validation,
        warnings=results["warnings"],
        record={
            "command": shlex.join(["python", "-m", "hiercls_jax", "adapt", *arguments]),
            **{
                key: value
                for key, value in results.items()
                if key not in ("curve", "rows", "decisions", "answers")
            },
            "environment": environment(),
        },
        answers=shown,
        decisions=results.get("decisions"),
    )
