"""`answers.csv` or `answers.parquet`: one answer for each sample, by name."""

import csv
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hiercls_jax.adaptation.stopping import Climb, stop_climb
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.hierarchy.nodes import node_names, node_numbers
from hiercls_jax.tables import parquet_files
from hiercls_jax.tables.columns import ID
from hiercls_jax.tables.streaming import named_apart
from hiercls_jax.tables.table import Identifiers

COLUMNS = ("answer", "level", "probability")


def answer_format(table_format: str) -> str:
    """Return the format of answers beside tables of a format: arrays cannot hold names."""
    return "parquet" if table_format == "parquet" else "csv"


def write_answers(
    path: Path,
    climb: Climb,
    hierarchy: Hierarchy,
    threshold: float,
    ids: Identifiers | None = None,
    size: int = 2**16,
) -> None:
    """Write the answers of `stop` at a threshold.

    The columns are the identifier, `answer` (the name of a class, empty for the root), `level` (the
    name of its level, empty for the root), and `probability`.

    Args:
      path: a new file, .csv or .parquet.
      climb: N paths.
      hierarchy: the tree.
      threshold: where to stop.
      ids: the column that identifies the samples; None for the numbers of their rows, from 0.
      size: rows that are written at once.
    """
    names = np.array(node_names(hierarchy))
    levels = np.array([*hierarchy.levels, ""])  # the root's is at -1
    column = named_apart(ids, COLUMNS)
    all_ids = ids.read(size) if ids else None
    opened = _csv if path.suffix == ".csv" else _parquet
    with opened(path, (column.name if column else ID, *COLUMNS)) as write:
        for start in range(0, len(climb.leaf), size):
            rows = slice(start, start + size)
            block = Climb(climb.leaf[rows], climb.probability[rows])
            node, _, probability = stop_climb(block, hierarchy, threshold)
            own = next(all_ids) if all_ids else np.arange(start, start + len(node))
            write(own, names[node_numbers(node, hierarchy)], levels[node[:, 0]], probability)


@contextmanager
def _csv(path: Path, columns: Sequence[str]) -> Iterator[Callable[..., None]]:
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)

        def write(ids: Sequence[Any], *rest: np.ndarray) -> None:
            # As text, a float32 has no more digits than it needs.
            writer.writerows(zip(ids, *(x.astype(str).tolist() for x in rest), strict=True))

        yield write


@contextmanager
def _parquet(path: Path, columns: Sequence[str]) -> Iterator[Callable[..., None]]:
    arrow, parquet = parquet_files.import_arrow(str(path))
    writer: Any = None
    try:

        def write(*values: Any) -> None:
            nonlocal writer
            batch = arrow.table({c: arrow.array(v) for c, v in zip(columns, values, strict=True)})
            writer = writer or parquet.ParquetWriter(path, batch.schema)
            writer.write_table(batch)

        yield write
    finally:
        if writer:
            writer.close()
