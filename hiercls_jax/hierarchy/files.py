"""Files of hierarchies: JSON as `Hierarchy.to_dict` has it, and CSV of (class, parent) rows."""

import contextlib
import csv
import json
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from reprlib import repr as shortened

from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy.checks import HierarchyError
from hiercls_jax.hierarchy.pairs import Pair

AnyPath = str | PathLike[str]


@contextlib.contextmanager
def name_file(path: AnyPath) -> Iterator[None]:
    """Put `path` before the message of a HierarchyError."""
    try:
        yield
    except HierarchyError as error:
        raise HierarchyError(f"{path}: {error}") from error


def write_json(data: dict, path: AnyPath) -> None:
    """Write what `Hierarchy.to_dict` returns."""
    with atomic_write(Path(path)) as temporary:
        temporary.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


def read_json(path: AnyPath) -> object:
    """Return the content of a JSON file.

    Raises:
      HierarchyError: for a file that is not JSON.
    """
    text = Path(path).read_bytes()
    try:
        return json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # also ids of thousands of digits
        raise HierarchyError(f"{path} is not JSON: {error}") from error


def read_csv(path: AnyPath) -> list[Pair]:
    """Return the (class, parent) pairs of a CSV file; the parent None if its cell is empty.

    Args:
      path: the file, UTF-8, with or without the header `class,parent`.

    Raises:
      HierarchyError: for a file that is not UTF-8 or not CSV, and for rows that are no pairs.
    """
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = [[cell.strip() for cell in row] for row in csv.reader(file, strict=True)]
    except UnicodeDecodeError as error:
        raise HierarchyError(f"{path} is not UTF-8 text: {error}") from error
    except csv.Error as error:
        raise HierarchyError(f"{path} is not a CSV file: {error}") from error
    numbered = [(number, cells) for number, cells in enumerate(table, 1) if any(cells)]
    if numbered and [cell.lower() for cell in numbered[0][1]] == ["class", "parent"]:
        del numbered[0]
    for number, cells in numbered:
        if len(cells) != 2 or not cells[0]:
            raise HierarchyError(
                f"{path}: row {number}: expected two columns (class, parent): {shortened(cells)}"
            )
    if not numbered:
        raise HierarchyError(f"{path}: no rows")
    return [(child, parent or None) for _, (child, parent) in numbered]
