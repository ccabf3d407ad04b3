"""The state that a training step takes and returns."""

from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import optax

from hiercls_jax.runtime import parallel


@flax.struct.dataclass
class State:
    """Step count, parameters, batch statistics and optimizer state: all that a checkpoint holds."""

    step: jax.Array  # int32 scalar, the number of steps taken
    params: dict[str, Any]  # float32 arrays by module and name
    batch_stats: dict[str, Any]  # likewise
    opt_state: optax.OptState


def create(
    network: nn.Module,
    optimizer: optax.GradientTransformation,
    key: jax.Array,
    image_shape: tuple[int, int, int],
) -> State:
    """Return the state at step 0.

    The initial values of a module depend on the key and on the module's path alone. So merge-0
    starts from exactly the values that separate networks with the same key start from.

    Args:
      network: a `Branched` network.
      optimizer: of which the state is initialised, too.
      key: random key of the initial values.
      image_shape: (H, W, 3).
    """

    def init(key: jax.Array) -> State:
        variables = network.init(key, jnp.zeros((1, *image_shape)), train=False)
        return State(
            step=jnp.int32(0),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state=optimizer.init(variables["params"]),
        )

    # The program draws each parameter's random numbers by operations of its own. To optimise it for
    # a CPU takes a minute for a large network, and it runs once.
    options = None if parallel.on_accelerator() else {"xla_backend_optimization_level": 0}
    state: State = jax.jit(init, compiler_options=options)(key)
    return state
