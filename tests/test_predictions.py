"""`predictions.npz`: files that `save` wrote are read, and all others are rejected."""

import dataclasses
import io
import tracemalloc

import numpy as np
import pytest
from small import HIERARCHY

from hiercls_jax import Hierarchy
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation import predictions
from hiercls_jax.evaluation.predictions import Predictions, load, save


def made(count: int, seed: int = 0) -> Predictions:
    """Random probabilities and labels on the tiny hierarchy."""
    rng = np.random.default_rng(seed)
    labels = HIERARCHY.labels(rng.integers(0, 4, count))
    probs = [rng.dirichlet(np.ones(n), count).astype(np.float32) for n in HIERARCHY.sizes]
    levels = HIERARCHY.levels
    return Predictions(
        dict(zip(levels, probs, strict=True)), dict(zip(levels, labels, strict=True))
    )


@pytest.fixture
def arrays(tmp_path):
    """The arrays of a good file."""
    save(tmp_path / "good.npz", {"validation": made(5), "test": made(7, 1)})
    with np.load(tmp_path / "good.npz", allow_pickle=False) as file:
        return dict(file)


def test_what_is_saved_is_loaded(tmp_path):
    """Splits and levels come back in order, with the same bits; each is a plain array."""
    splits = {"validation": made(5), "test": made(7, 1)}
    save(tmp_path / "p.npz", splits)
    found = load(tmp_path / "p.npz", HIERARCHY)
    assert list(found) == ["validation", "test"]
    for name, split in splits.items():
        for field in ("probs", "labels"):
            wanted, got = getattr(split, field), getattr(found[name], field)
            assert list(got) == list(HIERARCHY.levels)
            for level in HIERARCHY.levels:
                assert got[level].dtype == (np.float32 if field == "probs" else np.int32)
                np.testing.assert_array_equal(got[level], wanted[level])
    with np.load(tmp_path / "p.npz", allow_pickle=False) as file:
        assert sorted(file) == sorted(
            f"{split}/{what}_{level}"
            for split in splits
            for what in ("p", "labels")
            for level in HIERARCHY.levels
        )


def test_files_of_images_are_kept(tmp_path, arrays):
    """The file of each image comes back; files that are not text, or too few, are rejected."""
    files = np.array(["test/ä/1.png", "test/b/02.png", "test/b/3.png"])
    splits = {"validation": made(5), "test": dataclasses.replace(made(3), files=files)}
    save(tmp_path / "p.npz", splits)
    found = load(tmp_path / "p.npz", HIERARCHY)
    assert found["validation"].files is None
    assert found["test"].files.tolist() == files.tolist()
    for wrong in (files, np.arange(7)):
        np.savez(tmp_path / "p.npz", **arrays, **{"test/files": wrong})
        refused(tmp_path / "p.npz", r"test needs files \[7\] of text")


def test_other_precisions_are_stored_as_float32(tmp_path):
    """float64 and float16 probabilities and int64 labels are stored as float32 and int32."""
    split = made(3)
    wide = dataclasses.replace(
        split,
        probs={"coarse": split.probs["coarse"].astype(np.float64), "fine": split.probs["fine"]},
        labels={level: y.astype(np.int64) for level, y in split.labels.items()},
    )
    save(tmp_path / "p.npz", {"test": wide})
    found = load(tmp_path / "p.npz", HIERARCHY)["test"]
    assert {p.dtype.name for p in found.probs.values()} == {"float32"}
    assert {y.dtype.name for y in found.labels.values()} == {"int32"}


def test_a_failed_write_leaves_what_was_there(tmp_path, monkeypatch):
    """If writing fails, the older file stays, and no other file is left beside it."""
    path = tmp_path / "p.npz"
    save(path, {"test": made(3)})
    before = path.read_bytes()

    def fail(file, **_):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predictions.np, "savez", fail)
    with pytest.raises(OSError, match="No space"):
        save(path, {"test": made(4)})
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]
    assert path.read_bytes() == before


def refused(path, message, hierarchy=HIERARCHY):
    """Check that loading is one error that names the file."""
    with pytest.raises(UserError, match=message) as caught:
        load(path, hierarchy)
    assert str(path) in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    """A file that is not there, and a folder, are named."""
    refused(tmp_path / "none.npz", "cannot be read as predictions.*No such file")
    refused(tmp_path, "cannot be read as predictions")


@pytest.mark.parametrize("compressed", [False, True])
def test_every_damage_is_refused_or_harmless(tmp_path, arrays, compressed):
    """A bit flipped or the end cut off, anywhere: an error of ours, or exactly what was written."""
    content = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(content, **arrays)
    content, path = content.getvalue(), tmp_path / "bad.npz"
    expected = {name: made(5 + 2 * i, i) for i, name in enumerate(("validation", "test"))}
    damaged = [content[:end] for end in range(0, len(content), 211)]
    for i in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[i] ^= 1 << i % 7
        damaged.append(bytes(flipped))
    refusals = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            found = load(path, HIERARCHY)
        except UserError:
            refusals += 1
            continue
        assert found.keys() == expected.keys()
        for name, split in found.items():
            for level in HIERARCHY.levels:
                np.testing.assert_array_equal(split.probs[level], expected[name].probs[level])
                np.testing.assert_array_equal(split.labels[level], expected[name].labels[level])
    assert refusals > len(damaged) / 2


def test_nothing_is_unpickled(tmp_path, arrays):
    """An array of objects is refused, not unpickled."""
    arrays["test/p_fine"] = np.array([{}] * 7, dtype=object)
    np.savez(tmp_path / "p.npz", **arrays)
    refused(tmp_path / "p.npz", "cannot be read as predictions.*never unpickled")


@pytest.mark.parametrize("compressed", [False, True])
def test_a_small_file_takes_little_memory(tmp_path, arrays, compressed):
    """An array of 20 MB in a file of 20 kB, by compression or as a claim, is refused unread."""
    rows, path = 5_000_000, tmp_path / "p.npz"
    if compressed:
        np.savez_compressed(path, **arrays | {"test/labels_fine": np.zeros(rows, np.int32)})
    else:
        np.savez(path, **arrays | {"test/labels_fine": np.zeros(7, np.int32)})
        path.write_bytes(path.read_bytes().replace(b"(7,), }      ", f"({rows},), }}".encode()))
    tracemalloc.start()
    refused(path, "cannot be read as predictions")
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_single_array_is_refused(tmp_path):
    """An `.npy` file under the name of an archive is no predictions."""
    with open(tmp_path / "p.npz", "wb") as file:
        np.save(file, np.zeros(3))
    refused(tmp_path / "p.npz", "cannot be read as predictions.*not a zip file")


def test_other_levels_are_refused(tmp_path, arrays):
    """Predictions of other level names, numbers of classes or levels are another hierarchy's."""
    path = tmp_path / "good.npz"
    names, parents = HIERARCHY.names, HIERARCHY.parents
    refused(path, r"needs p_kind \[N, 2\].*None", Hierarchy(("kind", "fine"), names, parents))
    more = Hierarchy(("coarse", "fine"), (names[0], (*names[1], "x")), ((0, 0, 1, 1, 1),))
    refused(path, r"needs p_fine \[N, 5\].*got \[5, 4\] and \[5\]", more)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("test/p_fine", None, r"test needs p_fine \[N, 4\].*got None"),
        ("test/p_fine", np.zeros((7, 3), np.float32), r"got \[7, 3\] and \[7\]"),
        ("test/p_fine", np.zeros((6, 4), np.float32), r"got \[6, 4\] and \[7\]"),
        ("test/p_fine", np.zeros((7, 4), np.int32), "of floats.*int32"),
        ("test/p_fine", np.full((7, 4), np.nan, np.float32), "p_fine that are negative or not"),
        ("test/p_fine", np.full((7, 4), -0.1, np.float32), "p_fine that are negative or not"),
        ("test/p_fine", np.zeros((7, 4), "U3"), "of floats.*<U3"),
        ("test/labels_fine", np.int32(3), r"got \[7, 4\] and \[\]"),
        ("test/labels_fine", np.zeros((7, 1), np.int32), r"got \[7, 4\] and \[7, 1\]"),
        ("test/labels_fine", np.zeros(7), "of integers.*float64"),
        ("test/labels_fine", np.full(7, 4), "labels_fine from 4 to 4; allowed are 0 to 3"),
        ("test/labels_fine", np.full(7, -1), "labels_fine from -1 to -1"),
        ("stranger", np.zeros(2), "stranger needs p_coarse"),
    ],
)  # fmt: skip
def test_wrong_arrays_are_refused(tmp_path, arrays, name, value, message):
    """Each missing, misshapen, mistyped or out-of-range array is named with what is allowed."""
    changed = {**arrays, name: value} if value is not None else arrays
    if value is None:
        del changed[name]
    np.savez(tmp_path / "p.npz", **changed)
    refused(tmp_path / "p.npz", message)


def test_levels_of_different_length_are_refused(tmp_path, arrays):
    """All levels of a split are of the same images."""
    for key in ("test/p_fine", "test/labels_fine"):
        arrays[key] = arrays[key][:-1]
    np.savez(tmp_path / "p.npz", **arrays)
    refused(tmp_path / "p.npz", "test has different numbers of images at its levels")


@pytest.mark.parametrize("count", [None, 0])
def test_no_predictions_are_refused(tmp_path, arrays, count):
    """An archive without arrays, and splits without images, hold no predictions."""
    empty = {} if count is None else {key: array[:count] for key, array in arrays.items()}
    np.savez(tmp_path / "p.npz", **empty)
    refused(tmp_path / "p.npz", "holds no predictions" if count is None else "N > 0")
