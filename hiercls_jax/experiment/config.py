"""Experiments: the config with every default, its validation, and what is built from it.

`configs/merge1.py` is `get_config = variant("merge1")`. Without arguments that is the paper's
experiment; `configs/merge1.py:quick` and `configs/merge1.py:arch=densenet100,seed=3` change it.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict, config_dict

from hiercls_jax.data import sources
from hiercls_jax.data.dataset import Request
from hiercls_jax.errors import UserError
from hiercls_jax.models import registry
from hiercls_jax.models.variants import VARIANTS

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


def named_config(text: str) -> ConfigDict:
    """Return the config that `merge1` or `merge1:quick,seed=3` names."""
    name, _, arguments = text.partition(":")
    if name not in VARIANTS:
        raise ConfigError(
            f"there is no config '{name}'; allowed are {', '.join(VARIANTS)}, with arguments after "
            "a colon (merge1:quick), or a file by --config=FILE"
        )
    return compose(name, arguments)


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
    recipe = {**registry.recipe(arch), **preset}
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
    sources.check(data_request(config))
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


def data_request(config: ConfigDict) -> Request:
    """Return what a config says of its data set."""
    data = config.data
    return Request(
        dataset=data.dataset,
        dir=data.dir,
        hierarchy=data.hierarchy,
        label_key=data.label_key,
        image_size=data.image_size,
        streaming=config.run.streaming,
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


def _family(config: ConfigDict):
    chosen = {key: value for key, value in config.model.items() if key != "arch"}
    return registry.build(config.model.arch, **chosen)
