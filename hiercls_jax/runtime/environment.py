"""Versions, commit and hardware: a run's numbers depend on them, besides its config."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

from hiercls_jax.runtime import parallel

PACKAGES = (
    "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "ml-collections",
    "numpy",
)  # fmt: skip


def environment() -> dict[str, str | None]:
    """Return versions, commit and hardware, by name."""
    return {
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
        "commit": commit(),
        "devices": parallel.describe_devices(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }


def commit() -> str | None:
    """Return the commit of the source tree, marked if it has changes, or None outside git."""
    here = Path(__file__).parent
    try:
        out = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return out.stdout.strip()
