"""CSV files in UTF-8, with commas. Blank lines are skipped.

The first line is a header if its cells are the classes, or if one of them is no number.
"""

import contextlib
import csv
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from hiercls_jax.tables.table import Rows, TableError, check_shape, column_order


def open_numbers(name: str, classes: Sequence[str], scratch: Path | None) -> tuple[int, Rows]:
    """Return the number of rows, and the function that reads them."""
    with _open(name) as lines:
        first = _cells(next(lines, ""))
        rows = bool(first) + sum(1 for _ in lines)
    header = set(first) == set(classes) or not all(map(_is_number, first))
    rows -= header
    order = column_order(name, first, classes) if header else list(range(len(classes)))
    check_shape(name, rows, len(first), classes)

    def read(size: int) -> Iterator[np.ndarray]:
        with _open(name) as lines:
            if header:
                next(lines)
            for start in range(0, rows, size):
                yield _parse(name, list(itertools.islice(lines, size)), len(order), start)[:, order]

    return rows, read


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
    path: Path, columns: Sequence[str], rows: int, dtype: np.dtype
) -> Iterator[Callable[[np.ndarray], object]]:
    """Yield a function that writes the next rows `[n, K]`."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        if dtype.kind == "U":
            yield lambda chunk: writer.writerows(chunk.tolist())
        else:  # nine digits restore every float32 exactly
            yield lambda chunk: np.savetxt(file, chunk, "%.9g", ",")


@contextlib.contextmanager
def _open(name: str) -> Iterator[Iterator[str]]:
    """Open a text file as an iterator over its lines without the blank ones."""
    with open(name, encoding="utf-8-sig", newline="") as file:
        yield (line for line in file if not line.isspace())


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_integer(cell: str) -> bool:
    return re.fullmatch(r"[+-]?\d+", cell) is not None


def _parse(name: str, lines: list[str], width: int, start: int) -> np.ndarray:
    """Return lines of numbers as `[len(lines), width]`; `start` is the first line's row."""
    try:
        chunk = np.loadtxt(lines, np.float32, comments=None, delimiter=",", quotechar='"', ndmin=2)
        if chunk.shape == (len(lines), width):
            return chunk
    except ValueError:  # its message counts from the first of these lines, not of the file
        pass
    for row, line in enumerate(lines, start):
        cells = _cells(line)
        if len(cells) != width:
            raise TableError(f"{name}, row {row} (from 0): {len(cells)} cells, allowed is {width}")
        for column, cell in enumerate(cells):
            if not _is_number(cell):
                raise TableError(
                    f"{name}, row {row} (from 0): '{cell}' in column {column}, allowed are numbers"
                )
    raise TableError(f"{name}: rows {start} to {start + len(lines) - 1} cannot be read as numbers")
