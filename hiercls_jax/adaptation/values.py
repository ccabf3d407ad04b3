"""Checks of the values that users give for probabilities: what is wrong, where, and what to do."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from hiercls_jax.adaptation.checks import SUM_TOLERANCE
from hiercls_jax.errors import UserError
from hiercls_jax.hierarchy import Hierarchy

Where = Callable[[int, int], str]
"""Names a level's row, for errors."""


@dataclasses.dataclass(frozen=True)
class Remedies:
    """What to do about values that are no probabilities, in the words of a command or a function.

    Args:
      logits: if there are negative values.
      percent: if a row sums to 100.
      conditional: if a row sums to 1 although leaves above the level have a part of it.
      other: if a row has any other sum.
    """

    logits: str
    percent: str
    conditional: str
    other: str


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads the levels' values as marginals.

    Args:
      hierarchy: L levels of N_l classes.
      over_cut: for each level whether its values are over its cut instead, all leaves above
        included. If any are, the levels that are read are those of `hierarchy.filled()`.
      where: names a row.
      remedies: what to do, for errors.
      error: the type of errors.
      logits: values are logits, and each level's softmax is taken.
      renormalize: rows may have any sum, and are divided by it.
      tolerance: how far a row's sum may be from what is allowed.
    """

    hierarchy: Hierarchy
    over_cut: Sequence[bool]
    where: Where
    remedies: Remedies
    error: type[UserError] = UserError
    logits: bool = False
    renormalize: bool = False
    tolerance: float = SUM_TOLERANCE

    def read(self, levels: Sequence[np.ndarray], start: int = 0) -> list[np.ndarray]:
        """Return marginals of every level: each sums to 1 together with the leaves above it.

        A softmax or a renormalized row over a level's own classes holds probabilities given that
        the sample is not a leaf above. It is scaled to the mass that those leaves leave.

        Args:
          levels: L float arrays `[N, N_l]`, or `[N, K_l]` if they are over the cut.
          start: number of the first row, for errors.

        Returns:
          L arrays `[N, N_l]`; `[N, K_l]` if the levels are those of `hierarchy.filled()`.

        Raises:
          UserError: for a value or a sum that is not allowed; it names the row.
        """
        fill = any(self.over_cut)
        read: list[np.ndarray] = []
        room, above = np.ones(len(levels[0])), levels[0][:, :0]  # mass, and leaves, from above
        for level, (values, over_cut) in enumerate(zip(levels, self.over_cut, strict=True)):
            p = self._probabilities(level, start, values, np.ones_like(room) if over_cut else room)
            if fill and not over_cut:
                p = np.concatenate([p, above], axis=1)
            read.append(p)
            size, leaf = self.hierarchy.sizes[level], self.hierarchy.is_leaf(level)
            if leaf.any() and level < self.hierarchy.num_levels - 1:
                room = p[:, :size].sum(axis=1, dtype=np.float64, where=~leaf)
            above = np.concatenate([p[:, size:], p[:, :size][:, leaf]], axis=1)
        return read

    def _probabilities(
        self, level: int, start: int, values: np.ndarray, room: np.ndarray
    ) -> np.ndarray:
        """Return a level's rows from `start` on as probabilities that sum to `room`."""
        self._check_values(level, start, values)
        if self.logits:
            values = np.exp(values - values.max(axis=1, keepdims=True))
        total = values.sum(axis=1, dtype=np.float64)
        scaled = self.logits or self.renormalize
        bad = (total == 0) & (room > 0) if scaled else abs(total - room) > self.tolerance
        if bad.any():
            row = int(bad.argmax())
            above = "" if room[row] == 1 else ", because the leaves above have the rest"
            raise self.error(
                f"{self.where(level, start + row)}: sums to {total[row]:.6g}, allowed is "
                f"{room[row]:.6g} within {self.tolerance:.3g}{above}"
                + ("" if scaled else f"; {self._remedy(total[row], room[row])}")
            )
        if scaled:
            values = values / np.where(total == 0, 1, total)[:, None] * room[:, None]
            values = values.astype(np.float32)
        return values

    def _remedy(self, total: float, room: float) -> str:
        if abs(total / 100 - room) < 0.01:
            return self.remedies.percent
        if room < 1 and abs(total - 1) <= self.tolerance:
            return self.remedies.conditional
        return self.remedies.other

    def _check_values(self, level: int, start: int, values: np.ndarray) -> None:
        low, what = (-np.inf, "numbers or -inf") if self.logits else (0.0, "numbers from 0 to 1")
        allowed = (values >= low) & (values < np.inf)  # False for NaN
        if not allowed.all():
            row, column = np.argwhere(~allowed)[0]
            names = self.hierarchy.names[level]
            if self.over_cut[level]:
                names = self.hierarchy.cut_names(level)
            value = values[row, column]
            remedy = f"; {self.remedies.logits}" if -np.inf < value < 0 else ""
            raise self.error(
                f"{self.where(level, start + row)}: {value:g} for class '{names[column]}', "
                f"allowed are {what}{remedy}"
            )
        if self.logits and np.isneginf(top := values.max(axis=1)).any():
            row = int(top.argmin())
            raise self.error(f"{self.where(level, start + row)}: -inf for every class")
