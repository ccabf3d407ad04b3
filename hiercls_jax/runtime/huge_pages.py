"""Huge pages for large arrays on a CPU, which the C library takes only at a program's start.

A training step allocates and frees gigabytes. In pages of 4 KiB that is millions of page faults a
step; in pages of 2 MiB, thousands. glibc asks for them where GLIBC_TUNABLES says so when the
process starts, so the program restarts itself once with it, before it has done anything.
"""

import os
import platform
import sys
from pathlib import Path

VARIABLE, TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
OFF = {"--nohuge_pages", "--huge_pages=false"}  # of the command line; read before flags are
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")  # CUDA, ROCm, TPU


def restart(argv: list[str]) -> None:
    """Replace this process by itself with huge pages, where they help and are not refused.

    They help on a CPU under Linux with glibc where the kernel gives huge pages to those who ask.
    Does nothing where GLIBC_TUNABLES speaks of them already, as it does after the restart.

    Args:
      argv: the program's arguments; `--nohuge_pages` among them refuses.
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
    """Return whether JAX may find something here that is better than the CPU."""
    return os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(os.path.exists, ACCELERATORS))


def _helpful() -> bool:
    if not sys.platform.startswith("linux") or platform.libc_ver()[0] != "glibc":
        return False
    if has_accelerator():
        return False
    try:
        return "[madvise]" in KERNEL.read_text()  # under [always] all have them, under [never] none
    except OSError:
        return False
