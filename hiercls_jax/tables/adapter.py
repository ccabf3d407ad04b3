"""A rule compiled for the chunks in which tables are adapted."""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np

from hiercls_jax.adaptation.priors import weigh
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.tree import interpolate
from hiercls_jax.hierarchy import Hierarchy

# Of the float32 rows of all levels that are adapted at once. From 1 to 16 MiB are equally fast, and
# the memory that malloc keeps of freed chunks grows with their size.
CHUNK_BYTES = 2**22
Compiled = Callable[..., tuple[jax.Array, ...]]


class Adapter:
    """A rule for the levels of a hierarchy, compiled for chunks of one size.

    Args:
      hierarchy: L levels of N_l classes.
      rule: one of `RULES`.
      rows: number of samples in all.
      kept: bool `[K]`, which leaves may have mass in the target; None for all. A rule shares a
        class whose children have no mass among all of them, also among those that are left out.

    Attributes:
      size: number of samples in a chunk; a smaller chunk is padded.
      largest_alpha: the largest alpha at which no probability is negative.

    Raises:
      ValueError: if the rule cannot adapt this hierarchy.
    """

    def __init__(
        self, hierarchy: Hierarchy, rule: str, rows: int, kept: np.ndarray | None = None
    ) -> None:
        self.size = chunk_size(hierarchy, rows)
        self.largest_alpha = min(RULES[rule].largest_alpha(hierarchy))
        self._target, self._adapt = _compiled(
            rule, hierarchy, None if kept is None or kept.all() else tuple(kept.tolist())
        )

    def target(self, levels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return the rule's coherent target of L arrays `[n, N_l]`, n up to `size`."""
        return self._padded(self._target, levels)

    def adapt(self, levels: Sequence[np.ndarray], alpha: float) -> list[np.ndarray]:
        """Return (1-α) levels + α target, L arrays `[n, N_l]`, n up to `size`."""
        return self._padded(self._adapt, levels, np.float32(alpha))

    def _padded(
        self,
        function: Compiled,
        levels: Sequence[np.ndarray],
        *args: np.float32,
    ) -> list[np.ndarray]:
        count = len(levels[0])
        padded = [np.pad(p, ((0, self.size - count), (0, 0))) for p in levels]
        return [np.asarray(p)[:count] for p in function(padded, *args)]


def chunk_size(hierarchy: Hierarchy, rows: int) -> int:
    """Return how many of `rows` samples are read at once."""
    return min(rows, max(1, CHUNK_BYTES // (4 * sum(hierarchy.sizes))))


@functools.lru_cache(maxsize=8)
def _compiled(
    rule: str, hierarchy: Hierarchy, kept: tuple[bool, ...] | None
) -> tuple[Compiled, Compiled]:
    """Return the target and the adaptation, which compile once for all adapters of a process."""

    def target(levels: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        coherent = RULES[rule].target(levels, hierarchy)
        return coherent if kept is None else weigh(coherent, hierarchy, np.array(kept, float))

    def adapt(levels: Sequence[jax.Array], alpha: jax.Array) -> tuple[jax.Array, ...]:
        return interpolate(levels, target(levels), alpha)

    return jax.jit(target), jax.jit(adapt)
