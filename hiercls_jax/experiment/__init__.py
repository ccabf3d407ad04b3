"""Experiments: the config with every default, its validation, and what is built from it."""

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
    PRESETS,
    ConfigError,
    check,
    compose,
    config_value,
    flatten,
    identity,
    named_config,
    parse_arguments,
    unflatten,
    variant,
)

__all__ = [
    "ConfigError",
    "Network",
    "PRESETS",
    "architectures",
    "check",
    "check_devices",
    "compose",
    "config_value",
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
