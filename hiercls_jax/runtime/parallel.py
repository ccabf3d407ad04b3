"""The one place that knows about devices: pmap, replication, sharding, and what to run on.

`jax.pmap` is what maps a step over devices here. Since JAX 0.8 it is `jax.jit` of
`jax.shard_map` inside, and JAX's documentation recommends those two for new code; pmap still
works, still means "one program per device with a named axis between them", and has two semantics
that this code relies on: `pmean` of a gradient taken inside is the gradient of the mean loss, and
every array in and out has a leading device axis, so that replicas can be compared. State is
donated, so a step needs no second copy of it.
"""

import dataclasses
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hiercls_jax.errors import UserError

AXIS = "devices"  # name of the mapped axis
HEARTBEAT = 20  # seconds after which a process that has died is noticed by the others


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Processes that train one network together; what is None is asked of the scheduler.

    Cloud TPUs, Slurm and Open MPI answer; elsewhere all three are needed.

    Args:
      coordinator: `host:port` of process 0.
      processes: how many there are.
      process_id: which of them this is.
    """

    coordinator: str | None = None
    processes: int | None = None
    process_id: int | None = None


def join(cluster: Cluster) -> None:
    """Connect this process to the others. Must come before any device is touched."""
    try:
        # Its handler would swallow a SIGTERM; the training loop has its own.
        jax.config.update("jax_enable_preemption_service", False)
        jax.distributed.initialize(
            cluster.coordinator,
            cluster.processes,
            cluster.process_id,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"the processes could not be connected ({error}); where no scheduler says so, set "
            "--coordinator=HOST:PORT of process 0, --processes and --process_id"
        ) from error
    if jax.device_count() != jax.process_count() * jax.local_device_count():
        raise UserError(
            f"process {jax.process_index()} has {jax.local_device_count()} of {jax.device_count()} "
            f"devices in {jax.process_count()} processes; all need as many: on CPUs set "
            "--config.run.cpu_devices"
        )
    # The first collective connects all devices, for which some backends allow half a minute:
    # now, while the processes are in step.
    jax.block_until_ready(jax.pmap(lambda x: jax.lax.psum(x, AXIS), AXIS)(everywhere(1)))


def use_cpu_devices(batch: int, wanted: int | None = None, processes: int = 1) -> None:
    """Make the CPU, where it is what JAX will run on, one device per core.

    Must come before anything else of JAX runs. Takes as many as divide this process's share of the
    batch unless `wanted` says how many. Cores are used better by one program each than by threads
    inside one.
    """
    batch = max(1, batch // processes)
    if wanted is None:
        wanted = largest_divisor(batch, cpu_cores())
    jax.config.update("jax_num_cpu_devices", wanted)


def cpu_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def largest_divisor(batch: int, largest: int) -> int:
    """Return the largest number of devices up to `largest` that divide a batch.

    >>> largest_divisor(100, 8)
    5
    """
    return next(n for n in range(min(largest, batch), 0, -1) if batch % n == 0)


def device_count() -> int:
    """Return the number of devices that a step is mapped over, those of all processes."""
    return jax.device_count()


def describe_devices() -> str:
    """Return what the devices are, such as `2 x cpu`."""
    kind = f"{device_count()} x {jax.local_devices()[0].device_kind.lower()}"
    processes = jax.process_count()
    return kind if processes == 1 else f"{kind} in {processes} processes"


def is_primary() -> bool:
    """Return whether this is the process that writes files and talks: process 0."""
    return jax.process_index() == 0


def share(count: int) -> slice:
    """Return the part of a global batch of `count` that this process feeds to its devices."""
    size = count // jax.process_count()
    return slice(size * jax.process_index(), size * (jax.process_index() + 1))


def on_primary(compute: Callable[[], bytes]) -> bytes:
    """Return what `compute()` returns on process 0, on every process.

    Raises:
      Exception: what `compute()` raised on process 0, and a UserError of the same text on the
        others, so that nobody waits for one that has stopped.
    """
    if jax.process_count() == 1:
        return compute()
    failure, content = None, b""
    if is_primary():
        try:
            content = compute()
        except Exception as error:  # raised again below
            failure, content = error, str(error).encode()
    head = multihost_utils.broadcast_one_to_all(np.int32([failure is not None, len(content)]))
    padded = np.frombuffer(content.ljust(int(head[1]), b"\0"), np.uint8)
    content = np.asarray(multihost_utils.broadcast_one_to_all(padded)).astype(np.uint8).tobytes()
    if failure is not None:
        raise failure
    if head[0]:
        raise UserError(content.decode())
    return content


def largest(value: int) -> int:
    """Return the largest of all processes' values."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))


def on_accelerator() -> bool:
    """Return whether the devices have a memory of their own."""
    return jax.default_backend() != "cpu"


def pmap(step: Callable, donate: bool = False, devices: int | None = None) -> Callable:
    """Map `step(state, batch)` with the axis `AXIS` over all devices of all processes.

    Or over this process's first `devices` devices.
    """
    chosen = None if devices is None else _local(devices)
    return jax.pmap(step, AXIS, devices=chosen, donate_argnums=(0,) if donate else ())


def replicate(tree, devices: int | None = None):
    """Put a copy of every array on each of this process's devices, as a leading axis."""
    mesh = Mesh(np.array(_local(devices)), (AXIS,))
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def put(x):
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (mesh.size, *x.shape)), sharding)

    return jax.tree.map(put, tree)


def everywhere(value: int) -> np.ndarray:
    """Return int32 `[devices]`, this process's value for each of its devices."""
    return np.full(jax.local_device_count(), value, np.int32)


def unreplicate(tree):
    """Return the first device's copy of every array, on the host."""
    # A copy, not a view: the device's buffer may be donated to the next step.
    return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)


def shard(tree, devices: int | None = None):
    """Split the leading axis `[N, ...]` of host arrays into `[devices, N / devices, ...]`.

    The devices are this process's, and so is the part of the global batch: `share` selects it.
    """
    count = len(_local(devices))
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), tree)


def _local(count: int | None) -> list[jax.Device]:
    return jax.local_devices()[:count]
