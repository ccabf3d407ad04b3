"""`summary.npz`: the counts and intervals that a comparison of many runs is made from.

A cell is one variant of one network, with all its seeds. For every ensemble of n of its networks
and every test image, the summary holds the interval of alphas at which the image is right. Errors
at any alpha, image by image, follow from it. 5 variants × 5 seeds of CIFAR-100 take 2 MB.

Summaries of different cells can be merged, so that a grid may be trained in parts.
"""

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hiercls_jax.adaptation.adjust import adjust
from hiercls_jax.adaptation.rules import RULES, Rule
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics import child_sums
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.study import ensembles
from hiercls_jax.study.ensembles import Scores

Key = tuple[str, str]  # network and variant, which name a cell
BySize = dict[int, np.ndarray]  # by ensemble size
FORMAT = 1  # of the file; another number is refused
SIZES = (1, 2, 4)  # of ensembles, as in the paper's Figure 3
STEP = 0.01  # between alphas
SHUFFLES = 20  # random hierarchies of the control
# The ways to a single answer of an ensemble: the probabilities are averaged, then adapted; each
# network is adapted, then the results are averaged; each level of each network gets a temperature,
# then as "averaged".
METHODS = ("averaged", "adapted_first", "calibrated")
COSTS = (
    "parameters", "multiply_adds", "epochs", "on_cpu", "training", "training_cpu",
    "test_prediction", "test_adaptation",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One variant of one network: A alphas, L levels, N test images, S_n ensembles of n seeds.

    Args:
      arch, variant: names.
      seeds: of its runs, increasing. Ensembles are the sets `ensembles.members` of them.
      config: the config fields that its runs share.
      right: by ensemble size, uint8 `[S_n, L, N, 2]`: the averaged probabilities are right at
        `alphas[first:stop]`.
      wrong: by method and ensemble size, integer `[S_n, L, A]`: how many images are wrong.
      tuned: by method and ensemble size, integer `[S_n]`: index of the alpha that validation images
        chose; of alpha 1 if none were held out.
      validation: integer `[seeds, L, A]`, how many validation images single networks get wrong;
        `[0, L, A]` if none were held out.
      control: integer `[seeds, 1 + SHUFFLES, 2, A]`, counts of `control`; `[0, …]` for one seed.
      points: uint8 `[N, C, 2]`, P and Q in 255ths of each class above the last level, of the first
        seed.
      costs: float64 `[seeds]` by name, those of `COSTS`: counts, 1 for a run on CPUs, seconds.
    """

    arch: str
    variant: str
    seeds: tuple[int, ...]
    config: dict[str, Any]
    right: BySize
    wrong: dict[str, BySize]
    tuned: dict[str, BySize]
    validation: np.ndarray
    control: np.ndarray
    points: np.ndarray
    costs: dict[str, np.ndarray]

    @property
    def rule(self) -> str:
        """The rule that adapts, a key of `RULES`; older configs do not have the field."""
        return self.config.get("adapt.rule", "kl")


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """Several cells with the same test images, adapted by the same rule.

    Args:
      hierarchy: the levels.
      labels: integer `[N]`, last-level labels of the test images.
      alphas: float64 `[A]`, 0 to the largest.
      cells: by network and variant.
    """

    hierarchy: Hierarchy
    labels: np.ndarray
    alphas: np.ndarray
    cells: dict[Key, Cell]


def alpha_grid(hierarchy: Hierarchy, rule: Rule = RULES["kl"]) -> np.ndarray:
    """Return the alphas of a summary, float64 `[A]`: 0, 0.01, … up to the rule's largest."""
    largest = min(rule.largest_alpha(hierarchy))
    return np.append(np.arange(round(largest / STEP)) * STEP, largest).round(6)


def summarise(
    arch: str,
    variant: str,
    runs: Mapping[int, Mapping[str, Predictions]],
    hierarchy: Hierarchy,
    config: dict[str, Any],
    costs: Mapping[str, Sequence[float]],
) -> Cell:
    """Return the cell of some runs.

    Args:
      arch, variant: names.
      runs: by seed, predictions of `test` and, if images were held out, of `validation`.
      hierarchy: of all of them.
      config: the config fields that they share; `adapt.rule` is the rule, Algorithm 1 if absent.
      costs: by name, a number for each run, in the order of seeds.
    """
    rule = RULES[config.get("adapt.rule", "kl")]
    alphas, seeds = alpha_grid(hierarchy, rule), tuple(sorted(runs))
    tests = [runs[seed]["test"] for seed in seeds]
    validations = [runs[seed]["validation"] for seed in seeds if "validation" in runs[seed]]
    held_out = len(validations) == len(seeds)
    splits = [tests, validations] if held_out else [tests]
    networks = {"averaged": splits, "adapted_first": splits}
    if held_out:
        calibrated = [
            ensembles.calibrate(validation, (test, validation))
            for test, validation in zip(tests, validations, strict=True)
        ]
        networks["calibrated"] = [[c[0] for c in calibrated], [c[1] for c in calibrated]]
    right: BySize = {}
    wrong: dict[str, BySize] = {method: {} for method in networks}
    tuned: dict[str, BySize] = {method: {} for method in networks}
    for method, by_split in networks.items():
        for size in (size for size in SIZES if size <= len(seeds)):
            intervals, chosen = [], []
            for members in ensembles.members(len(seeds), size):
                of_test, *of_validation = (
                    _scores([split[m] for m in members], hierarchy, method, rule)
                    for split in by_split
                )
                intervals.append(ensembles.right_alphas(of_test, alphas))
                chosen.append(
                    ensembles.tuned_alpha(of_validation[0], alphas)
                    if held_out
                    else int(np.abs(alphas - 1).argmin())
                )
            stacked = np.array(intervals, np.uint8)
            if method == "averaged":
                right[size] = stacked
            wrong[method][size] = ensembles.wrong_counts(stacked, len(alphas))
            tuned[method][size] = np.array(chosen)
    validation = np.zeros((0, hierarchy.num_levels, len(alphas)), np.int64)
    if held_out:
        scores = [ensembles.scores(v, hierarchy, rule) for v in validations]
        stacked = np.array([ensembles.right_alphas(s, alphas) for s in scores])
        validation = ensembles.wrong_counts(stacked, len(alphas))
    p, q = tests[0].probs[hierarchy.levels[-2]], tests[0].probs[hierarchy.levels[-1]]
    points = np.stack([p, child_sums(q, hierarchy.parents[-1])], axis=2)
    return Cell(
        arch, variant, seeds, config, right, wrong, tuned, validation,
        control(tests, hierarchy, alphas),
        np.rint(255 * points.clip(0, 1)).astype(np.uint8),
        {name: np.array(values, np.float64) for name, values in costs.items()},
    )  # fmt: skip


def _scores(
    networks: Sequence[Predictions], hierarchy: Hierarchy, method: str, rule: Rule
) -> Scores:
    if method == "adapted_first":
        return ensembles.average_scores([ensembles.scores(p, hierarchy, rule) for p in networks])
    return ensembles.scores(ensembles.average(networks), hierarchy, rule)


def control(tests: Sequence[Predictions], hierarchy: Hierarchy, alphas: np.ndarray) -> np.ndarray:
    """Adapt each network's fine probabilities to sums of another's, by true and random groups.

    The adaptation is Algorithm 1 on the last two levels. If its gain came only from averaging two
    networks, groups of classes that have nothing in common would do as well.

    Args:
      tests: predictions of each seed. The other network is that of the next seed; for the last
        seed, that of the first.
      hierarchy: their levels.
      alphas: float64 `[A]`.

    Returns:
      How many images are wrong, integer `[seeds, 1 + SHUFFLES, 2, A]`: with the true groups first,
      then with random ones. `[0, …]` for a single network.
    """
    fine_level, s = hierarchy.levels[-1], hierarchy.parents[-1]
    rng = np.random.default_rng(0)
    # A random hierarchy of the same shape is the true one with the classes in another order.
    orders = [np.arange(len(s)), *(rng.permutation(len(s)) for _ in range(SHUFFLES))]
    wrong = []
    for test, other in zip(tests, [*tests[1:], tests[0]], strict=True):
        if other is test:
            break
        for order in orders:
            fine = test.probs[fine_level][:, order]
            coarse = child_sums(other.probs[fine_level][:, order], s).astype(np.float32)
            labels = np.argsort(order)[test.labels[fine_level]]
            target = [np.asarray(p) for p in adjust(coarse, fine, s, 1.0)]
            scores = Scores([coarse, fine], target, [np.asarray(s)[labels], labels])
            right = ensembles.right_alphas(scores, alphas)
            wrong.append(ensembles.wrong_counts(right, len(alphas)))
    return np.array(wrong, np.int64).reshape(-1, len(orders), 2, len(alphas))


def merge(summaries: Sequence[Summary]) -> Summary:
    """Return one summary with the cells of all.

    Raises:
      UserError: if they have different test images or rules, or two have the same cell.
    """
    first = summaries[0]
    cells: dict[Key, Cell] = {}
    for summary in summaries:
        same = summary.hierarchy == first.hierarchy and np.array_equal(summary.labels, first.labels)
        if not same:
            raise UserError(
                "the runs have different hierarchies or test images; compare those of one data set"
            )
        for key, cell in summary.cells.items():
            if key in cells:
                raise UserError(
                    f"{' '.join(key)} is there twice; all seeds of a variant come from one source"
                )
            cells[key] = cell
    check_one_rule(cells.values())
    return Summary(first.hierarchy, first.labels, first.alphas, cells)


def check_one_rule(cells: Iterable[Cell]) -> None:
    """Raise a UserError if cells were adapted by different rules."""
    rules = sorted({cell.rule for cell in cells})
    if len(rules) > 1:
        raise UserError(
            f"the runs have different rules (adapt.rule): {', '.join(rules)}; compare those of one"
        )


def save(path: Path, summary: Summary) -> None:
    """Write a summary atomically. The same summary gives the same bytes."""
    arrays = {"labels": _shrink(summary.labels), "alphas": summary.alphas}
    cells = []
    for cell in summary.cells.values():
        where = f"{cell.arch}/{cell.variant}"
        arrays |= {f"{where}/right/{size}": a for size, a in cell.right.items()}
        for name in ("wrong", "tuned"):
            for method, by_size in getattr(cell, name).items():
                for size, a in by_size.items():
                    arrays[f"{where}/{name}/{method}/{size}"] = _shrink(a)
        arrays[f"{where}/validation"] = _shrink(cell.validation)
        arrays[f"{where}/control"] = _shrink(cell.control)
        arrays[f"{where}/points"] = cell.points
        arrays |= {f"{where}/costs/{name}": a for name, a in cell.costs.items()}
        cells.append(
            {
                "arch": cell.arch,
                "variant": cell.variant,
                "seeds": list(cell.seeds),
                "config": cell.config,
            }
        )
    meta = {"format": FORMAT, "hierarchy": summary.hierarchy.to_dict(), "cells": cells}
    arrays["meta"] = np.array(json.dumps(meta))
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)  # type: ignore[arg-type]  # NumPy's stub


def load(path: Path) -> Summary:
    """Read what `save` wrote.

    Raises:
      UserError: if the file is missing, damaged, or of another format.
    """
    try:
        # Opened here, because NumPy leaves a file open that is not a complete archive.
        with open(path, "rb") as handle, np.lib.npyio.NpzFile(handle, allow_pickle=False) as file:
            arrays = dict(file)
        meta = json.loads(str(arrays["meta"]))
        if meta["format"] != FORMAT:
            raise UserError(f"it has format {meta['format']}, this program reads {FORMAT}")
        cells = [_cell(about, arrays) for about in meta["cells"]]
        summary = Summary(
            Hierarchy.from_dict(meta["hierarchy"]),
            arrays["labels"],
            arrays["alphas"],
            {(cell.arch, cell.variant): cell for cell in cells},
        )
        _check(summary)
        return summary
    except Exception as error:  # broken bytes make zipfile, NumPy and json raise nearly anything
        raise UserError(f"{path} cannot be read as a summary: {error}") from error


def _check(summary: Summary) -> None:
    """Raise a UserError unless all arrays have the shapes and bounds that other code relies on."""
    if not summary.cells:
        raise UserError("it has no cells")
    check_one_rule(summary.cells.values())
    rule = RULES[next(iter(summary.cells.values())).rule]
    tree, images = summary.hierarchy, len(summary.labels)
    alphas = alpha_grid(tree, rule)
    levels, a = tree.num_levels, len(alphas)
    _check_integers("labels", summary.labels, (max(1, images),), tree.sizes[-1] - 1)
    if not np.array_equal(summary.alphas, alphas):
        raise UserError("its alphas are not this program's")
    for (arch, variant), cell in summary.cells.items():
        where, seeds = f"{arch} {variant}", len(cell.seeds)
        # They become names of files.
        if not re.fullmatch(r"[\w.-]+", arch) or variant not in VARIANTS:
            raise UserError(f"{where} does not name a network and one of {', '.join(VARIANTS)}")
        if not seeds or list(cell.seeds) != sorted(set(cell.seeds)):
            raise UserError(
                f"{where} has the seeds {list(cell.seeds)}; allowed are one or more, increasing"
            )
        sizes = {size: math.comb(seeds, size) for size in SIZES if size <= seeds}
        methods = {"averaged", "adapted_first"} | (set(cell.wrong) & {"calibrated"})
        by_size = {"right": cell.right}
        for name in ("wrong", "tuned"):
            by_size |= {f"{name} {m}": getattr(cell, name).get(m, {}) for m in methods}
        for name, arrays in by_size.items():
            if set(arrays) != set(sizes):
                raise UserError(
                    f"{where}: {name} has the ensemble sizes {sorted(arrays)}, not {sorted(sizes)}"
                )
        for size, sets in sizes.items():
            _check_integers(f"{where}: right", cell.right[size], (sets, levels, images, 2), a)
            for m in methods:
                _check_integers(f"{where}: wrong", cell.wrong[m][size], (sets, levels, a), images)
                _check_integers(f"{where}: tuned", cell.tuned[m][size], (sets,), a - 1)
        held_out = seeds if len(cell.validation) else 0
        _check_integers(f"{where}: validation", cell.validation, (held_out, levels, a))
        paired = seeds if seeds > 1 else 0
        _check_integers(f"{where}: control", cell.control, (paired, 1 + SHUFFLES, 2, a), images)
        _check_integers(f"{where}: points", cell.points, (images, tree.sizes[-2], 2), 255)
        for name in COSTS:
            values = cell.costs[name]
            if values.shape != (seeds,) or not (np.isfinite(values) & (values >= 0)).all():
                raise UserError(
                    f"{where}: {name} must be {seeds} non-negative numbers, one for each seed"
                )


def _check_integers(
    name: str, array: np.ndarray, shape: tuple[int, ...], most: int | None = None
) -> None:
    """Raise a UserError unless an array has this shape and integers from 0 to `most`."""
    if array.shape != shape or array.dtype.kind not in "iu":
        raise UserError(
            f"{name} must be integers {list(shape)}, not {array.dtype} {list(array.shape)}"
        )
    if array.size and (array.min() < 0 or (most is not None and array.max() > most)):
        raise UserError(
            f"{name} has values from {array.min()} to {array.max()}; allowed are 0 to {most}"
        )


def _cell(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Cell:
    """Return a cell from its entry in the file's `meta`, and from the file's arrays."""
    where = f"{about['arch']}/{about['variant']}"

    def under(*parts: str) -> dict[str, np.ndarray]:
        prefix = "/".join([where, *parts, ""])
        return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}

    def by_size(*parts: str) -> BySize:
        return {int(size): a for size, a in under(*parts).items()}

    return Cell(
        arch=about["arch"],
        variant=about["variant"],
        seeds=tuple(about["seeds"]),
        config=about["config"],
        right=by_size("right"),
        wrong={m: found for m in METHODS if (found := by_size("wrong", m))},
        tuned={m: found for m in METHODS if (found := by_size("tuned", m))},
        validation=arrays[f"{where}/validation"].astype(np.int64),
        control=arrays[f"{where}/control"].astype(np.int64),
        points=arrays[f"{where}/points"],
        costs=under("costs"),
    )


def _shrink(array: np.ndarray) -> np.ndarray:
    """Return non-negative integers in the smallest dtype that holds them."""
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))
