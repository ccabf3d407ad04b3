"""Labels of all rows in one column, or of some rows beside a column of identifiers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables import label_ids, parquet_files, read_labels
from hiercls_jax.tables.columns import INDEX
from hiercls_jax.tables.table import TableError, as_table_error


class LabelRows(NamedTuple):
    """Labels as a file has them.

    Args:
      labels: int32 `[M]` in `[0, K)`; -1 for none.
      ids: what identifies each row, as text; None if the labels are those of all rows in order.
    """

    labels: np.ndarray
    ids: list[str] | None


def read_label_rows(name: str, classes: Sequence[str], rows: int, id_name: str | None) -> LabelRows:
    """Read a class for each row in order or, in CSV and Parquet, for rows that are identified.

    Of two columns, the one with the tables' name of identifiers identifies the rows, else the one
    that is beside names of classes, else the first one. An index that pandas wrote does not, if the
    tables have no identifiers.

    Args:
      name: a file as for `read_labels`, or of two columns.
      classes: names of the K classes.
      rows: the number of rows of the tables.
      id_name: the name of the tables' column of identifiers; None without one.

    Raises:
      TableError: as `read_labels`.
    """
    with as_table_error(name):
        pairs = _read_pairs(name, set(classes), id_name)
    if pairs is None:
        return LabelRows(read_labels(name, classes, rows), None)
    header, ids, values = pairs
    if id_name is None and header not in INDEX:
        raise TableError(
            f"{name} identifies its rows, but no table does; give one column of labels, a label "
            "for each row, or tables with identifiers"
        )
    labels = label_ids(name, values, classes)
    if header in INDEX and id_name is None:
        if len(labels) != rows:
            raise TableError(f"{name} has {len(labels)} rows, allowed is one for each of {rows}")
        return LabelRows(labels, None)
    return LabelRows(labels, ids)


def _read_pairs(
    name: str, classes: set[str], id_name: str | None
) -> tuple[str | None, list[str], list[str] | np.ndarray] | None:
    """Return the name of the column of identifiers, and both columns; None for another file."""
    suffix = Path(name).suffix.lower()
    if suffix == ".csv":
        with open(name, encoding="utf-8-sig", newline="") as file:
            table = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True) if row]
        if not table or len(table[0]) == 1:
            return None
        known = table[0][1] in classes or table[0][1] in ("", "-1") or table[0][1].isdecimal()
        header = None if known else table.pop(0)
        columns: list[list] = [[], []]
        for row, cells in enumerate(table):
            if len(cells) != 2:
                raise TableError(
                    f"{name}, row {row} (from 0): {len(cells)} cells, allowed is one, a class, or "
                    "two, an identifier and a class"
                )
            for column, cell in zip(columns, cells, strict=True):
                column.append(cell)
    elif suffix == ".parquet":
        _, parquet = parquet_files.import_arrow(name)
        with parquet.ParquetFile(name) as file:
            header = file.schema_arrow.names
            if len(header) == 1:
                return None
            if len(header) > 2:
                raise TableError(
                    f"{name}: columns {preview(header)}, allowed is one, of classes, or two, "
                    "identifiers and classes"
                )
            columns = [column.to_pylist() for column in file.read().columns]
    else:
        return None
    named = [i for i, column in enumerate(header or ()) if column == id_name or column in INDEX]
    # Without a name that says so, the identifiers are beside the column of classes' names.
    first_has_names = set(columns[0]) <= {*classes, "", None} and not set(columns[1]) <= {
        *classes, "", None,
    }  # fmt: skip
    at = named[0] if named else int(first_has_names)
    ids, values = [str(id_) for id_ in columns[at]], columns[1 - at]
    called = header[at] if header is not None else None
    filled = ["" if value is None else value for value in values]
    names = {value for value in filled if isinstance(value, str) and value}
    if names <= classes and names:
        return called, ids, [str(value) for value in filled]
    try:
        numbers = np.array([-1 if value == "" else int(value) for value in filled], np.int64)
    except (ValueError, OverflowError):
        return called, ids, [str(value) for value in filled]
    return called, ids, numbers
