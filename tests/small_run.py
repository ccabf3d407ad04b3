"""The training command with the toy family, for tests that start it as a process.

With SMALL_RUN_DRAWS=no its figures are empty files, because drawing them takes seconds. Every
compiled program is kept for the next run, also those that compile faster than users' programs.
"""

import os
import sys
from collections.abc import Sequence

import jax
import small

from hiercls_jax.commands import train
from hiercls_jax.models import registry
from hiercls_jax.report import figures

FIGURES = ("alpha_curve.png", "alpha_curve.svg", "scatter.png", "scatter.svg")

registry.register("toy", small.Toy)


def draw_nothing() -> None:
    """Let figures be empty files in this process."""
    figures.draw_run = lambda workdir, *_: [(workdir / name).touch() for name in FIGURES]


def main(argv: Sequence[str]) -> int:
    """Run the command in this process and return its exit status."""
    if os.environ.get("SMALL_RUN_DRAWS") == "no":
        draw_nothing()
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return train.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
