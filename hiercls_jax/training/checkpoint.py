"""Checkpoints that are complete or absent: Orbax arrays beside a SHA-256 manifest.

    checkpoints/step_00000140/arrays/…      written by Orbax
                              meta.json     the run's `Progress`
                              manifest.json SHA-256 of every file above

Orbax restores a flipped bit silently, so every file is checked against the manifest before any of
them is used.
"""

import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
import orbax.checkpoint as ocp

from hiercls_jax.errors import UserError
from hiercls_jax.files import atomic_folder, remove_folder, remove_leftovers
from hiercls_jax.training.state import State

KEEP = 2  # newest checkpoints that are kept: if one is damaged, the one before it is used
OVERHEAD, OVERHEAD_PER_ARRAY = 2**18, 2**10  # bytes of a checkpoint besides its arrays' values


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none can be used."""


@dataclasses.dataclass
class Progress:
    """The progress of a run: the part of a checkpoint that is not in the state's arrays.

    Checkpoints of older versions lack `cpu_seconds`, `iterator` or `images`.

    Args:
      step: steps taken.
      seconds: elapsed time of training so far, with compilation and validation.
      cpu_seconds: processor time of process 0 meanwhile.
      validation_error: error rate at the finest level after this step, if it was measured.
      sums: metrics summed since the last record.
      iterator: state of the feed's iterator; None in older checkpoints.
      images: digest of the training images; None in older checkpoints.
    """

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    validation_error: float | None = None
    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    iterator: dict[str, int] | None = None
    images: str | None = None

    def to_json(self) -> str:
        """Return the fields as a JSON object."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` of this version or an older one returned."""
        values = json.loads(text)
        fields = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in values.items() if name in fields})


def save(folder: Path, state: State, progress: Progress) -> None:
    """Write a checkpoint and remove those that are no longer needed.

    The newest two stay, and the one with the lowest validation error.

    Args:
      folder: the checkpoints' folder; it is made if it is missing.
      state: arrays on the host, without a device axis.
      progress: of the same step.

    Raises:
      CheckpointError: if the disk is full or the write fails; the older checkpoints are untouched.
    """
    final = folder / f"step_{progress.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder, "step_*")
        for leftover in [*folder.glob(".writing-*"), *folder.glob(".removing-*")]:
            shutil.rmtree(leftover, ignore_errors=True)  # by the names of older versions
        with atomic_folder(final, replace=True, sync=True) as temporary:
            _check_room(temporary / "room", state)
            with _checkpointer() as checkpointer:
                checkpointer.save(temporary.absolute() / "arrays", state)
            (temporary / "meta.json").write_text(progress.to_json())
            (temporary / "manifest.json").write_text(json.dumps(_hashes(temporary)))
        _remove_old(folder)
    except (OSError, ValueError) as error:
        # If the disk is full, Orbax raises a ValueError: a page of text with the error's number.
        number = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None)
        reason = reason or str(error).splitlines()[0]
        raise CheckpointError(
            f"the checkpoint of step {progress.step} could not be written to {folder}: {reason}; "
            "older checkpoints are untouched"
        ) from error


def restore(folder: Path, template: State) -> tuple[State, Progress] | None:
    """Return the newest undamaged checkpoint, or None if the folder has none yet.

    Prints the name of a damaged checkpoint, renames it to `….damaged`, and uses the one before it.

    Args:
      folder: the checkpoints' folder.
      template: a state of the same structure, shapes and dtypes, on the host.

    Returns:
      The state as NumPy arrays on the host, and its `Progress`; or None.

    Raises:
      CheckpointError: if all are damaged, or the newest undamaged one is of another network.
    """
    checkpoints = _checkpoints(folder)
    damaged_before = len(list(folder.glob("step_*.damaged")))
    for path in reversed(checkpoints):
        fault = _fault(path)
        if fault is None:
            return _read_state(path, template), Progress.from_json(_read(path / "meta.json"))
        aside = path.with_name(path.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        print(f"checkpoint {path.name} is damaged ({fault}); trying the one before it", flush=True)
    count = len(checkpoints) + damaged_before
    if count:
        raise CheckpointError(
            f"none of the {count} checkpoints in {folder} is whole; to train anew, choose another "
            "--config.workdir or remove that folder"
        )
    return None


def newest_variables(folder: Path, template: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Return a network's `params` and `batch_stats` from the newest checkpoint, and its step.

    Unlike `restore`, it changes nothing in the folder and never uses an older checkpoint.

    Args:
      folder: the checkpoints' folder.
      template: variables with the shapes that the network has.

    Raises:
      CheckpointError: if there is none, or the newest one is damaged or of another network.
    """
    checkpoints = _checkpoints(folder)
    fault = _fault(checkpoints[-1]) if checkpoints else "there is none"
    if fault is not None:
        raise CheckpointError(
            f"the newest checkpoint in {folder} cannot be used ({fault}); restore it from a copy, "
            "or remove the run's results.json and give its training command again, which goes on "
            "from the checkpoint before it, if there is one"
        )
    with _checkpointer() as checkpointer:
        state = checkpointer.restore(checkpoints[-1].absolute() / "arrays")
    variables = {name: state.get(name, {}) for name in ("params", "batch_stats")}
    if _shapes(variables) != _shapes(template):
        raise _of_another_network(checkpoints[-1])
    return variables, int(state["step"])


def pack(state: State, progress: Progress) -> bytes:
    """Return a checkpoint as bytes, to send it to another process."""
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(state), progress=np.array(progress.to_json()))
    return file.getvalue()


def unpack(packed: bytes, template: State) -> tuple[State, Progress]:
    """Return the checkpoint that `pack` turned into bytes; `template` has the state's structure."""
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        leaves = [file[f"arr_{i}"] for i in range(len(file.files) - 1)]
        progress = Progress.from_json(str(file["progress"]))
    return jax.tree.unflatten(jax.tree.structure(template), leaves), progress


def best(folder: Path) -> Path | None:
    """Return the folder of the checkpoint with the lowest validation error, if any has one."""
    errors = [(_validation_error(path), path) for path in _checkpoints(folder)]
    measured = [(error, path) for error, path in errors if error is not None]
    return min(measured)[1] if measured else None


def _validation_error(path: Path) -> float | None:
    try:
        return Progress.from_json(_read(path / "meta.json")).validation_error
    except (OSError, ValueError, AttributeError, TypeError):  # damaged; `restore` renames it
        return None


def _check_room(path: Path, state: State) -> None:
    """Raise an OSError unless the disk and the quota have room for a checkpoint of `state`.

    This is checked first, because Orbax's threads print pages of tracebacks if the disk is full.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        values = sum(leaf.nbytes + OVERHEAD_PER_ARRAY for leaf in jax.tree.leaves(state))
        with open(path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, values + OVERHEAD)
        path.unlink()


def _remove_old(folder: Path) -> None:
    keep = {*_checkpoints(folder)[-KEEP:], best(folder)}
    for path in _checkpoints(folder):
        if path not in keep:
            remove_folder(path)


def _checkpoints(folder: Path) -> list[Path]:
    """Return the folders of all checkpoints, oldest first, without those that were damaged."""
    return sorted(path for path in folder.glob("step_*") if not path.name.endswith(".damaged"))


def _fault(path: Path) -> str | None:
    """Return a checkpoint's fault in words, or None if every byte is as it was written."""
    try:
        expected = json.loads(_read(path / "manifest.json"))
        actual = _hashes(path)
    except (OSError, ValueError, AttributeError) as error:
        return f"its manifest cannot be read: {error}"
    for file in sorted(expected.keys() | actual.keys()):
        if file not in actual:
            return f"{file} is missing"
        if file not in expected:
            return f"{file} does not belong to it"
        if expected[file] != actual[file]:
            return f"{file} does not match its SHA-256"
    return None


def _hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of every file but the manifest, by path."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / "manifest.json":
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, "sha256")
            hashes[path.relative_to(folder).as_posix()] = digest.hexdigest()
    return hashes


def _read_state(path: Path, template: State) -> State:
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
    try:
        with _checkpointer() as checkpointer:
            state = checkpointer.restore(
                path.absolute() / "arrays", item=template, restore_args=as_numpy
            )
    except ValueError as error:  # its bytes are right, so its structure must differ
        raise _of_another_network(path) from error
    if _shapes(state) != _shapes(template):
        raise _of_another_network(path)
    return jax.tree.map(lambda x, t: np.asarray(x, np.asarray(t).dtype), state, template)


def _of_another_network(path: Path) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} has other parameters than the network that this version builds; use "
        "the version that trained it, or train anew in another --config.workdir"
    )


def _shapes(tree: object) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def _checkpointer() -> ocp.Checkpointer:
    # Process 0 saves alone, so Orbax must not wait for the other processes.
    alone = {"primary_host": jax.process_index(), "active_processes": {jax.process_index()}}
    options = ocp.options.MultiprocessingOptions(**alone, barrier_sync_key_prefix="alone")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8")
