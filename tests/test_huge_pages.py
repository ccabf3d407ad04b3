"""The restart: only if it helps, once, and with the same command."""

import os
import subprocess
import sys

import numpy as np
import pytest

from hiercls_jax import experiment
from hiercls_jax.data.dataset import Dataset, Split
from hiercls_jax.experiment import run
from hiercls_jax.hierarchy import cifar100
from hiercls_jax.runtime import huge_pages

SHOW = """
import os, sys
from hiercls_jax.runtime import huge_pages
huge_pages._helpful = lambda: True
print(os.getpid(), sys.argv[1:], huge_pages.in_use(), flush=True)
huge_pages.restart(sys.argv)
"""


@pytest.fixture
def asked(monkeypatch):
    """The calls of `os.execve`, on a machine on which huge pages help."""
    calls = []
    monkeypatch.setattr(os, "execve", lambda *args: calls.append(args))
    monkeypatch.setattr(huge_pages, "_helpful", lambda: True)
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    return calls


def test_it_restarts_once_with_the_same_command_and_process():
    """The second start has the arguments and the process id of the first, and is the last."""
    environment = {k: v for k, v in os.environ.items() if k != huge_pages.VARIABLE}
    command = [sys.executable, "-W", "ignore", "-c", SHOW, "--a=b c", "--d"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    first, second = shown.stdout.splitlines()
    assert first.endswith("['--a=b c', '--d'] False")
    assert second == first.replace("False", "True")


def test_other_tunables_are_kept(asked, monkeypatch):
    """Other tunables in the variable stay, before the new one."""
    monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.check=1")
    huge_pages.restart([])
    assert asked[0][2][huge_pages.VARIABLE] == "glibc.malloc.check=1:glibc.malloc.hugetlb=1"


def test_it_can_be_refused(asked, monkeypatch):
    """The flag refuses it, and so does a variable that sets the tunable already."""
    huge_pages.restart(["main.py", "--nohuge_pages"])
    huge_pages.restart(["main.py", "--huge_pages=false"])
    monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.hugetlb=0")
    huge_pages.restart([])
    assert not asked
    assert not huge_pages.in_use()


def test_the_start_line_says_so(monkeypatch):
    """A run's first line says whether it was restarted with huge pages."""
    monkeypatch.delenv(huge_pages.VARIABLE, raising=False)
    split = Split(np.zeros((5, 32, 32, 3), np.uint8), np.zeros(5, np.int32))
    data = Dataset("few", cifar100(), split, None, split)
    config = experiment.compose("merge1", "quick")
    assert "huge pages" not in run._start_line(config, data)
    monkeypatch.setenv(huge_pages.VARIABLE, "glibc.malloc.hugetlb=1")
    assert "cpu with huge pages; workdir" in run._start_line(config, data)


@pytest.mark.parametrize(
    ("kernel", "libc", "device", "platforms", "helpful"),
    [
        ("always [madvise] never", "glibc", None, None, True),
        ("[always] madvise never", "glibc", None, None, False),
        ("always madvise [never]", "glibc", None, None, False),
        (None, "glibc", None, None, False),
        ("always [madvise] never", "musl", None, None, False),
        ("always [madvise] never", "glibc", "nvidia", None, False),
        ("always [madvise] never", "glibc", "nvidia", "cpu", True),
    ],
)
def test_where_it_helps(monkeypatch, tmp_path, kernel, libc, device, platforms, helpful):
    """It needs Linux with glibc, a kernel that gives huge pages on request, and no accelerator."""
    enabled, accelerator = tmp_path / "enabled", tmp_path / "nvidia"
    if kernel:
        enabled.write_text(kernel)
    if device:
        accelerator.touch()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(huge_pages.platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(huge_pages, "KERNEL", enabled)
    monkeypatch.setattr(huge_pages, "ACCELERATORS", (str(accelerator),))
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    assert huge_pages._helpful() is helpful
