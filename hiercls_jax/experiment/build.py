"""Builds what a config describes: data, networks and their schedules."""

import dataclasses
from pathlib import Path

import jax
from ml_collections import ConfigDict

from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.data import sources
from hiercls_jax.data.dataset import Dataset, Samples, hold_out
from hiercls_jax.experiment.config import ConfigError, data_request, family
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.models.branched import Branched
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.runtime import parallel
from hiercls_jax.training.loop import Schedule
from hiercls_jax.training.optimizer import make_optimizer
from hiercls_jax.training.step import Task


def load_data(config: ConfigDict) -> Dataset:
    """Read the images that a config asks for, and hold out validation.

    Raises:
      UserError: for a hierarchy that does not suit the config, images that cannot be used, and a
        batch larger than the training split.
    """
    data, hierarchy = config.data, load_hierarchy(config)
    _check_hierarchy(config, hierarchy)
    splits = sources.load_splits(data_request(config), hierarchy, parallel.broadcast_bytes)
    train: Samples = splits["train"]
    validation: Samples | None = None
    if not data.final:
        train, validation = hold_out(train, data.validation, data.validation_seed)
    if len(train) < config.train.batch:
        raise ConfigError(
            f"train.batch={config.train.batch} is more than the {len(train)} training images; "
            f"allowed are 1 to {len(train)}, by batch=… after the config's colon or by "
            "--config.train.batch=…"
        )
    return Dataset(data.dataset, hierarchy, train, validation, splits["test"])


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
    own = sources.own_hierarchy(config.data.dataset)
    if own is None:
        raise ConfigError(f"data.dataset={config.data.dataset} needs --config.data.hierarchy")
    return own


def _check_hierarchy(config: ConfigDict, hierarchy: Hierarchy) -> None:
    """Reject a hierarchy that the data set, or the adaptation, cannot use."""
    if hierarchy.num_levels < 2:
        raise ConfigError("a hierarchy of one level has nothing to merge or adapt; it needs two")
    own = sources.own_hierarchy(config.data.dataset)
    if own is not None and hierarchy.sizes[-1] != own.sizes[-1]:
        raise ConfigError(
            f"{config.data.hierarchy} has {hierarchy.sizes[-1]} classes at its last level; "
            f"{config.data.dataset} has {own.sizes[-1]}"
        )
    try:
        RULES[config.adapt.rule].largest_alpha(hierarchy)
    except ValueError as error:
        raise ConfigError(f"adapt.rule={config.adapt.rule}: {error}") from error


def image_shape(config: ConfigDict) -> tuple[int, int, int]:
    """Return the (H, W, 3) of a config's images; 32 pixels if neither it nor its source says."""
    size = config.data.image_size or sources.find(config.data.dataset).image_size or 32
    return (size, size, 3)


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of an experiment, ready to be trained.

    Args:
      name: `merge1`, or the level that a separate network predicts.
      folder: holds its checkpoints and metrics.
      task: what its steps need.
      key: random key of its initial values.
      schedule: number of epochs, size and order of the batches.
    """

    name: str
    folder: Path
    task: Task
    key: jax.Array
    schedule: Schedule


def architectures(
    config: ConfigDict, hierarchy: Hierarchy, axis_name: str | None = None
) -> dict[str, Branched]:
    """Return a variant's networks by name: one for all levels, or one per level, named after it."""
    merge, arch = VARIANTS[config.variant], family(config)
    heads = tuple(zip(hierarchy.levels, hierarchy.sizes, strict=True))
    if merge is None:
        return {level: Branched(arch, ((level, n),), 0, axis_name) for level, n in heads}
    return {config.variant: Branched(arch, heads, merge, axis_name)}


def networks(config: ConfigDict, data: Dataset, axis_name: str | None) -> list[Network]:
    """Return a variant's networks, ready to be trained on `data`.

    Separate networks have their own initial values, order of images and augmentation.

    Args:
      config: a checked config.
      data: the images, with their hierarchy.
      axis_name: of the mapped axis over which batch statistics are averaged, if any.

    Raises:
      ConfigError: if `train.loss_weights` has not one number for each level.
    """
    hierarchy = data.hierarchy
    weights = _loss_weights(config, hierarchy)
    mean, std = data.channel_statistics()
    per_epoch = len(data.train) // config.train.batch
    steps = config.train.epochs * per_epoch
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
            smoothing=config.train.label_smoothing,
            reflect=config.data.reflect,
            parts=config.train.parts,
            mirror=config.data.mirror_mean,
            alternate=per_epoch if config.data.alternate_mirror else None,
        )
        schedule = Schedule(
            epochs=config.train.epochs,
            batch=config.train.batch,
            seed=(config.seed, index),
            log_every=config.run.log_every,
            save_minutes=config.run.save_minutes,
            sizes=tuple((pixels, until) for pixels, until in config.train.sizes),
        )
        folder = network_folder(config, config.workdir, name)
        built.append(Network(name, folder, task, init_key, schedule))
    return built


def _loss_weights(config: ConfigDict, hierarchy: Hierarchy) -> dict[str, float]:
    """Return the weight of each level's loss."""
    weights = config.train.loss_weights or (1.0,) * hierarchy.num_levels
    if len(weights) != hierarchy.num_levels:
        raise ConfigError(
            f"train.loss_weights needs {hierarchy.num_levels} numbers, one for each of "
            f"{', '.join(hierarchy.levels)}; got {weights}"
        )
    return {level: float(w) for level, w in zip(hierarchy.levels, weights, strict=True)}


def network_folder(config: ConfigDict, workdir: str | Path, name: str) -> Path:
    """Return the folder for a network's checkpoints: separate networks have one each."""
    return Path(workdir) / (name if VARIANTS[config.variant] is None else "")


def check_devices(config: ConfigDict, devices: int) -> None:
    """Reject a batch that cannot be divided among the devices."""
    batch, parts = config.train.batch, config.train.parts
    if batch % devices == 0 and batch % (devices * parts):
        raise ConfigError(
            f"train.batch={batch} cannot be divided among {devices} devices in train.parts={parts} "
            f"each; allowed are multiples of {devices * parts}, or another --config.train.parts"
        )
    if batch % devices:
        raise ConfigError(
            f"train.batch={batch} cannot be divided among {devices} devices; allowed "
            f"are multiples of {devices}, or on CPUs another --config.run.cpu_devices"
        )
