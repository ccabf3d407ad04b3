"""The training command with the toy family, for tests that start it as a process.

With SMALL_RUN_DRAWS=no its figures are empty files, because drawing them takes seconds.
"""

import os
import sys

import small

from hiercls_jax.commands import train
from hiercls_jax.models import registry
from hiercls_jax.report import figures

FIGURES = ("alpha_curve.png", "alpha_curve.svg", "scatter.png", "scatter.svg")

registry.register("toy", small.Toy)


def draw_nothing() -> None:
    """Let figures be empty files in this process."""
    figures.draw_run = lambda workdir, *_: [(workdir / name).touch() for name in FIGURES]


if __name__ == "__main__":
    if os.environ.get("SMALL_RUN_DRAWS") == "no":
        draw_nothing()
    sys.exit(train.main(sys.argv))
