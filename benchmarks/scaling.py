"""Several processes: their speed beside that of one, and the bytes that a step reduces."""

import contextlib
import math
import os
import re
import socket
import time
from dataclasses import asdict

import flax.linen as nn
import jax
import jax.numpy as jnp

from benchmarks.problem import Problem
from benchmarks.timing import Row, alternate
from benchmarks.training import HUGE_PAGES, JAX
from benchmarks.turns import Worker
from hiercls_jax.models.layers import NormRelu

SHAPE = (32, 32, 3)
NETWORKS = {  # for counting; timed is the first, as processes would not have memory for the second
    "ResNet-20, stem stride 2, merge1": "cpu",
    "ResNet-164, merge1": "arch=resnet164",
}
STEPS = 10  # of a turn
BYTES = {"f32": 4, "s32": 4, "bf16": 2}
SCALARS = 24  # bytes of a step's metrics: six numbers for two levels


def rows(rounds: int):
    """Yield strong and weak scaling over processes with a core each, and what steps reduce."""
    if len(cores()) < 2:
        raise RuntimeError("scaling over two processes needs two cores")
    yield from _timed(rounds)
    for name, arguments in NETWORKS.items():
        yield _counted(name, arguments)


def _timed(rounds: int):
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
    """Compile a step for two devices, and check what the model says it reduces against it."""
    problem = Problem("merge1", arguments)
    ((_, network),) = problem.architectures().items()
    expected = reduced(network, SHAPE)
    argument = {"problem": asdict(problem), "steps": 1, "devices": 2}
    with Worker(JAX, argument, {}) as worker:
        worker.ask("parameters")  # it has started
        began = time.perf_counter()
        operations, found = reduced_by(worker.ask("program"))
        seconds = time.perf_counter() - began
    assert found == sum(expected.values()), (found, expected)
    parts = ", ".join(f"{what} {size:,}" for what, size in expected.items())
    note = f"{found:,} bytes reduced in {operations} operations: {parts}"
    return Row(f"step of {name}", {"compiling": [seconds]}, notes={"compiling": note})


class Group:
    """Processes that train together on as many cores; they take a turn as one.

    Args:
      arguments: those of a config file.
      processes: how many.
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
                HUGE_PAGES,
            )
            for i in range(processes)
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for worker in self._workers:
            worker.close()
        for worker in self._workers:
            worker.wait()

    def turn(self) -> None:
        """Let all processes take their steps, which wait for each other's."""
        for worker in self._workers:
            worker.tell("turn")
        for worker in self._workers:
            worker.hear()


def cores() -> list[int]:
    """Return the cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))


def reduced(network, image_shape: tuple[int, int, int]) -> dict[str, int]:
    """Return the bytes of all arrays that a training step sums over devices, by what they are.

    Every gradient once; of every normalisation's channels, the mean and the variance on the way
    forward, and two sums on the way back, in float32. Where branches begin by normalising what they
    share, its mean and variance are the same, and the compiler has them once.

    Args:
      network: a `Branched` network.
      image_shape: (H, W, 3).
    """
    layers = []

    def see(next_call, args, kwargs, context):
        if isinstance(context.module, NormRelu) and context.method_name == "__call__":
            layers.append(args[0])
        return next_call(*args, **kwargs)

    def init():
        return network.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)

    with nn.intercept_methods(see):
        parameters = jax.eval_shape(init)["params"]
    inputs = {id(x): x for x in layers}.values()
    return {
        "gradients": 4 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(parameters)),
        "statistics, forward": 8 * sum(x.shape[-1] for x in inputs),
        "statistics, backward": 8 * sum(x.shape[-1] for x in layers),
        "metrics": SCALARS,
    }


def reduced_by(program: str) -> tuple[int, int]:
    """Return (how many all-reduces, bytes of all their arrays) of a compiled program's text."""
    found = re.findall(r"= (.+?) all-reduce(?:-start)?\(", program)
    sizes = [
        BYTES[kind] * math.prod(map(int, filter(None, shape.split(","))))
        for result in found
        for kind, shape in re.findall(r"(\w+)\[([\d,]*)\]", result)
    ]
    return len(found), sum(sizes)
