"""What training carries from step to step."""

import flax.struct
import jax
import jax.numpy as jnp
import optax

from hiercls_jax.runtime import parallel


@flax.struct.dataclass
class State:
    """Step count, parameters, batch statistics and optimizer state: all that a checkpoint holds."""

    step: jax.Array  # int32 scalar, steps taken
    params: dict
    batch_stats: dict
    opt_state: optax.OptState


def create(network, optimizer, key, image_shape: tuple[int, int, int]) -> State:
    """Return the state at step 0 for images `[H, W, 3]`.

    The initial values of a module depend on the key and on its path alone, so that merge-0 starts
    from exactly what separate networks with the same key start from.
    """

    def init(key):
        variables = network.init(key, jnp.zeros((1, *image_shape)), train=False)
        return State(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
        )

    # Each parameter has its random numbers in the program: to optimise that for a CPU takes a
    # minute for a large network, and it runs once.
    options = None if parallel.on_accelerator() else {"xla_backend_optimization_level": 0}
    return jax.jit(init, compiler_options=options)(key)
