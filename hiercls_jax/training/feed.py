"""How images reach the step: looked up in memory, of the host or a device, or read from files."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import grain
import numpy as np

from hiercls_jax.data.dataset import Samples, Split
from hiercls_jax.runtime import parallel
from hiercls_jax.training.state import State

AHEAD = 2  # batches that are read before they are needed, if images are not in memory
Result = TypeVar("Result")


def make_feed(
    samples: Samples, resident: bool
) -> Callable[[Sequence[np.ndarray]], grain.DatasetIterator]:
    """Return `feed(plan)`, an iterator over this process's share of each global batch of a plan.

    A plan is a sequence of index arrays int `[batch]`, one for each step. The iterator's
    `get_state()` is the number of steps it has given, whatever the number of processes.
    `set_state()` goes to a step without reading those before it. Batches are sharded for this
    process's devices.

    Args:
      samples: images and labels. Threads read ahead those that are not in memory.
      resident: copy images that are in memory to every device once, and then send only indices.
    """
    source = None
    if resident and isinstance(samples, Split):
        source = parallel.replicate({"images": samples.images, "labels": samples.labels})

    def load(indices: np.ndarray) -> dict:
        mine = parallel.share(len(indices))
        positions = np.arange(len(indices), dtype=np.int32)[mine]
        indices = indices[mine]
        places = {"indices": indices.astype(np.int32), "positions": positions}
        if source is not None:
            return {"source": source, **parallel.shard(places)}
        batch = {"images": samples.read(indices), "labels": samples.labels[indices]}
        return parallel.shard({**batch, **places})

    ahead = 0 if samples.in_memory else AHEAD
    options = grain.ReadOptions(num_threads=ahead, prefetch_buffer_size=ahead)

    def feed(plan: Sequence[np.ndarray]) -> grain.DatasetIterator:
        return iter(grain.MapDataset.source(plan).map(load).to_iter_dataset(options))

    return feed


def fed(step: Callable[[State, dict], Result]) -> Callable[[State, dict], Result]:
    """Let `step(state, batch)` also take indices of images that are on the device."""

    def with_lookup(state: State, batch: dict) -> Result:
        if "source" in batch:
            source = batch.pop("source")
            batch |= {name: array[batch["indices"]] for name, array in source.items()}
        return step(state, batch)

    return with_lookup


@dataclasses.dataclass(frozen=True)
class Order(Sequence[np.ndarray]):
    """The plan of a run, the images of every step: a function of seed, epoch and step alone.

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

    @property
    def steps_per_epoch(self) -> int:
        """The number of whole batches in an epoch."""
        return self.images // self.batch

    def __len__(self) -> int:
        return self.epochs * self.steps_per_epoch

    def __getitem__(self, step: int) -> np.ndarray:  # type: ignore[override]  # no slices
        epoch, i = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, self.images)
        return order[i * self.batch : (i + 1) * self.batch]


@functools.lru_cache(maxsize=2)  # a batch read ahead may be of the next epoch
def epoch_order(seed: tuple[int, ...], epoch: int, count: int) -> np.ndarray:
    """Return the order of `count` images in an epoch: a function of seed and epoch alone."""
    order = np.random.Generator(np.random.PCG64([*seed, epoch])).permutation(count)
    order.setflags(write=False)  # the cache shares it
    return order


def padded_batches(count: int, batch: int) -> Iterator[tuple[np.ndarray, int]]:
    """Yield (indices `[batch]`, how many of them count); each of `count` images counts once.

    The last batch is filled up with the first image, which does not count there.
    """
    for start in range(0, count, batch):
        indices = np.arange(start, start + batch)
        yield np.where(indices < count, indices, 0), min(batch, count - start)
