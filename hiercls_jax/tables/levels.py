"""The probabilities of every level of a hierarchy, read from tables and checked chunk by chunk."""

import dataclasses
from collections.abc import Iterator, Sequence

import numpy as np

from hiercls_jax.adaptation.checks import SUM_TOLERANCE
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.tables import Table, TableError


@dataclasses.dataclass(frozen=True)
class LevelTables:
    """One table per level, a row for each sample in all of them.

    Args:
      hierarchy: L levels of N_l classes.
      tables: L tables of N_l columns, coarsest level first. They hold probabilities: not negative,
        and each row sums to 1 within `SUM_TOLERANCE`; in a ragged hierarchy it sums to 1 together
        with the leaves of the levels above.
      logits: the tables hold logits instead, and each level's softmax is taken.
      renormalize: rows may have any sum, and are divided by it.

    In a ragged hierarchy, a softmax or a renormalized row holds probabilities given that the sample
    is not a leaf of a level above. It is scaled to the mass that those leaves leave.

    Raises:
      TableError: if tables have different numbers of rows.
    """

    hierarchy: Hierarchy
    tables: Sequence[Table]
    logits: bool = False
    renormalize: bool = False

    def __post_init__(self) -> None:
        first = self.tables[0]
        for table in self.tables[1:]:
            if table.rows != first.rows:
                raise TableError(
                    f"{table.name} has {table.rows} rows but {first.name} has {first.rows}; "
                    "allowed is one row for each sample in every table"
                )

    @property
    def rows(self) -> int:
        """Number of samples N."""
        return self.tables[0].rows

    def chunks(self, size: int) -> Iterator[list[np.ndarray]]:
        """Read marginals from the start: L arrays float32 `[n, N_l]` at a time.

        All chunks have n = `size`, but the last has the rest.

        Raises:
          TableError: if a value or a sum is not allowed; it names the file and the row.
        """
        start = 0
        for chunks in zip(*(table.chunks(size) for table in self.tables), strict=True):
            room, levels = np.ones(len(chunks[0])), []
            for level, values in enumerate(chunks):
                levels.append(self._probabilities(level, start, values, room))
                leaf = self.hierarchy.is_leaf(level)
                if leaf.any():
                    room = levels[-1].sum(axis=1, dtype=np.float64, where=~leaf)
            yield levels
            start += len(room)

    def _probabilities(
        self, level: int, start: int, values: np.ndarray, room: np.ndarray
    ) -> np.ndarray:
        """Return a level's rows from `start` on as probabilities that sum to `room`."""
        self._check_values(level, start, values)
        if self.logits:
            values = np.exp(values - values.max(axis=1, keepdims=True))
        total = values.sum(axis=1, dtype=np.float64)
        scaled = self.logits or self.renormalize
        bad = (total == 0) & (room > 0) if scaled else abs(total - room) > SUM_TOLERANCE
        if bad.any():
            row = int(bad.argmax())
            above = "" if room[row] == 1 else ", because the leaves above have the rest"
            remedy = "" if scaled else "; --renormalize divides each row by its sum"
            raise TableError(
                f"{self._where(level, start + row)}: sums to {total[row]:.6g}, allowed is "
                f"{room[row]:.6g} within {SUM_TOLERANCE:g}{above}{remedy}"
            )
        if scaled:
            np.divide(values, np.where(total == 0, 1, total)[:, None], out=values)
            np.multiply(values, room[:, None], out=values)
        return values

    def _check_values(self, level: int, start: int, values: np.ndarray) -> None:
        low, what = (-np.inf, "numbers or -inf") if self.logits else (0.0, "numbers from 0 to 1")
        allowed = (values >= low) & (values < np.inf)  # False for NaN
        if not allowed.all():
            row, column = np.argwhere(~allowed)[0]
            raise TableError(
                f"{self._where(level, start + row)}: {values[row, column]:g} for class "
                f"'{self.hierarchy.names[level][column]}', allowed are {what}"
            )
        if self.logits and np.isneginf(top := values.max(axis=1)).any():
            row = int(top.argmin())
            raise TableError(f"{self._where(level, start + row)}: -inf for every class")

    def _where(self, level: int, row: int) -> str:
        return f"{self.tables[level].name}, row {row} (from 0)"
