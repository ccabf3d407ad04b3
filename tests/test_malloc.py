"""The restart that sets malloc: only if it helps, once, and with the same command."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hiercls_jax import experiment
from hiercls_jax.data.dataset import Dataset, Split
from hiercls_jax.experiment import run
from hiercls_jax.hierarchy import cifar100
from hiercls_jax.runtime import malloc

PAGES = "glibc.malloc.hugetlb=1"
KEEP = [
    "glibc.malloc.mmap_max=0", "glibc.malloc.trim_threshold=4294967296",
    "glibc.malloc.top_pad=67108864",
]  # fmt: skip
SHOW = """
import os, sys
from hiercls_jax.runtime import malloc
malloc._has_glibc = malloc._kernel_gives_huge_pages = lambda: True
malloc.has_accelerator = lambda: False
print(os.getpid(), sys.argv[1:], repr(malloc.describe()), flush=True)
malloc.restart(sys.argv)
"""


@pytest.fixture
def asked(monkeypatch):
    """The variable of each restart, on a machine on which all settings help."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args[2][malloc.VARIABLE]))
    for name, value in (
        ("_has_glibc", True), ("has_accelerator", False), ("_kernel_gives_huge_pages", True)
    ):  # fmt: skip
        monkeypatch.setattr(malloc, name, lambda value=value: value)
    monkeypatch.delenv(malloc.VARIABLE, raising=False)
    return calls


def test_it_restarts_once_with_the_same_command_and_process():
    """The second start has the arguments and the process id of the first, and is the last."""
    environment = {k: v for k, v in os.environ.items() if k != malloc.VARIABLE}
    command = [sys.executable, "-W", "ignore", "-c", SHOW, "--a=b c", "--d"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = shown.stdout.splitlines()
    assert first.endswith("['--a=b c', '--d'] ''")
    asked = "' with huge pages and up to 4 GiB of freed memory kept'"
    assert second == first.removesuffix("''") + asked


def test_other_tunables_are_kept(asked, monkeypatch):
    """Other tunables in the variable stay, before the new ones."""
    monkeypatch.setenv(malloc.VARIABLE, "glibc.malloc.check=1")
    malloc.restart([])
    assert asked == ["glibc.malloc.check=1:" + ":".join([PAGES, *KEEP])]


@pytest.mark.parametrize(
    ("argument", "variable", "added"),
    [
        ("--nohuge_pages", "", KEEP),
        ("--huge_pages=false", "", KEEP),
        ("--nokeep_memory", "", [PAGES]),
        ("--keep_memory=false", "", [PAGES]),
        ("", "glibc.malloc.hugetlb=0", KEEP),
        ("", "glibc.malloc.trim_threshold=0", [PAGES, KEEP[0], KEEP[2]]),
    ],
)
def test_each_can_be_refused(asked, monkeypatch, argument, variable, added):
    """A flag refuses one of the two settings; what the variable sets already is left as it is."""
    monkeypatch.setenv(malloc.VARIABLE, variable)
    malloc.restart(["main.py", argument])
    assert asked == [":".join([*filter(None, [variable]), *added])]


def test_nothing_is_left_to_ask_for(asked, monkeypatch):
    """With both flags, or after the restart, the program goes on."""
    malloc.restart(["main.py", "--nohuge_pages", "--nokeep_memory"])
    monkeypatch.setenv(malloc.VARIABLE, ":".join([PAGES, *KEEP]))
    malloc.restart([])
    assert asked == []


def test_freed_memory_is_kept_up_to_the_bound():
    """After arrays are freed, a process has their memory still, but not more than the bound.

    Without the setting it gives them back. The bound is lowered to 64 MiB here.
    """
    code = (
        "import numpy as np\n"
        "def resident():\n"
        "    return int(open('/proc/self/statm').read().split()[1]) * 4096 / 2**20\n"
        "for size in (32, 400):\n"
        "    arrays = [np.ones(size * 2**17) for _ in range(1)]\n"
        "    full = resident()\n"
        "    del arrays\n"
        "    print(round(full - resident()))\n"
    )

    def given_back(*settings):
        environment = os.environ | malloc.variables(*settings)
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        return [int(line) for line in done.stdout.split()]

    small, large = given_back(malloc.KEEP | {"trim_threshold": 2**26, "top_pad": 2**20})
    assert small < 8
    assert large > 300
    assert min(given_back({"top_pad": 2**20})) > 24


def test_the_start_line_says_so(monkeypatch):
    """A run's first line says how the process was started."""
    monkeypatch.delenv(malloc.VARIABLE, raising=False)
    split = Split(np.zeros((5, 32, 32, 3), np.uint8), np.zeros(5, np.int32))
    data = Dataset("few", cifar100(), split, None, split)
    config = experiment.compose("merge1", "quick")
    assert "with" not in run._start_line(config, data)
    monkeypatch.setenv(malloc.VARIABLE, "glibc.malloc.hugetlb=1")
    assert "cpu with huge pages; workdir" in run._start_line(config, data)
    monkeypatch.setenv(malloc.VARIABLE, ":".join(KEEP))
    assert "cpu with up to 4 GiB of freed memory kept; workdir" in run._start_line(config, data)


@pytest.mark.parametrize(
    ("kernel", "libc", "device", "platforms", "added"),
    [
        ("always [madvise] never", "glibc", None, None, [PAGES, *KEEP]),
        ("[always] madvise never", "glibc", None, None, KEEP),
        ("always madvise [never]", "glibc", None, None, KEEP),
        (None, "glibc", None, None, KEEP),
        ("always [madvise] never", "musl", None, None, []),
        ("always [madvise] never", "glibc", "nvidia", None, []),
        ("always [madvise] never", "glibc", "nvidia", "cpu", [PAGES, *KEEP]),
    ],
)
def test_where_it_helps(monkeypatch, tmp_path, kernel, libc, device, platforms, added):
    """Both need glibc and no accelerator; huge pages, a kernel that gives them on request."""
    enabled, accelerator = tmp_path / "enabled", tmp_path / "nvidia"
    if kernel:
        enabled.write_text(kernel)
    if device:
        accelerator.touch()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(malloc.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(malloc, "KERNEL", enabled)
    monkeypatch.setattr(malloc, "ACCELERATORS", (str(accelerator),))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.delenv(malloc.VARIABLE, raising=False)
    calls = []
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args[2][malloc.VARIABLE]))
    malloc.restart([])
    assert calls == ([":".join(added)] if added else [])
