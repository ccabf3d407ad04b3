"""A cache on disk of arrays that take long to make, such as decoded images."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import numpy as np

from hiercls_jax.files import atomic_folder, cache_folder


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


T = TypeVar("T", bound=_Dataclass)

_SUMS = "sums.json"  # the SHA-256 of every other file of an entry


def cached(
    name: str, fingerprint: dict[str, Any], kind: type[T], build: Callable[[], dict[str, T]]
) -> dict[str, T]:
    """Return the splits that `build()` makes; make them once and keep them on disk.

    An entry is complete or absent. If its files do not match their checksums, it is built anew.

    Args:
      name: what the entry is called.
      fingerprint: JSON values that determine the result; other values are another entry.
      kind: the type of a split, a dataclass of arrays. Fields with a default are not stored.
      build: makes the splits; called if there is no valid entry.
    """
    digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder() / "data" / f"{name}-{digest}"
    splits = _read(folder, kind)
    if splits is not None:
        return splits
    splits = build()
    try:
        _write(folder, splits)
    except OSError as error:
        print(f"note: the decoded images could not be cached in {folder}: {error}", flush=True)
    return splits


def _read(folder: Path, kind: type[T]) -> dict[str, T] | None:
    """Return the splits of an entry, or None if it is missing or damaged."""
    try:
        sums = json.loads((folder / _SUMS).read_text())
        arrays = {}
        for file, digest in sums.items():
            path = folder / file
            if _checksum(path) != digest:
                return None
            arrays[file] = np.load(path, allow_pickle=False)
        names = sorted({file.split(".")[0] for file in sums})
        parts = _stored_fields(kind)
        return {n: kind(*(arrays[f"{n}.{part}.npy"] for part in parts)) for n in names} or None
    except (OSError, ValueError, KeyError, EOFError, AttributeError):
        return None


def _write(folder: Path, splits: dict[str, T]) -> None:
    with atomic_folder(folder, replace=True) as temporary:
        sums = {}
        for name, split in splits.items():
            for part in _stored_fields(type(split)):
                path = temporary / f"{name}.{part}.npy"
                np.save(path, getattr(split, part), allow_pickle=False)
                sums[path.name] = _checksum(path)
        (temporary / _SUMS).write_text(json.dumps(sums))


def _stored_fields(kind: type[_Dataclass]) -> list[str]:
    return [f.name for f in dataclasses.fields(kind) if f.default is dataclasses.MISSING]


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
