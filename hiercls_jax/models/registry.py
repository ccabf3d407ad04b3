"""Network families by name: `resnet164` is family `resnet` at depth 164."""

import dataclasses
import re
from collections.abc import Callable, Mapping

from hiercls_jax.errors import UserError
from hiercls_jax.models.branched import Family
from hiercls_jax.models.densenet import DenseNet
from hiercls_jax.models.resnet import ResNet

_FAMILIES: dict[str, Callable[..., Family]] = {"resnet": ResNet, "densenet": DenseNet}


class ArchError(UserError):
    """An architecture that does not exist, or options that it does not take."""


def register(name: str, family: Callable[..., Family]) -> None:
    """Make `<name><depth>` an architecture.

    Args:
      name: lower-case letters.
      family: a frozen dataclass whose first field is the depth, whose other fields are options
        with defaults, and which has the `pieces` of `branched.Family`. It may have a `RECIPE`,
        as `ResNet` and `DenseNet` have.
    """
    if not re.fullmatch("[a-z]+", name):
        raise ArchError(f"a family's name is lower-case letters, not '{name}'")
    _FAMILIES[name] = family


def options(arch: str) -> dict:
    """Return the options of an architecture with their defaults, `{'width': 1.0, …}`."""
    family, _ = _parse(arch)
    return {field.name: field.default for field in dataclasses.fields(family)[1:]}


def recipe(arch: str) -> Mapping[str, object]:
    """Return the training recipe of an architecture: epochs, batch, and fields of the optimizer.

    A family without a `RECIPE` is trained with that of ResNet.
    """
    family, _ = _parse(arch)
    return getattr(family, "RECIPE", ResNet.RECIPE)


def build(arch: str, **chosen) -> Family:
    """Return the family instance called `arch`, such as `resnet164`, with the given options."""
    family, depth = _parse(arch)
    unknown = sorted(set(chosen) - set(options(arch)))
    if unknown:
        raise ArchError(
            f"{arch} has no option '{unknown[0]}'; it has {', '.join(options(arch)) or 'none'}"
        )
    try:
        return family(depth, **chosen)
    except ValueError as error:
        raise ArchError(f"{arch}: {error}") from error


def _parse(arch: str) -> tuple[Callable[..., Family], int]:
    match = re.fullmatch(r"([a-z]+)(\d{1,4})", arch)
    if not match or match[1] not in _FAMILIES:
        raise ArchError(
            f"unknown arch '{arch}'; an arch is a family and its depth, such as resnet164 "
            f"(depth 9n + 2) or densenet100 (depth 6n + 4); families: {', '.join(_FAMILIES)}"
        )
    return _FAMILIES[match[1]], int(match[2])
