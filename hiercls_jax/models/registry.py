"""Network families by name: `resnet164` is family `resnet` at depth 164."""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from hiercls_jax.errors import UserError
from hiercls_jax.models.branched import Family
from hiercls_jax.models.densenet import DenseNet
from hiercls_jax.models.fast import Fast
from hiercls_jax.models.resnet import ResNet

FamilyClass = type[Any]  # a dataclass that is a `Family`, made from a depth and options

_FAMILIES: dict[str, FamilyClass] = {"resnet": ResNet, "densenet": DenseNet, "fast": Fast}


class ArchError(UserError):
    """The architecture does not exist, or does not have the option."""


def register(name: str, family: FamilyClass) -> None:
    """Make `<name><depth>` an architecture.

    Args:
      name: lower-case letters.
      family: a frozen dataclass with the `pieces` of `branched.Family`. Its first field is the
        depth; its other fields are options and have defaults. It may have a training `RECIPE`, as
        `ResNet` and `DenseNet` have, and, as `Fast` has, `head(classes)`, which returns a level's
        module `classifier` (a `Classifier` without it), and `with_constants(batch_stats, images)`,
        which returns a new run's batch statistics with constants of its standardised images.

    Raises:
      ArchError: if the name is not lower-case letters.
    """
    if not re.fullmatch("[a-z]+", name):
        raise ArchError(f"a family's name is lower-case letters, not '{name}'")
    _FAMILIES[name] = family


def options(arch: str) -> dict[str, Any]:
    """Return the options of an architecture with their defaults.

    >>> options("resnet164")
    {'width': 1.0, 'stem_stride': 1}
    """
    family, _ = _parse(arch)
    return {field.name: field.default for field in dataclasses.fields(family)[1:]}


def recipe(arch: str) -> Mapping[str, object]:
    """Return the training recipe of an architecture: epochs, batch, and fields of the optimizer.

    A family without a `RECIPE` is trained with that of ResNet.
    """
    family, _ = _parse(arch)
    own: Mapping[str, object] = getattr(family, "RECIPE", ResNet.RECIPE)
    return own


def build(arch: str, **chosen: Any) -> Family:
    """Return the family called `arch`, such as `resnet164`, with the given options.

    Raises:
      ArchError: if the family, the depth or an option does not exist or is out of range.
    """
    family, depth = _parse(arch)
    unknown = sorted(set(chosen) - set(options(arch)))
    if unknown:
        raise ArchError(
            f"{arch} has no option '{unknown[0]}'; it has {', '.join(options(arch)) or 'none'}"
        )
    try:
        built: Family = family(depth, **chosen)
        return built
    except ValueError as error:
        raise ArchError(f"{arch}: {error}") from error


def _parse(arch: str) -> tuple[FamilyClass, int]:
    match = re.fullmatch(r"([a-z]+)(\d{1,4})", arch)
    if not match or match[1] not in _FAMILIES:
        raise ArchError(
            f"unknown arch '{arch}'; an arch is a family and its depth, such as resnet164 (depth "
            "9n + 2), densenet100 (depth 6n + 4) or fast11 (depth 6n + 5); families: "
            f"{', '.join(_FAMILIES)}"
        )
    return _FAMILIES[match[1]], int(match[2])
