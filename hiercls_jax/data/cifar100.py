"""CIFAR-100 (Krizhevsky, 2009), downloaded and prepared if there is no prepared copy."""

import os

from hiercls_jax.data.dataset import Request, Split
from hiercls_jax.data.stream import OnPrimary
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy import cifar100 as hierarchy


def load_splits(request: Request, hierarchy: Hierarchy, on_primary: OnPrimary) -> dict[str, Split]:
    """Return the splits of `load`; see `sources.SourceModule`."""
    return load(request.dir)


def load(data_dir: str | os.PathLike | None = None) -> dict[str, Split]:
    """Read CIFAR-100; download and prepare it first if TFDS has no prepared copy.

    Args:
      data_dir: the folder of TFDS's data sets; None: `$TFDS_DATA_DIR`, or TFDS's own default.

    Returns:
      `{'train': Split, 'test': Split}` of 50,000 and 10,000 images uint8 `[N, 32, 32, 3]`, with
      fine labels int32 `[N]` in the order of `hierarchy()`.

    Raises:
      DataError: if it cannot be downloaded, prepared or read, with what to do.
    """
    # Imported here, because both import TFDS, and a summary needs only the hierarchy.
    from hiercls_jax.data import cifar100_prepare, tfds_source

    if tfds_source.find("cifar100", data_dir) is None:
        cifar100_prepare.prepare(data_dir)
    return tfds_source.read("cifar100", data_dir, "label", hierarchy())


__all__ = ["hierarchy", "load", "load_splits"]
