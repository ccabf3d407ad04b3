"""A trained run as a function: images in, adapted class probabilities out.

predictor = hiercls_jax.load("runs/merge1-quick")
answer = predictor(predictor.read(["cat.png", "dog.jpg"]))
answer.names["fine"]                   # the class of each image, below its answer on "coarse"
predictor.export("model.stablehlo")    # for any process that has JAX
"""

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from hiercls_jax import experiment
from hiercls_jax.adaptation.answers import DECISIONS, answer_nodes
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.stopping import Answers, climb_paths, stop
from hiercls_jax.data import image_files
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation import predictions
from hiercls_jax.evaluation.sure_answers import LabelledClimb, Target
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import node_names, nodes_of
from hiercls_jax.models.branched import Branched
from hiercls_jax.training import checkpoint
from hiercls_jax.training.step import probabilities

BATCH = 64  # images at once, which suits a CPU
PLATFORMS = ("cpu", "cuda", "tpu")  # on which an exported file runs


class Answer(NamedTuple):
    """Class probabilities of N images; for one image, without the axis N.

    Args:
      adapted: float32 `[N, classes]` by level name, coarsest first, after adaptation.
      unadapted: the same before adaptation.
      names: str `[N]` by level name, the answer's class on each level: of the most probable leaf
        and above it, unless the predictor decides otherwise. Empty below an answer that is no leaf.
      name: str `[N]`, the answer itself; empty for the root, where nothing is sure enough.
      level: str `[N]`, its level; empty for the root.
      probability: float32 `[N]`, of the answer.
    """

    adapted: dict[str, np.ndarray]
    unadapted: dict[str, np.ndarray]
    names: dict[str, np.ndarray]
    name: np.ndarray
    level: np.ndarray
    probability: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Predictor:
    """Trained networks and their adaptation; call it with images.

    It computes on one device, JAX's first.

    Args:
      hierarchy: levels, and class names in the order of the probabilities.
      shape: (H, W, 3) of the images that it takes.
      alpha: how far it adapts.
      batch: number of images that it takes at once. It pads fewer, so that it compiles once.
      forward: jitted, uint8 `[N, H, W, 3]` to `adapted` and `unadapted` by level name, and to
        `answer`: its `path`, int32 `[N]` by level name, with -1 below an answer that is no leaf;
        its `level` and `class`, int32 `[N]`, -1 and 0 for the root; and its `probability`.
      rule: how it adapts, a key of `adaptation.rules.RULES`.
      decision: how it answers, a key of `adaptation.answers.DECISIONS`.
      threshold: the probability below which the answer is a class above the most probable leaf;
        None if it decides without one.
    """

    hierarchy: Hierarchy
    shape: tuple[int, int, int]
    alpha: float
    batch: int
    forward: jax.stages.Wrapped
    rule: str = "kl"
    decision: str = "leaf"
    threshold: float | None = None

    def __repr__(self) -> str:
        h, w, _ = self.shape
        sizes = zip(self.hierarchy.levels, self.hierarchy.sizes, strict=True)
        levels = ", ".join(f"'{level}' [N, {classes}]" for level, classes in sizes)
        how = f"decision '{self.decision}'"
        if self.threshold is not None:
            how = f"stops below {self.threshold:.4g}"
        return (
            f"Predictor(uint8 [N, {h}, {w}, 3] to {levels}; rule '{self.rule}', "
            f"alpha = {self.alpha:.2f}, {how})"
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
        probs: dict[str, dict[str, np.ndarray]] = {
            kind: {
                level: np.empty((len(images), classes), np.float32)
                for level, classes in zip(self.hierarchy.levels, self.hierarchy.sizes, strict=True)
            }
            for kind in ("adapted", "unadapted")
        }
        paths = np.empty((len(images), self.hierarchy.num_levels), np.int32)
        probability = np.empty(len(images), np.float32)
        for start in range(0, len(images), self.batch):
            part = images[start : start + self.batch]
            rows = slice(start, start + len(part))
            padding = ((0, self.batch - len(part)), (0, 0), (0, 0), (0, 0))
            outputs = self.forward(np.pad(part, padding))
            for kind, levels in probs.items():
                for level in levels:
                    levels[level][rows] = np.asarray(outputs[kind][level])[: len(part)]
            answer = outputs["answer"]
            for i, level in enumerate(self.hierarchy.levels):
                paths[rows, i] = np.asarray(answer["path"][level])[: len(part)]
            probability[rows] = np.asarray(answer["probability"])[: len(part)]
        names = {
            level: np.array([*self.hierarchy.cut_names(i), ""])[paths[:, i]]  # -1 is no class
            for i, level in enumerate(self.hierarchy.levels)
        }
        nodes = answer_nodes(paths, self.hierarchy)
        return Answer(
            probs["adapted"], probs["unadapted"], names,
            np.array(node_names(self.hierarchy))[nodes],
            np.array([*self.hierarchy.levels, ""])[nodes_of(self.hierarchy).levels[nodes]],
            probability,
        )  # fmt: skip

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
        return _map(lambda *parts: np.concatenate(parts), *answers)

    def export(self, path: str | Path) -> None:
        """Write `forward` as StableHLO to one file, by `jax.export`.

        The file holds the parameters, takes any number of images and runs on a CPU, a GPU by CUDA
        or a TPU, without this package:

            from jax import export                     # which needs the package flatbuffers

            program = export.deserialize(open("model.stablehlo", "rb").read())
            outputs = program.call(images)
            outputs["adapted"]["fine"]         # float32 [N, classes]
            outputs["answer"]["path"]["fine"]  # int32 [N], classes; -1 below the answer

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


def load(
    workdir: str | Path,
    batch: int = BATCH,
    *,
    decision: str = "leaf",
    target_accuracy: float | None = None,
    confidence: float | None = None,
    alpha: float | None = None,
    rule: str | None = None,
) -> Predictor:
    """Return a finished training run as a predictor.

    It has the parameters of the newest checkpoint and, unless others are given, the rule and the
    tuned alpha of the run. Nothing in the workdir is changed.

    With a target accuracy, it answers with the most probable leaf only if that is sure enough, else
    with the nearest class above it that is (`hiercls_jax.adaptation.stopping`). Answers then use
    alpha = 1. The threshold is calibrated on the run's validation images. They also chose alpha and
    perhaps the checkpoint, so that the accuracy of other images is approximate.

    Args:
      workdir: a training run's, such as `runs/merge1-quick`.
      batch: how many images are predicted at once, at least 1; 1 suits images that come one by one.
      decision: how it answers without a target, a key of `adaptation.answers.DECISIONS`.
      target_accuracy: how often answers shall be right, in (0, 1); None to answer by `decision`.
      confidence: how sure that shall be, in (0, 1); None for an accuracy that holds on average.
      alpha: how far to adapt, from 0 to the rule's largest; None for the run's, or for 1 by another
        rule than the run's, for which its alpha was not tuned.
      rule: how to adapt, a key of `adaptation.rules.RULES`; None for the run's.

    Raises:
      UserError: if the run is not finished, a part of it is missing or damaged, or it has too few
        validation images for the target; and for options out of range.
    """
    if batch < 1:
        raise UserError(f"a batch has at least 1 image, not {batch}")
    if decision not in DECISIONS:
        raise UserError(f"decision={decision!r}: allowed are {', '.join(map(repr, DECISIONS))}")
    workdir = Path(workdir).expanduser()
    results = _read_results(workdir)
    config = experiment.unflatten(results["config"])
    hierarchy = Hierarchy.read(workdir / "hierarchy.json")
    networks = _read_networks(workdir, config, results, hierarchy)
    alpha, rule = _choose(results["alpha"], config.adapt.rule, alpha, rule, hierarchy)
    threshold = None
    if target_accuracy is not None:
        target = Target(target_accuracy, confidence)
        threshold = _calibrate(workdir, hierarchy, rule, decision, target)
    elif confidence is not None:
        raise UserError(f"confidence={confidence:g} is of target_accuracy, which is not given")
    mean, std = (np.float32(results["input"][name]) for name in ("mean", "std"))

    @jax.jit
    def forward(images: jax.Array) -> dict[str, dict[str, Any]]:
        unadapted: dict[str, jax.Array] = {}
        for network, variables in networks:
            unadapted |= probabilities(
                network, variables, images, mean, std, config.dtype, config.data.mirror_mean
            )
        adapted = RULES[rule].adjust(list(unadapted.values()), hierarchy, alpha)
        if threshold is None:
            answer = _decided(adapted, hierarchy, decision)
        else:
            target = RULES[rule].target(list(unadapted.values()), hierarchy)
            answer = stop(target, hierarchy, threshold)
        return {
            "adapted": dict(zip(hierarchy.levels, adapted, strict=True)),
            "unadapted": unadapted,
            "answer": {
                "path": dict(zip(hierarchy.levels, jnp.unstack(answer.path, axis=-1), strict=True)),
                "level": answer.node[..., 0],
                "class": answer.node[..., 1],
                "probability": answer.probability,
            },
        }

    shape = tuple(results["input"]["shape"])
    return Predictor(hierarchy, shape, alpha, batch, forward, rule, decision, threshold)


def _choose(
    tuned: float, own: str, alpha: float | None, rule: str | None, hierarchy: Hierarchy
) -> tuple[float, str]:
    """Return the alpha and the rule to adapt by: those that are given, else the run's."""
    rule = own if rule is None else rule
    if rule not in RULES:
        raise UserError(f"rule={rule!r}: allowed are {', '.join(map(repr, RULES))}")
    try:
        largest = min(RULES[rule].largest_alpha(hierarchy))
    except ValueError as error:
        raise UserError(f"rule={rule!r}: {error}") from error
    if alpha is None:
        return (tuned if rule == own else 1.0), rule
    if not 0 <= alpha <= largest:
        raise UserError(f"alpha={alpha:g}: allowed is 0 to {largest:g} by the rule '{rule}'")
    return alpha, rule


def _decided(levels: Sequence[jax.Array], hierarchy: Hierarchy, decision: str) -> Answers:
    """Return the answers of a decision with their probabilities."""
    path = DECISIONS[decision](levels, hierarchy)
    node = answer_nodes(path, hierarchy)
    root = jnp.ones_like(levels[0][..., :1])
    probability = jnp.concatenate([*levels, root], axis=-1)  # by the node's number
    probability = jnp.take_along_axis(probability, node[..., None], axis=-1)[..., 0]
    return Answers(jnp.asarray(nodes_of(hierarchy).pairs)[node], path, probability)


def _calibrate(
    workdir: Path, hierarchy: Hierarchy, rule: str, decision: str, target: Target
) -> float:
    """Return the threshold that keeps a promise on the run's validation images."""
    if decision != "leaf":
        raise UserError(
            f"decision={decision!r} with target_accuracy: answers then climb from the most "
            "probable leaf; leave out the decision, or the target"
        )
    path = workdir / "predictions.npz"
    validation = predictions.load(path, hierarchy).get("validation")
    if validation is None:
        raise UserError(
            f"{path} has no validation images to calibrate a target accuracy on, as the run held "
            "out none; train with --config.data.validation, or leave out the target"
        )
    levels = [np.asarray(p) for p in RULES[rule].target(list(validation.probs.values()), hierarchy)]
    labels = validation.labels[hierarchy.levels[-1]]
    return LabelledClimb(climb_paths(levels, hierarchy), labels, hierarchy).threshold(target)


def _first(answer: Answer) -> Answer:
    """Return the answer for the first image, without the axis N."""
    return _map(lambda values: values[0], answer)


def _map(function: Callable[..., np.ndarray], *answers: Answer) -> Answer:
    """Return an answer of the results of a function of each array in the answers."""
    return Answer._make(
        {level: function(*(part[level] for part in parts)) for level in parts[0]}
        if isinstance(parts[0], dict)
        else function(*parts)
        for parts in zip(*answers, strict=True)
    )


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
