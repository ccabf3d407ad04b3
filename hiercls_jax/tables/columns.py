"""Which columns of a table are the classes, and which one identifies the rows.

Columns with names are matched by name. Columns without names are taken only if the order of the
classes is stated somewhere; otherwise a table in alphabetical order would be adapted as if it were
in the order of the hierarchy's file, without a word.
"""

import csv
import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from hiercls_jax.errors import preview
from hiercls_jax.hierarchy import match_columns
from hiercls_jax.tables.table import TableError, as_table_error

# How pandas calls an index without a name: in a CSV file, after such a file was read, in Parquet.
INDEX = ("", "Unnamed: 0", "__index_level_0__")
ID = "id"  # the name of a column of identifiers that has none


class Match(NamedTuple):
    """The columns of a table.

    Args:
      classes: the classes that the columns are.
      order: the position of each class among the columns.
      id: the position of the column that identifies the rows; None without one.
      id_name: its name.
    """

    classes: tuple[str, ...]
    order: list[int]
    id: int | None = None
    id_name: str = ID


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns that a level's table may have.

    Args:
      classes: names of the level's K classes, in the order in which the columns are wanted.
      leaves: in a ragged hierarchy all classes of the level's cut, its leaves among them, which a
        table may have instead; None otherwise.
      unstated: why columns without names cannot be matched, and what to do, for the error; None if
        the order of the classes is stated. Nothing states the order of `leaves`.
      names: the names of columns that have none.
      id: the name of the column that identifies the rows; None to find it.
    """

    classes: tuple[str, ...]
    leaves: tuple[str, ...] | None = None
    unstated: str | None = None
    names: tuple[str, ...] | None = None
    id: str | None = None

    def match(self, name: str, columns: Sequence[str], text: Sequence[bool]) -> Match:
        """Match named columns to the classes.

        The rows are identified by the column that `id` names, else by the first column of text that
        is no class, else by the index that pandas writes.

        Args:
          name: the table, for errors.
          columns: the names in the file.
          text: whether each column holds text.

        Raises:
          TableError: for columns that are not the classes, naming them.
        """
        classes = self.classes
        if self.leaves is not None and set(columns).issuperset(self.leaves):
            classes = self.leaves
        known = set(classes)
        others = [i for i, column in enumerate(columns) if column not in known]
        indices = [i for i in others if columns[i] in INDEX]
        found = [i for i in others if text[i] and i not in indices] or indices
        if self.id is not None and self.id in columns:
            found = [list(columns).index(self.id)]
        id_ = found[0] if found else None
        rest = [i for i in range(len(columns)) if i != id_ and i not in indices]
        named = [columns[i] for i in rest]
        if _are_positions(named, classes):  # the names that pandas gives to columns without names
            unnamed = self.match_unnamed(name, len(rest))
            order = [rest[i] for i in unnamed.order]
            classes = unnamed.classes
        else:
            if self.names is not None:
                raise TableError(
                    f"{name} names its columns, which are matched by these names; leave out the "
                    "names that were given for it"
                )
            order = [rest[i] for i in _order(name, named, classes)]
        label = columns[id_] if id_ is not None and columns[id_] not in INDEX else ID
        return Match(classes, order, id_, label)

    def match_unnamed(self, name: str, width: int, rows: int | str = "N") -> Match:
        """Match columns without names to the classes by their positions, or by `names`.

        Args:
          name: the table, for errors.
          width: number of columns.
          rows: number of rows, for errors.

        Raises:
          TableError: for another number of columns, and if nothing states their order.
        """
        if self.names is not None:
            classes = self.classes
            if self.leaves is not None and len(self.names) == len(self.leaves):
                classes = self.leaves
            order = _order(f"the names of the columns of {name}", self.names, classes)
            check_width(name, rows, width, classes)
            return Match(classes, order)
        if self.leaves is not None and width == len(self.leaves) != len(self.classes):
            raise TableError(
                f"{name}: its {width} columns have no names, and nothing states the order of the "
                f"{width} leaves {preview(self.leaves)} of all levels; give --names LEVEL=FILE, "
                "one class a line in the order of the columns, or a header in a CSV or Parquet "
                "table"
            )
        check_width(name, rows, width, self.classes)
        if self.unstated is not None:
            raise TableError(f"{name}: {self.unstated}")
        return Match(self.classes, list(range(width)))

    def is_header(self, cells: Sequence[str], below: Sequence[str]) -> bool:
        """Return whether the first line of a CSV file has the names of its columns.

        Args:
          cells: the first line.
          below: the second line; empty without one.
        """
        if set(cells).issuperset(self.classes) or self.id in cells:
            return True
        numbers = [is_number(cell) for cell in cells]
        if all(numbers):
            if not _are_positions(cells, self.classes) or len(cells) < 2:
                return False
            # 0,1 may also be the probabilities of two classes, in a file of integers alone.
            return len(cells) > 2 or not all(cell in ("0", "1") for cell in below)
        if numbers[0] or not all(numbers[1:]) or len(numbers) == 1 or cells[0] in INDEX:
            return True
        return _are_positions(cells[1:], self.classes)  # else a row that begins with its identifier


def read_names(file: str) -> tuple[str, ...]:
    """Read names of columns: a JSON list, or one name a line.

    In a CSV file the names may be in quotes, and the first line may be the header `class`.

    Raises:
      TableError: for a file that cannot be read or has no names.
    """
    suffix = Path(file).suffix.lower()
    with as_table_error(file):
        text = Path(file).read_text(encoding="utf-8-sig")
        if suffix == ".json":
            names = json.loads(text)
            if not isinstance(names, list) or not all(isinstance(n, str) for n in names):
                raise TableError(f"{file}: allowed is a JSON list of names, or one name a line")
        elif suffix == ".csv":
            cells = [row for row in csv.reader(text.splitlines(), strict=True) if any(row)]
            wide = next((row for row in cells if len(row) != 1), None)
            if wide:
                raise TableError(f"{file}: {len(wide)} cells in a line, allowed is one name a line")
            names = [row[0].strip() for row in cells]
            names = names[1:] if names[:1] in (["class"], ["name"]) else names
        else:
            names = [line.strip() for line in text.splitlines() if line.strip()]
    if not names:
        raise TableError(f"{file} has no names; allowed is one name a line")
    return tuple(names)


def is_number(cell: str) -> bool:
    """Return whether a cell of a CSV file is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def check_width(name: str, rows: int | str, width: int, classes: Sequence[str]) -> None:
    """Reject a table without exactly one column for each class."""
    if width != len(classes):
        raise TableError(
            f"{name}: shape [{rows}, {width}], allowed is [N, {len(classes)}], a column for each "
            f"of the classes {preview(classes)}"
        )


def _are_positions(columns: Sequence[str], classes: Sequence[str]) -> bool:
    """Return whether columns are called 0, 1, 2, …, and the classes are not."""
    if not columns or set(columns).issuperset(classes):
        return False
    return all(column == str(i) for i, column in enumerate(columns))


def _order(name: str, columns: Sequence[str], classes: Sequence[str]) -> list[int]:
    """Return the position of each class among the columns, which must be the classes."""
    try:
        return match_columns(name, columns, classes, TableError)
    except TableError as error:
        others = [column for column in columns if column not in set(classes)]
        if not others or not set(columns).issuperset(classes):
            raise
        flag = others[0] if re.fullmatch(r"[\w.-]+", others[0]) else f"'{others[0]}'"
        raise TableError(f"{error}; if that column identifies the rows, give --id={flag}") from None
