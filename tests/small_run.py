"""The training command with the toy family beside the real ones, for tests that kill it."""

import sys

import small

from hiercls_jax.commands import train
from hiercls_jax.models import registry

registry.register("toy", small.Toy)

if __name__ == "__main__":
    sys.exit(train.main(sys.argv))
