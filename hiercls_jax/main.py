"""`python -m hiercls_jax.main`: the training command, the same as `hiercls-jax train`."""

import sys

from hiercls_jax.__main__ import program

if __name__ == "__main__":
    sys.exit(program(["hiercls-jax", "train", *sys.argv[1:]]))
