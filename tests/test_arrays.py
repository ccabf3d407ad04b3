"""Image arrays in files: written in parts, read as one, and refused by name."""

import numpy as np
import pytest
import small

from hiercls_jax import experiment
from hiercls_jax.data import arrays
from hiercls_jax.data.dataset import DataError, Split


@pytest.fixture
def folder(tmp_path):
    """Training images in several files, and test images in one."""
    arrays.write(tmp_path, "train", small.split(50), limit=4096)
    arrays.write(tmp_path, "test", small.split(10, seed=1), limit=10**6)
    return tmp_path


def test_parts_are_small_and_read_as_one(folder):
    """No file is larger than the limit; images and labels come back in their order."""
    parts = sorted(folder.glob("train-*.npz"))
    assert len(parts) == 4
    assert all(path.stat().st_size <= 4096 for path in parts)
    splits = arrays.read(folder, small.HIERARCHY)
    for name, wanted in (("train", small.split(50)), ("test", small.split(10, seed=1))):
        np.testing.assert_array_equal(splits[name].images, wanted.images)
        np.testing.assert_array_equal(splits[name].labels, wanted.labels)
        assert splits[name].labels.dtype == np.int32


def test_a_run_reads_them(folder, tmp_path):
    """`dataset=arrays` with a folder and a hierarchy is a data set; another image size is not."""
    small.HIERARCHY.to_json(tmp_path / "h.json")
    config = experiment.compose("merge1", "quick,dataset=arrays,batch=4")
    config.data.dir, config.data.hierarchy = str(folder), str(tmp_path / "h.json")
    experiment.check(config)
    data = experiment.load_data(config)
    assert (len(data.train) + len(data.validation), len(data.test)) == (50, 10)
    config.data.image_size = 9
    with pytest.raises(DataError, match="have 8x8 pixels, and are not resized; data.image_size is"):
        experiment.load_data(config)


def changed(**arrays_):
    """A file's arrays, some of them changed."""
    data = small.split(6)
    return {"images": data.images, "labels": data.labels} | arrays_


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(images=np.zeros((6, 8, 8, 3), np.float32)), r"images are float32 \[6, 8, 8, 3\]"),
        (changed(images=np.zeros((6, 8, 8), np.uint8)), r"images are uint8 \[6, 8, 8\]; allowed"),
        (changed(images=np.zeros((6, 9, 8, 3), np.uint8)), r"images \(9, 8, 3\) instead of \(8, 8"),
        (changed(labels=np.zeros(5, int)), r"labels are int64 \[5\]; allowed are integers \[6\]"),
        (changed(labels=np.full(6, 4)), "labels from 4 to 4; allowed are 0 to 3, the classes of"),
        ({"images": small.split(6).images}, "has no array labels"),
        ({"labels": np.array([{}])}, "has no array images"),
        (changed(images=np.array([{}])), "cannot be read as .npz"),
    ],
)
def test_wrong_arrays_are_refused(folder, content, message):
    """The error names the file, what is in it, and what is allowed; objects are never unpickled."""
    np.savez(folder / "train-9.npz", **content)
    with pytest.raises(DataError, match=f"train-9.npz.*{message}"):
        arrays.read(folder, small.HIERARCHY)


def test_damaged_and_missing_files_are_refused(folder):
    """So are a file that is cut, a folder without test files, and splits of two sizes."""
    first, *_ = sorted(folder.glob("train-*.npz"))
    whole = first.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"images"):
        first.write_bytes(damaged)
        with pytest.raises(DataError, match=f"{first.name} cannot be read as .npz"):
            arrays.read(folder, small.HIERARCHY)
    first.write_bytes(whole)
    larger = small.split(3, size=9)
    arrays.write(folder, "test", Split(larger.images, larger.labels), limit=10**6)
    with pytest.raises(DataError, match="all images must have one size"):
        arrays.read(folder, small.HIERARCHY)
    (folder / "test-000.npz").unlink()
    with pytest.raises(DataError, match=r"has no test\*.npz"):
        arrays.read(folder, small.HIERARCHY)
