"""Checkpoints are complete or absent."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from hiercls_jax.training import checkpoint
from hiercls_jax.training.checkpoint import (
    CheckpointError,
    Progress,
    best,
    restore,
    save,
)
from hiercls_jax.training.state import State


def state(step: int) -> State:
    """A state whose values are those of its step."""
    arrays = {"a": np.full((3, 2), step, np.float32), "b": np.arange(5, dtype=np.int32) * step}
    return State(np.asarray(step, np.int32), arrays, {"mean": np.float32([step])}, ({"t": arrays},))


def progress(step: int, error: float | None = None) -> Progress:
    return Progress(step, 1.5, 2.5, error, {"loss": 0.1}, {"next_index": step}, "digest")


def put(folder, step: int, error: float | None = None):
    save(folder, state(step), progress(step, error))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_restored(tmp_path):
    """State and progress come back, the same to the bit, and a checkpoint has no other files."""
    put(tmp_path, 7, 0.5)
    assert names(tmp_path / "step_00000007") == ["arrays", "manifest.json", "meta.json"]
    found, how_far = restore(tmp_path, state(0))
    assert how_far == progress(7, 0.5)
    assert jax.tree.structure(found) == jax.tree.structure(state(7))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state(7)), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("lacks", [[], ["cpu_seconds"], ["cpu_seconds", "iterator", "images"]])
def test_checkpoints_of_older_versions_are_read(tmp_path, lacks, packed):
    """Keys on disk have not changed; missing keys get their defaults, unknown ones are ignored."""
    put(tmp_path, 7, 0.5)
    meta = tmp_path / "step_00000007" / "meta.json"
    values = json.loads(meta.read_text())
    assert list(values) == ["step", "seconds", "cpu_seconds", "validation_error", "sums",
                            "iterator", "images"]  # fmt: skip
    written = {k: v for k, v in values.items() if k not in lacks} | {"of another version": 1}
    meta.write_text(json.dumps(written))
    manifest = meta.with_name("manifest.json")
    manifest.write_text(json.dumps(checkpoint._hashes(meta.parent)))
    found, how_far = restore(tmp_path, state(0))
    if packed:  # as it is sent to another process
        found, how_far = checkpoint.unpack(checkpoint.pack(found, how_far), state(0))
    defaults = {"cpu_seconds": 0.0, "iterator": None, "images": None}
    expected = dataclasses.replace(progress(7, 0.5), **{key: defaults[key] for key in lacks})
    assert how_far == expected
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state(7)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("change", ["a name", "one more", "a shape"])
def test_the_parameters_of_another_network_are_refused(tmp_path, change):
    """A checkpoint of another version of the package, or of another config, is not used."""
    put(tmp_path, 7)
    have = state(0)
    if change == "a name":
        params = {"c" if name == "a" else name: value for name, value in have.params.items()}
    elif change == "one more":
        params = have.params | {"c": have.params["a"]}
    else:
        params = have.params | {"a": np.zeros((2, 3), np.float32)}
    with pytest.raises(CheckpointError, match="other parameters than the network"):
        restore(tmp_path, have.replace(params=params))
    variables = {"params": params, "batch_stats": have.batch_stats}
    with pytest.raises(CheckpointError, match="other parameters than the network"):
        checkpoint.newest_variables(tmp_path, variables)
    assert names(tmp_path) == ["step_00000007"]
    variables["params"] = have.params
    assert checkpoint.newest_variables(tmp_path, variables)[1] == 7


def test_nothing_saved_is_nothing_restored(tmp_path):
    """An empty or missing folder gives None, not an error."""
    assert restore(tmp_path, state(0)) is None
    assert restore(tmp_path / "missing", state(0)) is None


def test_the_newest_two_and_the_best_are_kept(tmp_path):
    """Of five checkpoints remain the two newest and the one with the lowest validation error."""
    for step, error in ((1, 0.9), (2, 0.3), (3, 0.5), (4, None), (5, 0.4)):
        put(tmp_path, step, error)
    assert names(tmp_path) == ["step_00000002", "step_00000004", "step_00000005"]
    assert best(tmp_path).name == "step_00000002"
    assert restore(tmp_path, state(0))[1].step == 5


def test_a_kill_while_an_old_checkpoint_is_removed_does_no_harm(tmp_path):
    """Leftovers of a removal, of this version or an older one, disturb neither save nor restore."""
    put(tmp_path, 1, 0.1)
    put(tmp_path, 2)
    (tmp_path / "step_00000001" / "meta.json").unlink()
    (tmp_path / ".removing-step_00000000").mkdir()
    (tmp_path / ".step_00000000.0123abcd.tmp").mkdir()
    put(tmp_path, 3)
    assert names(tmp_path) == ["step_00000002", "step_00000003"]
    assert restore(tmp_path, state(0))[1].step == 3


@pytest.mark.parametrize("limit", [64, 20_000])
def test_a_full_disk_is_an_error_of_one_line(tmp_path, limit):
    """If no file may outgrow a limit, the save is an error and the older checkpoint stays.

    At 64 bytes nothing can be written; at 20,000 an array of 400,000 cannot. Room is checked before
    Orbax writes, because it would print pages of tracebacks.
    """
    put(tmp_path, 1)
    code = (
        "import resource, sys; sys.path.insert(0, sys.argv[1])\n"
        "import numpy as np, test_checkpoint as t; from pathlib import Path\n"
        "large = t.state(2).replace(batch_stats={'x': np.random.default_rng(0).random(50_000)})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]), int(sys.argv[3])))\n"
        "try: t.save(Path(sys.argv[2]), large, t.Progress(2))\n"
        "except t.CheckpointError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path), str(limit)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.startswith("the checkpoint of step 2 could not be written to"), done.stderr
    assert done.stdout.count("\n") == 1
    assert (": File too large; " in done.stdout, done.stderr) == (True, "")
    assert names(tmp_path) == ["step_00000001"]


def test_an_orbax_error_about_a_full_disk_is_shortened_to_one_line(tmp_path, monkeypatch):
    """If the disk fills up while Orbax writes, the reason is taken from its page of text."""
    text = (
        'OUT_OF_RANGE: Error writing "a/0" in OCDBT database at local file "/x/d": Failed writing: '
        '"/x/d/1": Failed to write 7 bytes to file 14: No space left on device [tensorstore_spec='
        "'{\\\"context\\\":{}}'] [os_error_code='28']\nmore"
    )

    def fail(*_):
        raise ValueError(text)

    monkeypatch.setattr(checkpoint, "_checkpointer", fail)
    with pytest.raises(CheckpointError) as caught:
        put(tmp_path, 2)
    assert "step 2 could not be written" in str(caught.value)
    assert ": No space left on device; older checkpoints are untouched" in str(caught.value)


def test_any_flipped_bit_is_found(tmp_path, capsys):
    """If any file of the newest checkpoint has a flipped bit, an older one is used, with a note."""
    put(tmp_path, 1)
    put(tmp_path, 2)
    newest = tmp_path / "step_00000002"
    files = [p.relative_to(newest) for p in newest.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) >= 4
    shutil.copytree(newest, tmp_path / "as it was")
    for file in files:
        path = newest / file
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        found, how_far = restore(tmp_path, state(0))
        assert how_far.step == int(found.step) == 1, file
        assert "step_00000002 is damaged" in capsys.readouterr().out
        shutil.copytree(tmp_path / "as it was", newest)


@pytest.mark.parametrize("damage", ["truncated", "missing", "added", "no manifest"])
def test_other_damage_is_found(tmp_path, damage):
    """If a file is cut short, gone or added, or the manifest is gone, the one before is used."""
    put(tmp_path, 1)
    put(tmp_path, 2)
    newest = tmp_path / "step_00000002"
    largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    if damage == "truncated":
        largest.write_bytes(largest.read_bytes()[:-1])
    elif damage == "missing":
        largest.unlink()
    elif damage == "added":
        (newest / "arrays" / "more").write_text("x")
    else:
        (newest / "manifest.json").unlink()
    assert restore(tmp_path, state(0))[1].step == 1
    put(tmp_path, 3)  # what was set aside is none of the two that are kept
    assert restore(tmp_path, state(0))[1].step == 3
    assert names(tmp_path) == ["step_00000001", "step_00000002.damaged", "step_00000003"]


def test_nothing_whole_is_an_error_not_a_fresh_start(tmp_path):
    """If every checkpoint is damaged, training does not silently begin anew."""
    put(tmp_path, 1)
    (tmp_path / "step_00000001" / "manifest.json").write_text("{}")
    for _ in range(2):  # nor when it is asked again, as a scheduler does
        with pytest.raises(CheckpointError, match="none of the 1 checkpoints"):
            restore(tmp_path, state(0))


@pytest.mark.parametrize(
    ("owner", "name"),
    [(checkpoint.os, "replace"), (checkpoint, "_hashes"), (checkpoint.os, "fsync")],
)
@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), ValueError("No space left on device\nat 0x1")]
)
def test_a_half_written_checkpoint_is_never_seen(tmp_path, monkeypatch, owner, name, error):
    """A save that fails is an error of one line, and leaves only the older checkpoint."""
    put(tmp_path, 1)

    def fail(*_):
        raise error

    monkeypatch.setattr(owner, name, fail)
    with pytest.raises(
        CheckpointError, match="step 2 could not be written.*No space left"
    ) as caught:
        put(tmp_path, 2)
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    assert names(tmp_path) == ["step_00000001"]
    for leftover in (".writing-abc", ".step_00000002.0123abcd.tmp"):  # of a kill
        (tmp_path / leftover).mkdir()
    assert restore(tmp_path, state(0))[1].step == 1
    put(tmp_path, 2)
    assert names(tmp_path) == ["step_00000001", "step_00000002"]
