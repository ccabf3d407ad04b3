"""Files of class frequencies: a JSON object, or CSV rows of class and number."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from reprlib import repr as shortened

import numpy as np

from hiercls_jax.errors import preview
from hiercls_jax.tables.columns import is_number
from hiercls_jax.tables.table import TableError, as_table_error


def read_frequencies(file: str, classes: Sequence[str]) -> np.ndarray:
    """Read how frequent classes are: numbers of any sum, such as counts.

    Args:
      file: `{"cat": 3, …}` in a `.json` file, else CSV rows `cat,3`, with or without a header.
      classes: names of the K classes, each of which has a number.

    Returns:
      float64 `[K]`, not negative, sums to 1.

    Raises:
      TableError: for a file that cannot be read, another set of classes and other numbers.
    """
    with as_table_error(file):
        text = Path(file).read_text(encoding="utf-8-sig")
        if Path(file).suffix.lower() == ".json":
            data = json.loads(text)
            if not isinstance(data, dict):
                raise TableError(f"{file}: allowed is a JSON object of class and number")
            pairs = [(str(name), value) for name, value in data.items()]
        else:
            rows = [[c.strip() for c in row] for row in csv.reader(text.splitlines(), strict=True)]
            rows = [row for row in rows if any(row)]
            if rows and len(rows[0]) == 2 and not is_number(rows[0][1]):
                del rows[0]  # the header
            for row in rows:
                if len(row) != 2 or not is_number(row[1]):
                    raise TableError(f"{file}: expected class,number in a row: {shortened(row)}")
            pairs = [(name, float(number)) for name, number in rows]
    given = dict(pairs)
    known = set(classes)
    for fault, names in (
        ("unknown class", [name for name, _ in pairs if name not in known]),
        ("no frequency of class", [name for name in classes if name not in given]),
    ):
        if names:
            raise TableError(
                f"{file}: {fault} {preview(names)}; allowed is a number for each of the "
                f"{len(classes)} leaves {preview(classes)}"
            )
    if len(pairs) > len(given):
        raise TableError(f"{file}: a class stands twice; allowed is a number for each")
    for name, number in pairs:
        if type(number) not in (int, float) or not 0 <= number < np.inf:
            raise TableError(
                f"{file}: {shortened(number)} for class '{name}', allowed are numbers from 0"
            )
    values = np.array([given[name] for name in classes], np.float64)
    if not values.sum() > 0:
        raise TableError(f"{file}: every class has frequency 0")
    return values / values.sum()
