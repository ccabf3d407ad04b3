"""Huge pages for large arrays on a CPU, by one restart of the program.

A training step allocates and frees gigabytes. In pages of 4 KiB it causes millions of page
faults; in pages of 2 MiB, thousands. glibc uses huge pages if GLIBC_TUNABLES asks for them when the
process starts. So the program sets the variable and restarts itself, before it has done anything.
"""

import os
import platform
import sys
from pathlib import Path

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
OFF = {"--nohuge_pages", "--huge_pages=false"}  # flags; absl parses them only later
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")  # CUDA, ROCm, TPU


def restart(argv: list[str]) -> None:
    """Restart this process with huge pages, if they help.

    They help on a CPU under Linux with glibc, if the kernel gives huge pages on request. If
    GLIBC_TUNABLES sets the tunable already, as it does after the restart, nothing happens.

    Args:
      argv: the program's arguments; with `--nohuge_pages` among them nothing happens.
    """
    if OFF & set(argv) or TUNABLE in os.environ.get(VARIABLE, "") or not _helpful():
        return
    tunables = [*filter(None, [os.environ.get(VARIABLE)]), f"{TUNABLE}=1"]
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        {**os.environ, VARIABLE: ":".join(tunables)},
    )


def in_use() -> bool:
    """Return whether this process was started with huge pages for malloc."""
    return f"{TUNABLE}=1" in os.environ.get(VARIABLE, "").split(":")


def has_accelerator() -> bool:
    """Return whether JAX may find an accelerator on this machine."""
    return os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(os.path.exists, ACCELERATORS))


def _helpful() -> bool:
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    if has_accelerator():
        return False
    try:
        return "[madvise]" in KERNEL.read_text()  # [always]: all have them; [never]: none
    except OSError:
        return False
