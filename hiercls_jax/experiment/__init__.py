"""Experiments: the config with every default, its validation, and the data and networks of one."""

from hiercls_jax.experiment.build import (
    Network,
    architectures,
    check_devices,
    image_shape,
    load_data,
    load_hierarchy,
    network_folder,
    networks,
)
from hiercls_jax.experiment.config import (
    ADDED_LATER,
    PRESETS,
    ConfigError,
    check,
    compose,
    flatten,
    identity,
    named_config,
    parse_arguments,
    unflatten,
    variant,
)

__all__ = [
    "ADDED_LATER",
    "ConfigError",
    "Network",
    "PRESETS",
    "architectures",
    "check",
    "check_devices",
    "compose",
    "flatten",
    "identity",
    "image_shape",
    "load_data",
    "load_hierarchy",
    "named_config",
    "network_folder",
    "networks",
    "parse_arguments",
    "unflatten",
    "variant",
]
