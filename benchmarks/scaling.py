"""Several processes: their speed beside that of one, and the bytes that a step exchanges."""

import contextlib
import math
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from benchmarks.problem import Problem
from benchmarks.timing import Row, alternate
from benchmarks.training import JAX, MALLOC
from benchmarks.turns import Worker
from hiercls_jax.models.branched import Branched
from hiercls_jax.models.layers import BatchNormRelu

SHAPE = (32, 32, 3)
NETWORKS = {  # all are counted; only the first is timed, because the second needs more memory
    "ResNet-20, stem stride 2, merge1": "cpu",
    "ResNet-164, merge1": "arch=resnet164",
}
STEPS = 10  # in a turn
BYTES = {"f32": 4, "s32": 4, "bf16": 2}
SCALARS = 24  # bytes of a step's metrics: six numbers for two levels


def rows(rounds: int) -> Iterator[Row]:
    """Yield strong and weak scaling over processes with a core each, and what steps exchange."""
    if len(cores()) < 2:
        raise RuntimeError("scaling over two processes needs two cores")
    yield from _timed(rounds)
    for name, arguments in NETWORKS.items():
        yield _counted(name, arguments)


def _timed(rounds: int) -> Iterator[Row]:
    first, arguments = next(iter(NETWORKS.items()))
    with contextlib.ExitStack() as stack:
        one, two, double = (
            stack.enter_context(Group(f"{arguments},batch={batch}", processes))
            for batch, processes in ((128, 1), (128, 2), (256, 2))
        )
        strong = {"2 processes, batch 128": two.turn, "1 process, batch 128": one.turn}
        weak = {"2 processes, batch 256": double.turn, "1 process, batch 128": one.turn}
        for kind, sides in (("strong", strong), ("weak", weak)):
            yield alternate(f"{kind} scaling of {STEPS} steps, {first}", sides, rounds)


def _counted(name: str, arguments: str) -> Row:
    """Compile a step for two devices, and check that it exchanges the bytes of `exchanged`."""
    problem = Problem("merge1", arguments)
    ((_, network),) = problem.architectures().items()
    expected = exchanged(network, SHAPE)
    argument = {"problem": asdict(problem), "steps": 1, "devices": 2}
    with Worker(JAX, argument, {}) as worker:
        worker.ask("parameters")  # wait until it has started
        began = time.perf_counter()
        operations, size = exchanged_by(worker.ask("program"))
        seconds = time.perf_counter() - began
    assert size == sum(expected.values()), (size, expected)
    parts = ", ".join(f"{part} {bytes_:,}" for part, bytes_ in expected.items())
    note = f"{size:,} bytes exchanged in {operations} operations: {parts}"
    return Row(f"step of {name}", {"compiling": [seconds]}, notes={"compiling": note})


class Group:
    """Processes that train together, each on a core of its own, and take a turn together.

    Args:
      arguments: those of a config file.
      processes: how many processes.
    """

    def __init__(self, arguments: str, processes: int):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            coordinator = f"127.0.0.1:{probe.getsockname()[1]}"
        argument = {"problem": asdict(Problem("merge1", arguments)), "steps": STEPS, "devices": 1}
        self._workers = [
            Worker(
                JAX,
                {
                    **argument,
                    "cores": cores()[:processes],
                    "cluster": [coordinator, processes, i] if processes > 1 else None,
                },
                MALLOC,
            )
            for i in range(processes)
        ]

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.wait()

    def turn(self) -> None:
        """Let all processes take their steps, and wait for them."""
        for worker in self._workers:
            worker.tell("turn")
        for worker in self._workers:
            worker.hear()


def cores() -> list[int]:
    """Return the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def exchanged(network: Branched, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the bytes that each device sends to the others in a training step, by their purpose.

    They are float32: each gradient once; and for each channel of a normalisation, its mean and
    variance in the forward pass and two sums in the backward pass. Branches that begin by
    normalising the same images share their mean and variance, which the compiler computes once.

    Args:
      network: a `Branched` ResNet. (The layers of a DenseNet share moments, which this does not
        count.)
      image_shape: (H, W, 3).
    """
    inputs: dict[tuple[str, ...], jax.Array] = {}  # of each normalisation; a loop's body has one

    def see(
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        if isinstance(context.module, BatchNormRelu) and context.method_name == "__call__":
            assert len(args) < 3, "its moments are known already"
            inputs[context.module.path] = args[0]
        return next_call(*args, **kwargs)

    def init() -> Any:
        return network.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)

    with nn.intercept_methods(see):
        variables = jax.eval_shape(init)
    means = flatten_dict(variables["batch_stats"])
    channels = {path: means[*path, "mean"].size for path in inputs}
    once = {id(x): channels[path] for path, x in inputs.items()}
    return {
        "gradients": 4 * sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "statistics, forward": 8 * sum(once.values()),
        "statistics, backward": 8 * sum(channels.values()),
        "metrics": SCALARS,
    }


def exchanged_by(program: str) -> tuple[int, int]:
    """Return (number of all-reduces and all-gathers, bytes of their inputs) of a program's text.

    Those in the body of a loop count once for each time that it runs.
    """
    bodies = dict(re.findall(r"^(?:ENTRY )?(%\S+) .*?\{\n(.*?)^\}", program, re.M | re.S))
    return _exchanged_in(re.search(r"^ENTRY (%\S+)", program, re.M)[1], bodies)


def _exchanged_in(name: str, bodies: dict[str, str]) -> tuple[int, int]:
    operations, size = 0, 0
    exchange = r"= (.+?) all-(reduce|reduce-start|gather)\((.*)"
    for result, kind, rest in re.findall(exchange, bodies[name]):
        moved = sum(
            BYTES[number] * math.prod(map(int, filter(None, shape.split(","))))
            for number, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
        )
        if kind == "gather":  # the result has the inputs of all
            moved //= len(re.search(r"replica_groups=\{\{([\d,]+)\}", rest)[1].split(","))
        operations, size = operations + 1, size + moved
    for loop in re.findall(r" while\(.*", bodies[name]):
        inner = _exchanged_in(re.search(r"body=(%[^\s,]+)", loop)[1], bodies)
        times = int(re.search(r'"known_trip_count":\{"n":"(\d+)"', loop)[1])
        operations, size = operations + times * inner[0], size + times * inner[1]
    return operations, size
