"""What both frameworks are to train: networks and a batch, from an experiment's config."""

import dataclasses

import numpy as np

from hiercls_jax import experiment
from hiercls_jax.data.dataset import Dataset, Split
from hiercls_jax.hierarchy import cifar100

IMAGES = 50_000  # of random bytes: a step takes as long for noise as for photographs


@dataclasses.dataclass(frozen=True)
class Problem:
    """Networks and their batch, as an experiment's config describes them.

    Args:
      variant: `single` for the fine level alone, or a variant of `experiment.VARIANTS`.
      arguments: those of a config file, such as `arch=resnet164`.
    """

    variant: str
    arguments: str

    def config(self):
        """Return the experiment's config."""
        variant = "separate" if self.variant == "single" else self.variant
        return experiment.compose(variant, self.arguments)

    def data(self) -> Dataset:
        """Return random images of CIFAR-100's number and shape, with its labels."""
        rng = np.random.default_rng(0)
        images = rng.integers(256, size=(IMAGES, 32, 32, 3), dtype=np.uint8)
        split = Split(images, rng.integers(100, size=IMAGES, dtype=np.int32))
        return Dataset("random", cifar100(), split, None, split)

    def networks(self, data: Dataset, axis_name: str | None = None) -> list[experiment.Network]:
        """Return what is trained: one network, or all that the variant trains apart."""
        networks = experiment.networks(self.config(), data, axis_name)
        return networks[-1:] if self.variant == "single" else networks
