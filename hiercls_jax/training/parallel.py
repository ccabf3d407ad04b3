"""The one place that knows about devices: pmap, replication, sharding, and what to run on.

`jax.pmap` is what maps a step over devices here. Since JAX 0.8 it is `jax.jit` of
`jax.shard_map` inside, and JAX's documentation recommends those two for new code; pmap still
works, still means "one program per device with a named axis between them", and has two semantics
that this code relies on: `pmean` of a gradient taken inside is the gradient of the mean loss, and
every array in and out has a leading device axis, so that replicas can be compared. State is
donated, so a step needs no second copy of it.
"""

import os
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "devices"  # name of the mapped axis


def use_cpu_devices(batch: int, wanted: int | None = None) -> None:
    """Make the CPU, where it is what JAX will run on, one device per core.

    Must come before anything else of JAX runs. Takes as many as divide the batch unless `wanted`
    says how many. Cores are used better by one program each than by threads inside one.
    """
    if wanted is None:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        wanted = next(n for n in range(min(cores or 1, batch), 0, -1) if batch % n == 0)
    jax.config.update("jax_num_cpu_devices", wanted)


def device_count() -> int:
    """Return the number of devices that a step is mapped over."""
    return jax.local_device_count()


def describe_devices() -> str:
    """Return what the devices are, such as `2 x cpu`."""
    return f"{device_count()} x {jax.local_devices()[0].device_kind.lower()}"


def on_accelerator() -> bool:
    """Return whether the devices have a memory of their own."""
    return jax.default_backend() != "cpu"


def pmap(step: Callable, donate: bool = False, devices: int | None = None) -> Callable:
    """Map `step(state, batch)` over the first `devices` devices (all) with the axis `AXIS`."""
    donated = (0,) if donate else ()
    return jax.pmap(step, AXIS, devices=_local(devices), donate_argnums=donated)


def replicate(tree, devices: int | None = None):
    """Put a copy of every array on each device, as a leading axis."""
    mesh = Mesh(np.array(_local(devices)), (AXIS,))
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))

    def put(x):
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (mesh.size, *x.shape)), sharding)

    return jax.tree.map(put, tree)


def unreplicate(tree):
    """Return the first device's copy of every array, on the host."""
    # A copy, not a view: the device's buffer may be donated to the next step.
    return jax.tree.map(lambda x: np.array(x.addressable_data(0))[0], tree)


def shard(tree, devices: int | None = None):
    """Split the leading axis `[N, ...]` of host arrays into `[devices, N / devices, ...]`."""
    count = len(_local(devices))
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), tree)


def gather(tree):
    """Undo `shard` for a step's output, on the host."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)


def _local(count: int | None) -> list[jax.Device]:
    return jax.local_devices()[:count]
