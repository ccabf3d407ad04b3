"""Each class's share of the mass of its group, with derivatives that do not overflow."""

import jax
import jax.numpy as jnp
import numpy as np

Ids = jax.Array | np.ndarray  # integers


def share_of_group(mass: jax.Array, s: Ids, num_groups: int) -> jax.Array:
    """Return each class's share of its group's mass, or equal shares if the group has no mass.

    A mass below the smallest normal number of the dtype counts as none.

    Args:
      mass: float `[F, ...]`, non-negative, classes first.
      s: integer `[F]` in `[0, num_groups)`, the group of each class.
      num_groups: number of groups.

    Returns:
      float `[F, ...]` in [0, 1].
    """
    q = jax.ops.segment_sum(mass, s, num_groups)
    return jnp.where(is_empty(q)[s], 1 / group_sizes(s, num_groups, q)[s], _share(mass, q[s]))


def is_empty(q: jax.Array) -> jax.Array:
    """Return which masses are below the smallest normal number."""
    return q < jnp.finfo(q.dtype).tiny


def group_sizes(s: Ids, num_groups: int, like: jax.Array) -> jax.Array:
    """Return the number of classes of each group, `[C, 1, …]` of the dtype and rank of `like`."""
    n = jax.ops.segment_sum(jnp.ones(s.shape, like.dtype), s, num_groups)
    return column(n, like)


def column(x: jax.Array | np.ndarray, like: jax.Array) -> jax.Array:
    """Return `x`, `[N]`, as `[N, 1, ...]` of the rank of `like`."""
    return jnp.reshape(x, (-1,) + (1,) * (like.ndim - 1))


@jax.custom_jvp
def _share(part: jax.Array, whole: jax.Array) -> jax.Array:
    """Return part / whole, and 0 if `whole` is empty."""
    kept = ~is_empty(whole)
    return jnp.where(kept, part / jnp.where(kept, whole, 1), 0)


@_share.defjvp
def _share_jvp(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    # The derivative that JAX would form contains whole⁻², which overflows for a whole below about
    # 3e-20. (dpart - share dwhole) / whole is the same number without it.
    part, whole = primals
    d_part, d_whole = tangents
    share = _share(part, whole)
    kept = ~is_empty(whole)
    return share, jnp.where(kept, (d_part - share * d_whole) / jnp.where(kept, whole, 1), 0)
