"""How malloc serves the large arrays of a CPU: set by one restart of the program.

A training step allocates and frees gigabytes.

- In pages of 4 KiB that causes millions of page faults; in pages of 2 MiB, thousands. glibc uses
  huge pages if GLIBC_TUNABLES asks for them.
- glibc gives freed memory back to the system, and the next step must get it again. That is slow if
  the system is a virtual machine that gives it on to its host. Up to a bound, the process keeps it.

glibc reads GLIBC_TUNABLES when the process starts. So the program sets the variable and restarts
itself, before it has done anything.
"""

import os
import platform
import sys
from pathlib import Path

VARIABLE = "GLIBC_TUNABLES"
KERNEL = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ACCELERATORS = ("/dev/nvidiactl", "/dev/kfd", "/dev/accel0", "/dev/vfio/0")  # CUDA, ROCm, TPU
HUGE_PAGES = {"hugetlb": 1}
KEPT = 2**32  # bytes of freed memory that the process keeps at most, for each of malloc's heaps
KEEP = {
    "mmap_max": 0,  # take large arrays from a heap, too: what mmap gave is given back when freed
    "trim_threshold": KEPT,
    "top_pad": 2**26,  # bytes by which a heap grows at least
}
# The flags that turn each of them off; absl parses them only later.
_OFF = {
    "huge_pages": {"--nohuge_pages", "--huge_pages=false"},
    "keep_memory": {"--nokeep_memory", "--keep_memory=false"},
}


def restart(argv: list[str]) -> None:
    """Restart this process with huge pages and kept memory, each if it helps.

    They help on a CPU under Linux with glibc; huge pages, if the kernel gives them on request. A
    setting that GLIBC_TUNABLES has already, as all have after the restart, is left as it is.

    Args:
      argv: the program's arguments; `--nohuge_pages` and `--nokeep_memory` are obeyed.
    """
    before = os.environ.get(VARIABLE, "")
    wanted: dict[str, int] = {}
    if _has_glibc() and not has_accelerator():
        if not _OFF["huge_pages"] & set(argv) and _kernel_gives_huge_pages():
            wanted |= HUGE_PAGES
        if not _OFF["keep_memory"] & set(argv):
            wanted |= KEEP
    missing = [f"{_name(key)}={value}" for key, value in wanted.items() if _name(key) not in before]
    if not missing:
        return
    sys.stdout.flush()
    os.execve(
        sys.executable,
        [sys.executable, *sys.orig_argv[1:]],
        {**os.environ, VARIABLE: ":".join([*filter(None, [before]), *missing])},
    )


def variables(*settings: dict[str, int]) -> dict[str, str]:
    """Return the environment variable that asks for these settings, for a process to start with.

    >>> variables(HUGE_PAGES)
    {'GLIBC_TUNABLES': 'glibc.malloc.hugetlb=1'}
    """
    merged = {key: value for setting in settings for key, value in setting.items()}
    return {VARIABLE: ":".join(f"{_name(key)}={value}" for key, value in merged.items())}


def describe() -> str:
    """Return how this process was started, as the end of a phrase: " with huge pages", or ""."""
    words = os.environ.get(VARIABLE, "").split(":")
    parts = ["huge pages"] if f"{_name('hugetlb')}=1" in words else []
    if f"{_name('trim_threshold')}={KEPT}" in words:
        parts.append(f"up to {KEPT // 2**30} GiB of freed memory kept")
    return f" with {' and '.join(parts)}" if parts else ""


def has_accelerator() -> bool:
    """Return whether JAX may find an accelerator on this machine."""
    return os.environ.get("JAX_PLATFORMS", "") != "cpu" and any(map(os.path.exists, ACCELERATORS))


def _name(key: str) -> str:
    return f"glibc.malloc.{key}"


def _has_glibc() -> bool:
    return sys.platform.startswith("linux") and platform.libc_ver()[0] == "glibc"


def _kernel_gives_huge_pages() -> bool:
    try:
        return "[madvise]" in KERNEL.read_text()  # [always]: all have them; [never]: none
    except OSError:
        return False
