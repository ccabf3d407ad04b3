"""The training step beside PyTorch's, merged beside separate networks, starts, and the input."""

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from PIL import Image

from benchmarks.problem import Problem
from benchmarks.timing import Row, alternate
from benchmarks.turns import Worker
from hiercls_jax import experiment
from hiercls_jax.data import cifar100 as cifar100_source
from hiercls_jax.hierarchy import cifar100
from hiercls_jax.models.costs import merge_summaries, summarise
from hiercls_jax.runtime import malloc

SMALL = "cpu,batch=128"  # the preset for a CPU: ResNet-20 with a stem of stride 2
STEPS = {  # by network: arguments of its config, and the number of steps in a turn
    "ResNet-20, stem stride 2": (SMALL, 10),
    "ResNet-164": ("arch=resnet164", 1),
    "DenseNet-BC-100": ("arch=densenet100", 1),
    "fast11": ("fast", 1),
}
OTHERS = {"fast11": ("merge2",)}  # variants besides single and merge-1
MALLOC = malloc.variables(malloc.HUGE_PAGES, malloc.KEEP)  # as the training command does
JAX, TORCH = "benchmarks.jax_step", "benchmarks.torch_step"
LOSS_TOLERANCE = 1e-5  # relative; float32 sums in another order
FED = 20  # steps in a turn that reads its images
SHORT, OFTEN = 5, 4  # steps in a turn, and factor of rounds, to measure to a hundredth
FILES = 10_000  # training images of the image folder


def beside_torch(rounds: int, networks: Sequence[str] = tuple(STEPS)) -> Iterator[Row]:
    """Yield the step of each network, single and merged, beside the same step in PyTorch."""
    for name in networks:
        arguments, steps = STEPS[name]
        for variant in ("single", "merge1", *OTHERS.get(name, ())):
            yield _beside_torch(f"step of {name}, {variant}", variant, arguments, steps, rounds)


def _beside_torch(name: str, variant: str, arguments: str, steps: int, rounds: int) -> Row:
    problem = Problem(variant, arguments)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        argument = {
            "problem": asdict(problem),
            "steps": steps,
            "weights": str(Path(folder) / "weights.npz"),
        }
        workers = {}
        for side, module in (("hiercls_jax", JAX), ("PyTorch, channels last", TORCH)):
            workers[side] = stack.enter_context(Worker(module, argument, MALLOC))
            workers[side].ask("parameters")  # the first writes the weights that the second reads
        ours, theirs = workers.values()
        assert ours.ask("parameters") == theirs.ask("parameters")
        losses = ours.ask("loss"), theirs.ask("loss")
        assert abs(losses[0] / losses[1] - 1) < LOSS_TOLERANCE, losses
        for worker in workers.values():
            worker.ask("turn")
            worker.ask("forget")  # the memory that compiling took
        row = alternate(name, {side: worker.ask for side, worker in workers.items()}, rounds)
        memory = {side: worker.ask("peak") for side, worker in workers.items()}
    images = steps * problem.config().train.batch
    return row.having(images=images, memory=memory)


def precision(
    rounds: int, networks: Sequence[str] = tuple(STEPS), steps: int | None = None
) -> Iterator[Row]:
    """Yield the step of each network's merge-1, computed in float32 beside bfloat16.

    Args:
      rounds: turns of each side.
      networks: keys of `STEPS`.
      steps: in a turn; those of `STEPS` if not given.
    """
    environment = {**MALLOC, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}  # two share a GPU
    for name in networks:
        arguments, own_steps = STEPS[name]
        steps_of_turn = own_steps if steps is None else steps
        with contextlib.ExitStack() as stack:
            sides = {}
            for dtype in ("float32", "bfloat16"):
                problem = Problem("merge1", arguments, dtype=dtype)
                argument = {"problem": asdict(problem), "steps": steps_of_turn}
                sides[dtype] = stack.enter_context(Worker(JAX, argument, environment)).ask
            row = alternate(f"step of {name}, merge1, by type", sides, rounds)
        yield row.having(images=steps_of_turn * problem.config().train.batch)


def merging(rounds: int) -> Iterator[Row]:
    """Yield one step of each variant: separate networks, and merge-0 to merge-3."""
    with contextlib.ExitStack() as stack:
        workers, work = {}, {}
        for variant in ("separate", "merge0", "merge1", "merge2", "merge3"):
            problem = Problem(variant, SMALL)
            argument = {"problem": asdict(problem), "steps": 10}
            workers[variant] = stack.enter_context(Worker(JAX, argument, MALLOC))
            counts = merge_summaries(
                summarise(network, (32, 32, 3))
                for network in experiment.architectures(problem.config(), cifar100()).values()
            )
            work[variant] = counts["multiply_adds"]
        sides = {variant: worker.ask for variant, worker in workers.items()}
        row = alternate("step of ResNet-20, stem stride 2, by variant", sides, rounds)
    share = {v: f"{n / work['separate']:.2f} of the multiply-adds" for v, n in work.items()}
    yield row.having(images=1280, notes=share)


def starts(rounds: int, networks: Sequence[str] = tuple(STEPS)) -> Iterator[Row]:
    """Yield the time from a process's start to the end of its first step, and to compile it."""
    for name in networks:
        problem = asdict(Problem("merge1", STEPS[name][0]))
        seconds: dict[str, list[float]] = {
            "warm cache": [],
            "empty cache": [],
            "compiling the step": [],
        }
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as cache:
                argument = {"problem": problem, "steps": 1, "cache": cache}
                for side in ("empty cache", "warm cache"):
                    began = time.perf_counter()
                    with Worker(JAX, argument, MALLOC) as worker:
                        worker.ask("turn")
                        seconds[side].append(time.perf_counter() - began)
            with Worker(JAX, {"problem": problem, "steps": 1}, MALLOC) as worker:
                seconds["compiling the step"].append(worker.ask("compile"))
        yield Row(f"start to first step of {name}, merge1", seconds)


def input_path(rounds: int) -> Iterator[Row]:
    """Yield the step on changing batches beside one batch, and on streamed files beside memory."""
    yield _looked_up(rounds)
    yield from _streamed(rounds)


def _looked_up(rounds: int) -> Row:
    argument = {"problem": asdict(Problem("merge1", SMALL)), "steps": SHORT}
    with Worker(JAX, argument, MALLOC) as worker:
        sides = {"every batch looked up": lambda: worker.ask("fed"), "one batch": worker.ask}
        row = alternate("input path, ResNet-20, stem stride 2, merge1", sides, OFTEN * rounds)
    return row.having(images=128 * SHORT)


def _streamed(rounds: int) -> Iterator[Row]:
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = _image_folder(Path(place) / "images")
        environment = {**MALLOC, "XDG_CACHE_HOME": str(Path(place) / "cache")}
        workers = {}
        for side, streaming in (("streamed", True), ("in memory", False)):
            problem = Problem("merge1", SMALL, str(folder), streaming)
            argument = {"problem": asdict(problem), "steps": FED}
            workers[side] = stack.enter_context(Worker(JAX, argument, environment))
        for action, question in (("reading", "read"), ("steps on", "fed")):
            sides = {side: partial(worker.ask, question) for side, worker in workers.items()}
            row = alternate(f"{action} {FILES:,} PNG files of CIFAR-100", sides, rounds)
            yield row.having(images=128 * FED)


def _image_folder(root: Path) -> Path:
    """Write images of CIFAR-100's training split as PNG files, to `train` and (a few) to `test`."""
    hierarchy, images = cifar100(), cifar100_source.load(None)["train"]
    for name, count in (("train", FILES), ("test", 100)):
        for i in range(count):
            place = root / name / hierarchy.names[-1][images.labels[i]]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.images[i]).save(place / f"{i}.png")
    return root
