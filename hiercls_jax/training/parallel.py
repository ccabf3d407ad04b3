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


def pmap(step: Callable, donate: bool = False) -> Callable:
    """Map `step(state, batch)` over the local devices with the axis named `AXIS`."""
    return jax.pmap(step, axis_name=AXIS, donate_argnums=(0,) if donate else ())


def replicate(tree):
    """Put a copy of every array on each local device, as a leading axis."""
    devices = jax.local_devices()
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))

    def put(x):
        x = np.asarray(x)
        return jax.device_put(np.broadcast_to(x, (len(devices), *x.shape)), sharding)

    return jax.tree.map(put, tree)


def unreplicate(tree):
    """Return the first device's copy of every array, on the host."""
    return jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], tree)


def shard(tree):
    """Split the leading axis `[N, ...]` of host arrays into `[devices, N / devices, ...]`."""
    count = device_count()
    return jax.tree.map(lambda x: x.reshape(count, len(x) // count, *x.shape[1:]), tree)


def gather(tree):
    """Undo `shard` for a step's output, on the host."""
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), tree)
