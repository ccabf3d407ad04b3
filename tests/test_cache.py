"""The cache of decoded images: made once, complete or absent, never unpickled."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from hiercls_jax.data.cache import cached
from hiercls_jax.data.dataset import Split
from hiercls_jax.files import cache_folder

FINGERPRINT = {"files": ["a", "b"]}


def labelled(*labels: int) -> Split:
    """Images of 1 x 1 pixel whose red is their index."""
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return Split(images, np.array(labels, np.int32))


class Source:
    """Two splits, and how often they were made."""

    def __init__(self):
        self.made = 0

    def __call__(self) -> dict[str, Split]:
        """Make them."""
        self.made += 1
        return {"train": labelled(0, 1, 2), "test": labelled(2, 0)}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of images beside a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Source()


def read(source, fingerprint=FINGERPRINT):
    """Read through the cache, and check that the result is what the source makes."""
    found, expected = cached("pets", fingerprint, Split, source), Source()()
    assert found.keys() == expected.keys()
    for name, split in found.items():
        for part in ("images", "labels"):
            array, wanted = getattr(split, part), getattr(expected[name], part)
            assert array.dtype == wanted.dtype
            np.testing.assert_array_equal(array, wanted)


def entry():
    """The one entry in the cache."""
    (folder,) = (cache_folder() / "data").iterdir()
    return folder


def test_images_are_decoded_once(source):
    """The second read makes nothing; another fingerprint is another entry."""
    read(source)
    read(source)
    assert source.made == 1
    read(source, {"files": ["a", "c"]})
    read(source)
    assert source.made == 2


def test_a_damaged_entry_is_made_anew(source):
    """A flipped bit, a short, missing or foreign file: the images are made again, and cached."""
    read(source)
    files = sorted(path.name for path in entry().iterdir())
    assert files == ["sums.json", "test.images.npy", "test.labels.npy", "train.images.npy",
                     "train.labels.npy"]  # fmt: skip
    for name in files:
        for damage in ("flip", "cut", "empty", "remove"):
            path = entry() / name
            content = bytearray(path.read_bytes())
            if damage == "flip":
                content[-20] ^= 1
            path.write_bytes({"cut": content[:-1], "empty": b""}.get(damage, bytes(content)))
            if damage == "remove":
                path.unlink()
            made = source.made
            read(source)
            assert source.made == made + 1, (name, damage)
            read(source)
            assert source.made == made + 1, (name, damage)


@pytest.mark.parametrize("sums", ["{}", "[]", "null", '{"train.images.npy": 1}'])
def test_sums_of_nothing_are_no_entry(source, sums):
    """A file of checksums that does not list files with their checksums is not trusted."""
    read(source)
    (entry() / "sums.json").write_text(sums)
    read(source)
    assert source.made == 2


@pytest.mark.parametrize("part", ["images", "labels"])
def test_sums_of_half_a_split_are_no_entry(source, part):
    """If the checksums are right but one array of a split is missing, the images are made again."""
    read(source)
    sums = json.loads((entry() / "sums.json").read_text())
    del sums[f"train.{part}.npy"]
    (entry() / "sums.json").write_text(json.dumps(sums))
    read(source)
    assert source.made == 2


def test_nothing_is_unpickled(source):
    """An array of objects, even with the right checksum, is made again and not unpickled."""
    read(source)
    path = entry() / "train.labels.npy"
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    sums = json.loads((entry() / "sums.json").read_text())
    sums[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (entry() / "sums.json").write_text(json.dumps(sums))
    read(source)
    assert source.made == 2


def test_an_entry_is_whole_or_not_there(source, monkeypatch):
    """Writing that breaks off at any file leaves no entry and nothing half-written beside it."""
    save, calls = np.save, []

    def fail(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        save(*args, **kwargs)

    monkeypatch.setattr(np, "save", fail)
    with pytest.raises(KeyboardInterrupt):
        read(source)
    assert list((cache_folder() / "data").iterdir()) == []


def full(*_, **__):
    """What a disk without space raises."""
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["mkdir", "save", "replace"])
def test_a_cache_that_cannot_be_written_is_a_note(source, monkeypatch, capsys, where):
    """A read-only folder or a full disk costs the cache, not the run."""
    with monkeypatch.context() as patch:
        owner = {"mkdir": Path, "save": np, "replace": os}[where]
        patch.setattr(owner, where, full)
        read(source)
    assert "note: the decoded images could not be cached" in capsys.readouterr().out
    assert list(cache_folder().glob("data/*")) == []
    read(source)
    read(source)
    assert source.made == 2


def test_a_cache_folder_that_cannot_be_made_is_a_note(source, tmp_path, monkeypatch, capsys):
    """Where a file stands in place of the cache, its name is in the note."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    read(source)
    assert f"could not be cached in {tmp_path}/file/hiercls_jax" in capsys.readouterr().out
