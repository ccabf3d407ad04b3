"""The training step of this package, as its training loop takes it: a worker of the benchmarks."""

import json
import sys
import time

import jax
import numpy as np

from benchmarks.problem import Problem
from benchmarks.turns import forget_peak, peak_memory, serve
from hiercls_jax.data.augment import standardise
from hiercls_jax.training import parallel
from hiercls_jax.training.feed import epoch_order, fed, make_feed
from hiercls_jax.training.loss import level_losses, summed_loss
from hiercls_jax.training.state import create
from hiercls_jax.training.step import make_train_step


def main(argument: dict) -> None:
    """Answer `turn` (so many steps of every network), `fed`, `loss`, `parameters`, `compile`."""
    problem = Problem(**argument["problem"])
    config, data = problem.config(), problem.data()
    parallel.use_cpu_devices(config.train.batch)
    if argument.get("cache"):
        jax.config.update("jax_compilation_cache_dir", argument["cache"])
    networks = problem.networks(data, parallel.AXIS)
    states = [
        jax.device_get(create(n.task.network, n.task.optimizer, n.key, data.train.images.shape[1:]))
        for n in networks
    ]
    if argument.get("weights"):
        np.savez(argument["weights"], **_by_path(states[0].params))
    held = [parallel.replicate(state) for state in states]
    takes = [parallel.pmap(fed(make_train_step(n.task)), donate=True) for n in networks]
    feed = make_feed(data.train, resident=parallel.on_accelerator())
    fixed = np.arange(config.train.batch)
    order, position = epoch_order((0,), 0, len(data.train)), 0
    batch = feed(fixed)

    def step(batch) -> None:
        for i, take in enumerate(takes):
            held[i], metrics = take(held[i], dict(batch))
        jax.block_until_ready(metrics)

    def turn() -> None:
        for _ in range(argument["steps"]):
            step(batch)

    def fed_turn() -> None:
        nonlocal position
        for _ in range(argument["steps"]):
            step(feed(order[position : position + config.train.batch]))
            position = (position + config.train.batch) % (len(order) - config.train.batch)

    def first_loss() -> float:
        task = problem.networks(data)[0].task
        images = standardise(data.train.images[fixed], task.mean, task.std)
        labels = {k: ids[data.train.labels[fixed]] for k, ids in task.ancestors.items()}

        @jax.jit
        def loss(params, batch_stats):
            variables = {"params": params, "batch_stats": batch_stats}
            logits, _ = task.network.apply(variables, images, train=True, mutable=["batch_stats"])
            return summed_loss(level_losses(logits, labels), task.weights)

        return loss(states[0].params, states[0].batch_stats).item()

    def seconds_to_compile() -> float:
        began = time.perf_counter()
        takes[0].lower(held[0], dict(batch)).compile()
        return time.perf_counter() - began

    serve(
        {
            "turn": turn,
            "fed": fed_turn,
            "loss": first_loss,
            "compile": seconds_to_compile,
            "parameters": lambda: sum(x.size for s in states for x in jax.tree.leaves(s.params)),
            "forget": forget_peak,
            "peak": peak_memory,
        }
    )


def _by_path(params) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {"/".join(key.key for key in path): value for path, value in leaves}


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
