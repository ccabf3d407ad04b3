"""How images reach the step: looked up in memory, of the host or a device, or read from files."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from hiercls_jax.data.dataset import Samples
from hiercls_jax.runtime import parallel

AHEAD = 2  # batches that are read before they are needed, where images are not in memory


def make_feed(
    samples: Samples, resident: bool
) -> Callable[[Sequence[np.ndarray]], grain.DatasetIterator]:
    """Return `feed(plan)`: an iterator over this process's share of each global batch of a plan.

    A plan is a sequence of indices `[batch]`, one array for each step. The iterator's `get_state()`
    is the number of steps it has given, whatever the number of processes, and `set_state()` goes
    there: no step before is read. What it gives is on this process's devices, or about to be.

    Args:
      samples: images and labels. Those that are not in memory are read by threads, ahead.
      resident: put images that are in memory into that of every device once, and send only indices.
    """
    source = None
    if resident and samples.in_memory:
        source = parallel.replicate({"images": samples.images, "labels": samples.labels})

    def load(indices: np.ndarray) -> dict:
        mine = parallel.share(len(indices))
        positions = np.arange(len(indices), dtype=np.int32)[mine]
        indices = indices[mine]
        if source is not None:
            indices = indices.astype(np.int32)
            return {
                "source": source,
                **parallel.shard({"indices": indices, "positions": positions}),
            }
        batch = {"images": samples.read(indices), "labels": samples.labels[indices]}
        return parallel.shard({**batch, "positions": positions})

    ahead = 0 if samples.in_memory else AHEAD
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)

    def feed(plan: Sequence[np.ndarray]) -> grain.DatasetIterator:
        return iter(grain.MapDataset.source(plan).map(load).to_iter_dataset(options))

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


@dataclasses.dataclass(frozen=True)
class Order(Sequence):
    """The images of every step of a run, a plan: a function of seed, epoch and step alone.

    Args:
      seed: integers that the order of every epoch is drawn from.
      images: how many there are.
      batch: images per step; an epoch's last partial batch is dropped.
      epochs: passes over the images.
    """

    seed: tuple[int, ...]
    images: int
    batch: int
    epochs: int

    def __len__(self) -> int:
        return self.epochs * (self.images // self.batch)

    def __getitem__(self, step: int) -> np.ndarray:
        epoch, i = divmod(step, self.images // self.batch)
        order = epoch_order(self.seed, epoch, self.images)
        return order[i * self.batch : (i + 1) * self.batch]


@functools.lru_cache(maxsize=2)  # where one epoch goes over into the next, both are read from
def epoch_order(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` images in an epoch: a function of seed and epoch alone."""
    order = np.random.Generator(np.random.PCG64([*seed, epoch])).permutation(count)
    order.setflags(write=False)  # it is everyone's
    return order


def padded_batches(count: int, batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (indices `[batch]`, how many of them count) so that each of `count` images counts once.

    The last batch is filled up with the first image, which does not count there.
    """
    for start in range(0, count, batch):
        indices = np.arange(start, start + batch)
        yield np.where(indices < count, indices, 0), min(batch, count - start)
