"""Predictions of a whole split, batch by batch: for validation, and for a run's results."""

import contextlib

import numpy as np

from hiercls_jax.data.dataset import Samples
from hiercls_jax.runtime import parallel
from hiercls_jax.training.feed import fed, make_feed, padded_batches
from hiercls_jax.training.state import State
from hiercls_jax.training.step import Task, make_predict_step


class SplitPredictor:
    """Predicts every image of a split exactly once, whatever the batch; compiles once.

    Args:
      task: network and constants.
      batch: images per step over all devices.
    """

    def __init__(self, task: Task, batch: int) -> None:
        self._predict_step = parallel.pmap(fed(make_predict_step(task)))
        self._batch = batch
        # Coarsest first; JAX would return the names in alphabetical order.
        self._levels = [level for level, _ in task.network.heads]

    def __call__(self, replicated: State, split: Samples) -> dict[str, np.ndarray]:
        """Return probabilities float32 `[N, classes]` by level name, in the order of `split`."""
        plan, counts = zip(*padded_batches(len(split), self._batch), strict=True)
        parts = []
        with contextlib.closing(make_feed(split, resident=False)(plan)) as batches:
            for batch, count in zip(batches, counts, strict=True):
                positions, probs = parallel.unreplicate(self._predict_step(replicated, batch))
                counted = np.argsort(positions)[:count]
                parts.append({level: p[counted] for level, p in probs.items()})
        result = {level: np.concatenate([part[level] for part in parts]) for level in self._levels}
        for level, p in result.items():
            assert len(p) == len(split), f"{level}: predicted {len(p)} of {len(split)} images"
        return result
