"""Sides that are timed in turn within one run, so that other work of the machine hits them all."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
      name: of the comparison.
      seconds: by side, one number per round.
      bytes: the fewest that a turn must read and write, or None.
      images: number of images that a turn trains on, or None.
      memory: by side, the peak memory of its process in bytes; may be empty.
      notes: by side, a text to print beside it; may be empty.
    """

    name: str
    seconds: dict[str, list[float]]
    bytes: int | None = None
    images: int | None = None
    memory: dict[str, int] = dataclasses.field(default_factory=dict)
    notes: dict[str, str] = dataclasses.field(default_factory=dict)

    def having(self, **fields: Any) -> "Row":
        """Return this row with these fields set."""
        return dataclasses.replace(self, **fields)

    def median(self, side: str) -> float:
        """Return the median seconds of a side."""
        return statistics.median(self.seconds[side])

    def ratios(self, side: str, to: str) -> list[float]:
        """Return for each round how many times as fast as `to` the side was."""
        return [b / a for a, b in zip(self.seconds[side], self.seconds[to], strict=True)]


def alternate(
    name: str, sides: dict[str, Callable[[], Any]], rounds: int, bytes_moved: int | None = None
) -> Row:
    """Time every side in each round, in reverse order in every second round.

    Each side runs once untimed before it is timed, to get back what it lost while it waited: the
    caches, and memory that it gave back to the system. (A virtual machine may give memory back to
    its host, which returns it slowly: to touch 3.5 GiB took from 0.2 to 9 s on one.)

    Args:
      name: of the comparison.
      sides: callables without arguments; the time includes that of the JAX arrays they return.
      rounds: at least 1.
      bytes_moved: `bytes` of the `Row`.
    """
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for i in range(rounds):
        for side in list(sides)[:: 1 if i % 2 == 0 else -1]:
            jax.block_until_ready(sides[side]())
            began = time.perf_counter()
            jax.block_until_ready(sides[side]())
            seconds[side].append(time.perf_counter() - began)
    return Row(name, seconds, bytes_moved)


def format_row(row: Row) -> str:
    """Return a row as lines: of each side its median, its rate, and its ratio to the first side."""
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
