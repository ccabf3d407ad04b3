"""The embedded data set: the same bits everywhere, drawn once, balanced, without a float."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hiercls_jax.data import embedded
from hiercls_jax.data.dataset import DataError, Split
from hiercls_jax.files import cache_folder

# Functions of NumPy that make integers and bools of integers and bools.
INTEGER_FUNCTIONS = {
    "abs", "any", "arange", "array", "ascontiguousarray", "broadcast_to", "clip", "concatenate",
    "maximum", "minimum", "nonzero", "prod", "split", "stack", "where", "zeros",
}  # fmt: skip
INTEGER_TYPES = {"int16", "int32", "uint8", "uint64"}
OTHERS = {"ndarray", "random", "random.PCG64", "__version__"}


@pytest.fixture(scope="module")
def splits():
    """The whole set, from the cache; it is drawn first if the cache has none."""
    return embedded.load()


@pytest.fixture
def few(monkeypatch):
    """Make the set's first 300 and 200 images all of it."""
    monkeypatch.setattr(embedded, "COUNTS", {"train": 300, "test": 200})


def test_the_images_are_the_published_ones(splits):
    """The set has the checksum that stands in the source."""
    assert embedded.checksum(splits) == embedded.CHECKSUM


def test_what_is_drawn_now_is_what_is_cached(splits, few):
    """Today's code draws the cached images, so the cache cannot hide a change to it."""
    for name, drawn in embedded.generate().items():
        np.testing.assert_array_equal(drawn.images, splits[name].images[: len(drawn)])
        np.testing.assert_array_equal(drawn.labels, splits[name].labels[: len(drawn)])


def test_another_process_without_vector_instructions_draws_the_same(splits):
    """With NumPy's plain loops and other hashes, no bit is another."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    code = (
        "import sys; from hiercls_jax.data import embedded as e\n"
        "e.COUNTS = {'train': 300, 'test': 200}; sys.stdout.write(e.checksum(e.generate()))"
    )
    environment = {
        **os.environ,
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        "PYTHONHASHSEED": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120
    )
    first = {"train": splits["train"].take(np.arange(300)), "test": splits["test"].take(range(200))}
    assert (done.stdout, done.stderr) == (embedded.checksum(first), "")


def test_shapes_do_not_need_64_bits(monkeypatch):
    """Every shape is the same on int32 grids, because int32 is NumPy's integer on some systems."""
    expected, grid = embedded._shape_templates(), embedded._grid
    monkeypatch.setattr(embedded, "_grid", lambda: [axis.astype(np.int32) for axis in grid()])
    np.testing.assert_array_equal(embedded._shape_templates(), expected)


def test_no_float_is_near():
    """No true division, float literal, type or function: integers are the same everywhere."""
    tree = ast.parse(Path(embedded.__file__).read_text(encoding="utf-8"))
    attributes = set()
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Div), "true division"
        assert not isinstance(node, ast.Constant) or not isinstance(node.value, float | complex)
        assert not isinstance(node, ast.Name) or node.id not in {"float", "complex", "pow", "math"}
        if isinstance(node, ast.Attribute):
            attributes.add(ast.unparse(node))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith((".astype", ".view")):
            dtype = ast.literal_eval(node.args[0]) if isinstance(node.args[0], ast.Constant) else ""
            assert re.fullmatch("(<?[iu][1-8])?", dtype), dtype
    numpy = {name.removeprefix("np.") for name in attributes if re.fullmatch(r"np\.[\w.]+", name)}
    assert numpy <= INTEGER_FUNCTIONS | INTEGER_TYPES | OTHERS
    assert not {name.rsplit(".", 1)[-1] for name in attributes} & {"mean", "std", "var"}


def test_random_numbers_are_the_generator_s_raw_output():
    """Of NumPy's random numbers only `PCG64.random_raw` is used, whose stream NumPy never changes.

    The first raw numbers of seed 2017 are written here as they were drawn.
    """
    bits = embedded._Bits(embedded.SEED)
    raw = np.random.PCG64(embedded.SEED).random_raw(6)
    assert bits.integers(-5, 6, 3).tolist() == [(int(r >> 32) * 11 >> 32) - 5 for r in raw[:3]]
    little_endian = b"".join(int(r).to_bytes(8, "little") for r in raw[3:])
    assert bits.bytes(2, 10).tobytes() == little_endian[:20]


def test_shape_dtype_and_balance(splits):
    """20,000 and 10,000 images of CIFAR-100's shape, balanced, classes in turn."""
    assert {name: len(split) for name, split in splits.items()} == {"train": 20_000, "test": 10_000}
    for split in splits.values():
        assert split.images.shape == (len(split), 32, 32, 3)
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        assert np.bincount(split.labels).tolist() == [len(split) // 100] * 100
        assert split.labels[:101].tolist() == [*range(100), 0]


def test_no_image_stands_twice(splits):
    """All 30,000 images differ, so no test image is a training image."""
    images = [image.tobytes() for split in splits.values() for image in split.images]
    assert len(set(images)) == 30_000


def test_hierarchy_is_20_by_5():
    """Every coarse class, a fill and a family, has five fine classes named after it."""
    tree = embedded.hierarchy()
    assert (tree.levels, tree.sizes) == (("coarse", "fine"), (20, 100))
    assert np.bincount(tree.fine_to_coarse).tolist() == [5] * 20
    for name, parent in zip(tree.names[1], tree.fine_to_coarse, strict=True):
        assert name.rsplit("_", 1)[0] == tree.names[0][parent]


def test_super_hierarchy_puts_families_above():
    """Three levels: 5 families of 4 coarse classes each, the two levels of `hierarchy` below."""
    tree, two = embedded.super_hierarchy(), embedded.hierarchy()
    assert (tree.levels, tree.sizes) == (("super", "coarse", "fine"), (5, 20, 100))
    assert np.bincount(tree.parents[0]).tolist() == [4] * 5
    assert tree.names[1:] == two.names
    np.testing.assert_array_equal(tree.parents[1], two.parents[0])
    for name, parent in zip(tree.names[1], tree.parents[0], strict=True):
        assert name.split("_")[1] == tree.names[0][parent]


def test_load_draws_once_and_never_caches_other_images(few, monkeypatch, tmp_path):
    """Images with another checksum are an error and not cached; the right ones are cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(DataError, match=f"instead of {embedded.CHECKSUM}.*NumPy"):
        embedded.load()
    assert not list(cache_folder().rglob("*.npy"))

    drawn = embedded.generate()
    monkeypatch.setattr(embedded, "CHECKSUM", embedded.checksum(drawn))
    calls = []
    monkeypatch.setattr(embedded, "generate", lambda: calls.append(1) or drawn)
    for _ in range(2):
        for name, split in embedded.load().items():
            np.testing.assert_array_equal(split.images, drawn[name].images)
    assert len(calls) == 1


def test_checksum_covers_images_and_labels(few):
    """One other bit of an image, or one other label, is another checksum."""
    drawn = embedded.generate()
    sums = {embedded.checksum(drawn)}
    for part in ("images", "labels"):
        images, labels = drawn["test"].images.copy(), drawn["test"].labels.copy()
        {"images": images, "labels": labels}[part].flat[-1] ^= 1
        sums.add(embedded.checksum({**drawn, "test": Split(images, labels)}))
    assert len(sums) == 3
