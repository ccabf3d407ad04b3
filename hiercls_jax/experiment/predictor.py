"""A trained run as a function: images in, adapted class probabilities out.

predictor = hiercls_jax.load("runs/merge1-quick")
answer = predictor(predictor.read(["cat.png", "dog.jpg"]))
answer.names["fine"]                   # the most probable class of each image
predictor.export("model.stablehlo")    # for any process that has JAX
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from hiercls_jax import experiment
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.data import image_files
from hiercls_jax.errors import UserError
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.models.branched import Branched
from hiercls_jax.training import checkpoint
from hiercls_jax.training.step import probabilities

BATCH = 64  # images at once, which suits a CPU
PLATFORMS = ("cpu", "cuda", "tpu")  # on which an exported file runs


@dataclasses.dataclass(frozen=True)
class Answer:
    """Class probabilities of N images; for one image, without the axis N.

    Args:
      adapted: float32 `[N, classes]` by level name, coarsest first, after adaptation.
      unadapted: the same before adaptation.
      names: str `[N]` by level name, the most probable class after adaptation.
    """

    adapted: dict[str, np.ndarray]
    unadapted: dict[str, np.ndarray]
    names: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Trained networks and their adaptation; call it with images.

    It computes on one device, JAX's first.

    Args:
      hierarchy: levels, and class names in the order of the probabilities.
      shape: (H, W, 3) of the images that it takes.
      alpha: how far it adapts.
      batch: number of images that it takes at once. It pads fewer, so that it compiles once.
      forward: jitted, uint8 `[N, H, W, 3]` to `adapted` and `unadapted` by level name.
      rule: how it adapts, a key of `adaptation.rules.RULES`.
    """

    hierarchy: Hierarchy
    shape: tuple[int, int, int]
    alpha: float
    batch: int
    forward: jax.stages.Wrapped
    rule: str = "kl"

    def __repr__(self) -> str:
        h, w, _ = self.shape
        sizes = zip(self.hierarchy.levels, self.hierarchy.sizes, strict=True)
        levels = ", ".join(f"'{level}' [N, {classes}]" for level, classes in sizes)
        return (
            f"Predictor(uint8 [N, {h}, {w}, 3] to {levels}; rule '{self.rule}', "
            f"alpha = {self.alpha:.2f})"
        )

    def __call__(self, images: ArrayLike) -> Answer:
        """Return the probabilities of every level.

        Args:
          images: uint8 `[N, H, W, 3]`, or `[H, W, 3]` for one image.

        Raises:
          UserError: for images of another dtype or shape.
        """
        images = self._check(images)
        if images.ndim == 3:
            return _first(self(images[None]))
        answer: dict[str, dict[str, np.ndarray]] = {
            kind: {
                level: np.empty((len(images), classes), np.float32)
                for level, classes in zip(self.hierarchy.levels, self.hierarchy.sizes, strict=True)
            }
            for kind in ("adapted", "unadapted")
        }
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            rows = slice(start, start + len(part))
            padding = ((0, self.batch - len(part)), (0, 0), (0, 0), (0, 0))
            for kind, levels in self.forward(np.pad(part, padding)).items():
                for level, p in levels.items():
                    answer[kind][level][rows] = np.asarray(p)[: len(part)]
        names = {
            level: np.array(classes)[answer["adapted"][level].argmax(axis=1)]
            for level, classes in zip(self.hierarchy.levels, self.hierarchy.names, strict=True)
        }
        return Answer(answer["adapted"], answer["unadapted"], names)

    def read(self, files: Sequence[str | Path]) -> np.ndarray:
        """Read image files: upright, RGB, resized, uint8 `[N, H, W, 3]` as this predictor takes.

        Raises:
          DataError: for a file that does not exist or is not a PNG, JPEG or WebP, naming it.
        """
        return image_files.read_files(files, self.shape[:2])

    def of_files(self, files: Sequence[str | Path]) -> Answer:
        """Return the probabilities of image files, with at most one batch of them in memory.

        Args:
          files: at least one.

        Raises:
          DataError: as `read` does.
        """
        starts = range(0, len(files), self.batch)
        answers = [self(self.read(files[start : start + self.batch])) for start in starts]
        return Answer(
            *(
                {level: np.concatenate([part[level] for part in parts]) for level in parts[0]}
                for parts in zip(*((a.adapted, a.unadapted, a.names) for a in answers), strict=True)
            )
        )

    def export(self, path: str | Path) -> None:
        """Write `forward` as StableHLO to one file, by `jax.export`.

        The file holds the parameters, takes any number of images and runs on a CPU, a GPU by CUDA
        or a TPU, without this package:

            from jax import export                     # which needs the package flatbuffers

            program = export.deserialize(open("model.stablehlo", "rb").read())
            program.call(images)["adapted"]["fine"]    # float32 [N, classes]

        The file is complete or absent: it is written under a temporary name and renamed.

        Raises:
          UserError: if the file cannot be written.
        """
        images = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), *self.shape), np.uint8)
        with _no_source_locations():
            program = export.export(self.forward, platforms=PLATFORMS)(images).serialize()
        path = Path(path)
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(program)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error

    def _check(self, images: ArrayLike) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[-3:] != self.shape or images.ndim > 4:
            h, w, _ = self.shape
            raise UserError(
                f"images are uint8 [N, {h}, {w}, 3] or [{h}, {w}, 3]; got {images.dtype} "
                f"{list(images.shape)}; read(files) makes such of image files of any size"
            )
        return images


def load(workdir: str | Path, batch: int = BATCH) -> Predictor:
    """Return a finished training run as a predictor.

    It has the parameters of the newest checkpoint, and the rule and the tuned alpha of the run.
    Nothing in the workdir is changed.

    Args:
      workdir: a training run's, such as `runs/merge1-quick`.
      batch: how many images are predicted at once, at least 1; 1 suits images that come one by one.

    Raises:
      UserError: if the run is not finished, or a part of it is missing or damaged.
    """
    if batch < 1:
        raise UserError(f"a batch has at least 1 image, not {batch}")
    workdir = Path(workdir).expanduser()
    results = _read_results(workdir)
    config = experiment.unflatten(results["config"])
    hierarchy = Hierarchy.read(workdir / "hierarchy.json")
    networks = _read_networks(workdir, config, results, hierarchy)
    alpha, rule = results["alpha"], config.adapt.rule
    mean, std = (np.float32(results["input"][name]) for name in ("mean", "std"))

    @jax.jit
    def forward(images: jax.Array) -> dict[str, dict[str, jax.Array]]:
        unadapted: dict[str, jax.Array] = {}
        for network, variables in networks:
            unadapted |= probabilities(
                network, variables, images, mean, std, config.dtype, config.data.mirror_mean
            )
        adapted = RULES[rule].adjust(list(unadapted.values()), hierarchy, alpha)
        by_level = dict(zip(hierarchy.levels, adapted, strict=True))
        return {"adapted": by_level, "unadapted": unadapted}

    return Predictor(hierarchy, tuple(results["input"]["shape"]), alpha, batch, forward, rule)


def _first(answer: Answer) -> Answer:
    """Return the answer for the first image, without the axis N."""
    parts = (answer.adapted, answer.unadapted, answer.names)
    return Answer(*({level: values[0] for level, values in part.items()} for part in parts))


def _read_results(workdir: Path) -> dict[str, Any]:
    """Return a run's `results.json`, which must say all that a predictor needs."""
    if not workdir.is_dir():
        raise UserError(
            f"there is no folder {workdir}; give the workdir of a training run, such as "
            "runs/merge1-quick"
        )
    if not (workdir / "config.json").exists():
        raise UserError(
            f"{workdir} is not the workdir of a training run: it has no config.json; give one, "
            "such as runs/merge1-quick"
        )
    path = workdir / "results.json"
    if not path.exists():
        raise UserError(
            f"the run in {workdir} has no tuned alpha yet, as it is not finished: give its command "
            "again, or add --mode=evaluate to it to tune alpha on the newest checkpoint"
        )
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} cannot be read: {error}; {_evaluate_again({})}") from error
    if "input" not in results:
        raise UserError(
            f"{path} does not say of what size and colour the training images were, as an older "
            f"version wrote it; {_evaluate_again(results)}"
        )
    return results


def _read_networks(
    workdir: Path, config: ConfigDict, results: Mapping[str, Any], hierarchy: Hierarchy
) -> list[tuple[Branched, dict]]:
    """Return each network of a run with its variables."""
    networks = []
    for name, network in experiment.architectures(config, hierarchy).items():
        place = experiment.network_folder(config, workdir, name)
        image = jax.ShapeDtypeStruct((1, *results["input"]["shape"]), np.float32)
        template = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), image)
        variables, step = checkpoint.newest_variables(place / "checkpoints", template)
        if step != results["steps"][name]:
            raise UserError(
                f"the newest checkpoint in {place} is of step {step}, and alpha was tuned at step "
                f"{results['steps'][name]}; {_evaluate_again(results)}"
            )
        networks.append((network, variables))
    return networks


def _evaluate_again(results: Mapping[str, Any]) -> str:
    """Return how to make a run's results again from its checkpoints."""
    command = results.get("command", "the run's command with")
    return f"make them anew: {command}{'' if '--mode' in command else ' --mode=evaluate'}"


@contextlib.contextmanager
def _no_source_locations() -> Iterator[None]:
    """Keep source files and lines, which are paths on this machine, out of a traced program."""
    option = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, option)
    jax.config.update(option, 0)
    try:
        yield
    finally:
        jax.config.update(option, limit)
