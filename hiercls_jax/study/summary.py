"""`summary.npz`: all that a comparison of many runs needs, distilled from their predictions.

A cell is one variant of one network, with all its seeds. For every ensemble of n of its instances
and every test image, the summary holds the run of alphas at which the image is right: whatever is
asked later, at any alpha, image by image, can be computed from it. 5 variants × 5 seeds of
CIFAR-100 take 2 MB.

Summaries of different cells can be merged, so that a grid may be trained in parts.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hiercls_jax.adaptation.adjust import adjust
from hiercls_jax.adaptation.tree import largest_alpha
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation.predictions import Predictions
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.metrics import child_sums
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.study import ensembles
from hiercls_jax.study.ensembles import Scores

Key = tuple[str, str]  # network and variant, which name a cell
FORMAT = 1  # of the file; another number is refused
SIZES = (1, 2, 4)  # of ensembles, as in the paper's Figure 3
STEP = 0.01  # between alphas
SHUFFLES = 20  # random hierarchies of the control
# How an ensemble's probabilities come about: averaged, then adapted; each network adapted, then
# averaged; each level of each network with its temperature, then as averaged.
FLAVOURS = ("averaged", "adapted_first", "calibrated")
COSTS = (
    "parameters", "multiply_adds", "epochs", "on_cpu", "training", "training_cpu",
    "test_prediction", "test_adaptation",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, eq=False)
class Cell:
    """One variant of one network: A alphas, L levels, N test images, S_n ensembles of n seeds.

    Args:
      arch, variant: names.
      seeds: of its runs, increasing; ensembles are the sets `ensembles.members` of them.
      config: what its runs have in common.
      right: by ensemble size, uint8 `[S_n, L, N, 2]`: averaged probabilities are right at
        `alphas[first:stop]`.
      wrong: by flavour and ensemble size, integer `[S_n, L, A]`: images that are wrong.
      tuned: by flavour and ensemble size, integer `[S_n]`: which alpha was chosen on validation;
        that of 1 where no validation was held out.
      validation: integer `[seeds, L, A]`, validation images that are wrong for single networks; of
        no seeds where none were held out.
      control: integer `[seeds, 1 + SHUFFLES, L, A]`, images that are wrong where the fine
        probabilities of a seed meet those of the next one, summed to coarse ones by the true
        hierarchy (first) and by shuffled ones; L is the last two levels.
      points: uint8 `[N, C, 2]`, P and Q of each class above the last level in 255ths, first seed.
      costs: float64 `[seeds]` by name, those of `COSTS`: numbers, 1 for a run on CPUs, seconds.
    """

    arch: str
    variant: str
    seeds: tuple[int, ...]
    config: dict
    right: dict[int, np.ndarray]
    wrong: dict[str, dict[int, np.ndarray]]
    tuned: dict[str, dict[int, np.ndarray]]
    validation: np.ndarray
    control: np.ndarray
    points: np.ndarray
    costs: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Summary:
    """Several cells with the same test images.

    Args:
      hierarchy: the levels.
      labels: integer `[N]`, last-level labels of the test images.
      alphas: float64 `[A]`, 0 to the largest.
      cells: by (arch, variant).
    """

    hierarchy: Hierarchy
    labels: np.ndarray
    alphas: np.ndarray
    cells: dict[Key, Cell]


def alpha_grid(hierarchy: Hierarchy) -> np.ndarray:
    """Return the alphas of a summary, float64 `[A]`: 0, 0.01, … up to the largest."""
    largest = min(largest_alpha(hierarchy.num_levels))
    return np.append(np.arange(round(largest / STEP)) * STEP, largest).round(6)


def distil(
    arch: str,
    variant: str,
    runs: Mapping[int, Mapping[str, Predictions]],
    hierarchy: Hierarchy,
    config: dict,
    costs: dict[str, Sequence[float]],
) -> Cell:
    """Return the cell of some runs.

    Args:
      runs: by seed, `test` and where it was held out `validation`.
      hierarchy: of all of them.
      config: what they have in common.
      costs: by name, a number for each run, in the order of seeds.
    """
    alphas, seeds = alpha_grid(hierarchy), tuple(sorted(runs))
    tests = [runs[seed]["test"] for seed in seeds]
    validations = [runs[seed].get("validation") for seed in seeds]
    held_out = all(v is not None for v in validations)
    plain = list(zip(tests, validations, strict=True))
    instances = {"averaged": plain, "adapted_first": plain}
    if held_out:
        instances["calibrated"] = [ensembles.calibrate(v, (t, v)) for t, v in plain]
    right, validation = {}, np.zeros((0, hierarchy.num_levels, len(alphas)), np.int64)
    wrong, tuned = ({flavour: {} for flavour in instances} for _ in range(2))
    for flavour, networks in instances.items():
        for size in SIZES:
            if size > len(seeds):
                break
            found, chosen = [], []
            for members in ensembles.members(len(seeds), size):
                of_test, of_validation = zip(*(networks[m] for m in members), strict=True)
                found.append(ensembles.right_alphas(_scores(of_test, hierarchy, flavour), alphas))
                chosen.append(
                    ensembles.tuned_alpha(_scores(of_validation, hierarchy, flavour), alphas)
                    if held_out
                    else np.abs(alphas - 1).argmin()
                )
            found = np.array(found, np.uint8)
            if flavour == "averaged":
                right[size] = found
            wrong[flavour][size] = ensembles.wrong_counts(found, len(alphas))
            tuned[flavour][size] = np.array(chosen)
    if held_out:
        of_validation = [ensembles.scores(v, hierarchy) for v in validations]
        found = np.array([ensembles.right_alphas(s, alphas) for s in of_validation])
        validation = ensembles.wrong_counts(found, len(alphas))
    p, q = tests[0].probs[hierarchy.levels[-2]], tests[0].probs[hierarchy.levels[-1]]
    points = np.stack([p, child_sums(q, hierarchy.parents[-1])], axis=2)
    return Cell(
        arch, variant, seeds, config, right, wrong, tuned, validation,
        control(tests, hierarchy, alphas),
        np.rint(255 * points.clip(0, 1)).astype(np.uint8),
        {name: np.array(values, np.float64) for name, values in costs.items()},
    )  # fmt: skip


def _scores(instances: Sequence[Predictions], hierarchy: Hierarchy, flavour: str) -> Scores:
    if flavour == "adapted_first":
        return ensembles.average_scores([ensembles.scores(p, hierarchy) for p in instances])
    return ensembles.scores(ensembles.average(instances), hierarchy)


def control(tests: Sequence[Predictions], hierarchy: Hierarchy, alphas: np.ndarray) -> np.ndarray:
    """Adapt each network's fine probabilities to sums of another's, by true and random groups.

    Where the gain of adaptation came from averaging two networks alone, groups of classes that
    have nothing in common would do as well.

    Args:
      tests: of each seed; the other network of a seed is the next one, of the last the first.

    Returns:
      as `Cell.control` has it; of no seeds where there is one network only.
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
      UserError: where they are of different test images, or two have the same cell.
    """
    first, cells = summaries[0], {}
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
    return Summary(first.hierarchy, first.labels, first.alphas, cells)


def save(path: Path, summary: Summary) -> None:
    """Write a summary under a temporary name and rename it; the same summary, the same bytes."""
    arrays = {"labels": _smallest(summary.labels), "alphas": summary.alphas}
    about = []
    for cell in summary.cells.values():
        where = f"{cell.arch}/{cell.variant}"
        arrays |= {f"{where}/right/{size}": a for size, a in cell.right.items()}
        for name in ("wrong", "tuned"):
            for flavour, by_size in getattr(cell, name).items():
                for size, a in by_size.items():
                    arrays[f"{where}/{name}/{flavour}/{size}"] = _smallest(a)
        arrays[f"{where}/validation"] = _smallest(cell.validation)
        arrays[f"{where}/control"] = _smallest(cell.control)
        arrays[f"{where}/points"] = cell.points
        arrays |= {f"{where}/costs/{name}": a for name, a in cell.costs.items()}
        about.append(
            {
                "arch": cell.arch,
                "variant": cell.variant,
                "seeds": list(cell.seeds),
                "config": cell.config,
            }
        )
    meta = {"format": FORMAT, "hierarchy": summary.hierarchy.to_dict(), "cells": about}
    arrays["meta"] = np.array(json.dumps(meta))
    with atomic_write(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def load(path: Path) -> Summary:
    """Read what `save` wrote.

    Raises:
      UserError: where the file is missing, damaged, or of another format.
    """
    try:
        # Opened here, as NumPy leaves a file open that is no whole archive.
        with open(path, "rb") as handle, np.lib.npyio.NpzFile(handle, allow_pickle=False) as file:
            arrays = dict(file)
        meta = json.loads(str(arrays["meta"]))
        if meta["format"] != FORMAT:
            raise UserError(f"it has format {meta['format']}, this program reads {FORMAT}")
        cells = [_cell(about, arrays) for about in meta["cells"]]
        found = Summary(
            Hierarchy.from_dict(meta["hierarchy"]),
            arrays["labels"],
            arrays["alphas"],
            {(cell.arch, cell.variant): cell for cell in cells},
        )
        _check(found)
        return found
    except Exception as error:  # zipfile, NumPy and json raise nearly anything on broken bytes
        raise UserError(f"{path} cannot be read as a summary: {error}") from error


def _check(summary: Summary) -> None:
    """Refuse arrays that are not of the shapes and within the bounds that all else relies on."""
    tree, images, alphas = summary.hierarchy, len(summary.labels), alpha_grid(summary.hierarchy)
    levels, a = tree.num_levels, len(alphas)
    _expect("labels", summary.labels, (max(1, images),), tree.sizes[-1] - 1)
    if not np.array_equal(summary.alphas, alphas) or not summary.cells:
        raise UserError("it has no cells, or other alphas than this program's")
    for (arch, variant), cell in summary.cells.items():
        where, seeds = f"{arch} {variant}", len(cell.seeds)
        # They become names of files.
        if not re.fullmatch(r"[\w.-]+", arch) or variant not in VARIANTS:
            raise UserError(f"{where} is no network and variant")
        if not seeds or list(cell.seeds) != sorted(set(cell.seeds)):
            raise UserError(f"{where} has the seeds {list(cell.seeds)}")
        sizes = {size: math.comb(seeds, size) for size in SIZES if size <= seeds}
        flavours = {"averaged", "adapted_first"} | (set(cell.wrong) & {"calibrated"})
        by_size = {"right": cell.right}
        for name in ("wrong", "tuned"):
            by_size |= {f"{name} {f}": getattr(cell, name).get(f, {}) for f in flavours}
        for name, arrays in by_size.items():
            if set(arrays) != set(sizes):
                raise UserError(f"{where}: {name} is of the sizes {sorted(arrays)}")
        for size, sets in sizes.items():
            _expect(f"{where}: right", cell.right[size], (sets, levels, images, 2), a)
            for f in flavours:
                _expect(f"{where}: wrong", cell.wrong[f][size], (sets, levels, a), images)
                _expect(f"{where}: tuned", cell.tuned[f][size], (sets,), a - 1)
        held_out = seeds if len(cell.validation) else 0
        _expect(f"{where}: validation", cell.validation, (held_out, levels, a))
        paired = seeds if seeds > 1 else 0
        _expect(f"{where}: control", cell.control, (paired, 1 + SHUFFLES, 2, a), images)
        _expect(f"{where}: points", cell.points, (images, tree.sizes[-2], 2), 255)
        for name in COSTS:
            values = cell.costs[name]
            if values.shape != (seeds,) or not (np.isfinite(values) & (values >= 0)).all():
                raise UserError(f"{where}: {name} has to be a number for each of {seeds} seeds")


def _expect(name: str, array: np.ndarray, shape: tuple[int, ...], most: int | None = None) -> None:
    if array.shape != shape or array.dtype.kind not in "iu":
        raise UserError(
            f"{name} has to be integers {list(shape)}, is {array.dtype} {list(array.shape)}"
        )
    if array.size and (array.min() < 0 or (most is not None and array.max() > most)):
        raise UserError(f"{name} has values from {array.min()} to {array.max()}, at most {most}")


def _cell(about: dict, arrays: Mapping[str, np.ndarray]) -> Cell:
    where = f"{about['arch']}/{about['variant']}"

    def under(*parts: str) -> dict:
        prefix = "/".join([where, *parts, ""])
        return {k.removeprefix(prefix): a for k, a in arrays.items() if k.startswith(prefix)}

    def by_size(*parts: str) -> dict[int, np.ndarray]:
        return {int(size): a for size, a in under(*parts).items()}

    return Cell(
        arch=about["arch"],
        variant=about["variant"],
        seeds=tuple(about["seeds"]),
        config=about["config"],
        right=by_size("right"),
        wrong={f: found for f in FLAVOURS if (found := by_size("wrong", f))},
        tuned={f: found for f in FLAVOURS if (found := by_size("tuned", f))},
        validation=arrays[f"{where}/validation"].astype(np.int64),
        control=arrays[f"{where}/control"].astype(np.int64),
        points=arrays[f"{where}/points"],
        costs=under("costs"),
    )


def _smallest(array: np.ndarray) -> np.ndarray:
    """Return non-negative integers in the smallest dtype that holds them."""
    return array.astype(np.min_scalar_type(int(array.max(initial=0))))
