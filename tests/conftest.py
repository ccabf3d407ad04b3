"""Four CPU devices, strict ranks, a compilation cache and hypothesis profiles, before JAX runs."""

import gc
import os
import signal
from pathlib import Path

# One thread of NumPy in each worker: more of them wait for each other longer than they work. It is
# read when NumPy is imported.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import pytest

# Most programs of the tests run once: optimising them would take longer than all else, and XLA's
# older code generator, which its newest versions lack, takes half as long as the other, and less if
# it does not split programs. Values can differ in the last bit. `XLA_FLAGS= pytest …` compiles as
# for users, as .ci/run does for the numerics. JAX reads the variable at its first program.
FLAGS = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):
    FLAGS += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hiercls_jax" / "jax"

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts background jobs with Ctrl-C ignored; the programs that tests start inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_platforms", os.environ.get("JAX_PLATFORMS", "cpu"))
jax.config.update("jax_num_cpu_devices", int(os.environ.get("JAX_NUM_CPU_DEVICES", "4")))
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, database=None, max_examples=50
)
# pytest -m hypothesis --hypothesis-profile=explore
hypothesis.settings.register_profile(
    "explore", deadline=None, derandomize=False, max_examples=200, print_blob=True
)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_finish() -> None:
    """Let Python no longer look for garbage in the modules that are imported by now."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Let `-n auto` start two workers, because each has four devices already."""
    return 2


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """Give all tests of a file to one worker, because they share compiled programs and runs."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # files in alphabetical order
    return LoadFileScheduling(config, log)
