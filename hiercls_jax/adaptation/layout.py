"""Classes first, and a block of samples at a time: the layout in which a segment sum is fast."""

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Concatenate, ParamSpec

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 512  # samples; with 1,000 classes their probabilities fill a CPU's second-level cache

Args = ParamSpec("Args")
Levels = Sequence[jax.Array]


def classes_first(
    passes: Callable[Concatenate[Levels, Args], Levels],
) -> Callable[Concatenate[Levels, Args], tuple[jax.Array, ...]]:
    """Compile `passes(levels, ...) -> levels`, written for classes first, for classes last.

    A segment sum over the leading axis is vectorised over the samples. Moving the axes costs two
    passes over memory. On a CPU they are made block by block, so that they stay in its cache.

    Args:
      passes: takes a list of arrays `[N_l, samples...]`, and further arguments that are the same
        for all samples; returns such arrays.

    Returns:
      The same function of arrays `[..., N_l]`, whose leading axes broadcast against each other.
    """

    @jax.jit
    @wraps(passes)
    def compiled(levels: Levels, *args: Args.args, **kwargs: Args.kwargs) -> tuple[jax.Array, ...]:
        def block(levels: Levels) -> tuple[jax.Array, ...]:
            results = passes([jnp.moveaxis(p, -1, 0) for p in levels], *args, **kwargs)
            return tuple(jnp.moveaxis(p, 0, -1) for p in results)

        lead = jnp.broadcast_shapes(*(p.shape[:-1] for p in levels))
        levels = [jnp.broadcast_to(p, lead + p.shape[-1:]) for p in levels]
        symbolic = not all(isinstance(n, int) for n in lead)  # while a program is exported
        if symbolic or math.prod(lead) <= BLOCK:
            return block(levels)
        by_blocks = partial(_by_blocks, block, lead)
        return lax.platform_dependent(levels, cpu=by_blocks, default=block)

    return compiled


def _by_blocks(
    block: Callable[[Levels], tuple[jax.Array, ...]], lead: tuple[int, ...], levels: Levels
) -> tuple[jax.Array, ...]:
    count = math.prod(lead)
    rows = [p.reshape(count, -1) for p in levels]
    size = _block_size(count)
    whole = count - count % size
    blocks = [p[:whole].reshape(-1, size, p.shape[-1]) for p in rows]
    results = [r.reshape(whole, -1) for r in lax.map(block, blocks)]
    if whole < count:
        rest = block([p[whole:] for p in rows])
        results = [jnp.concatenate(parts) for parts in zip(results, rest, strict=True)]
    return tuple(r.reshape(*lead, -1) for r in results)


def _block_size(count: int) -> int:
    """Return the greatest divisor of `count` up to BLOCK, or BLOCK if that divisor is small.

    A remainder costs one more copy of all results.
    """
    divisor = next(n for n in range(min(BLOCK, count), 0, -1) if count % n == 0)
    return divisor if divisor >= BLOCK // 4 else BLOCK
