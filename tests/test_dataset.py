"""What is held out, what images are standardised by, and the cache of decoded images."""

import hashlib
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small import HIERARCHY

from hiercls_jax.data import dataset
from hiercls_jax.data.dataset import DataError, Dataset, Split, cached, hold_out
from hiercls_jax.files import cache_folder

FINGERPRINT = {"files": ["a", "b"]}


def numbered(labels) -> Split:
    """Images of 1 x 1 pixel whose red and green are their index, low byte first."""
    index = np.arange(len(labels))
    pixels = np.stack([index % 256, index // 256, 0 * index], axis=-1).astype(np.uint8)
    return Split(pixels.reshape(-1, 1, 1, 3), np.asarray(labels, np.int32))


def indices(split: Split) -> list[int]:
    """The indices of numbered images."""
    return (split.images[:, 0, 0, :2] @ np.array([1, 256])).tolist()


@given(
    st.lists(st.integers(2, 40), min_size=1, max_size=6),
    st.floats(0.01, 0.5),
    st.integers(0, 1000),
    st.randoms(use_true_random=False),
)
def test_hold_out_is_a_stratified_partition(sizes, fraction, seed, random):
    """Every image is on one side, once and in order; of each class the fraction, at least one."""
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    random.shuffle(labels)
    train = numbered(labels)
    left, held = hold_out(train, fraction, seed)
    for part in (left, held):
        assert indices(part) == sorted(indices(part))
        np.testing.assert_array_equal(part.labels, train.labels[indices(part)])
    assert sorted(indices(left) + indices(held)) == list(range(len(train)))
    counts = np.bincount(held.labels, minlength=len(sizes)).tolist()
    assert counts == [max(1, round(fraction * size)) for size in sizes]


def test_what_is_held_out_is_a_function_of_the_seed():
    """The same seed holds out the same images, another one others, and not the first of each."""
    train = numbered(np.arange(200) % 4)
    held = [indices(hold_out(train, 0.1, seed)[1]) for seed in (0, 0, 1)]
    assert held[0] == held[1] != held[2]
    assert max(held[0]) > 100


def test_too_few_images_to_hold_out():
    """A class that would lose all its images is named."""
    with pytest.raises(DataError, match="class 2 has 1 training images.*data.final=True"):
        hold_out(numbered([0, 0, 1, 1, 2]), 0.1, 0)
    with pytest.raises(DataError, match="class 0 has 3 training images.*hold out 3.*lower"):
        hold_out(numbered([0, 0, 0]), 0.9, 0)


def test_channel_statistics_are_those_of_the_training_images():
    """Mean and deviation of each channel over all training pixels, as NumPy has them in float64."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, [[[[20, 130, 256]]]], (50, 6, 5, 3), np.uint8)
    train, test = Split(images, np.zeros(50, np.int32)), numbered([0])
    mean, std = Dataset("x", HIERARCHY, train, test, test).channel_statistics()
    assert mean.dtype == std.dtype == np.float32
    np.testing.assert_allclose(mean, images.mean(axis=(0, 1, 2), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(std, images.std(axis=(0, 1, 2), dtype=np.float64), rtol=1e-6)


def test_a_channel_of_one_value_can_be_standardised():
    """Where every pixel is the same the deviation is 1, not 0."""
    train = Split(np.full((4, 2, 2, 3), 255, np.uint8), np.zeros(4, np.int32))
    mean, std = Dataset("grey", HIERARCHY, train, None, train).channel_statistics()
    assert (mean.tolist(), std.tolist()) == ([255.0] * 3, [1.0] * 3)


class Source:
    """Two splits, and how often they were made."""

    def __init__(self):
        self.made = 0

    def __call__(self) -> dict[str, Split]:
        """Make them."""
        self.made += 1
        return {"train": numbered([0, 1, 2]), "test": numbered([2, 0])}


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A source of images beside a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Source()


def read(source, fingerprint=FINGERPRINT):
    """Read through the cache, and check that the result is what the source makes."""
    found, expected = cached("pets", fingerprint, source), Source()()
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
    """Sums that are JSON but no list of files with their sums are not trusted."""
    read(source)
    (entry() / "sums.json").write_text(sums)
    read(source)
    assert source.made == 2


@pytest.mark.parametrize("part", ["images", "labels"])
def test_sums_of_half_a_split_are_no_entry(source, part):
    """Where right sums leave out one array of a split, the images are made anew."""
    read(source)
    sums = json.loads((entry() / "sums.json").read_text())
    del sums[f"train.{part}.npy"]
    (entry() / "sums.json").write_text(json.dumps(sums))
    read(source)
    assert source.made == 2


def test_nothing_is_unpickled(source):
    """An array of objects, sums and all, is made anew instead of being unpickled."""
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


@pytest.mark.parametrize("where", ["mkdtemp", "save", "replace"])
def test_a_cache_that_cannot_be_written_is_a_note(source, monkeypatch, capsys, where):
    """A read-only folder or a full disk costs the cache, not the run."""
    with monkeypatch.context() as patch:
        owner = {"mkdtemp": dataset.tempfile, "save": np, "replace": dataset.os}[where]
        patch.setattr(owner, where, full)
        read(source)
    assert "note: the decoded images could not be cached" in capsys.readouterr().out
    assert list((cache_folder() / "data").iterdir()) == []
    read(source)
    read(source)
    assert source.made == 2


def test_a_cache_folder_that_cannot_be_made_is_a_note(source, tmp_path, monkeypatch, capsys):
    """Where a file stands in place of the cache, its name is in the note."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    read(source)
    assert f"could not be cached in {tmp_path}/file/hiercls_jax" in capsys.readouterr().out
