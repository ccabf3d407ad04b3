"""Sides timed in turn within one run, so that what else the machine does hits all of them."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
      name: what was done.
      seconds: by side, one number per round.
      bytes: read and written by the least that the task needs, or None.
      images: that one turn trains on, or None.
      memory: by side, the most bytes that its process had, or nothing.
      notes: by side, what to print beside it, or nothing.
    """

    name: str
    seconds: dict[str, list[float]]
    bytes: int | None = None
    images: int | None = None
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    def having(self, **fields) -> "Row":
        """Return this row with more fields."""
        return dataclasses.replace(self, **fields)

    def median(self, side: str) -> float:
        """Return the median seconds of a side."""
        return statistics.median(self.seconds[side])

    def ratios(self, side: str, to: str) -> list[float]:
        """Return, for each round, how many times as fast `side` was as `to`."""
        return [b / a for a, b in zip(self.seconds[side], self.seconds[to], strict=True)]


def alternate(
    name: str, sides: dict[str, Callable], rounds: int, bytes_moved: int | None = None
) -> Row:
    """Run every side in each round, the order turned in every second round.

    Before a side's turn is timed it runs once untimed, and finds what it lost while it waited: the
    caches, and the memory that it gave back to the system. (A virtual machine may give that back to
    its host, from which it comes slowly: touching 3.5 GiB took from 0.2 to 9 s on one.)

    Args:
      name: what is done.
      sides: callables without arguments; JAX arrays that they return are waited for.
      rounds: at least 1.
      bytes_moved: see `Row`.
    """
    seconds = {side: [] for side in sides}
    for i in range(rounds):
        for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
            jax.block_until_ready(sides[side]())
            began = time.perf_counter()
            jax.block_until_ready(sides[side]())
            seconds[side].append(time.perf_counter() - began)
    return Row(name, seconds, bytes_moved)


def format_row(row: Row) -> str:
    """Return a row as lines: each side's median, its rate, and the first side's gain over it."""
    first = next(iter(row.seconds))
    lines = [row.name]
    for side in row.seconds:
        line = f"  {side:<28} {1e3 * row.median(side):>10.1f} ms"
        if row.bytes is not None:
            line += f" {row.bytes / row.median(side) / 1e9:>7.1f} GB/s"
        if row.images is not None:
            line += f" {row.images / row.median(side):>7.1f} images/s"
        if side in row.memory:
            line += f" {row.memory[side] / 2**30:>5.2f} GiB"
        if side in row.notes:
            line += f"   {row.notes[side]}"
        if side != first:
            ratios = row.ratios(first, side)
            middle = statistics.median(ratios)
            line += f"   {first} {middle:.2f} x as fast ({min(ratios):.2f} to {max(ratios):.2f})"
        lines.append(line)
    return "\n".join(lines)
