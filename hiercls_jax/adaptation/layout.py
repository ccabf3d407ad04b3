"""Classes first, and a block of samples at a time: the layout in which a segment sum is fast."""

import math
from collections.abc import Callable
from functools import partial, wraps

import jax
import jax.numpy as jnp
from jax import lax

BLOCK = 512  # samples; with 1,000 classes their probabilities fill a CPU's second-level cache


def classes_first(passes: Callable) -> Callable:
    """Compile `passes(levels, ...) -> levels`, written for classes first, for classes last.

    A segment sum over the leading axis is vectorised over the samples. To turn the axes costs two
    passes over memory, which on a CPU stay in its cache: there it is done block by block.

    Args:
      passes: takes a list of arrays `[N_l, samples...]`, and what else it needs, the same for all
        samples; returns arrays of that kind.

    Returns:
      The same function of arrays `[..., N_l]`, whose leading axes broadcast against each other.
    """

    @jax.jit
    @wraps(passes)
    def compiled(levels, *args):
        def block(levels):
            results = passes([jnp.moveaxis(p, -1, 0) for p in levels], *args)
            return tuple(jnp.moveaxis(p, 0, -1) for p in results)

        lead = jnp.broadcast_shapes(*(p.shape[:-1] for p in levels))
        levels = [jnp.broadcast_to(p, lead + p.shape[-1:]) for p in levels]
        symbolic = not all(isinstance(n, int) for n in lead)  # while a program is exported
        if symbolic or math.prod(lead) <= BLOCK:
            return block(levels)
        by_blocks = partial(_by_blocks, block, lead)
        return lax.platform_dependent(levels, cpu=by_blocks, default=block)

    return compiled


def _by_blocks(block: Callable, lead: tuple[int, ...], levels: list):
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
    """Return the greatest divisor of `count` up to BLOCK, or BLOCK where that is a small one.

    With a remainder, all results have to be copied once more.
    """
    divisor = next(n for n in range(min(BLOCK, count), 0, -1) if count % n == 0)
    return divisor if divisor >= BLOCK // 4 else BLOCK
