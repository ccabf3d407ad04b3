"""`python -m hiercls_jax.main`: the training command, which stands in `commands/train.py`."""

import sys

from hiercls_jax.runtime import huge_pages

if __name__ == "__main__":
    huge_pages.restart(sys.argv)  # before the imports below, which take seconds
    # Ctrl-C meanwhile is no error. Later ones are met where what they stop is known.
    sys.excepthook = lambda kind, *rest: (
        print("stopped before anything began", file=sys.stderr)
        if kind is KeyboardInterrupt
        else sys.__excepthook__(kind, *rest)
    )
    from hiercls_jax.commands import train

    train.program()
