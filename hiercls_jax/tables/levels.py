"""The probabilities of every level of a hierarchy, read from tables and checked chunk by chunk."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from hiercls_jax.adaptation.priors import describe_lost, find_lost, weigh
from hiercls_jax.adaptation.values import Reader, Remedies
from hiercls_jax.errors import preview
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.tables import Columns, Table, TableError
from hiercls_jax.tables.table import Identifiers

REMEDIES = Remedies(
    logits="if the table holds logits, give --logits",
    percent="it looks like percent: --renormalize divides each row by its sum",
    conditional=(
        "if the rows are probabilities given that no leaf above is the class, --renormalize scales "
        "them; a softmax over all leaves needs a column for each of them"
    ),
    other="--renormalize divides each row by its sum",
)


def level_columns(
    hierarchy: Hierarchy,
    source: str,
    names: Mapping[str, Sequence[str]] | None = None,
    id: str | None = None,
) -> list[Columns]:
    """Return the columns that the table of each level may have.

    Args:
      hierarchy: L levels.
      source: the file of the hierarchy, for errors.
      names: by level the names of columns that have none.
      id: the name of the column that identifies the rows; None to find it.
    """
    names = names or {}
    columns = []
    for level, (name, classes) in enumerate(zip(hierarchy.levels, hierarchy.names, strict=True)):
        cut = hierarchy.cut_names(level)
        leaves = cut if len(classes) < len(cut) == len(set(cut)) else None
        unstated = None
        if name in hierarchy.unordered:
            unstated = (
                f"its columns have no names, and {source} does not state the order of level "
                f"'{name}', because it names {preview(classes)} only as parents; do one of these: "
                f"give --names {name}=FILE, one class a line in the order of the columns; add a "
                f"row without a parent for each of these classes to {source} in that order, such "
                f"as '{classes[0]},'; give the hierarchy as JSON; or name the columns in the "
                "header of a CSV or Parquet table"
            )
        given = tuple(names[name]) if name in names else None
        columns.append(Columns(classes, leaves, unstated, given, id))
    return columns


@dataclasses.dataclass(frozen=True)
class LevelTables:
    """One table per level, a row for each sample in all of them.

    Args:
      given: L levels of N_l classes.
      tables: L tables of N_l columns, coarsest level first. They hold probabilities: not negative,
        and each row sums to 1 within `SUM_TOLERANCE`; in a ragged hierarchy it sums to 1 together
        with the leaves of the levels above. A table may have columns for these leaves too.
      logits: the tables hold logits instead, and each level's softmax is taken.
      renormalize: rows may have any sum, and are divided by it.
      weights: float `[K]`, by which every leaf's probability is weighed, on all levels consistently
        (`adaptation.priors`); 0 leaves a leaf out. None for no change.

    In a ragged hierarchy, a softmax or a renormalized row holds probabilities given that the sample
    is not a leaf of a level above. It is scaled to the mass that those leaves leave.

    Raises:
      TableError: if tables have different numbers of rows.
    """

    given: Hierarchy
    tables: Sequence[Table]
    logits: bool = False
    renormalize: bool = False
    weights: np.ndarray | None = None

    def __post_init__(self) -> None:
        first = self.tables[0]
        for table in self.tables[1:]:
            if table.rows != first.rows:
                raise TableError(
                    f"{table.name} has {table.rows} rows but {first.name} has {first.rows}; "
                    "allowed is one row for each sample in every table"
                )

    @functools.cached_property
    def hierarchy(self) -> Hierarchy:
        """The hierarchy of the levels that are read.

        If a table has columns for the leaves above its level, it has an opinion of its own about
        them. Then every such leaf stands as its own only child on the levels below.
        """
        return self.given.filled() if any(self._over_cut) else self.given

    @property
    def rows(self) -> int:
        """Number of samples N."""
        return self.tables[0].rows

    @property
    def ids(self) -> Identifiers | None:
        """The column that identifies the rows, of the first table that has one; None without."""
        return next((table.ids for table in self.tables if table.ids is not None), None)

    @property
    def _over_cut(self) -> list[bool]:
        pairs = zip(self.tables, self.given.sizes, strict=True)
        return [len(table.classes) > size for table, size in pairs]

    def chunks(self, size: int) -> Iterator[list[np.ndarray]]:
        """Read marginals from the start: L arrays float32 `[n, N_l]` at a time.

        All chunks have n = `size`, but the last has the rest.

        Raises:
          TableError: if a value or a sum is not allowed; it names the file and the row.
        """

        def where(level: int, row: int) -> str:
            return f"{self.tables[level].name}, row {row} (from 0)"

        reader = Reader(
            self.given,
            self._over_cut,
            where,
            REMEDIES,
            TableError,
            self.logits,
            self.renormalize,
        )
        start = 0
        for chunks in zip(*(table.chunks(size) for table in self.tables), strict=True):
            levels = reader.read(chunks, start)
            if self.weights is not None:
                levels = self._weigh(levels, start, size)
            yield levels
            start += len(chunks[0])

    def _weigh(self, levels: list[np.ndarray], start: int, size: int) -> list[np.ndarray]:
        assert self.weights is not None
        count = len(levels[0])
        size = min(size, self.rows)  # a chunk of fewer rows is padded, so that it compiles once
        padded = [np.pad(p, ((0, size - count), (0, 0))) for p in levels]
        weighed = [np.asarray(p)[:count] for p in weigh(padded, self.hierarchy, self.weights)]
        lost = find_lost(weighed, self.hierarchy)
        if lost is not None:
            row, level = lost
            where = f"{self.tables[level].name}, row {start + row} (from 0)"
            raise TableError(describe_lost(where, self.hierarchy.levels[level]))
        return weighed

    def id_chunks(self, size: int) -> Iterator[np.ndarray]:
        """Read the identifiers of the rows from the start, `[n]` at a time; nothing without any.

        Raises:
          TableError: if two tables identify a row differently; it names the row.
        """
        tables = [table for table in self.tables if table.ids is not None]
        start = 0
        for chunks in zip(*(table.id_chunks(size) for table in tables), strict=True):
            for table, ids in zip(tables[1:], chunks[1:], strict=True):
                pairs = zip(chunks[0], ids, strict=True)
                row = next((i for i, (a, b) in enumerate(pairs) if str(a) != str(b)), None)
                if row is not None:
                    raise TableError(
                        f"row {start + row} (from 0) is '{chunks[0][row]}' in {tables[0].name} but "
                        f"'{ids[row]}' in {table.name}; allowed are the same rows in the same "
                        "order in every table"
                    )
            yield chunks[0]
            start += len(chunks[0])
