"""`predictions.npz`: plain arrays with the probabilities and labels of each split and level."""

import dataclasses
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hiercls_jax.errors import UserError
from hiercls_jax.files import atomic_write
from hiercls_jax.hierarchy import Hierarchy
from hiercls_jax.tables.numpy_files import open_array
from hiercls_jax.tables.table import read_exactly


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Probabilities and labels of one split.

    Args:
      probs: float32 `[N, classes]` by level name, coarsest first.
      labels: int32 `[N]` by level name.
      files: str `[N]`, each image's file; None if images are not files.
    """

    probs: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    files: np.ndarray | None = None


def save(path: Path, splits: Mapping[str, Predictions]) -> None:
    """Write splits atomically to an `.npz` file.

    Its arrays are `<split>/p_<level>`, `<split>/labels_<level>`, and `<split>/files` if images are
    files.
    """
    arrays = {}
    for split, predictions in splits.items():
        for level, p in predictions.probs.items():
            arrays[f"{split}/p_{level}"] = p.astype(np.float32, order="C")
            arrays[f"{split}/labels_{level}"] = predictions.labels[level].astype(np.int32)
        if predictions.files is not None:
            arrays[f"{split}/files"] = predictions.files.astype(str)
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]  # NumPy's stub sees allow_pickle


def load(path: Path, hierarchy: Hierarchy) -> dict[str, Predictions]:
    """Read a file that `save` wrote, and check it against the hierarchy's levels and sizes.

    Raises:
      UserError: if the file is missing, damaged, or of another hierarchy.
    """
    try:
        arrays = _read_arrays(path)
    except Exception as error:  # zipfile and NumPy raise nearly anything on broken bytes
        raise UserError(f"{path} cannot be read as predictions: {error}") from error
    splits = {}
    for split in dict.fromkeys(key.split("/")[0] for key in arrays):
        probs, labels = {}, {}
        for level, classes in zip(hierarchy.levels, hierarchy.sizes, strict=True):
            p, y = arrays.get(f"{split}/p_{level}"), arrays.get(f"{split}/labels_{level}")
            probs[level], labels[level] = _check(f"{path}: {split}", level, classes, p, y)
        if len({len(y) for y in labels.values()}) > 1:
            raise UserError(f"{path}: {split} has different numbers of images at its levels")
        files = arrays.get(f"{split}/files")
        count = len(labels[hierarchy.levels[-1]])
        if files is not None and (files.dtype.kind != "U" or files.shape != (count,)):
            raise UserError(
                f"{path}: {split} needs files [{count}] of text, or none; got {files.dtype} "
                f"{list(files.shape)}"
            )
        splits[split] = Predictions(probs, labels, files)
    if not splits:
        raise UserError(f"{path} holds no predictions")
    return splits


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    # Compressed arrays are rejected, so that a small file cannot take much memory.
    packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise UserError(f"{packed[0]} is compressed, a run's arrays are not; save it by np.savez")
    arrays = {}
    for member in members:
        key = member.filename.removesuffix(".npy")
        with open_array(f"{path}:{key}") as (stream, shape, dtype):
            arrays[key] = read_exactly(f"{path}:{key}", stream, dtype, shape)
    return arrays


def _check(
    where: str, level: str, classes: int, p: np.ndarray | None, y: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the probabilities and labels of a level, once they are known to be valid."""
    if p is None or y is None or y.ndim != 1 or p.shape != (len(y), classes) or not len(y):
        raise UserError(
            f"{where} needs p_{level} [N, {classes}] and labels_{level} [N], N > 0; got "
            f"{None if p is None else list(p.shape)} and {None if y is None else list(y.shape)}"
        )
    if p.dtype.kind != "f" or y.dtype.kind not in "iu":
        raise UserError(
            f"{where} needs p_{level} of floats and labels_{level} of integers; got {p.dtype} and "
            f"{y.dtype}"
        )
    if not np.isfinite(p).all() or p.min() < 0:
        raise UserError(f"{where} has values in p_{level} that are negative or not finite")
    if y.min() < 0 or y.max() >= classes:
        raise UserError(
            f"{where} has labels_{level} from {y.min()} to {y.max()}; allowed are 0 to "
            f"{classes - 1}"
        )
    return p, y
