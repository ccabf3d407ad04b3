"""Experiments: the config with every default, its validation, and what is built from it.

`configs/merge1.py` is `get_config = variant("merge1")`. Without arguments that is the paper's
experiment; `configs/merge1.py:quick` and `configs/merge1.py:arch=densenet100,seed=3` change it.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict, config_dict

from hiercls_jax.data import embedded
from hiercls_jax.data.dataset import Dataset, hold_out
from hiercls_jax.errors import UserError
from hiercls_jax.hierarchy import Hierarchy, cifar100
from hiercls_jax.models import registry
from hiercls_jax.models.branched import Branched
from hiercls_jax.training import parallel
from hiercls_jax.training.loop import Schedule
from hiercls_jax.training.optimizer import make_optimizer
from hiercls_jax.training.step import Task

# How many stages the levels share; None for networks that are trained apart (Figure 2c-2g).
VARIANTS = {"separate": None, "merge0": 0, "merge1": 1, "merge2": 2, "merge3": 3}

# The recipes of the papers that the two networks come from, as the field gives them.
RECIPES = {
    # He et al. 2016: 64k steps of 128 from 50,000 images are 164 epochs; ÷10 at 32k and 48k.
    "resnet": {
        "epochs": 164,
        "batch": 128,
        "optimizer": {
            "schedule": "step",
            "learning_rate": 0.1,
            "decay_at": (0.5, 0.75),  # fractions of the run
            "decay_factor": 0.1,
            "warmup_steps": 400,
            "warmup_learning_rate": 0.01,
            "momentum": 0.9,
            "nesterov": False,
            "weight_decay": 1e-4,  # L2 in the gradient, on all parameters
        },
    },
    # Huang et al. 2017.
    "densenet": {
        "epochs": 300,
        "batch": 64,
        "optimizer": {
            "schedule": "step",
            "learning_rate": 0.1,
            "decay_at": (0.5, 0.75),
            "decay_factor": 0.1,
            "warmup_steps": 0,
            "warmup_learning_rate": 0.0,
            "momentum": 0.9,
            "nesterov": True,
            "weight_decay": 1e-4,
        },
    },
}

# One learning-rate cycle reaches most in few epochs (Smith and Topin, 2019).
_ONE_CYCLE = {
    "schedule": "onecycle",
    "learning_rate": 0.2,  # at the peak
    "peak_at": 0.25,  # fraction of the run
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
}

# What a bare word in a config's argument stands for: small enough for two CPU cores.
PRESETS = {
    "quick": {
        "arch": "resnet11",
        "model": {"stem_stride": 2},
        "dataset": "embedded",
        "epochs": 6,
        "batch": 100,
        "optimizer": _ONE_CYCLE,
    },
    "cpu": {
        "arch": "resnet20",
        "model": {"stem_stride": 2},
        "dataset": "cifar100",
        "epochs": 20,
        "batch": 100,
        "optimizer": _ONE_CYCLE,
    },
}

_PARTS = ("variant", "model", "data", "train", "optimizer", "run")  # of every config
DTYPES = ("float32", "bfloat16")
_LARGEST = float(np.finfo(np.float32).max)
_FROM_0 = "at least 0, not {}; finite in float32", lambda x: 0 <= x < _LARGEST
# What the fields of an optimizer may be; not all schedules have all of them.
_OPTIMIZER = {
    "learning_rate": ("above 0, not {}; finite in float32", lambda x: 0 < x < _LARGEST),
    "warmup_learning_rate": _FROM_0,
    "warmup_steps": ("at least 0 and below 2**31, not {}", lambda x: 0 <= x < 2**31),
    "momentum": ("at least 0 and below 1, not {}", lambda x: 0 <= x < 1),
    "weight_decay": _FROM_0,
    "decay_factor": _FROM_0,
    "decay_at": (
        "a tuple of fractions of the run, each from 0 to 1, not {}",
        lambda at: (
            isinstance(at, tuple | list)
            and all(isinstance(x, int | float) and 0 <= x <= 1 for x in at)
        ),
    ),
    "peak_at": ("a fraction of the run, between 0 and 1, not {}", lambda x: 0 < x < 1),
}
ARGUMENTS = {"arch": str, "dataset": str, "seed": int, "epochs": int, "batch": int}


class ConfigError(UserError):
    """A config that cannot be run, with the field at fault and what is allowed."""


def variant(name: str) -> Callable[..., ConfigDict]:
    """Return the `get_config(arguments=None)` of a config file."""
    return partial(compose, name)


def compose(name: str, arguments: str | None = None) -> ConfigDict:
    """Return the config of a variant, changed by a string of arguments.

    Args:
      name: a key of `VARIANTS`.
      arguments: presets and `key=value` pairs, separated by commas: `quick`,
        `arch=densenet100,dataset=cifar100,seed=3`.
    """
    preset, chosen = parse_arguments(arguments or "")
    arch = chosen.get("arch", preset.get("arch", "resnet164"))
    model = {**registry.options(arch)}
    if arch == preset.get("arch"):
        model |= preset["model"]
    elif preset:
        model |= {k: v for k, v in preset["model"].items() if k in model}
    recipe = RECIPES.get(re.match("[a-z]+", arch)[0], RECIPES["resnet"]) | preset
    label = "-".join([name, *re.findall(r"[\w.]+", (arguments or "").replace("=", "-"))])

    config = ConfigDict()
    config.variant = name  # separate, merge0, merge1, merge2 or merge3
    config.seed = chosen.get("seed", 0)  # of initial values, order of images and augmentation
    config.dtype = "float32"  # or bfloat16: in which the network computes; all else is float32
    config.workdir = str(Path("runs") / label)  # all that a run writes goes here

    config.model = ConfigDict({"arch": arch, **model})  # the architecture and its own options

    config.data = ConfigDict()
    config.data.dataset = chosen.get("dataset", preset.get("dataset", "cifar100"))
    config.data.dir = config_dict.placeholder(str)  # TFDS directory, or root of an image folder
    config.data.hierarchy = config_dict.placeholder(str)  # .json or .csv, for other data sets
    config.data.label_key = "label"  # last-level label of a TFDS set
    config.data.image_size = config_dict.placeholder(int)  # pixels; images are resized to it
    config.data.validation = 0.1  # fraction of train held out, stratified, to tune alpha on
    config.data.validation_seed = 0  # which images are held out, the same for every run's seed
    config.data.final = False  # train on all of train, as the paper did, and use alpha 1
    config.data.augment = True  # flip and pad-4 crop

    config.train = ConfigDict()
    config.train.epochs = chosen.get("epochs", recipe["epochs"])
    config.train.batch = chosen.get("batch", recipe["batch"])  # images per step, all devices
    config.train.loss_weights = config_dict.placeholder(tuple)  # one per level; all 1 if unset

    config.optimizer = ConfigDict(recipe["optimizer"])

    config.run = ConfigDict()  # how a run is carried out; nothing here changes its result
    config.run.cpu_devices = config_dict.placeholder(int)  # of each process; one per core if unset
    config.run.streaming = False  # folder, tfds: read images when needed, as too many to hold
    config.run.log_every = 50  # steps between training records
    config.run.save_minutes = 10.0  # between checkpoints, besides one after every epoch
    return config.lock()


def parse_arguments(arguments: str) -> tuple[dict, dict]:
    """Return (preset, what was chosen by `key=value`) of a config's arguments; empty where none."""
    preset, chosen = {}, {}
    for word in filter(None, (part.strip() for part in arguments.split(","))):
        key, equals, value = word.partition("=")
        if not equals and key in PRESETS:
            if preset:
                raise ConfigError(f"'{arguments}' names two presets; choose one")
            preset = PRESETS[key]
        elif not equals or key not in ARGUMENTS:
            raise ConfigError(
                f"unknown config argument '{word}'; allowed are {', '.join(PRESETS)}, and "
                f"{', '.join(f'{key}=…' for key in ARGUMENTS)}; any other field is set by "
                "--config.<field>=…"
            )
        else:
            try:
                chosen[key] = ARGUMENTS[key](value)
            except ValueError:
                raise ConfigError(f"config argument '{word}': {key} is an integer") from None
    return preset, chosen


def check(config: ConfigDict) -> None:
    """Refuse what can be seen to be wrong before data is read or anything compiles."""
    missing = [name for name in _PARTS if name not in config]
    if missing:
        raise ConfigError(
            f"this config has no '{missing[0]}', as those of one run have: configs/merge1.py and "
            "its like; for all variants with several seeds, run python -m hiercls_jax grid"
        )
    _family(config)
    if config.variant not in VARIANTS:
        raise ConfigError(f"variant '{config.variant}' is not one of {', '.join(VARIANTS)}")
    if config.dtype not in DTYPES:
        raise ConfigError(f"dtype '{config.dtype}' is not one of {', '.join(DTYPES)}")
    kind, _, name = config.data.dataset.partition(":")
    if not (name if kind == "tfds" else config.data.dataset in ("embedded", "cifar100", "folder")):
        raise ConfigError(
            f"data.dataset '{config.data.dataset}' is not one of embedded, cifar100, folder, "
            "tfds:NAME"
        )
    if kind in ("folder", "tfds") and not config.data.hierarchy:
        raise ConfigError(
            f"data.dataset={config.data.dataset} needs a hierarchy: a JSON file, or a CSV of "
            "(class, parent) rows, in --config.data.hierarchy"
        )
    if kind == "folder" and not (config.data.dir and config.data.image_size):
        raise ConfigError(
            "data.dataset=folder needs --config.data.dir (the folder with train/ and test/) and "
            "--config.data.image_size (pixels that images are resized to, such as 32)"
        )
    if config.run.streaming and kind not in ("folder", "tfds"):
        raise ConfigError(
            "run.streaming is for data.dataset=folder and tfds:NAME, which may be too large to "
            f"hold; {config.data.dataset} is not"
        )
    if kind in ("embedded", "cifar100") and config.data.image_size not in (None, 32):
        raise ConfigError(
            f"{kind} is 32x32; data.image_size={config.data.image_size} is for others"
        )
    if kind == "embedded" and config.data.dir:
        raise ConfigError("the embedded data set is made, not read: it has no data.dir")
    for field in (
        "train.epochs", "train.batch", "run.log_every", "run.cpu_devices", "data.image_size",
    ):  # fmt: skip
        value = config_value(config, field)
        if value is not None and not 1 <= value < 2**31:
            raise ConfigError(f"{field} is at least 1, not {value}; and below 2**31")
    for field in ("seed", "data.validation_seed"):
        if not 0 <= config_value(config, field) < 2**32:
            raise ConfigError(
                f"{field} is an integer from 0 to 2**32 - 1, not {config_value(config, field)}"
            )
    weights = config.train.loss_weights or ()
    if not all(isinstance(w, int | float) and 0 <= w < _LARGEST for w in weights):
        raise ConfigError(f"train.loss_weights are numbers of at least 0, not {weights}")
    if not 0 < config.data.validation < 1:
        raise ConfigError(
            f"data.validation is a fraction between 0 and 1, not {config.data.validation}; "
            "to hold nothing out, set data.final=True"
        )
    if not config.run.save_minutes > 0:
        raise ConfigError(f"run.save_minutes is above 0, not {config.run.save_minutes}")
    optimizer = config.optimizer
    if optimizer.schedule not in ("step", "onecycle"):
        raise ConfigError(f"optimizer.schedule '{optimizer.schedule}' is not step or onecycle")
    missing = {"step": "decay_at", "onecycle": "peak_at"}[optimizer.schedule]
    if missing not in optimizer:
        raise ConfigError(
            f"optimizer.schedule={optimizer.schedule} needs optimizer.{missing}, which this "
            f"config does not have; presets {', '.join(PRESETS)} use onecycle, all else step"
        )
    for field, (allowed, is_allowed) in _OPTIMIZER.items():
        value = optimizer.get(field)
        if field in optimizer and not is_allowed(value):
            raise ConfigError(f"optimizer.{field} is {allowed.format(value)}")


def check_devices(config: ConfigDict, devices: int) -> None:
    """Refuse a batch that the devices do not divide."""
    if config.train.batch % devices:
        raise ConfigError(
            f"train.batch={config.train.batch} cannot be divided among {devices} devices; allowed "
            f"are multiples of {devices}, or on CPUs another --config.run.cpu_devices"
        )


def config_value(config: ConfigDict, field: str) -> Any:
    """Return the value at a dotted path."""
    for part in field.split("."):
        config = config[part]
    return config


def flatten(config: Mapping, prefix: str = "") -> dict[str, Any]:
    """Return `{"data.dataset": …}`: every field by its dotted path, as JSON has it."""
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def unflatten(flat: Mapping[str, Any]) -> ConfigDict:
    """Undo `flatten`, but for tuples, which JSON made lists."""
    nested = {}
    for field, value in flat.items():
        *path, name = field.split(".")
        part = nested
        for key in path:
            part = part.setdefault(key, {})
        part[name] = value
    return ConfigDict(nested)


def identity(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that determine a run's result: all but where and how it is carried out."""
    return {
        field: value
        for field, value in flatten(config).items()
        if field not in ("workdir", "data.dir") and not field.startswith("run.")
    }


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
            splits = folder.stream(data.dir, hierarchy, data.image_size, parallel.on_first)
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
            splits = tfds_source.stream(*where, parallel.on_first)
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


def _family(config: ConfigDict):
    chosen = {key: value for key, value in config.model.items() if key != "arch"}
    return registry.build(config.model.arch, **chosen)
