"""Image folders: images, their order, and errors."""

import io
import unicodedata
import warnings

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from hiercls_jax.data import folder
from hiercls_jax.data.dataset import DataError
from hiercls_jax.errors import one_line
from hiercls_jax.files import cache_folder
from hiercls_jax.hierarchy import Hierarchy

PETS = Hierarchy(("kind", "animal"), (("cat", "dog"), ("lynx", "pug", "lion")), ((0, 1, 0),))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def save(path, color, size=(8, 8), mode="RGB", **options):
    """Write an image of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Return a good folder: 4 training images and 2 test images."""
    root = tmp_path / "pets"
    save(root / "train" / "lynx" / "b.png", (1, 0, 0))
    save(root / "train" / "lynx" / "a.png", (2, 0, 0), (4, 6))
    save(root / "train" / "pug" / "a.PNG", (3, 0, 0))
    save(root / "train" / "lion" / "a.webp", (40, 80, 120), lossless=True)
    save(root / "test" / "pug" / "z.jpg", (128, 128, 128))
    save(root / "test" / "lion" / "z.jpeg", (128, 128, 128))
    return root


def test_order_labels_and_shapes(root):
    """Images come in sorted order of class folder and file, with the hierarchy's labels."""
    splits = folder.read(root, PETS, 8)
    assert list(splits) == ["train", "test"]
    train, test = splits["train"], splits["test"]
    assert train.images.shape == (4, 8, 8, 3)
    assert train.images.dtype == np.uint8
    assert train.labels.dtype == np.int32
    assert train.labels.tolist() == [2, 0, 0, 1]
    assert train.images[:, 0, 0, 0].tolist() == [40, 2, 1, 3]
    assert train.images[0, 0, 0].tolist() == [40, 80, 120]
    assert test.labels.tolist() == [2, 1]


def test_images_know_their_files(root):
    """Read, read from the cache or streamed, and of a part of them: in the order of the images."""
    wanted = ["train/lion/a.webp", "train/lynx/a.png", "train/lynx/b.png", "train/pug/a.PNG"]
    for way in (folder.read, folder.read, folder.stream):
        train = way(root, PETS, 8)["train"]
        assert train.files.tolist() == wanted
        assert train.take(np.array([3, 0])).files.tolist() == [wanted[3], wanted[0]]


def test_resizing_is_antialiased(root):
    """A fine chequerboard made small is grey: every pixel counts, none is skipped."""
    board = np.indices((64, 64)).sum(0) % 2 * 255
    Image.fromarray(board.astype(np.uint8)).save(root / "train" / "lynx" / "a.png")
    image = folder.read(root, PETS, 8)["train"].images[1]
    assert image.shape == (8, 8, 3)
    assert np.abs(image.astype(int) - 128).max() <= 1  # rounding


def test_every_mode_becomes_rgb(root):
    """Grayscale, palette and transparent images are read as RGB, without a warning."""
    path = root / "train" / "lynx" / "a.png"
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 10, 20, 30])
    palette.save(path, transparency=b"\x80\x80")
    save(root / "train" / "lynx" / "b.png", 77, mode="L")
    save(root / "train" / "pug" / "a.PNG", (1, 2, 3, 255), mode="RGBA")
    images = folder.read(root, PETS, 8)["train"].images
    assert images[1:, 0, 0].tolist() == [[10, 20, 30], [77, 77, 77], [1, 2, 3]]


def test_exif_orientation_is_applied(root):
    """A photograph stored on its side is turned upright."""
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255  # stored white above, black below
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise: above goes to the right
    path = root / "train" / "lynx" / "a.png"
    Image.fromarray(pixels).save(path, exif=exif)
    image = folder.read(root, PETS, 8)["train"].images[1]
    assert image[:, 4:].min() == 255
    assert image[:, :4].max() == 0


def test_hidden_files_are_ignored(root):
    """Hidden files and folders change nothing, nor do other files beside the class folders."""
    (root / "train" / ".DS_Store").write_bytes(b"x")
    (root / "train" / ".git").mkdir()
    (root / "train" / "lynx" / "._a.png").write_bytes(b"not an image")
    (root / "train" / "README.txt").write_text("x")
    assert len(folder.read(root, PETS, 8)["train"]) == 4


def test_cache_follows_the_files(root, capsys):
    """The second read decodes nothing; after a change to one file, everything is read anew."""
    first = folder.read(root, PETS, 8)["train"]
    assert f"once; then they are cached in {cache_folder()}\n" in capsys.readouterr().out
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder, "_decode", None)
        again = folder.read(root, PETS, 8)["train"]
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.labels, again.labels)
    save(root / "train" / "pug" / "a.PNG", (200, 0, 0), (9, 9))
    assert folder.read(root, PETS, 8)["train"].images[3, 0, 0, 0] == 200
    assert folder.read(root, PETS, 4)["train"].images.shape == (4, 4, 4, 3)


def test_cache_follows_the_hierarchy(root):
    """Another order of the classes gives other labels, cached images or not."""
    folder.read(root, PETS, 8)
    names = (("cat", "dog"), ("pug", "lion", "lynx"))
    other = Hierarchy(("kind", "animal"), names, ((1, 0, 0),))
    assert folder.read(root, other, 8)["train"].labels.tolist() == [1, 2, 2, 0]


def refused(root, *parts, size=8):
    """Check that reading raises one DataError with `parts` in it, and caches nothing."""
    with pytest.raises(DataError) as caught:
        folder.read(root, PETS, size)
    for part in parts:
        assert str(part) in str(caught.value)
    assert not list(cache_folder().rglob("*.npy"))


def with_long_text() -> bytes:
    """A PNG whose text unpacks to more than Pillow takes: it raises a ValueError, no OSError."""
    file, info = io.BytesIO(), PngImagePlugin.PngInfo()
    info.add_text("comment", "x" * 2 * PngImagePlugin.MAX_TEXT_CHUNK, zip=True)
    Image.new("RGB", (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not an image", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", with_long_text()],
    ids=["empty", "text", "header", "long-text"],
)
def test_unreadable_image(root, content):
    """A file that is not an image is named, and reading works after it is removed."""
    path = root / "train" / "lynx" / "c.png"
    path.write_bytes(content)
    refused(root, path, "cannot be read")
    path.unlink()
    assert len(folder.read(root, PETS, 8)["train"]) == 4


def test_truncated_image(root):
    """An image that breaks off in its middle is named, never filled up with grey."""
    path = root / "train" / "lynx" / "c.jpg"
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    refused(root, path, "truncated")


def test_other_formats_are_refused(root):
    """The content decides: a GIF called .png is refused, and so is a file .gif."""
    path = root / "train" / "lynx" / "c.png"
    save(path, (1, 2, 3), format="GIF")
    refused(root, path)
    path.rename(path.with_suffix(".gif"))
    refused(root, path.with_suffix(".gif"), ".webp")


def test_sixteen_bits_are_refused(root):
    """A 16-bit image is an error, as cutting it to 8 bits would clip it to white."""
    path = root / "train" / "lynx" / "c.png"
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)
    refused(root, path, "8 bits")


@pytest.mark.parametrize("limit", [200, 100])
def test_decompression_bomb(root, monkeypatch, limit):
    """A file above Pillow's limit of pixels is named, whether Pillow warns or raises."""
    save(root / "train" / "lynx" / "c.png", (0, 0, 0), (20, 15))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user's own filters do not matter
        refused(root, root / "train" / "lynx" / "c.png", f"limit of {limit} ")


def test_unknown_class_folder(root):
    """A class folder that is not in the hierarchy is named, in either split."""
    save(root / "test" / "puma" / "a.png", (0, 0, 0))
    refused(root, root / "test" / "puma", "'lynx', 'pug', 'lion'); rename it")


def test_a_misspelt_class_is_named(root):
    """An error about an unknown folder suggests the class with the most similar name."""
    more = tuple(f"a{i}" for i in range(9))  # before it: the list of classes ends earlier
    names = (("cat", "dog"), (*more, "pub", "lynx", "pugh", "lion"))
    tree = Hierarchy(PETS.levels, names, ((*[0] * 9, 1, 0, 1, 0),))
    save(root / "train" / "pub" / "a.png", (0, 0, 0))
    with pytest.raises(DataError, match=r"train/pug' is no class .*; did you mean 'pugh'\? Rename"):
        folder.read(root, tree, 8)


def test_spaces_of_a_name_can_be_seen(root):
    """If a folder and a class differ only in a space, the error shows it."""
    names = (("cat", "dog"), ("lynx", "small  pug", "lion"))
    (root / "train" / "pug").rename(root / "train" / "small pug")
    with pytest.raises(DataError) as caught:
        folder.read(root, Hierarchy(PETS.levels, names, PETS.parents), 8)
    line = one_line(caught.value)
    assert "train/small pug' is no class" in line
    assert "'lynx', 'small  pug', 'lion'" in line


@pytest.mark.parametrize(("file_system", "table"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_how_letters_are_composed_makes_no_difference(root, file_system, table):
    """A folder whose `ü` is one character is the class whose `ü` is two, and the other way."""
    for split in ("train", "test"):
        (root / split / "pug").rename(root / split / unicodedata.normalize(file_system, "hündchen"))
    names = (("cat", "dog"), ("lynx", unicodedata.normalize(table, "hündchen"), "lion"))
    splits = folder.read(root, Hierarchy(PETS.levels, names, PETS.parents), 8)
    assert splits["train"].labels.tolist() == [1, 2, 0, 0]
    assert splits["test"].labels.tolist() == [1, 2]


@pytest.mark.parametrize("empty", [False, True])
def test_class_without_training_images(root, empty):
    """A class of the hierarchy needs a folder with an image in train; test may lack it."""
    (root / "train" / "pug" / "a.PNG").unlink()
    if not empty:
        (root / "train" / "pug").rmdir()
    refused(root, root / "train" / "pug", "1 of the hierarchy's classes")


def test_missing_folders(root, tmp_path):
    """No root, no train, no test, no images in test: each one is named."""
    refused(tmp_path / "nowhere", "there is no image folder", tmp_path / "nowhere")
    for path in (root / "test").rglob("*.jp*g"):
        path.unlink()
    refused(root, root / "test", "no images")
    (root / "test").rename(root / "val")
    refused(root, root / "test", "no folder")
    (root / "train").rename(root / "training")
    refused(root, root / "train", "no folder")


def test_image_outside_a_class(root):
    """An image directly in a split has no class."""
    save(root / "train" / "stray.png", (0, 0, 0))
    refused(root, root / "train" / "stray.png", "outside")


@pytest.mark.parametrize("size", [0, -1, 8.0, None, True])
def test_image_size(root, size):
    """The size is a positive integer."""
    refused(root, "--config.data.image_size", repr(size), size=size)
