"""How images reach the step: from host memory on a CPU, from device memory on an accelerator."""

from collections.abc import Callable, Iterator

import numpy as np

from hiercls_jax.data.dataset import Split
from hiercls_jax.training import parallel


def make_feed(split: Split, resident: bool) -> Callable[[np.ndarray], dict]:
    """Return `feed(indices) -> batch`: this process's share of a global batch, on its devices.

    Args:
      split: images and labels on the host.
      resident: put the whole split into every device's memory once, and send only indices.
    """
    source = (
        parallel.replicate({"images": split.images, "labels": split.labels}) if resident else None
    )

    def feed(indices: np.ndarray) -> dict:
        mine = parallel.share(len(indices))
        positions = np.arange(len(indices), dtype=np.int32)[mine]
        indices = indices[mine]
        if source is not None:
            indices = indices.astype(np.int32)
            return {
                "source": source,
                **parallel.shard({"indices": indices, "positions": positions}),
            }
        batch = {"images": split.images[indices], "labels": split.labels[indices]}
        return parallel.shard({**batch, "positions": positions})

    return feed


def fed(step: Callable) -> Callable:
    """Let `step(state, batch)` take a batch whose images are looked up in a resident source."""

    def lookup(state, batch):
        if "source" in batch:
            source, indices = batch["source"], batch["indices"]
            found = {name: array[indices] for name, array in source.items()}
            batch = {**found, "positions": batch["positions"]}
        return step(state, batch)

    return lookup


def epoch_order(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` images in an epoch: a function of seed and epoch alone."""
    return np.random.Generator(np.random.PCG64([*seed, epoch])).permutation(count)


def padded_batches(count: int, batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (indices `[batch]`, how many of them count) so that each of `count` images counts once.

    The last batch is filled up with the first image, which does not count there.
    """
    for start in range(0, count, batch):
        indices = np.arange(start, start + batch)
        yield np.where(indices < count, indices, 0), min(batch, count - start)
