"""The training command with the toy family beside the real ones, for tests that kill it."""

import sys

import small
from absl import app

from hiercls_jax import main
from hiercls_jax.models import registry

registry.register("toy", small.Toy)

if __name__ == "__main__":
    app.run(main.main, argv=sys.argv, flags_parser=main.parse_flags)
