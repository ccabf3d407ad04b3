"""Sets prepared by TFDS: read without TensorFlow, matched to a hierarchy, broken ones refused."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from hiercls_jax.data import tfds_source
from hiercls_jax.data.dataset import DataError
from hiercls_jax.files import cache_folder
from hiercls_jax.hierarchy import Hierarchy, cifar100

tfds.disable_progress_bar()

NAMES = ("pug", "lynx", "lion")  # TFDS's order; the hierarchy has another
PETS = Hierarchy(("kind", "animal"), (("cat", "dog"), ("lynx", "pug", "lion")), ((0, 1, 0),))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def encode(image, form="PNG") -> bytes:
    """Return the bytes of an image file."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, form)
    return file.getvalue()


def examples(count, size=(6, 5), seed=0, channels=3, **more):
    """Return `count` random examples with labels 0, 1, 2, 0, …"""
    rng = np.random.Generator(np.random.PCG64(seed))
    shape = (*size, 3) if channels == 3 else size
    return [
        {"image": rng.integers(0, 256, shape, np.uint8), "label": i % 3, **more}
        for i in range(count)
    ]


def prepare(folder, splits, features=None, called="pets", configs=()):
    """Prepare a set by TFDS in `folder`: `splits` are lists of examples, images as arrays."""
    label = tfds.features.ClassLabel(names=NAMES)
    features = features or {"image": tfds.features.Image(), "label": label}

    class Pets(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = called
        VERSION = tfds.core.Version("1.2.0")
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config) for config in configs]
        pkg_dir_path = folder

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(items) for split, items in splits.items()}

        def _generate_examples(self, items):
            for i, item in enumerate(items):
                image = item["image"]
                raw = encode(image) if isinstance(image, np.ndarray) else image
                yield i, item | {"image": raw}

    builder = Pets(data_dir=folder)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(file_format="array_record", download_config=config)
    return Path(builder.data_dir)


@pytest.fixture
def pets(tmp_path):
    """Return a data_dir with a good set `pets` of 7 and 4 images."""
    prepare(tmp_path / "sets", {"train": examples(7), "test": examples(4, seed=1)})
    return tmp_path / "sets"


def read(data_dir, name="pets", label_key="label", hierarchy=PETS, image_size=None):
    """Read with the defaults of these tests."""
    return tfds_source.read(name, data_dir, label_key, hierarchy, image_size)


def refused(data_dir, *parts, **options):
    """Check that reading raises one DataError with `parts` in it, and caches nothing."""
    with pytest.raises(DataError) as caught:
        read(data_dir, **options)
    for part in parts:
        assert str(part) in str(caught.value)
    assert not list(cache_folder().rglob("*.npy"))


@pytest.mark.parametrize("chunk", [2, 2000])
def test_reads_what_tfds_reads(pets, monkeypatch, chunk):
    """Pixels and order are those of `tfds.data_source`; labels are matched by name."""
    monkeypatch.setattr(tfds_source, "_CHUNK", chunk)
    splits = read(pets)
    builder = tfds.builder_from_directory(pets / "pets" / "1.2.0")
    for split, count in (("train", 7), ("test", 4)):
        ours, theirs = splits[split], list(builder.as_data_source(split))
        assert ours.images.dtype == np.uint8
        assert ours.labels.dtype == np.int32
        assert len(ours) == len(theirs) == count
        assert np.array_equal(ours.images, [item["image"] for item in theirs])
        names = [NAMES[item["label"]] for item in theirs]
        assert [PETS.names[-1][label] for label in ours.labels] == names


@pytest.mark.parametrize("image_size", [None, 4])
def test_streams_are_what_is_read_into_memory(pets, image_size):
    """In any order, by threads: images, labels and sums are those of `read`, to the last bit."""
    held = read(pets, image_size=image_size)
    streamed = tfds_source.stream("pets", pets, "label", PETS, image_size)
    assert list(held) == list(streamed)
    for name, whole in held.items():
        some = np.random.default_rng(0).integers(len(whole), size=30)
        assert streamed[name].image_shape == whole.image_shape
        np.testing.assert_array_equal(streamed[name].labels, whole.labels)
        np.testing.assert_array_equal(streamed[name].take(some).labels, whole.labels[some])
        np.testing.assert_array_equal(streamed[name].read(some), whole.images[some])
        np.testing.assert_array_equal(streamed[name].take(some).sums(), whole.take(some).sums())


def test_streams_are_looked_at_first(tmp_path):
    """A broken image, and one of another size, are refused at the start, also in another split."""
    noise = examples(1, (40, 40))[0]["image"]
    broken = examples(4, (40, 40)) + [{"image": encode(noise)[:-500], "label": 0}]
    prepare(tmp_path / "broken", {"train": examples(7, (40, 40)), "test": broken})
    sizes = examples(4) + examples(1, (3, 3))
    prepare(tmp_path / "sizes", {"train": sizes, "test": examples(3)})
    for place, match in (("broken", "cannot be read as an image"), ("sizes", "3 x 3")):
        with pytest.raises(DataError, match=match):
            tfds_source.stream("pets", tmp_path / place, "label", PETS)


def test_no_tensorflow(pets, tmp_path):
    """Reading a set imports no TensorFlow, even if it is installed."""
    stub = tmp_path / "stub" / "tensorflow" / "__init__.py"
    stub.parent.mkdir(parents=True)
    stub.write_text("")
    code = (
        "import sys, importlib.util\n"
        "from hiercls_jax.data import cifar100, tfds_source\n"
        "from hiercls_jax.hierarchy import Hierarchy\n"
        f"pets = Hierarchy.from_dict({PETS.to_dict()!r})\n"
        f"assert len(tfds_source.read('pets', {str(pets)!r}, 'label', pets)['train']) == 7\n"
        "assert importlib.util.find_spec('tensorflow')\n"
        "assert 'tensorflow' not in sys.modules\n"
    )
    path = os.pathsep.join([str(tmp_path / "stub"), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)


def test_cache(pets, monkeypatch, tmp_path):
    """The second read decodes nothing; changed files, sizes and hierarchies are decoded anew."""
    first = read(pets)["train"]
    other = Hierarchy(("kind", "animal"), (("dog", "cat"), ("lion", "pug", "lynx")), ((1, 0, 1),))
    by_name = np.array(other.names[-1])[read(pets, hierarchy=other)["train"].labels]
    assert np.array_equal(by_name, np.array(PETS.names[-1])[first.labels])
    with monkeypatch.context() as patch:
        patch.setattr(tfds_source._Records, "decode", None)
        again = read(pets)["train"]
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    assert read(pets, image_size=4)["train"].images.shape == (7, 4, 4, 3)
    shutil.rmtree(pets)
    prepare(pets, {"train": examples(7, seed=5), "test": examples(4)})
    assert not np.array_equal(first.images, read(pets)["train"].images)


def test_data_dir(pets, monkeypatch, tmp_path):
    """None means the current $TFDS_DATA_DIR, or ~/tensorflow_datasets if it is unset."""
    monkeypatch.setenv("TFDS_DATA_DIR", str(pets))
    assert len(read(None)["train"]) == 7
    monkeypatch.setenv("HOME", str(pets.parent))
    monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
    assert tfds_source.data_folder() == pets
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert tfds_source.data_folder() == pets.parent / "tensorflow_datasets"


def test_versions_and_configs(tmp_path):
    """The newest version is read, by number; one version or config can be named."""
    sets = tmp_path / "sets"
    folder = prepare(sets, {"train": examples(3), "test": examples(3)}, configs=("small",))
    assert tfds_source.find("pets/small", sets) == folder == sets / "pets" / "small" / "1.2.0"
    for version in ("1.10.0", "1.9.0", "1.11.0.incomplete"):
        shutil.copytree(folder, folder.with_name(version))
    assert tfds_source.find("pets/small", sets).name == "1.10.0"
    assert tfds_source.find("pets/small:1.9.0", sets).name == "1.9.0"
    assert tfds_source.find("pets/small:1.8.0", sets) is None
    assert len(read(sets, name="pets/small:1.2.0")["train"]) == 3
    with pytest.raises(DataError, match="pets/small"):
        read(sets)


def test_validation_stands_in_for_test(tmp_path, capsys):
    """A set without 'test' gives 'validation' as test, and says so; one with neither is refused."""
    prepare(tmp_path / "a", {"train": examples(3), "validation": examples(6)})
    assert len(read(tmp_path / "a")["test"]) == 6
    assert "no split 'test'; 'validation' is used in its place" in capsys.readouterr().out
    prepare(tmp_path / "b", {"train": examples(3), "extra": examples(6)})
    with pytest.raises(DataError, match="extra, train"):
        read(tmp_path / "b")


def test_grayscale_and_jpeg_become_rgb(tmp_path):
    """Grayscale images get three equal channels; JPEG is read as well as PNG."""
    features = {
        "image": tfds.features.Image(shape=(6, 5, 1)),
        "label": tfds.features.ClassLabel(names=NAMES),
    }
    items = examples(3, channels=1)
    prepare(tmp_path / "grey", {"train": items, "test": items}, features)
    images = read(tmp_path / "grey")["train"].images
    assert images.shape == (3, 6, 5, 3)
    assert np.array_equal(images[..., 0], images[..., 2])
    assert sorted(map(np.sum, images[..., 1])) == sorted(np.sum(item["image"]) for item in items)
    grey = np.full((6, 5, 3), 90, np.uint8)
    items = [{"image": encode(grey, "JPEG"), "label": 0}]
    prepare(tmp_path / "jpeg", {"train": items, "test": items})
    assert np.array_equal(read(tmp_path / "jpeg")["train"].images, [grey])


@pytest.mark.parametrize("within", [True, False])
def test_sizes_that_vary(tmp_path, within):
    """Sizes that vary within or between splits need image_size, and are resized to it."""
    test = examples(2, size=(9, 9))
    train = examples(2) + test if within else examples(2)
    prepare(tmp_path, {"train": train, "test": test})
    refused(tmp_path, "--config.data.image_size", "6 x 5", "9 x 9")
    refused(tmp_path, "--config.data.image_size", image_size=0)
    assert read(tmp_path, image_size=7)["test"].images.shape == (2, 7, 7, 3)


def test_labels_by_index(tmp_path):
    """Labels without names are indices into the hierarchy, and their range is checked."""
    image = tfds.features.Image()
    numbered = {"image": image, "label": tfds.features.ClassLabel(num_classes=3)}
    prepare(tmp_path / "a", {"train": examples(6), "test": examples(3)}, numbered)
    assert sorted(read(tmp_path / "a")["train"].labels) == [0, 0, 1, 1, 2, 2]
    four = {"image": image, "label": tfds.features.ClassLabel(num_classes=4)}
    prepare(tmp_path / "b", {"train": examples(6), "test": examples(3)}, four)
    with pytest.raises(DataError, match="has 4 classes, but the hierarchy's last level has 3"):
        read(tmp_path / "b")
    plain = {"image": image, "label": tfds.features.Scalar(np.int64)}
    prepare(tmp_path / "c", {"train": examples(6), "test": examples(3)}, plain)
    assert sorted(read(tmp_path / "c")["test"].labels) == [0, 1, 2]
    items = [item | {"label": 3} for item in examples(3)]
    prepare(tmp_path / "d", {"train": examples(3), "test": items}, plain)
    with pytest.raises(DataError, match="split 'test': image 0 has label 3, allowed are 0 to 2"):
        read(tmp_path / "d")


def test_unlabelled_test_split(tmp_path):
    """A test split whose labels are withheld, -1 in TFDS, is refused as such."""
    hidden = [item | {"label": -1} for item in examples(3)]
    prepare(tmp_path, {"train": examples(3), "test": hidden})
    refused(tmp_path, "label -1", "no labels")


def test_classes_that_do_not_match(pets):
    """Classes of only one of hierarchy and set are named, with the side that lacks them."""
    more = Hierarchy(("a",), (("lynx", "pug", "lion", "puma"),), ())
    refused(pets, "'label' of 'pets' lacks 1 of 4 classes: puma", hierarchy=more)
    fewer = Hierarchy(("a",), (("lynx", "pug"),), ())
    refused(pets, "hierarchy's last level lacks 1 of 3 classes: lion", hierarchy=fewer)


def test_wrong_label_key(pets):
    """A label key that is missing or not a label is an error that lists the set's label keys."""
    for key in ("labels", "image"):
        refused(pets, f"'{key}'", "can be label", label_key=key)


def test_not_image_classification(tmp_path):
    """A set without one 8-bit image per example is refused."""
    two = {"left": tfds.features.Image(), "right": tfds.features.Image()}
    label = {"label": tfds.features.ClassLabel(names=NAMES)}
    deep = {"image": tfds.features.Image(dtype=np.uint16, encoding_format="png", shape=(4, 4, 1))}
    for i, features in enumerate((two | label, deep | label)):
        folder = tmp_path / str(i)
        prepare(folder, {}, features)
    refused(tmp_path / "0", "2 image features")
    refused(tmp_path / "1", "uint16")


def test_missing_set(pets, tmp_path):
    """A set that is not there is an error with its name, the folder and what to do."""
    refused(pets, "'dogs'", pets, "TFDS_DATA_DIR", "prepare it", name="dogs")
    refused(pets, "1.2.0", name="pets:1.0.0")
    refused(tmp_path / "nowhere", "no folder")
    for name in ("../pets", "pets/..", "huggingface:pets", ""):
        refused(pets, f"'{name}'", "write it as", name=name)


def test_tfrecord_needs_tensorflow(pets):
    """A set prepared as tfrecord is an error that names array_record, not an import error."""
    path = pets / "pets" / "1.2.0" / "dataset_info.json"
    info = json.loads(path.read_text())
    path.write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    refused(pets, "tfrecord", "TensorFlow", "array_record")


@pytest.mark.parametrize("damage", ["info", "features", "short", "empty", "absent", "flipped"])
def test_damaged_set(pets, damage):
    """Broken descriptions and record files are one error with the folder, and nothing is cached."""
    folder = pets / "pets" / "1.2.0"
    records = next(folder.glob("*test.array_record*"))
    content = bytearray(records.read_bytes())
    if damage == "info":
        (folder / "dataset_info.json").write_text("{")
    elif damage == "features":
        (folder / "features.json").write_text("[]")
    elif damage == "short":
        records.write_bytes(content[: len(content) // 2])
    elif damage == "empty":
        records.write_bytes(b"")
    elif damage == "absent":
        records.unlink()
    else:
        middle = content.find(b"IHDR")
        content[middle] ^= 1
        records.write_bytes(content)
    refused(pets, folder, "prepare it again")


def test_fewer_records_than_announced(pets):
    """A valid record file with fewer records than the set's description is an error."""
    path = pets / "pets" / "1.2.0" / "dataset_info.json"
    path.write_text(path.read_text().replace('"4"', '"5"'))
    refused(pets, "prepare it again")


def test_broken_image(tmp_path):
    """An image that cannot be decoded is named by its number and split."""
    items = [*examples(1), {"image": encode(np.zeros((6, 5, 3), np.uint8))[:-30], "label": 0}]
    prepare(tmp_path, {"train": examples(3), "test": items})
    refused(tmp_path, "'pets', split 'test': image", "cannot be read")


def test_coarse_labels_are_checked(tmp_path):
    """CIFAR-100's coarse labels must be the hierarchy's, for every image; other levels are free."""
    table = cifar100()
    features = {
        "image": tfds.features.Image(),
        "label": tfds.features.ClassLabel(names=table.names[1]),
        "coarse_label": tfds.features.ClassLabel(names=table.names[0]),
    }
    items = [
        item | {"label": 99 - i, "coarse_label": int(table.fine_to_coarse[99 - i])}
        for i, item in enumerate(examples(10))
    ]
    good = prepare(tmp_path / "a", {"train": items, "test": items}, features, "cifar100")
    assert sorted(read(tmp_path / "a", "cifar100", "label", table)["test"].labels)[0] == 90
    # The same classes in another order: right by name, though every number differs.
    reverse = Hierarchy(
        table.levels,
        (table.names[0][::-1], table.names[1][::-1]),
        (19 - table.fine_to_coarse[::-1],),
    )
    assert sorted(read(tmp_path / "a", "cifar100", "label", reverse)["test"].labels)[0] == 0
    flat = Hierarchy(("fine",), table.names[1:], ())
    assert len(read(tmp_path / "a", "cifar100", "label", flat)["test"]) == 10
    for fine in range(90, 100):  # also where the images are in the cache already
        moved = table.fine_to_coarse.copy()
        moved[fine] = (moved[fine] + 1) % 20
        wrong = Hierarchy(table.levels, table.names, (moved,))
        with pytest.raises(DataError, match=f"fine class {fine} under {moved[fine]} "):
            read(tmp_path / "a", "cifar100", "label", wrong)
    shutil.rmtree(cache_folder())
    moved = table.fine_to_coarse.copy()
    moved[95] = 3
    wrong = Hierarchy(table.levels, table.names, (moved,))
    said = ("has coarse_label 0", "fine class 95 under 3 (1 such images)")
    refused(tmp_path / "a", *said, name="cifar100", hierarchy=wrong)
    for file in good.glob("*.labels.txt"):  # without names, by index
        file.unlink()
    refused(tmp_path / "a", *said, name="cifar100", hierarchy=wrong)
    assert len(read(tmp_path / "a", "cifar100", "label", table)["test"]) == 10
