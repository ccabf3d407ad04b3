"""The config of a run: every field with its default, and its validation.

`configs/merge1.py` is `get_config = variant("merge1")`. Without arguments that is the paper's
experiment; `configs/merge1.py:quick` and `configs/merge1.py:arch=densenet100,seed=3` change it.

A new field is a line of `compose` (default, and unit or source), a line of `FIELDS` (the values
that it may have), and a value in `ADDED_LATER`, because older runs have not recorded it.
"""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from ml_collections import ConfigDict, config_dict

from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.data import sources
from hiercls_jax.data.dataset import Request
from hiercls_jax.errors import UserError
from hiercls_jax.models import registry
from hiercls_jax.models.branched import Family
from hiercls_jax.models.variants import VARIANTS

# In few epochs, one learning-rate cycle reaches the lowest error (Smith and Topin, 2019).
_ONE_CYCLE = {
    "schedule": "onecycle",
    "learning_rate": 0.2,  # at the peak
    "peak_at": 0.25,  # fraction of the run
    "momentum": 0.9,
    "nesterov": True,
    "weight_decay": 5e-4,
}

# What a bare word in a config's arguments sets: runs that are small enough for two CPU cores.
PRESETS: dict[str, dict[str, Any]] = {
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
    "fast": {"arch": "fast11", "dataset": "cifar100"},  # with the recipe of its family
}

ARGUMENTS: dict[str, Callable[[str], Any]] = {
    "arch": str, "dataset": str, "seed": int, "epochs": int, "batch": int, "width": float,
}  # fmt: skip
_KINDS: dict[Callable[[str], Any], str] = {int: "an integer", float: "a number"}
# Fields of the optimizer that not every recipe has, with their values then: training/optimizer.py
# says what they are. A type means that the field is not set.
_OPTIMIZER: dict[str, Any] = {
    "decay_at": tuple, "decay_factor": 0.1, "warmup_steps": 0, "warmup_learning_rate": 0.01,
    "peak_at": float, "muon_learning_rate": float, "muon_momentum": 0.6, "muon_steps": 3,
    "lookahead": int,
}  # fmt: skip
# Fields that older runs did not record, and the values that these runs used.
ADDED_LATER: dict[str, Any] = {
    "dtype": "float32",
    "adapt.rule": "kl",
    "data.reflect": False,
    "data.mirror_mean": False,
    "data.alternate_mirror": False,
    "train.label_smoothing": 0.0,
    "train.parts": 1,
    "train.sizes": [],
    **{
        f"optimizer.{field}": None if isinstance(value, type) else value
        for field, value in _OPTIMIZER.items()
    },
}
_PARTS = ("variant", "model", "data", "train", "optimizer", "adapt", "run")  # every config has them
# The field that each schedule needs, and an example of each.
_SCHEDULES = {"step": "decay_at", "onecycle": "peak_at", "linear": "peak_at"}
_EXAMPLES = {"decay_at": "'(0.5, 0.75)'", "peak_at": "0.25"}


class ConfigError(UserError):
    """A config that cannot be run, with the field at fault and what is allowed."""


@dataclasses.dataclass(frozen=True)
class Allowed:
    """What a field of a config may be.

    Args:
      description: completes "the field must be".
      accepts: returns whether a value is allowed.
      advice: ends the error: what to do instead.
    """

    description: str
    accepts: Callable[[Any], bool]
    advice: str = ""


def _one_of(names: Iterable[str]) -> Allowed:
    names = tuple(names)
    return Allowed(f"one of {', '.join(names)}", lambda name: name in names)


def _is_number(x: object) -> bool:
    return isinstance(x, int | float)


def _are_sizes(sizes: object) -> bool:
    """Return whether this is `train.sizes`: pairs of pixels and an increasing fraction below 1."""
    if not isinstance(sizes, tuple | list):
        return False
    if not all(isinstance(pair, tuple | list) and len(pair) == 2 for pair in sizes):
        return False
    pixels, until = [pair[0] for pair in sizes], [0.0, *(pair[1] for pair in sizes), 1.0]
    return (
        all(isinstance(n, int) and 1 <= n < 2**31 for n in pixels)
        and all(map(_is_number, until))
        and all(a < b for a, b in itertools.pairwise(until))
    )


_LARGEST = float(np.finfo(np.float32).max)
_COUNT = Allowed("at least 1 and below 2**31", lambda n: 1 <= n < 2**31)
_SEED = Allowed("an integer from 0 to 2**32 - 1", lambda n: 0 <= n < 2**32)
_FROM_0 = Allowed("at least 0 and finite in float32", lambda x: 0 <= x < _LARGEST)
_ABOVE_0 = Allowed("above 0 and finite in float32", lambda x: 0 < x < _LARGEST)
_FRACTION = Allowed("a fraction of the run, between 0 and 1", lambda x: 0 < x < 1)

# The values that a field may have, if a config has the field and it is set. Other checks are made
# elsewhere: of `model` by the network's family, of `data` by its source, of types by ConfigDict.
FIELDS = {
    "variant": _one_of(VARIANTS),
    "seed": _SEED,
    "dtype": _one_of(["float32", "bfloat16"]),
    "data.image_size": _COUNT,
    "data.validation": Allowed(
        "a fraction between 0 and 1",
        lambda x: 0 < x < 1,
        "; to hold nothing out, set data.final=True",
    ),
    "data.validation_seed": _SEED,
    "train.epochs": _COUNT,
    "train.batch": _COUNT,
    "train.parts": _COUNT,
    "train.sizes": Allowed(
        "pairs (pixels, fraction of the run), the fractions increasing and below 1, such as "
        "((20, 0.4),)",
        _are_sizes,
    ),
    "train.label_smoothing": Allowed("at least 0 and below 1", lambda x: 0 <= x < 1),
    "train.loss_weights": Allowed(
        "numbers of at least 0, finite in float32",
        lambda weights: all(_is_number(w) and 0 <= w < _LARGEST for w in weights),
    ),
    "optimizer.schedule": _one_of(_SCHEDULES),
    "optimizer.learning_rate": _ABOVE_0,
    "optimizer.warmup_learning_rate": _FROM_0,
    "optimizer.warmup_steps": Allowed("at least 0 and below 2**31", lambda n: 0 <= n < 2**31),
    "optimizer.momentum": Allowed("at least 0 and below 1", lambda x: 0 <= x < 1),
    "optimizer.weight_decay": _FROM_0,
    "optimizer.decay_factor": _FROM_0,
    "optimizer.decay_at": Allowed(
        "a tuple of fractions of the run, each from 0 to 1",
        lambda at: isinstance(at, tuple | list) and all(_is_number(x) and 0 <= x <= 1 for x in at),
    ),
    "optimizer.peak_at": _FRACTION,
    "optimizer.muon_learning_rate": _ABOVE_0,
    "optimizer.muon_momentum": Allowed("at least 0 and below 1", lambda x: 0 <= x < 1),
    "optimizer.muon_steps": Allowed("from 1 to 20", lambda n: 1 <= n <= 20),
    "optimizer.lookahead": _COUNT,
    "adapt.rule": _one_of(RULES),
    "run.cpu_devices": _COUNT,
    "run.log_every": _COUNT,
    "run.save_minutes": Allowed("above 0", lambda x: x > 0),
}


def variant(name: str) -> Callable[..., ConfigDict]:
    """Return the `get_config(arguments=None)` of a config file."""
    return partial(compose, name)


def named_config(text: str) -> ConfigDict:
    """Return the config that a text such as `merge1` or `merge1:quick,seed=3` names.

    Raises:
      ConfigError: for another name than those of `VARIANTS`, or unknown arguments.

    >>> config = named_config("merge1:quick,seed=3")
    >>> config.model.arch, config.train.epochs, config.seed, config.workdir
    ('resnet11', 6, 3, 'runs/merge1-quick-seed-3')
    """
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

    Raises:
      ConfigError: for unknown arguments.
      ArchError: for an architecture that does not exist.
    """
    preset, chosen = parse_arguments(arguments or "")
    arch = chosen.get("arch", preset.get("arch", "resnet164"))
    of_family = registry.recipe(arch)
    recipe = {**of_family, **preset}
    batch = chosen.get("batch", recipe["batch"])
    parts = recipe.get("parts", 1) if batch == of_family["batch"] else 1
    words = re.findall(r"[\w.]+", (arguments or "").replace("=", "-"))

    config = ConfigDict()
    config.variant = name  # separate, merge0, merge1, merge2 or merge3
    config.seed = chosen.get("seed", 0)  # of initial values, order of images and augmentation
    config.dtype = "float32"  # of the network's computation, or bfloat16; the rest is float32
    config.workdir = str(Path("runs", "-".join([name, *words])))  # folder for all files of the run

    config.model = ConfigDict(_model(arch, preset, chosen))  # the architecture and its own options

    config.data = ConfigDict()
    config.data.dataset = chosen.get("dataset", preset.get("dataset", "cifar100"))
    config.data.dir = config_dict.placeholder(str)  # TFDS directory, or root of an image folder
    config.data.hierarchy = config_dict.placeholder(str)  # .json or .csv, for other data sets
    config.data.label_key = "label"  # last-level label of a TFDS set
    config.data.image_size = config_dict.placeholder(int)  # pixels; images are resized to it
    config.data.validation = 0.1  # stratified fraction of train, held out to tune alpha
    config.data.validation_seed = 0  # chooses the held-out images, whatever the run's seed
    config.data.final = False  # train on all of train, as the paper did, and use alpha 1
    config.data.augment = True  # mirror at random and pad-4 crop
    config.data.alternate_mirror = recipe.get("alternate_mirror", False)  # augment: by epoch
    config.data.reflect = recipe.get("reflect", False)  # augment: pad by reflection, not by zeros
    config.data.mirror_mean = recipe.get("mirror_mean", False)  # predict image and mirror image

    config.train = ConfigDict()
    config.train.epochs = chosen.get("epochs", recipe["epochs"])
    config.train.batch = batch  # images per step, all devices
    config.train.parts = parts  # of a batch, one after another, to save memory
    config.train.sizes = recipe.get("sizes", ())  # (pixels, until which fraction of the run), …
    config.train.label_smoothing = recipe.get("label_smoothing", 0.0)  # from 0 to below 1
    config.train.loss_weights = config_dict.placeholder(tuple)  # one per level; all 1 if unset

    config.optimizer = ConfigDict(recipe["optimizer"])  # fields: training/optimizer.py
    for field, value in _OPTIMIZER.items():
        if field not in config.optimizer:
            unset = isinstance(value, type)
            config.optimizer[field] = config_dict.placeholder(value) if unset else value

    config.adapt = ConfigDict()
    config.adapt.rule = "kl"  # makes the levels agree: Algorithm 1, or another key of RULES

    config.run = ConfigDict()  # how a run is carried out; nothing here changes its result
    config.run.cpu_devices = config_dict.placeholder(int)  # of each process; one per core if unset
    config.run.streaming = False  # folder, tfds: read images when needed; for large sets
    config.run.log_every = 50  # steps between training records
    config.run.save_minutes = 10.0  # minutes between checkpoints; each epoch ends with one, too
    return config.lock()


def _model(arch: str, preset: Mapping[str, Any], chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Return the `model` part of a config: a preset changes the options that the arch has."""
    options = registry.options(arch)
    changed = {key: value for key, value in preset.get("model", {}).items() if key in options}
    if "width" in chosen:
        if "width" not in options:
            raise ConfigError(f"{arch} has no width; it has {', '.join(options) or 'no options'}")
        changed["width"] = chosen["width"]
    return {"arch": arch, **options, **changed}


def parse_arguments(arguments: str) -> tuple[Mapping[str, Any], dict[str, Any]]:
    """Return the preset that a config's arguments name (empty if none) and their `key=value`s."""
    preset: Mapping[str, Any] = {}
    chosen: dict[str, Any] = {}
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
                kind = _KINDS[ARGUMENTS[key]]
                raise ConfigError(f"config argument '{word}': {key} is {kind}") from None
    return preset, chosen


def check(config: ConfigDict) -> None:
    """Reject a config that can be seen to be wrong before data is read or anything compiles.

    Raises:
      UserError: for a missing part, and a field whose value is not allowed.
    """
    missing = [name for name in _PARTS if name not in config]
    if missing:
        raise ConfigError(
            f"this config has no '{missing[0]}', as the config of one run does, such as "
            "configs/merge1.py; for all variants with several seeds, run python -m hiercls_jax grid"
        )
    for field, allowed in FIELDS.items():
        value = _value(config, field)
        if value is not None and not allowed.accepts(value):
            wanted = allowed.description
            raise ConfigError(f"{field} must be {wanted}, not {value!r}{allowed.advice}")
    _check_schedule(config)
    sources.check(data_request(config))
    _check_sizes(config, family(config))


def _check_sizes(config: ConfigDict, built: Family) -> None:
    """Reject images that are too small for the architecture."""
    least = getattr(built, "smallest", 1)
    for pixels, _ in config.train.sizes:
        if pixels < least:
            raise ConfigError(
                f"train.sizes has images of {pixels} pixels; {config.model.arch} needs at least "
                f"{least}"
            )


def _check_schedule(config: ConfigDict) -> None:
    """Reject a schedule without its field, and a field that only another schedule would read."""
    optimizer = config.optimizer
    needed = _SCHEDULES[optimizer.schedule]
    if optimizer.get(needed) is None:
        raise ConfigError(
            f"optimizer.schedule={optimizer.schedule} needs optimizer.{needed}, which is not set; "
            f"set --config.optimizer.{needed}={_EXAMPLES[needed]}, or choose another schedule"
        )
    of_family = cast(dict[str, Any], registry.recipe(config.model.arch)["optimizer"])
    for field in sorted({*_SCHEDULES.values()} - {needed}):
        value = optimizer.get(field)
        if value is not None and value != of_family.get(field):
            readers = [name for name, other in _SCHEDULES.items() if other == field]
            raise ConfigError(
                f"optimizer.{field}={value} has no effect with optimizer.schedule="
                f"{optimizer.schedule}; it is for {' and '.join(readers)}"
            )


def family(config: ConfigDict) -> Family:
    """Return a config's architecture.

    Raises:
      ArchError: for an architecture that does not exist, or options that it does not take.
    """
    options = {key: value for key, value in config.model.items() if key != "arch"}
    return registry.build(config.model.arch, **options)


def data_request(config: ConfigDict) -> Request:
    """Return the data set that a config asks for, with the fields that its source reads."""
    data = config.data
    return Request(
        dataset=data.dataset,
        dir=data.dir,
        hierarchy=data.hierarchy,
        label_key=data.label_key,
        image_size=data.image_size,
        streaming=config.run.streaming,
    )


def _value(config: ConfigDict, field: str) -> Any:
    """Return the value at a dotted path, or None if there is none."""
    value: Any = config
    for part in field.split("."):
        value = value.get(part)
        if value is None:
            return None
    return value


def flatten(config: Mapping[str, Any] | ConfigDict, prefix: str = "") -> dict[str, Any]:
    """Return every field by its dotted path, with tuples as JSON's lists.

    >>> flatten({"seed": 0, "optimizer": {"decay_at": (0.5, 0.75)}})
    {'seed': 0, 'optimizer.decay_at': [0.5, 0.75]}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping | ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def unflatten(flat: Mapping[str, Any]) -> ConfigDict:
    """Return the config that a run recorded by `flatten`; tuples stay JSON's lists.

    Fields that an older version did not record get the values that it used.
    """
    nested: dict[str, Any] = {}
    for field, value in {**ADDED_LATER, **flat}.items():
        *path, name = field.split(".")
        part = nested
        for key in path:
            part = part.setdefault(key, {})
        part[name] = value
    return ConfigDict(nested)


def identity(config: ConfigDict) -> dict[str, Any]:
    """Return the fields that determine a run's result, by path: all but the folders and `run`."""
    return {
        field: value
        for field, value in flatten(config).items()
        if field not in ("workdir", "data.dir") and not field.startswith("run.")
    }
