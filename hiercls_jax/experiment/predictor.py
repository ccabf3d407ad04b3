"""What a training run learned, as something to use: images in, adapted class probabilities out.

predictor = hiercls_jax.load("runs/merge1-quick")
answer = predictor(predictor.read(["cat.png", "dog.jpg"]))
answer.names["fine"]                   # the most probable class of each image
predictor.export("model.stablehlo")    # for any process that has JAX
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np
from jax import export

from hiercls_jax import experiment
from hiercls_jax.adaptation.tree import adjust_tree
from hiercls_jax.data import image_files
from hiercls_jax.errors import UserError
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.training import checkpoint
from hiercls_jax.training.step import probabilities

BATCH = 64  # images at once, as a CPU likes
PLATFORMS = ("cpu", "cuda", "tpu")  # that one exported file is for


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a predictor says of N images, or without the axis N of one image.

    Args:
      adapted: float32 `[N, classes]` by level name, coarsest first, after adaptation.
      unadapted: the same as the networks gave it.
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
      shape: (H, W, 3) of the images it takes.
      alpha: how far it adapts.
      batch: how many images it takes at once; fewer are padded, so that it compiles once.
      forward: jitted, uint8 `[N, H, W, 3]` to `adapted` and `unadapted` by level name.
    """

    hierarchy: Hierarchy
    shape: tuple[int, int, int]
    alpha: float
    batch: int
    forward: Callable

    def __repr__(self) -> str:
        h, w, _ = self.shape
        sizes = zip(self.hierarchy.levels, self.hierarchy.sizes, strict=True)
        levels = ", ".join(f"'{level}' [N, {classes}]" for level, classes in sizes)
        return f"Predictor(uint8 [N, {h}, {w}, 3] to {levels}; alpha = {self.alpha:.2f})"

    def __call__(self, images) -> Answer:
        """Return the probabilities of every level for uint8 images `[N, H, W, 3]` or `[H, W, 3]`.

        Raises:
          UserError: for images of another dtype or shape.
        """
        images = self._check(images)
        if images.ndim == 3:
            answer = self(images[None])

            def first(of_images):
                return {level: values[0] for level, values in of_images.items()}

            return Answer(first(answer.adapted), first(answer.unadapted), first(answer.names))
        found = {
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
                    found[kind][level][rows] = np.asarray(p)[: len(part)]
        names = {
            level: np.array(classes)[found["adapted"][level].argmax(axis=1)]
            for level, classes in zip(self.hierarchy.levels, self.hierarchy.names, strict=True)
        }
        return Answer(**found, names=names)

    def read(self, files: Sequence) -> np.ndarray:
        """Read image files, upright, RGB and resized, as uint8 `[N, H, W, 3]` for this predictor.

        Raises:
          DataError: for a file that is not there or is no PNG, JPEG or WebP, naming it.
        """
        return image_files.read_files(files, self.shape[:2])

    def of_files(self, files: Sequence) -> Answer:
        """Return what the predictor says of image files, no more than a batch of them in memory.

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

    def export(self, path) -> None:
        """Write `forward` to one file, which `jax.export` makes of StableHLO.

        The file holds the parameters, takes any number of images and runs on a CPU, a GPU by CUDA
        or a TPU, without this package:

            from jax import export                     # which needs the package flatbuffers

            program = export.deserialize(open("model.stablehlo", "rb").read())
            program.call(images)["adapted"]["fine"]    # float32 [N, classes]

        It is written under a temporary name and renamed, so that it is whole or not there.

        Raises:
          UserError: where the file cannot be written.
        """
        images = jax.ShapeDtypeStruct((*export.symbolic_shape("batch"), *self.shape), np.uint8)
        with _no_locations():
            program = export.export(self.forward, platforms=PLATFORMS)(images).serialize()
        path = Path(path)
        try:
            with atomic_write(path) as temporary:
                temporary.write_bytes(program)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from error

    def _check(self, images) -> np.ndarray:
        images = np.asarray(images)
        if images.dtype != np.uint8 or images.shape[-3:] != self.shape or images.ndim > 4:
            h, w, _ = self.shape
            raise UserError(
                f"images are uint8 [N, {h}, {w}, 3] or [{h}, {w}, 3]; got {images.dtype} "
                f"{list(images.shape)}; read(files) makes such of image files of any size"
            )
        return images


def load(workdir, batch: int = BATCH) -> Predictor:
    """Return what a finished training run learned as a predictor.

    Of the run's newest checkpoint, with the alpha that was tuned on it; nothing in the workdir is
    changed.

    Args:
      workdir: a training run's, such as `runs/merge1-quick`.
      batch: how many images are predicted at once, at least 1; 1 suits images that come one by one.

    Raises:
      UserError: where the run is not finished, or something of it is missing or damaged.
    """
    if batch < 1:
        raise UserError(f"a batch has at least 1 image, not {batch}")
    workdir = Path(workdir).expanduser()
    results = _results(workdir)
    hierarchy = Hierarchy.read(workdir / "hierarchy.json")
    networks = _networks(workdir, results, hierarchy)
    alpha = results["alpha"]
    mean, std = (np.float32(results["input"][name]) for name in ("mean", "std"))
    dtype = results["config"].get("dtype", "float32")  # older runs do not say

    @jax.jit
    def forward(images):
        unadapted = {}
        for network, variables in networks:
            unadapted |= probabilities(network, variables, images, mean, std, dtype)
        adapted = adjust_tree(list(unadapted.values()), hierarchy, alpha)
        by_level = dict(zip(hierarchy.levels, adapted, strict=True))
        return {"adapted": by_level, "unadapted": unadapted}

    return Predictor(hierarchy, tuple(results["input"]["shape"]), alpha, batch, forward)


def _results(workdir: Path) -> dict:
    """Return what a run's `results.json` holds, all of it that a predictor needs."""
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
        raise UserError(f"{path} cannot be read: {error}; {_evaluate({})}") from error
    if "input" not in results:
        raise UserError(
            f"{path} does not say of what size and colour the training images were, as an older "
            f"version wrote it; {_evaluate(results)}"
        )
    return results


def _networks(workdir: Path, results: dict, hierarchy: Hierarchy) -> list[tuple]:
    """Return (network, variables) of each of a run's networks."""
    config = experiment.unflatten(results["config"])
    networks = []
    for name, network in experiment.architectures(config, hierarchy).items():
        place = experiment.network_folder(config, workdir, name)
        image = jax.ShapeDtypeStruct((1, *results["input"]["shape"]), np.float32)
        template = jax.eval_shape(partial(network.init, train=False), jax.random.key(0), image)
        variables, step = checkpoint.newest_variables(place / "checkpoints", template)
        if step != results["steps"][name]:
            raise UserError(
                f"the newest checkpoint in {place} is of step {step}, and alpha was tuned at step "
                f"{results['steps'][name]}; {_evaluate(results)}"
            )
        networks.append((network, variables))
    return networks


def _evaluate(results: dict) -> str:
    """Return what to do where a run's results are to be made anew from its checkpoints."""
    command = results.get("command", "the run's command with")
    return f"make them anew: {command}{'' if '--mode' in command else ' --mode=evaluate'}"


@contextlib.contextmanager
def _no_locations():
    """Leave out of a program from which lines of which files it was made: paths of this machine."""
    limit = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", limit)
