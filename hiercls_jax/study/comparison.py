"""The comparison of many runs: the paper's figures and tables, from a summary alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from hiercls_jax.files import atomic_write
from hiercls_jax.metrics.significance import Evidence
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.report import figures
from hiercls_jax.study import claims, typeset
from hiercls_jax.study.claims import NAMES
from hiercls_jax.study.curves import index
from hiercls_jax.study.summary import Cell, Summary
from hiercls_jax.study.typeset import Table
from hiercls_jax.study.verdicts import (
    HOLDS,
    MARGIN,
    MARGIN_ALPHA,
    MARGIN_COST,
    MARGIN_STEP,
    Verdict,
)


def write(folder: Path, summary: Summary) -> list[str]:
    """Write every figure and table, and `comparison.md` with all of them; return the files' names.

    Each file is complete or absent. The same summary gives the same bytes under the same versions
    of the packages.
    """
    judged = claims.judge(summary)
    tables = [
        ledger(judged), errors(summary), control(summary), costs(summary), tests(judged),
    ]  # fmt: skip
    written, parts = [], [_HEAD]
    for arch in dict.fromkeys(arch for arch, _ in summary.cells):
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

Top-1 errors on test images in percent: mean ± standard deviation over all ensembles of a size.
Ensembles share members, so this deviation is too small. The curves show test errors at every α.
Every number that is called tuned has an α that was chosen on validation images, to two decimals.
"""


def ledger(judged: Sequence[tuple[str, Verdict]]) -> Table:
    """Return the claims of the paper with their verdicts."""
    rows: list[tuple[typeset.Cell, ...]] = []
    for claim_number, (arch, verdict) in enumerate(judged, 1):
        means = [r.deciding.mean for r in verdict.results if np.isfinite(r.deciding.mean)]
        held = sum(r.verdict == HOLDS for r in verdict.results)
        rows.append(
            (
                claim_number, arch, verdict.claim.text,
                (min(means), max(means)) if means else None,
                verdict.results[0].test.unit if means else None,
                (held, len(verdict.claim.tests)) if verdict.results else None,
                verdict.verdict,
            )
        )  # fmt: skip
    return Table(
        "ledger",
        "## The paper's claims and their verdicts\n\n"
        "A claim holds if all of its tests hold, and fails if one of them fails. If the runs for "
        "some of its tests are missing, it cannot hold. Claims about single networks are tested "
        "over seeds: Student's paired t-test on pairs of the same seed, two-sided. Claims about "
        "ensembles are tested over test images by the bootstrap, because ensembles share members. "
        "A difference is significant if p < 0.05 after Holm's correction over the tests of the "
        "claim. It is negligible if its 90 % interval lies within a margin: "
        f"±{MARGIN:g} points of error (±{MARGIN_STEP:g} for steps of α), ±{MARGIN_ALPHA:g} for α "
        f"itself, ±{MARGIN_COST:g} % for costs. A test that expects `less` or `different` holds if "
        "the difference is significant and as expected. It fails if the difference is significant "
        "with the other sign, or negligible; but a difference of the expected sign that only the "
        "correction made insignificant stays undecided. A test that expects `equal` holds if the "
        "difference is negligible, significant or not. It fails if the 95 % interval lies beyond "
        "the margin. The table shows the lowest and the highest difference of a claim's tests; "
        "all tests are listed below.",
        (
            typeset.number("claim number"), typeset.words("network"), typeset.words("claim"),
            typeset.value_range("differences", "lowest difference", "highest difference"),
            typeset.words("unit"), typeset.share("tests that hold", "tests that hold", "tests"),
            typeset.words("verdict"),
        ),
        rows,
    )  # fmt: skip


def errors(summary: Summary) -> Table:
    """Return the errors of every variant, ensemble size and level."""
    alphas, images = summary.alphas, len(summary.labels)
    largest = float(alphas[-1])

    def error(cell: Cell, size: int, level: int, method: str, alpha: float | None) -> typeset.Cell:
        """Mean and deviation over ensembles, at an alpha; if it is None, each at its tuned one."""
        if method not in cell.wrong:
            return None
        wrong = cell.wrong[method][size]
        if alpha is None:
            chosen = cell.tuned[method][size].astype(int)
        else:
            chosen = np.full(len(wrong), index(alphas, alpha))
        return _spread(100 / images * wrong[np.arange(len(wrong)), level, chosen])

    rows: list[tuple[typeset.Cell, ...]] = [
        (
            cell.arch, NAMES[cell.variant], size, name,
            error(cell, size, level, "averaged", 0), error(cell, size, level, "averaged", 1),
            error(cell, size, level, "averaged", largest),
            _spread(alphas[cell.tuned["averaged"][size].astype(int)]),
            error(cell, size, level, "averaged", None),
            error(cell, size, level, "calibrated", 1),
            error(cell, size, level, "calibrated", None),
            error(cell, size, level, "adapted_first", None),
        )
        for cell in _in_order(summary)
        for size in cell.right
        for level, name in enumerate(summary.hierarchy.levels)
    ]  # fmt: skip
    names = (
        "α = 0", "α = 1", f"α = {largest:g}", "tuned α", "tuned", "calibrated, α = 1",
        "calibrated, tuned", "adapted first, tuned",
    )  # fmt: skip
    return Table(
        "errors",
        "## Errors\n\nTop-1 test error in percent, by the size of the ensemble. The probabilities "
        "of its networks are averaged, then adapted. Calibrated: before that, each level of each "
        "network gets a temperature that is fitted on validation images. Adapted first: each "
        "network is adapted, then the results are averaged.",
        (
            typeset.words("network"), typeset.words("variant"), typeset.number("ensemble"),
            typeset.words("level"), *(typeset.spread(name, 2) for name in names),
        ),
        rows,
    )  # fmt: skip


def control(summary: Summary) -> Table:
    """Return the gains of adaptation by true groups of classes and by random ones."""
    alphas, images = summary.alphas, len(summary.labels)
    at = index(alphas, 1.0)
    rows: list[tuple[typeset.Cell, ...]] = []
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
    names = (
        "α = 0", f"own {upper} head", "another's sums, true groups",
        "another's sums, random groups", "two networks averaged, α = 0",
    )  # fmt: skip
    return Table(
        "control",
        f"## How much of the gain is due to the hierarchy?\n\nTest error of the {level} level in "
        f"percent, over seeds, at α = 1. The {level} probabilities of a network are adapted to "
        f"{upper} probabilities of three kinds: its own; those of another network (the one of the "
        f"next seed), summed from its {level} probabilities over the true groups; and the same "
        f"sums over the groups of random hierarchies of the same shape, {_shuffles(summary)} for "
        "each seed. If the gain were only that of averaging two networks, all groups would do as "
        "well.",
        (
            typeset.words("network"), typeset.words("variant"),
            *(typeset.spread(name, 2) for name in names),
        ),
        rows,
    )  # fmt: skip


def costs(summary: Summary) -> Table:
    """Return the parameters, operations and times of each variant."""
    images = len(summary.labels)
    rows: list[tuple[typeset.Cell, ...]] = []
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
        "## Costs\n\nOver seeds, from the runs' own records. Training includes compiling and "
        "validation. Other work on the machine lengthens the time on the clock and hardly changes "
        "the time of the cores. Compare only times of runs on one machine. Multiply-adds are those "
        "of one image.",
        (
            typeset.words("network"), typeset.words("variant"), typeset.number("parameters"),
            typeset.number("multiply-adds"), typeset.spread("s per epoch, clock", 1),
            typeset.spread("s per epoch, cores", 1),
            typeset.spread("minutes of training, clock", 1), typeset.spread("ms per test image", 3),
            typeset.spread("ms with adaptation", 3),
        ),
        rows,
    )  # fmt: skip


def tests(judged: Sequence[tuple[str, Verdict]]) -> Table:
    """Return every test of every claim."""
    rows: list[tuple[typeset.Cell, ...]] = [
        (
            claim_number, arch, r.test.difference, r.test.expects, r.test.margin, r.test.unit,
            *_interval(r.seeds), r.p_holm if r.test.size == 1 else None,
            *_interval(r.images), r.p_holm if r.test.size > 1 else None, r.mcnemar, r.verdict,
        )
        for claim_number, (arch, verdict) in enumerate(judged, 1)
        for r in verdict.results
    ]  # fmt: skip
    return Table(
        "tests",
        "## The tests\n\nEach test is about a difference: the first less the second. Over seeds: "
        "the mean of paired differences, with its 95 % interval and two-sided p-value by Student's "
        "t-test. Over images: the difference of the means over seeds, with interval and p-value by "
        "the bootstrap over test images. Holm's p is corrected for the tests of the claim, and "
        "belongs to the evidence that decides the test. McNemar: in how many seeds McNemar's exact "
        "test has p < 0.05. Steps from the best α start from the one with the least error, the "
        "mean over seeds, on validation images; on test images if none were held out for "
        "validation.",
        (
            typeset.number("claim number"), typeset.words("network"), typeset.words("difference"),
            typeset.words("expected"), typeset.Column("margin", "±{:g}".format, format="g"),
            typeset.words("unit"),
            typeset.estimate("over seeds"), typeset.p_value("p over seeds"),
            typeset.p_value("Holm's p over seeds"),
            typeset.estimate("over images"), typeset.p_value("p over images"),
            typeset.p_value("Holm's p over images"),
            typeset.share("McNemar", "McNemar, significant seeds", "McNemar, seeds"),
            typeset.words("verdict"),
        ),
        rows,
    )  # fmt: skip


def _shuffles(summary: Summary) -> int:
    """Return how many random hierarchies the control has."""
    return max(cell.control.shape[1] - 1 for cell in summary.cells.values())


def _in_order(summary: Summary) -> list[Cell]:
    archs = list(dict.fromkeys(arch for arch, _ in summary.cells))
    return [summary.cells[a, v] for a in archs for v in VARIANTS if (a, v) in summary.cells]


def _spread(values: ArrayLike) -> tuple[float, float | None]:
    """Return mean and standard deviation; of one value, no deviation."""
    values = np.asarray(values, np.float64)
    deviation = float(values.std(ddof=1)) if len(values) > 1 else None
    return float(values.mean()), deviation


def _interval(evidence: Evidence | None) -> tuple[typeset.Cell, typeset.Cell]:
    """Return a difference with its interval, and its p-value."""
    if evidence is None:
        return None, None
    return (evidence.mean, evidence.low, evidence.high), evidence.p


def _cells_of(summary: Summary, arch: str) -> list[Cell]:
    return [cell for (of, _), cell in summary.cells.items() if of == arch]


def _curve_note(summary: Summary, arch: str) -> str:
    cells = _cells_of(summary, arch)
    seeds = ", ".join(f"{NAMES[cell.variant]} {len(cell.seeds)}" for cell in cells)
    sizes = ", ".join(map(str, sorted({size for cell in cells for size in cell.right})))
    return (
        f"*Test error of {arch} against α: mean and one standard deviation over all ensembles of "
        f"{sizes} networks (seeds: {seeds}). Solid lines: the probabilities are averaged, then "
        "adapted. Dashed lines, means: each network is adapted, then the results are averaged. "
        "With Algorithm 1 both orders give the same errors at the coarse level.*"
    )


def _draw_curves(path: Path, summary: Summary, arch: str) -> None:
    """Draw error against alpha: averaged, then adapted; and dashed the other way round."""
    images, cells = len(summary.labels), _cells_of(summary, arch)
    in_order = sorted(cells, key=lambda cell: list(VARIANTS).index(cell.variant))

    def errors(method: str) -> dict[int, dict[str, dict[str, np.ndarray]]]:
        return {
            size: {
                name: {
                    NAMES[cell.variant]: 100 / images * cell.wrong[method][size][:, level]
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
