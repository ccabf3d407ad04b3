"""`predictions.npz`: probabilities and labels of each split and level, as arrays alone."""

import dataclasses
import os
import zipfile
from pathlib import Path

import numpy as np

from hiercls_jax.errors import UserError
from hiercls_jax.hierarchy import Hierarchy


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Probabilities and labels of one split.

    Args:
      probs: float32 `[N, classes]` by level name, coarsest first.
      labels: int32 `[N]` by level name.
    """

    probs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def save(path: Path, splits: dict[str, Predictions]) -> None:
    """Write splits to an `.npz` file with the arrays `<split>/p_<level>`, `<split>/labels_<level>`.

    Written under a temporary name and renamed, so that the file is whole or not there.
    """
    arrays = {}
    for split, predictions in splits.items():
        for level, p in predictions.probs.items():
            arrays[f"{split}/p_{level}"] = p.astype(np.float32)
            arrays[f"{split}/labels_{level}"] = predictions.labels[level].astype(np.int32)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.npz")
    try:
        np.savez(temporary, **arrays)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, hierarchy: Hierarchy) -> dict[str, Predictions]:
    """Read what `save` wrote, checked against the hierarchy's levels and sizes.

    Raises:
      UserError: where the file is missing, damaged, or of another hierarchy.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} cannot be read as predictions: {error}") from error
    splits = {}
    for split in dict.fromkeys(key.split("/")[0] for key in arrays):
        probs, labels = {}, {}
        for level, classes in zip(hierarchy.levels, hierarchy.sizes, strict=True):
            p, y = arrays.get(f"{split}/p_{level}"), arrays.get(f"{split}/labels_{level}")
            if p is None or y is None or p.ndim != 2 or p.shape != (len(y), classes):
                raise UserError(
                    f"{path}: {split} needs p_{level} [N, {classes}] and labels_{level} [N]; "
                    f"got {None if p is None else list(p.shape)} and "
                    f"{None if y is None else list(y.shape)}"
                )
            probs[level], labels[level] = p, y
        splits[split] = Predictions(probs, labels)
    return splits
