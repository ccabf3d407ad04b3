"""The one file that knows about devices: pmap, where arrays are placed, and connected processes.

`jax.pmap` maps every step over the devices. It works without a warning, but since JAX 0.8 it is
`jax.jit` of `jax.shard_map` inside, and JAX's documentation recommends these two for new code. This
project requires pmap, and relies on what it does differently:

- `pmean(grad(loss))` is the gradient of the mean loss. Under `shard_map` with replicated
  parameters the same expression is silently wrong, by a factor of the number of devices.
- Every array has a leading device axis, in and out. So tests can compare the replicas, and
  statistics that a step forgot to synchronise are seen; `out_axes=None` would not check them.

State is donated, so that a step needs no second copy of it. It is replicated on the local devices
before the first step, because donation with `in_axes=None` crashes in several processes.
"""

import dataclasses
import os
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from hiercls_jax.errors import UserError

AXIS = "devices"  # the mapped axis
HEARTBEAT = 20  # seconds of silence after which a process counts as dead


Tree = TypeVar("Tree")  # any nesting of dicts, tuples and dataclasses of arrays
Carried = TypeVar("Carried")
Batch = TypeVar("Batch")
Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes that train one network together.

    Cloud TPUs, Slurm and Open MPI tell JAX every value that is None; elsewhere set all three.

    Args:
      coordinator: `host:port` of process 0.
      processes: how many there are.
      process_id: which of them this is.
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None


def join(cluster: Cluster) -> None:
    """Connect this process to the others. Call it before anything touches a device.

    Raises:
      UserError: if the connection fails, or the processes differ in their number of devices.
    """
    try:
        # JAX's own handler would swallow a SIGTERM that `signals.StopRequest` waits for.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes could not be connected ({error}); unless a scheduler sets them, give "
            "--coordinator=HOST:PORT of process 0, --processes and --process_id"
        ) from error
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"process {jax.process_index()} has {jax.local_device_count()} of {jax.device_count()} "
            f"devices in {jax.process_count()} processes; all need the same number: on CPUs set "
            "--config.run.cpu_devices"
        )
    # The first collective connects all devices, and some backends allow only half a minute for it.
    # Do it now, while the processes are in step.
    jax.block_until_ready(jax.pmap(lambda x: jax.lax.psum(x, AXIS), AXIS)(per_device(1)))


def use_cpu_devices(batch: int, wanted: int | None = None, processes: int = 1) -> None:
    """Split the CPU into one JAX device per core. Call it before anything else of JAX runs.

    It has no effect if JAX runs on an accelerator. One program per core uses the cores better than
    the threads of one program.

    Args:
      batch: images per step, over all processes.
      wanted: number of devices; by default as many cores as divide this process's share of a batch.
      processes: how many processes share a batch.
    """
    if wanted is None:
        wanted = largest_divisor(max(1, batch // processes), cpu_cores())
    jax.config.update("jax_num_cpu_devices", wanted)


def cpu_cores() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def largest_divisor(batch: int, largest: int) -> int:
    """Return the largest number of devices, at most `largest`, that divides a batch.

    >>> largest_divisor(100, 8)
    5
    """
    return next(n for n in range(min(largest, batch), 0, -1) if batch % n == 0)


def device_count() -> int:
    """Return the number of devices, of all processes together, that a step is mapped over."""
    return jax.device_count()


def describe_devices() -> str:
    """Return number and kind of the devices, such as `2 x cpu`."""
    kind = f"{device_count()} x {jax.local_devices()[0].device_kind.lower()}"
    processes = jax.process_count()
    return kind if processes == 1 else f"{kind} in {processes} processes"


def is_primary() -> bool:
    """Return whether this is process 0, which alone writes files and prints."""
    return jax.process_index() == 0


def share(count: int) -> slice:
    """Return this process's part of a global batch of `count` images."""
    size = count // jax.process_count()
    return slice(size * jax.process_index(), size * (jax.process_index() + 1))


def on_primary(action: Callable[[], object]) -> None:
    """Run `action()` on process 0 while the other processes wait for it.

    Raises:
      Exception: what `action()` raised, on process 0; a UserError with its text on the others.
    """

    def compute() -> bytes:
        action()
        return b""

    broadcast_bytes(compute)


def broadcast_bytes(compute: Callable[[], bytes]) -> bytes:
    """Run `compute()` on process 0 and return its result on every process.

    Raises:
      Exception: what `compute()` raised, on process 0; a UserError with its text on the others, so
        that no process waits for one that has stopped.
    """
    if jax.process_count() == 1:
        return compute()
    failure, content = None, b""
    if is_primary():
        try:
            content = compute()
        except Exception as error:  # raised again below
            failure, content = error, str(error).encode()
    head = np.array([failure is not None, len(content)], np.int32)
    failed, length = multihost_utils.broadcast_one_to_all(head)
    padded = np.frombuffer(content.ljust(int(length), b"\0"), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
    if failure is not None:
        raise failure
    if failed:
        raise UserError(content.decode())
    return content


def max_over_processes(value: int) -> int:
    """Return the largest of all processes' values."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def on_accelerator() -> bool:
    """Return whether the devices have a memory of their own."""
    return jax.default_backend() != "cpu"


def pmap(
    step: Callable[[Carried, Batch], Result], donate: bool = False, devices: int | None = None
) -> Callable[[Carried, Batch], Result]:
    """Map `step(state, batch)` over the devices of all processes, with the axis `AXIS`.

    Args:
      step: a pure function.
      donate: let the result use the memory of `state`, which must not be read afterwards.
      devices: map over this process's first `devices` devices only.
    """
    chosen = None if devices is None else _local(devices)
    return jax.pmap(step, AXIS, devices=chosen, donate_argnums=(0,) if donate else ())


def replicate(tree: Tree, devices: int | None = None) -> Tree:
    """Put a copy of every array on each of this process's devices, along a new leading axis."""
    mesh = Mesh(np.array(_local(devices)), (AXIS,))
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def put(x: ArrayLike) -> jax.Array:
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (mesh.size, *x.shape)), sharding)

    return jax.tree.map(put, tree)


def unreplicate(tree: Tree) -> Tree:
    """Return the first device's copy of every array, on the host."""
    # A copy, not a view: the device's buffer may be donated to the next step.
    return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)


def per_device(value: int) -> np.ndarray:
    """Return int32 `[devices]`: this value for each of this process's devices."""
    return np.full(jax.local_device_count(), value, np.int32)


def shard(tree: Tree, devices: int | None = None) -> Tree:
    """Split the leading axis `[N, ...]` of host arrays into `[devices, N / devices, ...]`.

    Args:
      tree: this process's part of a global batch, which `share` selects.
      devices: split among this process's first `devices` devices only.
    """
    count = len(_local(devices))
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), tree)


def _local(count: int | None) -> list[jax.Device]:
    return jax.local_devices()[:count]
