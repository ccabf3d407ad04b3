"""Files and folders that are either complete or absent."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, with the same suffix, to write the file to.

    The file is renamed to `path` at the end and replaces an older file there. If anything fails,
    the temporary file is removed and the older file stays.
    """
    temporary = _temporary(path, path.parent, path.suffix)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(
    path: Path, inside: Path | None = None, replace: bool = False, sync: bool = False
) -> Iterator[Path]:
    """Yield a new folder to fill, which is renamed to `path` at the end.

    If writing fails, the new folder is removed and an older one stays.

    Args:
      path: the final name.
      inside: an existing folder of the same file system to make the new folder in. By default it
        is the parent of `path`, which is made if it is missing.
      replace: replace an older folder at `path`. Without it, only an empty one is replaced.
      sync: force every file to disk before the rename.

    Raises:
      OSError: if the file system refuses, or without `replace` if `path` is not empty.
    """
    if inside is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path, inside or path.parent)
    temporary.mkdir()
    try:
        yield temporary
        if sync:
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
        path.parent.mkdir(parents=True, exist_ok=True)
        if replace:
            remove_folder(path)
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder, if it exists. No other process ever sees a part of it under its name.

    It is renamed first, because removing its files takes time and may be interrupted.
    """
    if path.exists():
        aside = _temporary(path, path.parent)
        os.replace(path, aside)
        shutil.rmtree(aside)


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove the temporary folders that killed processes left in `folder`.

    Args:
      folder: where to look.
      name: pattern of the final names; no process may be writing a folder of such a name.
    """
    for leftover in folder.glob(f".{name}.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def cache_folder() -> Path:
    """Return this project's folder in the user's cache: `$XDG_CACHE_HOME/hiercls_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hiercls_jax"


def _temporary(path: Path, folder: Path, suffix: str = "") -> Path:
    """Return a hidden name in `folder` that no other process uses, on this machine or another."""
    return folder / f".{path.name.removesuffix(suffix)}.{secrets.token_hex(4)}.tmp{suffix}"


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
