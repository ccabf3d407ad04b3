"""The networks and the batch that both frameworks train, from an experiment's config."""

import dataclasses

import numpy as np
from ml_collections import ConfigDict

from hiercls_jax import experiment
from hiercls_jax.data import folder
from hiercls_jax.data.dataset import Dataset, Split
from hiercls_jax.hierarchy import cifar100
from hiercls_jax.models.branched import Branched

IMAGES = 50_000  # of random bytes: a step takes as long for noise as for photographs


@dataclasses.dataclass(frozen=True)
class Problem:
    """Networks and their batch, described by an experiment's config.

    Args:
      variant: `single` for the fine level alone, or a variant of `VARIANTS`.
      arguments: those of a config file, such as `arch=resnet164`.
      folder: image folder of CIFAR-100's classes to train on; random images if not given.
      streaming: whether that folder's images are read when they are needed.
      dtype: type in which the networks compute.
    """

    variant: str
    arguments: str
    folder: str | None = None
    streaming: bool = False
    dtype: str = "float32"

    def config(self) -> ConfigDict:
        """Return the experiment's config."""
        variant = "separate" if self.variant == "single" else self.variant
        config = experiment.compose(variant, self.arguments)
        config.dtype = self.dtype
        return config

    def data(self) -> Dataset:
        """Return the folder's images, or random ones of CIFAR-100's number, shape and labels."""
        if self.folder is not None:
            read = folder.stream if self.streaming else folder.read
            splits = read(self.folder, cifar100(), 32)
            return Dataset("folder", cifar100(), splits["train"], None, splits["test"])
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(IMAGES, 32, 32, 3), dtype=np.uint8)
        split = Split(images, rng.integers(100, size=IMAGES, dtype=np.int32))
        return Dataset("random", cifar100(), split, None, split)

    def architectures(self) -> dict[str, Branched]:
        """Return the networks, not mapped over devices."""
        return experiment.architectures(self.config(), cifar100())

    def networks(self, data: Dataset, axis_name: str | None = None) -> list[experiment.Network]:
        """Return the networks to train: the variant's, or of `single` the fine level's."""
        networks = experiment.networks(self.config(), data, axis_name)
        return networks[-1:] if self.variant == "single" else networks
