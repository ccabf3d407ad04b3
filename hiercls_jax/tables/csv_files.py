"""CSV files in UTF-8, with commas. Blank lines are skipped.

`Columns.is_header` says whether the first line is a header.
"""

import contextlib
import csv
import io
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hiercls_jax.tables.columns import Columns, is_number
from hiercls_jax.tables.table import Identifiers, Opened, TableError, Write


def open_numbers(name: str, columns: Columns, scratch: Path | None) -> Opened:
    """Open a table of numbers, and match its columns."""
    with _open(name) as lines:
        first, second = _cells(next(lines, "")), _cells(next(lines, ""))
        rows = bool(first) + bool(second) + sum(1 for _ in lines)
    header, width = columns.is_header(first, second), len(first)
    rows -= header
    if header:
        text = [not is_number(cell) for cell in second] if len(second) == width else [False] * width
        match = columns.match(name, first, text)
    elif first and not is_number(first[0]):  # an identifier, then numbers
        unnamed = columns.match_unnamed(name, width - 1, rows)
        match = unnamed._replace(order=[1 + i for i in unnamed.order], id=0)
    else:
        match = columns.match_unnamed(name, width, rows)
    if not rows:
        raise TableError(f"{name} has no rows; at least one is needed")

    def read(size: int) -> Iterator[np.ndarray]:
        for start, lines in _blocks(name, header, rows, size):
            yield _parse(name, lines, width, match.id, start)[:, match.order]

    def read_ids(size: int) -> Iterator[np.ndarray]:
        for start, lines in _blocks(name, header, rows, size):
            yield _parse_ids(name, lines, match.id or 0, start)

    ids = None if match.id is None else Identifiers(match.id_name, np.dtype(object), read_ids)
    return Opened(rows, match.classes, read, ids)


def read_column(name: str, classes: Sequence[str], rows: int | None) -> np.ndarray | list[str]:
    """Return integers or names `[N]`; names if every cell is the name of a class.

    An empty cell is an empty name, or -1 among integers. So is a blank line, if there would be too
    few rows without it.
    """
    with open(name, encoding="utf-8-sig", newline="") as file:
        lines = list(file)
    known = {"", *classes}
    table = [_cells(line) for line in lines if not line.isspace()]
    is_header = bool(table) and not any(cell in known or _is_integer(cell) for cell in table[0])
    if rows is not None and len(table) - is_header < rows:
        table = [_cells(line) or [""] for line in lines]
        while len(table) - is_header > rows and table[-1] == [""]:
            del table[-1]
    for row, cells in enumerate(table[is_header:]):
        if len(cells) != 1:
            raise TableError(f"{name}, row {row} (from 0): {len(cells)} cells, allowed is one")
    values = [cell for (cell,) in table[is_header:]]
    if all(_is_integer(value) for value in values if value) and not known.issuperset(values):
        return np.array([int(value or -1) for value in values], np.int64)
    return values


@contextlib.contextmanager
def write_rows(
    path: Path, columns: Sequence[str], rows: int, dtype: np.dtype, ids: Identifiers | None
) -> Iterator[Write]:
    """Yield a function that writes the next rows `[n, K]`, and their identifiers if asked."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns if ids is None else [ids.name, *columns])

        def write(chunk: np.ndarray, row_ids: np.ndarray | None = None) -> None:
            if dtype.kind == "U":
                cells = chunk.tolist()
                if row_ids is not None:
                    cells = [[id_, *row] for id_, row in zip(row_ids, cells, strict=True)]
                writer.writerows(cells)
            elif row_ids is None:  # nine digits restore every float32 exactly
                np.savetxt(file, chunk, "%.9g", ",")
            else:
                numbers = io.StringIO()
                np.savetxt(numbers, chunk, "%.9g", ",")
                for id_, line in zip(row_ids, numbers.getvalue().splitlines(), strict=True):
                    file.write(f"{_quoted(str(id_))},{line}\n")

        yield write


@contextlib.contextmanager
def _open(name: str) -> Iterator[Iterator[str]]:
    """Open a text file as an iterator over its lines without the blank ones."""
    with open(name, encoding="utf-8-sig", newline="") as file:
        yield (line for line in file if not line.isspace())


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]


def _quoted(cell: str) -> str:
    return '"' + cell.replace('"', '""') + '"' if re.search('[",\r\n]', cell) else cell


def _blocks(name: str, header: bool, rows: int, size: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the first row and the lines of each block of `size` rows."""
    with _open(name) as lines:
        if header:
            next(lines)
        for start in range(0, rows, size):
            yield start, list(itertools.islice(lines, size))


def _is_integer(cell: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", cell) is not None


def _parse(name: str, lines: list[str], width: int, id_: int | None, start: int) -> np.ndarray:
    """Return lines of numbers as `[len(lines), width]`, with 0 in the place of identifiers.

    Args:
      name: the file.
      lines: the lines.
      width: number of cells in each.
      id_: position of the identifier; None without one.
      start: row of the first line.
    """
    skip: dict[int | str, Callable[[str], float]] | None = None
    if id_ is not None:
        skip = {id_: lambda _: 0.0}
    try:
        chunk = np.loadtxt(
            lines, np.float32, comments=None, delimiter=",", quotechar='"', ndmin=2, converters=skip
        )
        if chunk.shape == (len(lines), width):
            return chunk
    except ValueError:  # its message counts from the first of these lines, not of the file
        pass
    for row, line in enumerate(lines, start):
        cells = _cells(line)
        if len(cells) != width:
            raise TableError(f"{name}, row {row} (from 0): {len(cells)} cells, allowed is {width}")
        for column, cell in enumerate(cells):
            if column != id_ and not is_number(cell):
                raise TableError(
                    f"{name}, row {row} (from 0): '{cell}' in column {column}, allowed are numbers"
                )
    raise TableError(f"{name}: rows {start} to {start + len(lines) - 1} cannot be read as numbers")


def _parse_ids(name: str, lines: list[str], id_: int, start: int) -> np.ndarray:
    """Return the identifiers of lines; the arguments are those of `_parse`."""
    ids = np.empty(len(lines), object)
    for i, line in enumerate(lines):
        plain = id_ == 0 and not line.lstrip().startswith('"')
        cells = [line.partition(",")[0].strip()] if plain else _cells(line)
        if len(cells) <= id_:
            raise TableError(f"{name}, row {start + i} (from 0): no identifier")
        ids[i] = cells[id_]
    return ids
