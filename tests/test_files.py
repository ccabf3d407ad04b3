"""A file or a folder is either complete or absent."""

import json
import os

import pytest

from hiercls_jax.files import (
    atomic_folder,
    atomic_write,
    remove_folder,
    remove_leftovers,
    write_json,
)


def test_a_file_gets_its_name_when_it_is_complete(tmp_path):
    """Before the end the old file is there; after it the new one, and no temporary file."""
    path = tmp_path / "a.npz"
    path.write_text("old")
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent
        assert temporary.suffix == ".npz"  # by which NumPy and matplotlib know what to write
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file(tmp_path, error):
    """Whatever interrupts a write: the old file stays, and no part of the new one."""
    path = tmp_path / "a"
    path.write_text("old")

    def write():
        with atomic_write(path) as temporary:
            temporary.write_text("ne")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_file_do_not_meet(tmp_path):
    """Each writes to a name of its own, though both may have the same process id."""
    with atomic_write(tmp_path / "a") as one, atomic_write(tmp_path / "a") as other:
        assert one != other
        one.write_text("one")
        other.write_text("other")
    assert (tmp_path / "a").read_text() == "one"  # its writer was the last to finish


def test_a_folder_gets_its_name_when_it_is_complete(tmp_path):
    """It appears with all its files; the parents of its name are made."""
    path = tmp_path / "new" / "parent" / "a"
    with atomic_folder(path) as temporary:
        (temporary / "file").write_text("new")
        assert not path.exists()
    assert (path / "file").read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failed_folder_leaves_the_old_one(tmp_path, error):
    """Whatever interrupts it: the old folder stays, and no part of the new one."""
    path = tmp_path / "a"
    path.mkdir()
    (path / "file").write_text("old")

    def write():
        with atomic_folder(path, replace=True) as temporary:
            (temporary / "file").write_text("ne")
            raise error

    with pytest.raises(error):
        write()
    assert (path / "file").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_replaces_another_only_on_request(tmp_path):
    """Without `replace` a folder with files is an error and stays; an empty one is replaced."""
    path = tmp_path / "out" / "a"
    path.mkdir(parents=True)
    for content in ("old", "new"):
        with atomic_folder(path, inside=tmp_path, replace=content == "new") as temporary:
            assert temporary.parent == tmp_path
            (temporary / content).write_text(content)
        assert [file.name for file in path.iterdir()] == [content]
    with pytest.raises(OSError, match="not empty"), atomic_folder(path) as temporary:
        (temporary / "newer").write_text("newer")
    assert [file.name for file in path.iterdir()] == ["new"]
    assert list(path.parent.iterdir()) == [path]


def test_files_are_on_disk_before_the_folder_has_its_name(tmp_path, monkeypatch):
    """With `sync` every file, in subfolders too, is forced to disk, then the folder is renamed."""
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: done.append("fsync") or fsync(handle))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("replace") or replace(*names))
    with atomic_folder(tmp_path / "a", sync=True) as temporary:
        (temporary / "inner").mkdir()
        for name in ("one", "inner/two"):
            (temporary / name).write_text(name)
    assert done == ["fsync", "fsync", "replace"]


def test_a_removed_folder_never_lacks_a_part(tmp_path, monkeypatch):
    """A kill during removal leaves it complete or hidden; hidden leftovers are removed later."""
    path = tmp_path / "a"
    path.mkdir()
    remove_folder(tmp_path / "missing")

    def kill(_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", kill)
        with pytest.raises(KeyboardInterrupt):
            remove_folder(path)
    (hidden,) = tmp_path.iterdir()
    assert hidden.name.startswith(".a.")
    (tmp_path / ".gitignore").touch()
    remove_leftovers(tmp_path, "b*")
    assert hidden.exists()
    remove_leftovers(tmp_path, "a*")
    assert [file.name for file in tmp_path.iterdir()] == [".gitignore"]


def test_json_is_indented_and_ends_with_a_line(tmp_path):
    """Written JSON can be read back; it is indented and ends with a newline."""
    value = {"a": [1, None], "ä": "ö"}
    write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == value
    assert text == json.dumps(value, indent=1) + "\n"
