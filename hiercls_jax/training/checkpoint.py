"""Checkpoints that are whole or are not there: Orbax arrays beside a SHA-256 manifest.

    checkpoints/step_00000140/arrays/…      what Orbax wrote
                              meta.json     step, validation error, unfinished sums, seconds
                              manifest.json SHA-256 of every file above

A checkpoint is written under a temporary name and renamed when it is complete. Orbax restores a
flipped bit silently, so every file is checked against the manifest before a byte is used.
"""

import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from hiercls_jax.errors import UserError
from hiercls_jax.training.state import State

KEEP = 2  # newest checkpoints kept, so that a damaged one has one before it to fall back to
EXTRA = 2**18, 2**10  # bytes of a checkpoint beside its arrays' own: of all, and of each array


class CheckpointError(UserError):
    """Checkpoints that cannot be written, or of which none can be used."""


def save(folder: Path, state: State, meta: dict) -> None:
    """Write a checkpoint of a host `state` and drop those that are no longer needed.

    Kept are the newest two and the best, by `meta['validation_error']` where it is not None.

    Args:
      folder: the checkpoints' folder; made where it is missing.
      state: arrays on the host, without a device axis.
      meta: JSON values, with `step` and `validation_error`.
    """
    final = folder / f"step_{meta['step']:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in [*folder.glob(".writing-*"), *folder.glob(".removing-*")]:  # of a kill
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
        try:
            _make_room(temporary / "room", state)
            with _checkpointer() as checkpointer:
                checkpointer.save(temporary.absolute() / "arrays", state)
            _write_json(temporary / "meta.json", meta)
            _write_json(temporary / "manifest.json", _sums(temporary))
            _remove(final)
            os.replace(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        _drop(folder)
    except (OSError, ValueError) as error:
        # A ValueError is what Orbax makes of a full disk: a page of text with its number in it.
        number = re.search(r"os_error_code='(\d+)'", str(error))
        reason = os.strerror(int(number[1])) if number else getattr(error, "strerror", None)
        reason = reason or str(error).splitlines()[0]
        raise CheckpointError(
            f"the checkpoint of step {meta['step']} could not be written to {folder}: {reason}; "
            "what was saved before it is untouched"
        ) from error


def restore(folder: Path, template: State) -> tuple[State, dict] | None:
    """Return (state, meta) of the newest whole checkpoint, or None where there is none yet.

    A damaged checkpoint is named, set aside as `….damaged`, and the one before it is used.

    Args:
      folder: the checkpoints' folder.
      template: a state of the same structure, shapes and dtypes, on the host.

    Raises:
      CheckpointError: where there are checkpoints and none is whole, or the newest whole one is of
        another network.
    """
    found = _steps(folder)
    before = len(list(folder.glob("step_*.damaged")))
    for path in reversed(found):
        fault = _fault(path)
        if fault is None:
            return _read_state(path, template), _read_json(path / "meta.json")
        aside = path.with_name(path.name + ".damaged")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        print(f"checkpoint {path.name} is damaged ({fault}); trying the one before it", flush=True)
    if found or before:
        raise CheckpointError(
            f"none of the {len(found) + before} checkpoints in {folder} is whole; to start anew, "
            "choose another --config.workdir or remove that folder"
        )
    return None


def newest_variables(folder: Path, template: dict) -> tuple[dict, int]:
    """Return (a network's `params` and `batch_stats`, step) of the newest checkpoint.

    Unlike `restore`, it changes nothing in the folder and takes no other one instead.

    Args:
      folder: the checkpoints' folder.
      template: what has the shapes of these variables.

    Raises:
      CheckpointError: where there is no checkpoint, or the newest one is damaged or of another
        network.
    """
    found = _steps(folder)
    fault = _fault(found[-1]) if found else "there is none"
    if fault is not None:
        raise CheckpointError(
            f"the newest checkpoint in {folder} cannot be used ({fault}); put a copy in its place, "
            "or remove the run's results.json and give its command again, which goes on from the "
            "one before, if any"
        )
    with _checkpointer() as checkpointer:
        state = checkpointer.restore(found[-1].absolute() / "arrays")
    variables = {name: state.get(name, {}) for name in ("params", "batch_stats")}
    if _shapes(variables) != _shapes(template):
        raise _of_another_network(found[-1])
    return variables, int(state["step"])


def pack(restored: tuple[State, dict] | None) -> bytes:
    """Return what `restore` returned as bytes, to be sent to another process."""
    if restored is None:
        return b""
    state, meta = restored
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(state), meta=np.array(json.dumps(meta)))
    return file.getvalue()


def unpack(packed: bytes, template: State) -> tuple[State, dict] | None:
    """Undo `pack`; `template` has the state's structure."""
    if not packed:
        return None
    with np.load(io.BytesIO(packed), allow_pickle=False) as file:
        leaves = [file[f"arr_{i}"] for i in range(len(file.files) - 1)]
        meta = json.loads(str(file["meta"]))
    return jax.tree.unflatten(jax.tree.structure(template), leaves), meta


def best(folder: Path) -> Path | None:
    """Return the folder of the checkpoint with the lowest validation error, if any has one."""
    errors = {path: _validation_error(path) for path in _steps(folder)}
    errors = {path: error for path, error in errors.items() if error is not None}
    return min(errors, key=errors.get) if errors else None


def _validation_error(path: Path) -> float | None:
    try:
        return _read_json(path / "meta.json")["validation_error"]
    except (OSError, ValueError, KeyError, TypeError):  # damaged: `restore` will set it aside
        return None


def _make_room(path: Path, state: State) -> None:
    """Raise an OSError where the disk, or a quota, has no room for a checkpoint of `state`.

    What Orbax meets with in the middle of it, its threads print as page after page of tracebacks.
    """
    if hasattr(os, "posix_fallocate"):  # not on macOS
        leaves = jax.tree.leaves(state)
        fixed, each = EXTRA
        with open(path, "wb") as file:
            size = sum(leaf.nbytes + each for leaf in leaves) + fixed
            os.posix_fallocate(file.fileno(), 0, size)
        path.unlink()


def _drop(folder: Path) -> None:
    keep = {*_steps(folder)[-KEEP:], best(folder)}
    for path in _steps(folder):
        if path not in keep:
            _remove(path)


def _remove(path: Path) -> None:
    """Remove a checkpoint in such an order that no part of it can be taken for a whole one."""
    if path.exists():
        aside = path.with_name(f".removing-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        shutil.rmtree(aside)


def _steps(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step_*") if not path.name.endswith(".damaged"))


def _fault(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None where every byte is as it was written."""
    try:
        expected = _read_json(path / "manifest.json")
        actual = _sums(path)
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


def _sums(folder: Path) -> dict[str, str]:
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / "manifest.json":
            with open(path, "rb") as file:
                sums[path.relative_to(folder).as_posix()] = hashlib.file_digest(
                    file, "sha256"
                ).hexdigest()
    return sums


def _read_state(path: Path, template: State) -> State:
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), template)
    try:
        with _checkpointer() as checkpointer:
            state = checkpointer.restore(
                path.absolute() / "arrays", item=template, restore_args=as_numpy
            )
    except ValueError as error:  # its sums are right: what it holds is not what is looked for
        raise _of_another_network(path) from error
    if _shapes(state) != _shapes(template):
        raise _of_another_network(path)
    return jax.tree.map(lambda x, t: np.asarray(x, np.asarray(t).dtype), state, template)


def _of_another_network(path: Path) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {path} has other parameters than the network that this version builds; use "
        "the version that trained it, or train anew in another --config.workdir"
    )


def _shapes(tree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): np.shape(leaf) for path, leaf in leaves}


def _checkpointer() -> ocp.Checkpointer:
    # The process that saves does so alone: it must not wait for the others, which do not.
    alone = {"primary_host": jax.process_index(), "active_processes": {jax.process_index()}}
    options = ocp.options.MultiprocessingOptions(**alone, barrier_sync_key_prefix="alone")
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _write_json(path: Path, value) -> None:
    with open(path, "w") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())


def _read_json(path: Path):
    return json.loads(path.read_text())
