"""What is built from a config: data, networks and their schedules."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from hiercls_jax.data import embedded
from hiercls_jax.data.dataset import Dataset, hold_out
from hiercls_jax.experiment.config import ConfigError, _family
from hiercls_jax.hierarchy import Hierarchy, cifar100
from hiercls_jax.models.branched import Branched
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.runtime import parallel
from hiercls_jax.training.loop import Schedule
from hiercls_jax.training.optimizer import make_optimizer
from hiercls_jax.training.step import Task


def load_data(config: ConfigDict) -> Dataset:
    """Read the images that a config asks for, and hold out validation."""
    data = config.data
    kind, _, name = data.dataset.partition(":")
    hierarchy = load_hierarchy(config)
    # Each source imports what only it needs: TFDS alone takes seconds.
    if kind == "embedded":
        splits, classes = embedded.load(), embedded.hierarchy().sizes[-1]
    elif kind == "folder":
        from hiercls_jax.data import folder

        if config.run.streaming:
            splits = folder.stream(data.dir, hierarchy, data.image_size, parallel.broadcast_bytes)
        else:
            splits = folder.read(data.dir, hierarchy, data.image_size)
        classes = hierarchy.sizes[-1]
    elif kind == "cifar100":
        from hiercls_jax.data import cifar100 as source

        splits, classes = source.load(data.dir), 100
    else:
        from hiercls_jax.data import tfds_source

        where = (name, data.dir, data.label_key, hierarchy, data.image_size)
        if config.run.streaming:
            splits = tfds_source.stream(*where, parallel.broadcast_bytes)
        else:
            splits = tfds_source.read(*where)
        classes = hierarchy.sizes[-1]
    if hierarchy.num_levels < 2:
        raise ConfigError("a hierarchy of one level has nothing to merge or adapt; it needs two")
    if hierarchy.sizes[-1] != classes:
        raise ConfigError(
            f"{data.hierarchy} has {hierarchy.sizes[-1]} classes at its last level; "
            f"{data.dataset} has {classes}"
        )
    train, validation = splits["train"], None
    if not data.final:
        train, validation = hold_out(train, data.validation, data.validation_seed)
    if len(train) < config.train.batch:
        raise ConfigError(
            f"train.batch={config.train.batch} is more than the {len(train)} training images; "
            f"allowed are 1 to {len(train)}, by batch=… after the config's colon or by "
            "--config.train.batch=…"
        )
    return Dataset(data.dataset, hierarchy, train, validation, splits["test"])


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of an experiment, ready to be trained.

    Args:
      name: `merge1`, or the level that a separate network predicts.
      folder: where it keeps its checkpoints and metrics.
      task: what its steps need.
      key: random key of its initial values.
      schedule: how long and in what order it is trained.
    """

    name: str
    folder: Path
    task: Task
    key: Any
    schedule: Schedule


def architectures(
    config: ConfigDict, hierarchy: Hierarchy, axis_name: str | None = None
) -> dict[str, Branched]:
    """Return a variant's networks by name: one for all levels, or one per level, named after it."""
    merge, family = VARIANTS[config.variant], _family(config)
    heads = tuple(zip(hierarchy.levels, hierarchy.sizes, strict=True))
    if merge is None:
        return {level: Branched(family, ((level, n),), 0, axis_name) for level, n in heads}
    return {config.variant: Branched(family, heads, merge, axis_name)}


def networks(config: ConfigDict, data: Dataset, axis_name: str | None) -> list[Network]:
    """Return a variant's networks, ready to be trained on `data`.

    Separate networks have their own initial values, order of images and augmentation.
    """
    hierarchy = data.hierarchy
    weights = config.train.loss_weights or (1.0,) * hierarchy.num_levels
    if len(weights) != hierarchy.num_levels:
        raise ConfigError(
            f"train.loss_weights needs {hierarchy.num_levels} numbers, one for each of "
            f"{', '.join(hierarchy.levels)}; got {weights}"
        )
    weights = {level: float(w) for level, w in zip(hierarchy.levels, weights, strict=True)}
    mean, std = data.channel_statistics()
    steps = config.train.epochs * (len(data.train) // config.train.batch)
    built = []
    for index, (name, network) in enumerate(architectures(config, hierarchy, axis_name).items()):
        key = jax.random.fold_in(jax.random.key(config.seed), index)
        init_key, augment_key = jax.random.split(key)
        levels = [level for level, _ in network.heads]
        task = Task(
            network=network,
            optimizer=make_optimizer(config.optimizer, steps),
            ancestors={v: hierarchy.ancestors(hierarchy.levels.index(v)) for v in levels},
            weights={level: weights[level] for level in levels},
            mean=mean,
            std=std,
            key=augment_key,
            augment=config.data.augment,
            dtype=config.dtype,
        )
        schedule = Schedule(
            epochs=config.train.epochs,
            batch=config.train.batch,
            seed=(config.seed, index),
            log_every=config.run.log_every,
            save_minutes=config.run.save_minutes,
        )
        folder = network_folder(config, config.workdir, name)
        built.append(Network(name, folder, task, init_key, schedule))
    return built


def network_folder(config: ConfigDict, workdir, name: str) -> Path:
    """Return where the network `name` of a run keeps its checkpoints: separate ones each apart."""
    return Path(workdir) / (name if VARIANTS[config.variant] is None else "")


def load_hierarchy(config: ConfigDict) -> Hierarchy:
    """Return the hierarchy of a config's data set, without reading images."""
    if config.data.hierarchy:
        hierarchy = Hierarchy.read(config.data.hierarchy)
        if hierarchy.ragged:
            raise ConfigError(
                f"{config.data.hierarchy} has leaves above its last level; a network needs a class "
                "for every image at every level: give such a leaf an only child at each level below"
            )
        return hierarchy
    return embedded.hierarchy() if config.data.dataset == "embedded" else cifar100()


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Return the (H, W, 3) that a config's images have: 32 pixels where it does not say."""
    size = config.data.image_size or 32
    return (size, size, 3)


def check_devices(config: ConfigDict, devices: int) -> None:
    """Refuse a batch that the devices do not divide."""
    if config.train.batch % devices:
        raise ConfigError(
            f"train.batch={config.train.batch} cannot be divided among {devices} devices; allowed "
            f"are multiples of {devices}, or on CPUs another --config.run.cpu_devices"
        )
