"""The comparison of many runs: the paper's figures and tables, from a summary alone."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from hiercls_jax.files import atomic_write
from hiercls_jax.metrics.significance import Evidence
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.report import figures
from hiercls_jax.study import claims
from hiercls_jax.study.claims import NAMES
from hiercls_jax.study.curves import index
from hiercls_jax.study.summary import Cell, Summary
from hiercls_jax.study.verdicts import HOLDS, MARGIN, MARGIN_ALPHA, MARGIN_STEP, Verdict

# What LaTeX does not know by itself.
LATEX = {"α": r"$\alpha$", "±": r"$\pm$", "−": r"$-$"}
Value = str | int | float | tuple[float, float] | None  # a tuple is mean and standard deviation


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of values, and how many decimals each column is shown with.

    Args:
      name: of its files.
      title: what it shows, and of what.
      columns: names.
      rows: a value for each column; a tuple is a mean and a standard deviation.
      decimals: of each column; 0 where there are none.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Value, ...]]
    decimals: tuple[int, ...]

    def cells(self) -> list[list[str]]:
        """Return the rows as text."""
        return [
            [_show(value, n) for value, n in zip(row, self.decimals, strict=True)]
            for row in self.rows
        ]

    def write(self, folder: Path) -> list[str]:
        """Write CSV, with a column for each standard deviation, and LaTeX; return the names."""
        spread = [
            any(isinstance(row[i], tuple) for row in self.rows) for i in range(len(self.columns))
        ]
        head, body = [], [[] for _ in self.rows]
        for i, column in enumerate(self.columns):
            head += [column, f"{column}, sd"] if spread[i] else [column]
            for row, out in zip(self.rows, body, strict=True):
                values = row[i] if isinstance(row[i], tuple) else (row[i], None)
                out += [_show(v, self.decimals[i]) for v in values[: 1 + spread[i]]]
        with (
            atomic_write(folder / f"{self.name}.csv") as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows([head, *body])
        latex = self._tabulate("latex_booktabs")
        for sign, command in LATEX.items():
            latex = latex.replace(sign, command)
        with atomic_write(folder / f"{self.name}.tex") as temporary:
            temporary.write_text(f"{latex}\n", encoding="utf-8")
        return [f"{self.name}.csv", f"{self.name}.tex"]

    def markdown(self) -> str:
        """Return the table in Markdown, under its title."""
        return f"{self.title}\n\n{self._tabulate('github')}\n"

    def _tabulate(self, style: str) -> str:
        numbers = [
            any(not isinstance(row[i], str | None) for row in self.rows)
            for i in range(len(self.columns))
        ]
        return tabulate(
            self.cells(),
            self.columns,
            tablefmt=style,
            disable_numparse=True,
            colalign=["right" if is_number else "left" for is_number in numbers],
        )


def write(folder: Path, summary: Summary) -> list[str]:
    """Write every figure and table, and `comparison.md` with all of them; return the files' names.

    Each file is written under a temporary name and renamed. The same summary gives the same bytes
    under the same versions of the packages.
    """
    judged = claims.judge(summary)
    tables = [
        ledger(judged), errors(summary), control(summary), costs(summary), tests(judged),
    ]  # fmt: skip
    written, parts = [], [_HEAD]
    for arch in dict.fromkeys(a for a, _ in summary.cells):
        stem = f"error_against_alpha-{arch}"
        _draw_curves(folder / stem, summary, arch)
        written += [f"{stem}.svg", f"{stem}.png"]
        parts.append(
            f"![Test error against alpha, {arch}]({stem}.svg)\n\n{_curve_note(summary, arch)}\n"
        )
        stem = f"points-{arch}"
        _draw_points(folder / stem, summary, arch)
        written += [f"{stem}.svg", f"{stem}.png"]
        parts.append(f"![P against Q, {arch}]({stem}.svg)\n")
    for table in tables:
        written += table.write(folder)
        parts.append(table.markdown())
    with atomic_write(folder / "comparison.md") as temporary:
        temporary.write_text("\n".join(parts), encoding="utf-8")
    return [*written, "comparison.md"]


_HEAD = """\
# Comparison of trained variants

Top-1 errors on test images, in percent: mean ± standard deviation over all ensembles of a size
(those of several share members, which makes their deviation too small).
Curves over α are curves of test errors, to look at; every number that is quoted as tuned has its α
from validation images, to two decimals.
"""


def ledger(judged: Sequence[tuple[str, Verdict]]) -> Table:
    """Return the claims of the paper with their verdicts."""
    rows = []
    for number, (arch, verdict) in enumerate(judged, 1):
        means = [r.deciding.mean for r in verdict.results if np.isfinite(r.deciding.mean)]
        spread = ""
        if means:
            ends = dict.fromkeys((_signed(min(means)), _signed(max(means))))  # once, if the same
            spread = f"{' to '.join(ends)} {verdict.results[0].test.unit}"
        held = sum(r.verdict == HOLDS for r in verdict.results)
        share = f"{held} of {len(verdict.claim.tests)}" if verdict.results else ""
        rows.append(
            (number, arch, verdict.claim.text, spread, share,
             verdict.verdict)
        )  # fmt: skip
    return Table(
        "ledger",
        "## What the paper claims, and what these runs say\n\n"
        "A claim holds where all of its tests do, and fails where one fails; without the runs for "
        "some of them it cannot hold. Single networks: Student's paired t-test over seeds, pairs "
        "of the same seed, two-sided, p < 0.05 after Holm's correction over the tests of the "
        "claim. Ensembles share their members: bootstrap over test images. No difference: the "
        f"90 % interval lies within ±{MARGIN:g} points (±{MARGIN_STEP:g} for steps "
        f"of α, ±{MARGIN_ALPHA:g} for α itself, ±1 % for costs); a test that expects one "
        "fails there, as it does where the difference is significant the other way; one that "
        "expects none fails if the 95 % interval lies beyond that margin. All tests are listed "
        "below.",
        ("", "network", "claim", "differences found", "tests that hold", "verdict"),
        rows,
        (0,) * 6,
    )


def errors(summary: Summary) -> Table:
    """Return the errors of every variant, ensemble size and level."""
    alphas, images = summary.alphas, len(summary.labels)
    largest = float(alphas[-1])
    rows = []
    for cell in _in_order(summary):
        for size in cell.right:
            for level, name in enumerate(summary.hierarchy.levels):

                def at(flavour, alpha, cell=cell, size=size, level=level):
                    wrong = cell.wrong.get(flavour, {}).get(size)
                    if wrong is None:
                        return None
                    chosen = (
                        cell.tuned[flavour][size].astype(int)
                        if alpha is None
                        else np.full(len(wrong), index(alphas, alpha))
                    )
                    return _spread(100 / images * wrong[np.arange(len(wrong)), level, chosen])

                tuned = alphas[cell.tuned["averaged"][size].astype(int)]
                rows.append(
                    (
                        cell.arch, NAMES[cell.variant], size, name,
                        at("averaged", 0), at("averaged", 1), at("averaged", largest),
                        _spread(tuned), at("averaged", None),
                        at("calibrated", 1), at("calibrated", None), at("adapted_first", None),
                    )
                )  # fmt: skip
    return Table(
        "errors",
        "## Errors\n\nTest error, top-1, in percent, by the size of the ensemble, whose "
        "probabilities are averaged and then adapted. Calibrated: each level of each network has "
        "its temperature, fitted on validation images, before that. Adapted first: each network is "
        "adapted, and the results are averaged.",
        (
            "network", "variant", "ensemble", "level", "α = 0", "α = 1", f"α = {largest:g}",
            "tuned α", "tuned", "calibrated, α = 1", "calibrated, tuned", "adapted first, tuned",
        ),
        rows,
        (0, 0, 0, 0, 2, 2, 2, 2, 2, 2, 2, 2),
    )  # fmt: skip


def control(summary: Summary) -> Table:
    """Return what adaptation gains where the groups of classes mean nothing."""
    alphas, images = summary.alphas, len(summary.labels)
    at = index(alphas, 1.0)
    rows = []
    for cell in _in_order(summary):
        if not len(cell.control):
            continue
        fine = len(summary.hierarchy.levels) - 1
        single = 100 / images * cell.wrong["averaged"][1][:, fine]
        pairs = cell.wrong["averaged"].get(2)
        wrong = 100 / images * cell.control[:, :, -1, at]
        rows.append(
            (
                cell.arch, NAMES[cell.variant], _spread(single[:, 0]), _spread(single[:, at]),
                _spread(wrong[:, 0]), _spread(wrong[:, 1:].mean(axis=1)),
                None if pairs is None else _spread(100 / images * pairs[:, fine, 0]),
            )
        )  # fmt: skip
    level, upper = summary.hierarchy.levels[-1], summary.hierarchy.levels[-2]
    return Table(
        "control",
        f"## How much of it is the hierarchy?\n\nTest error of the {level} level, in percent, over "
        f"seeds, at α = 1: with the network's own {upper} probabilities; with those of another "
        f"network (the next seed), summed from its {level} ones by the true hierarchy; and by "
        f"random hierarchies of the same shape, {_shuffles(summary)} for each seed. Were the "
        "gain that of averaging two networks, all groups would do as well.",
        (
            "network", "variant", "α = 0", f"own {upper} head", "another's sums, true groups",
            "another's sums, random groups", "two networks averaged, α = 0",
        ),
        rows,
        (0, 0, 2, 2, 2, 2, 2),
    )  # fmt: skip


def costs(summary: Summary) -> Table:
    """Return what each variant takes."""
    images, rows = len(summary.labels), []
    for cell in _in_order(summary):
        c = cell.costs
        rows.append(
            (
                cell.arch, NAMES[cell.variant], int(c["parameters"][0]), int(c["multiply_adds"][0]),
                _spread(c["training"] / c["epochs"]), _spread(c["training_cpu"] / c["epochs"]),
                _spread(c["training"] / 60), _spread(1e3 * c["test_prediction"] / images),
                _spread(1e3 * (c["test_prediction"] + c["test_adaptation"]) / images),
            )
        )  # fmt: skip
    return Table(
        "costs",
        "## What it takes\n\nOver seeds, from the runs' own records, compiling and validation "
        "included. Time on the clock is that of a machine that may have done other work; the time "
        "of its cores is hardly changed by that. Compare the times of runs of one machine only. "
        "Multiply-adds are of one image.",
        (
            "network", "variant", "parameters", "multiply-adds", "s per epoch, clock",
            "s per epoch, cores", "minutes of training, clock", "ms per test image",
            "ms with adaptation",
        ),
        rows,
        (0, 0, 0, 0, 1, 1, 1, 3, 3),
    )  # fmt: skip


def tests(judged: Sequence[tuple[str, Verdict]]) -> Table:
    """Return every test of every claim."""
    rows = [
        (
            number, arch, r.test.difference, f"{r.test.expects}, {r.test.unit}",
            *_interval(r.seeds), _p(r.p_holm if r.test.size == 1 else np.nan),
            *_interval(r.images), _p(r.p_holm if r.test.size > 1 else np.nan),
            "" if r.mcnemar is None else f"{r.mcnemar[0]} of {r.mcnemar[1]}", r.verdict,
        )
        for number, (arch, verdict) in enumerate(judged, 1)
        for r in verdict.results
    ]  # fmt: skip
    return Table(
        "tests",
        "## The tests\n\nEach is of a difference, the first less the second, with its 95 % "
        "interval: by Student's paired t over seeds, and by the bootstrap over test images of the "
        "mean over seeds. p is two-sided; Holm is after Holm's correction over the tests of the "
        "claim, where they decide it. McNemar: in how many seeds his exact test has p < 0.05. The "
        "steps from the best α start from the best of the mean over seeds on validation images, "
        "or on those of test where none were held out.",
        (
            "claim", "network", "difference", "expected to be", "over seeds", "interval", "p",
            "Holm", "over images", "interval ", "p ", "Holm ", "McNemar", "verdict",
        ),
        rows,
        (0,) * 14,
    )  # fmt: skip


def _shuffles(summary: Summary) -> int:
    """Return how many random hierarchies the control has."""
    return max(cell.control.shape[1] - 1 for cell in summary.cells.values())


def _in_order(summary: Summary) -> list[Cell]:
    archs = list(dict.fromkeys(a for a, _ in summary.cells))
    return [summary.cells[a, v] for a in archs for v in VARIANTS if (a, v) in summary.cells]


def _spread(values) -> Value:
    values = np.asarray(values, np.float64)
    return (float(values.mean()), float(values.std(ddof=1))) if len(values) > 1 else values.item()


def _interval(evidence: Evidence | None) -> tuple[str, str, str]:
    if evidence is None:
        return "", "", ""
    ends = f"{_signed(evidence.low)} to {_signed(evidence.high)}"
    return _signed(evidence.mean), ends, _p(evidence.p)


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−") if np.isfinite(value) else "?"


def _p(value: float) -> str:
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


def _show(value: Value, decimals: int) -> str:
    match value:
        case None:
            return ""
        case str():
            return value
        case (mean, deviation):
            return f"{mean:.{decimals}f} ± {deviation:.{decimals}f}"
        case _:
            return f"{value:.{decimals}f}"


def _cells_of(summary: Summary, arch: str) -> list[Cell]:
    return [cell for (of, _), cell in summary.cells.items() if of == arch]


def _curve_note(summary: Summary, arch: str) -> str:
    cells = _cells_of(summary, arch)
    seeds = ", ".join(f"{NAMES[cell.variant]} {len(cell.seeds)}" for cell in cells)
    sizes = ", ".join(map(str, sorted({size for cell in cells for size in cell.right})))
    return (
        f"*Test error of {arch} against α, mean and one standard deviation over all "
        f"ensembles of {sizes} of its instances (seeds: {seeds}), whose probabilities are averaged "
        "and then adapted; dashed, the mean of those that are adapted first, which for the coarse "
        "level is the same.*"
    )


def _draw_curves(path: Path, summary: Summary, arch: str) -> None:
    """Draw error against alpha: averaged, then adapted; and dashed the other way round."""
    images, cells = len(summary.labels), _cells_of(summary, arch)
    in_order = sorted(cells, key=lambda cell: list(VARIANTS).index(cell.variant))

    def errors(flavour: str) -> dict[int, dict[str, dict[str, np.ndarray]]]:
        return {
            size: {
                name: {
                    NAMES[cell.variant]: 100 / images * cell.wrong[flavour][size][:, level]
                    for cell in in_order
                    if size in cell.right
                }
                for level, name in enumerate(summary.hierarchy.levels)
            }
            for size in sorted({size for cell in cells for size in cell.right})
        }

    averaged, adapted_first = errors("averaged"), errors("adapted_first")
    figures.variant_curves(path, summary.alphas, averaged, arch, adapted_first)


def _draw_points(path: Path, summary: Summary, arch: str) -> None:
    """Draw Figure 1 for the class that separate networks, or the first variant, disagree about."""
    cells = {cell.variant: cell for cell in _cells_of(summary, arch)}
    apart = cells.get("separate") or next(iter(cells.values()))
    joint = cells.get("merge3")
    p, q = np.moveaxis(apart.points.astype(np.float64) / 255, 2, 0)
    shown = int(np.abs(p - q).mean(axis=0).argmax())
    panels = {NAMES[apart.variant]: (p[:, shown], q[:, shown])}
    if joint is not None and joint is not apart:
        joint_p, joint_q = np.moveaxis(joint.points[:, shown].astype(np.float64) / 255, 1, 0)
        panels[f"joint ({NAMES['merge3']})"] = joint_p, joint_q
    middle = (p[:, shown] + q[:, shown]) / 2  # Algorithm 1 at α = 1
    panels[f"{NAMES[apart.variant]}, adapted, α = 1"] = middle, middle
    upper, names = summary.hierarchy.levels[-2], summary.hierarchy.names[-2]
    member = summary.hierarchy.labels(summary.labels)[-2] == shown
    figures.scatters(path, panels, member, names[shown], upper)
