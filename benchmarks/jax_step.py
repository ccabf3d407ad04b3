"""The training step of this package, called as its training loop calls it: a worker process."""

import gc
import json
import os
import sys
import time
from typing import Any

import jax
import numpy as np

from benchmarks.problem import Problem
from benchmarks.turns import forget_peak, peak_memory, serve
from hiercls_jax.data.augment import standardise
from hiercls_jax.runtime import parallel
from hiercls_jax.training.feed import Order, fed, make_feed
from hiercls_jax.training.loss import level_losses, summed_loss
from hiercls_jax.training.state import create
from hiercls_jax.training.step import Batch, make_train_step


def main(argument: dict[str, Any]) -> None:
    """Answer `turn` (`steps` steps of every network), `fed`, `read`, `loss`, `compile`, …."""
    if "cores" in argument:
        os.sched_setaffinity(0, argument["cores"])
    problem = Problem(**argument["problem"])
    config, data = problem.config(), problem.data()
    cluster = argument.get("cluster")
    processes = cluster[1] if cluster else 1
    parallel.use_cpu_devices(config.train.batch, argument.get("devices"), processes)
    if cluster:
        parallel.join(parallel.Cluster(*cluster))
    if argument.get("cache"):
        jax.config.update("jax_compilation_cache_dir", argument["cache"])
    networks = problem.networks(data, parallel.AXIS)
    states = [
        jax.device_get(create(n.task.network, n.task.optimizer, n.key, data.train.image_shape))
        for n in networks
    ]
    if argument.get("weights"):
        np.savez(argument["weights"], **_by_path(states[0].params))
    current = [parallel.replicate(state) for state in states]
    train_steps = [parallel.pmap(fed(make_train_step(n.task)), donate=True) for n in networks]
    feed = make_feed(data.train, resident=parallel.on_accelerator())
    fixed = np.arange(config.train.batch)
    batches = feed(Order((0,), len(data.train), config.train.batch, epochs=1000))
    batch = next(feed([fixed]))

    def step(batch: Batch) -> None:
        for i, train_step in enumerate(train_steps):
            current[i], metrics = train_step(current[i], dict(batch))
        jax.block_until_ready(metrics)

    def turn() -> None:
        for _ in range(argument["steps"]):
            step(batch)

    def fed_turn() -> None:
        for _ in range(argument["steps"]):
            step(next(batches))

    def read() -> None:
        for _ in range(argument["steps"]):
            next(batches)

    def first_loss() -> float:
        task = problem.networks(data)[0].task
        images = standardise(data.train.images[fixed], task.mean, task.std)
        labels = {k: ids[data.train.labels[fixed]] for k, ids in task.ancestors.items()}

        @jax.jit
        def loss(params: dict[str, Any], batch_stats: dict[str, Any]) -> jax.Array:
            variables = {"params": params, "batch_stats": batch_stats}
            logits, _ = task.network.apply(variables, images, train=True, mutable=["batch_stats"])
            return summed_loss(level_losses(logits, labels), task.weights)

        return loss(states[0].params, states[0].batch_stats).item()

    def compiled() -> jax.stages.Compiled:
        return train_steps[0].lower(current[0], dict(batch)).compile()

    def seconds_to_compile() -> float:
        began = time.perf_counter()
        compiled()
        return time.perf_counter() - began

    serve(
        {
            "turn": turn,
            "fed": fed_turn,
            "read": read,
            "loss": first_loss,
            "compile": seconds_to_compile,
            "program": lambda: compiled().as_text(),
            "parameters": lambda: sum(x.size for s in states for x in jax.tree.leaves(s.params)),
            "forget": forget_peak,
            "peak": peak_memory,
        }
    )


def _by_path(params: dict[str, Any]) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): value for path, value in leaves}


if __name__ == "__main__":
    gc.freeze()  # as the training command does
    main(json.loads(sys.argv[1]))
