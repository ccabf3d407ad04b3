"""Slots: how many processes run at once on this machine, and which GPU or cores each gets."""

import dataclasses
import os
import re
from pathlib import Path

from hiercls_jax.runtime import malloc, parallel

MEMORY = 8 << 30  # bytes for a run on a CPU: ResNet-164 takes 7 GiB


@dataclasses.dataclass(frozen=True)
class Slots:
    """Places for processes that run at once.

    Args:
      environments: of each slot, the variables that are added to its process's environment.
      cores: CPU cores of each process, or None if it may use all.
    """

    environments: tuple[dict[str, str], ...]
    cores: int | None

    @classmethod
    def of(cls, jobs: int | None) -> "Slots":
        """Return `jobs` slots; if it is None, as many as this machine has room for."""
        gpus = _visible_gpus()
        if gpus:
            count = jobs or len(gpus)
            names = (gpus[i % len(gpus)] for i in range(count))
            return cls(tuple({"CUDA_VISIBLE_DEVICES": name} for name in names), None)
        cores = parallel.cpu_cores()
        if jobs is None:
            room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MEMORY
            jobs = 1 if malloc.has_accelerator() else max(1, min(cores, room))
        return cls(({},) * jobs, max(1, cores // jobs) if jobs > 1 else None)


def _visible_gpus() -> list[str]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES may name, without starting CUDA."""
    if os.environ.get("JAX_PLATFORMS", "") == "cpu":
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [gpu.strip() for gpu in named.split(",") if gpu.strip()]
    found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in found if match), key=int)
