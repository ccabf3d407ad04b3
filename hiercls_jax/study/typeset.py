"""A table of numbers, and how it is written: as numbers in CSV, as text in Markdown and LaTeX."""

import csv
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from hiercls_jax.files import atomic_write

Value = str | float | None
Cell = Value | Sequence[Value]  # the values of a column's fields
# Characters that LaTeX does not know by itself.
LATEX = {"α": r"$\alpha$", "±": r"$\pm$", "−": r"$-$"}


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a table: a text, a number, or several numbers that readers see as one text.

    Args:
      name: its header in Markdown and LaTeX.
      show: returns the text of a cell's values. It is not called if all of them are None.
      fields: headers of its columns in CSV, one for each value of a cell; `(name,)` if empty.
      format: of a number in CSV, such as ".2f".
      align: "left" or "right".
    """

    name: str
    show: Callable[..., str] = str
    fields: tuple[str, ...] = ()
    format: str = ""
    align: str = "right"

    def values(self, cell: Cell) -> tuple[Value, ...]:
        """Return a cell's values, one for each field."""
        count = max(1, len(self.fields))
        if cell is None:
            return (None,) * count
        values = (cell,) if isinstance(cell, str | float | int) else tuple(cell)
        assert len(values) == count, (self.name, values)
        return values

    def text(self, cell: Cell) -> str:
        """Return a cell as readers see it."""
        values = self.values(cell)
        return "" if all(value is None for value in values) else self.show(*values)

    def numbers(self, cell: Cell) -> list[str]:
        """Return a cell's fields as CSV has them: unknown values are empty, infinite ones `inf`."""
        return [
            "" if value is None or value != value
            else value if isinstance(value, str)
            else format(value, self.format)
            for value in self.values(cell)
        ]  # fmt: skip


def words(name: str) -> Column:
    """Return a column of text."""
    return Column(name, align="left")


def number(name: str, decimals: int = 0) -> Column:
    """Return a column of numbers."""
    return Column(name, lambda x: f"{x:.{decimals}f}", format=f".{decimals}f")


def spread(name: str, decimals: int) -> Column:
    """Return a column of means and standard deviations; a deviation may be None."""

    def show(mean: float, deviation: float | None) -> str:
        text = f"{mean:.{decimals}f}"
        return text if deviation is None else f"{text} ± {deviation:.{decimals}f}"

    return Column(name, show, (name, f"{name}, sd"), f".{decimals}f")


def estimate(name: str) -> Column:
    """Return a column of differences with the low and high ends of their intervals."""

    def show(value: float, low: float, high: float) -> str:
        return f"{signed(value)} ({signed(low)} to {signed(high)})"

    return Column(name, show, (name, f"{name}, low", f"{name}, high"), ".2f", "left")


def value_range(name: str, lowest: str, highest: str) -> Column:
    """Return a column of the lowest and the highest of some differences."""

    def show(low: float, high: float) -> str:
        return " to ".join(dict.fromkeys((signed(low), signed(high))))  # once, if the same

    return Column(name, show, (lowest, highest), ".2f", "left")


def share(name: str, count: str, total: str) -> Column:
    """Return a column of counts, each shown with its total: `3 of 5`."""
    return Column(name, lambda n, of: f"{n} of {of}", (count, total), "d", "left")


def p_value(name: str) -> Column:
    """Return a column of p-values, in CSV with three significant digits."""
    return Column(name, show_p, format=".3g", align="left")


def signed(value: float) -> str:
    """Return a number with its sign, a minus and no hyphen; `?` if it is not finite.

    >>> signed(-4.987)
    '−4.99'
    """
    return f"{value:+.2f}".replace("-", "−") if np.isfinite(value) else "?"


def show_p(value: float) -> str:
    """Return a p-value as text, nothing if it is NaN.

    >>> show_p(0.0004)
    '< 0.001'
    """
    if np.isnan(value):
        return ""
    return f"{value:.3f}" if value >= 0.0005 else "< 0.001"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Args:
      name: of its files.
      title: a heading and a paragraph that says what the table shows.
      columns: all field names are different.
      rows: a cell for each column.
    """

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: list[tuple[Cell, ...]]

    def write(self, folder: Path) -> list[str]:
        """Write a CSV file and a LaTeX file; return their names."""
        header = [field for column in self.columns for field in column.fields or (column.name,)]
        assert len(set(header)) == len(header), header
        body = [
            [field for column, cell in self._cells(row) for field in column.numbers(cell)]
            for row in self.rows
        ]
        with (
            atomic_write(folder / f"{self.name}.csv") as temporary,
            open(temporary, "w", encoding="utf-8", newline="") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows([header, *body])
        latex = self._tabulate("latex_booktabs")
        for sign, command in LATEX.items():
            latex = latex.replace(sign, command)
        with atomic_write(folder / f"{self.name}.tex") as temporary:
            temporary.write_text(f"{latex}\n", encoding="utf-8")
        return [f"{self.name}.csv", f"{self.name}.tex"]

    def markdown(self) -> str:
        """Return the table in Markdown, under its title."""
        return f"{self.title}\n\n{self._tabulate('github')}\n"

    def _cells(self, row: tuple[Cell, ...]) -> list[tuple[Column, Cell]]:
        return list(zip(self.columns, row, strict=True))

    def _tabulate(self, style: str) -> str:
        return tabulate(
            [[column.text(cell) for column, cell in self._cells(row)] for row in self.rows],
            [column.name for column in self.columns],
            tablefmt=style,
            disable_numparse=True,
            colalign=[column.align for column in self.columns],
        )
