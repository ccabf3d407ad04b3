"""The table of readers: what each is fed, and how what it does with it is counted.

An input is either accepted or refused by a UserError, whatever it is; nothing outside the folder
that it lies in is written to, nothing is unpickled, and memory stays under a bound.
"""

import collections
import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import tempfile
import unittest.mock
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import strategies as st
from PIL import Image

from hiercls_jax import Hierarchy, experiment
from hiercls_jax.commands import train
from hiercls_jax.data import cifar100_prepare, folder, stream
from hiercls_jax.errors import UserError, one_line
from hiercls_jax.evaluation import predictions
from hiercls_jax.experiment import run
from hiercls_jax.hierarchy import cifar100 as cifar100_hierarchy
from hiercls_jax.hierarchy import sources as hierarchy_sources
from hiercls_jax.models.variants import VARIANTS
from hiercls_jax.tables import open_table, read_labels
from hiercls_jax.tables.levels import LevelTables
from hiercls_jax.training.optimizer import make_optimizer, make_schedule
from tests.faults import MEMORY

ROOT = Path(__file__).parents[2]
GUARD = 4 * MEMORY  # of address space, for the sake of the machine; some libraries reserve much
TREE = Hierarchy(("coarse", "fine"), (("a", "b"), ("c", "d", "e")), ((0, 0, 1),))
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Reader:
    """A line of the table.

    Args:
      name: what the record calls it.
      inputs: strategy of what it is fed.
      read: feeds it with one input, in an empty folder.
      bombs: inputs of little size that take much memory where that is not prevented, by name.
    """

    name: str
    inputs: st.SearchStrategy
    read: Callable[[Any, Path], None]
    bombs: dict[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)


# What bytes and texts are made of.

NUMBERS = (b"\0" * 4, b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0\0\0\x80")


@st.composite
def damaged(draw, samples: list[bytes]) -> bytes:
    """A good file with up to four places flipped, cut, repeated or overwritten, or any bytes."""
    content = bytearray(draw(st.one_of(st.sampled_from(samples), st.binary(max_size=64))))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(0, len(content) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "drop", "repeat", "number", "byte"]))
        length = draw(st.integers(1, 40))
        if how == "flip" and content:
            content[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "byte" and content:
            content[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del content[at:]
        elif how == "drop":
            del content[at : at + length]
        elif how == "repeat":
            content[at:at] = content[at : at + length] * draw(st.integers(1, 3))
        else:
            number = draw(st.sampled_from(NUMBERS))
            content[at : at + len(number)] = number
    return bytes(content)


WORDS = st.sampled_from(
    [
        "",
        "a",
        "b",
        "c",
        "d",
        "e",
        " ",
        "\n",
        "\x1b[2J",
        "é",
        "nan",
        "-1",
        "0",
        "1",
        "1e400",
        "\udcff",
    ]
)
NAMES = st.one_of(WORDS, st.text(max_size=8))
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 4), st.sampled_from([2**31, 10**30, 1e300]),
    st.floats(), NAMES,
)  # fmt: skip
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=12,
)


# Configurations.

FIELDS = sorted(
    {
        f
        for preset in ("", "quick")
        for f in experiment.flatten(experiment.compose("merge1", preset))
    }
)
VALUES = st.one_of(
    st.sampled_from(
        ["", "nan", "inf", "-inf", "-1", "0", "1", "2", "0.5", "1e400", "1_0", "٣", "None", "True",
         "(0.5,)", "(0.5,0.5)", "('a',)", "(nan,)", "(None,)", "((1,),)", "[1]", "(1,2", "{}",
         "embedded", "folder", "cifar100", "tfds:", "tfds:../x", "onecycle", "step", "bfloat16",
         "9" * 20, "9" * 5000, "-0.0", "1e-320", "a\nb", "\x1b[2J", "merge0", "resnet11",
         "resnet2", "densenet10", "densenet99"]
    ),
    st.text(max_size=10),
)  # fmt: skip
ARGUMENTS = st.lists(
    st.one_of(
        st.sampled_from(["quick", "cpu", "arch=resnet11", "arch=densenet10",
                         "arch=resnet9999999999", "arch=resnet-1",
                         "arch=", "seed=-1", "seed=" + "9" * 5000, "epochs=0",
                         "batch=1e3", "dataset=tfds:x", "=", ",", ":", "seed=٣"]),
        st.text(max_size=8),
    ),
    max_size=3,
).map(",".join)  # fmt: skip
COMMANDS = st.tuples(
    st.sampled_from([*VARIANTS, "grid", "none"]),
    ARGUMENTS,
    st.lists(
        st.one_of(
            st.tuples(st.sampled_from(FIELDS), VALUES).map("--config.{0[0]}={0[1]}".format),
            st.sampled_from(["--mode=summary", "--json", "--distributed", "--processes=0", "--",
                             "-", "--config", "--coordinator=x",
                             "--config.=1", "--config.a.b.c=1"]),
            st.text(max_size=8),
        ),
        max_size=4,
    ),
)  # fmt: skip


def read_command(value, where: Path) -> None:
    """The training command, up to where it would read data and start."""
    variant, arguments, more = value
    argv = ["main", f"--config={ROOT / 'configs' / variant}.py:{arguments}", *more]

    def build(config, *_):
        with contextlib.suppress(OSError):  # which `main` explains, such as a file name too long
            hierarchy = experiment.load_hierarchy(config)
            experiment.architectures(config, hierarchy)
        make_optimizer(config.optimizer, 1000)
        rates = [float(make_schedule(config.optimizer, 1000)(step)) for step in (0, 500, 999)]
        assert np.isfinite(rates).all(), f"learning rates {rates}"
        return {}, ""

    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
        unittest.mock.patch.multiple(run, run=build, summary=build),
        unittest.mock.patch.object(os, "_exit", sys.exit),  # how one of several processes ends
    ):  # fmt: skip
        try:
            status = train.main(argv)
        except SystemExit as stop:
            status = stop.code
    if status == 0 or not err.getvalue():  # --help prints to stdout
        return
    first, *rest = err.getvalue().splitlines()
    advice = ["See: python -m hiercls_jax.main --help"] if status == 2 else []
    assert first.startswith("error: "), err.getvalue()
    assert rest == advice, err.getvalue()
    raise UserError(first)


# Hierarchies.

GOOD_JSON = TREE.to_dict()
NEARLY = st.fixed_dictionaries(
    {
        "levels": st.one_of(st.just(["coarse", "fine"]), TREES),
        "names": st.one_of(st.just([["a", "b"], ["c", "d", "e"]]), TREES),
        "parents": st.one_of(st.just([[0, 0, 1]]), st.lists(st.lists(SCALARS, max_size=4)), TREES),
    },
    optional={"ragged": SCALARS, "x": TREES},
)
HIERARCHY_JSON = st.one_of(
    st.one_of(NEARLY, TREES).map(lambda tree: json.dumps(tree).encode()),
    damaged([json.dumps(GOOD_JSON).encode()]),
)
ROWS = st.lists(st.lists(WORDS, max_size=3).map(",".join), max_size=6)
HIERARCHY_CSV = st.one_of(
    ROWS.map(lambda rows: "\n".join(rows).encode("utf-8", "replace")),
    damaged([b"class,parent\nc,a\nd,a\ne,b\n", b'\xef\xbb\xbf"c","a"\r\nd,a\r\n']),
)


def read_hierarchy(suffix: str) -> Callable[[bytes, Path], None]:
    def read(value: bytes, where: Path) -> None:
        path = where / f"tree{suffix}"
        path.write_bytes(value)
        for ragged in (False, True):
            hierarchy = Hierarchy.read(path, ragged)
            if not hierarchy.ragged:
                hierarchy.labels(np.arange(hierarchy.sizes[-1]))

    return read


SOURCES = st.one_of(
    st.tuples(st.just("from_parent_lists"), st.one_of(st.lists(NAMES, max_size=4), TREES),
              st.one_of(st.lists(SCALARS, max_size=4), TREES)),
    st.tuples(st.just("from_nested"), TREES),
    st.tuples(st.just("from_wordnet"),
              st.one_of(st.lists(st.lists(WORDS, max_size=3).map(" ".join), max_size=6), TREES),
              st.one_of(st.lists(WORDS, max_size=3), TREES),
              st.one_of(st.none(), st.dictionaries(WORDS, SCALARS, max_size=2), SCALARS)),
)  # fmt: skip


def read_source(value, where: Path) -> None:
    name, *arguments = value
    getattr(hierarchy_sources, name)(*arguments)


# Images.


def image(kind: str, pixels=PIXELS) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png(width: int, height: int, data: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 1-bit pixels that claims a size."""
    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([1, 0, 0, 0, 0])
    content = b"\x89PNG\r\n\x1a\n"
    for kind, body in ((b"IHDR", head), *chunks, (b"IDAT", data), (b"IEND", b"")):
        checksum = zlib.crc32(kind + body).to_bytes(4, "big")
        content += len(body).to_bytes(4, "big") + kind + body + checksum
    return content


def zeros(size: int) -> bytes:
    """`size` bytes of zero, compressed."""
    packer = zlib.compressobj()
    parts = [packer.compress(bytes(min(2**20, size - i))) for i in range(0, size, 2**20)]
    return b"".join([*parts, packer.flush()])


IMAGES = [image(kind) for kind in ("PNG", "JPEG", "WEBP", "GIF")] + [png(8, 8, zeros(16))]
FILE_NAMES = st.one_of(
    st.sampled_from(["x.png", "x.PNG", "x.jpg", "x.webp", "x.txt", ".x.png", "x", "-rf.png",
                     "a\nb.png", "\x1b[2J.png", "\udcff.png",
                     "é.png", "~.png", "x" * 251 + ".png"]),
    st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1,
            max_size=6).filter(lambda name: name not in (".", "..")),
)  # fmt: skip
FOLDERS = st.lists(
    st.tuples(
        st.sampled_from(
            ["train/c", "test/d", "train", "test", "train/x", "", "train/c/y", "other"]
        ),
        FILE_NAMES,
        st.one_of(
            damaged(IMAGES),
            st.sampled_from(["outside", "nowhere", "itself", "folder", "pipe", "up", "secret"]),
        ),
    ),
    max_size=3,
)


def good_folder(root: Path) -> Path:
    """Write an image folder with one image of each class."""
    for split in ("train", "test"):
        for name in TREE.names[1]:
            (root / split / name).mkdir(parents=True)
            (root / split / name / "1.png").write_bytes(IMAGES[0])
    return root


def odd_folder(value, where: Path) -> Path:
    """Write a good image folder with some entries more."""
    root = good_folder(where / "images")
    outside = where / "outside.png"
    outside.write_bytes(IMAGES[0])
    for place, name, content in value:
        path = root / place / name
        with contextlib.suppress(FileExistsError, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content == "folder":
                path.mkdir()
            elif content == "pipe":
                os.mkfifo(path)
            else:
                links = {"outside": outside, "nowhere": where / "no", "itself": path, "up": root,
                         "secret": Path("/etc/hostname")}  # fmt: skip
                path.symlink_to(links[content])
    return root


def read_folder(value, where: Path) -> None:
    folder.read(odd_folder(value, where), TREE, 4)


# Each reserves address space, of which there is a limit.
FEW_THREADS = unittest.mock.patch.object(stream, "THREADS", 4)


def stream_folder(value, where: Path) -> None:
    """Its images are looked at once, and decoded again when training needs them."""
    with FEW_THREADS:
        for split in folder.stream(odd_folder(value, where), TREE, 4).values():
            split.read(np.arange(len(split)))


def stream_changed(value: bytes, where: Path) -> None:
    """An image is overwritten after it was looked at."""
    root = good_folder(where / "images")
    with FEW_THREADS:
        train = folder.stream(root, TREE, 4)["train"]
        (root / "train" / "d" / "1.png").write_bytes(value)
        train.read(np.arange(len(train)))


# Tables of probabilities and of labels.

PROBABILITIES = np.float32([[0.5, 0.25, 0.25], [0, 0, 1]])
ARRAYS = st.one_of(
    st.just(PROBABILITIES),
    st.just(np.array([0, 2])),
    st.just(np.array(["c", "e"])),
    st.sampled_from(
        [np.array([{}], object), np.zeros((0, 3)), np.zeros((2, 3), complex), np.array(1.0),
         np.zeros((2, 3), "M8[s]"), np.zeros((2, 3), "S3"), np.zeros(2, [("x", "f4")]),
         np.asfortranarray(np.eye(3)), np.full((2, 3), np.nan), np.full((2, 3), 1e300),
         np.ones((2, 3), bool), np.float16([[0, 0, 1]]), np.array([-1, 3]), np.array(["", "x\n"])]
    ),
)  # fmt: skip


def packed(save: Callable, *arrays, **named) -> bytes:
    file = io.BytesIO()
    save(file, *arrays, **named)
    return file.getvalue()


def parquet(**columns) -> bytes:
    return packed(lambda file: pq.write_table(pa.table(columns), file))


NPY = st.one_of(ARRAYS.map(lambda a: packed(np.save, a)), damaged([packed(np.save, PROBABILITIES)]))
NPZ = st.one_of(
    st.lists(ARRAYS, max_size=2).map(lambda arrays: packed(np.savez_compressed, *arrays)),
    damaged([packed(np.savez, PROBABILITIES), packed(np.savez_compressed, np.array([0, 2]))]),
)
CSV = st.one_of(
    st.lists(st.lists(WORDS, max_size=4).map(",".join), max_size=5).map(
        lambda rows: "\n".join(rows).encode("utf-8", "replace")
    ),
    damaged([b"c,d,e\n0.5,0.25,0.25\n0,0,1\n", b"label\nc\ne\n", b"0\n2\n"]),
)
PARQUET = st.one_of(
    st.dictionaries(WORDS.map(lambda w: w.encode("utf-8", "replace").decode()),
                    st.lists(st.one_of(st.none(), st.integers(0, 3)), min_size=2, max_size=2),
                    max_size=3).map(lambda columns: parquet(**columns)),
    damaged([parquet(c=[0.5, 0.0], d=[0.25, 0.0], e=[0.25, 1.0]), parquet(label=["c", "e"]),
             parquet(label=[0, 2])]),
)  # fmt: skip


def read_table(suffix: str) -> Callable[[bytes, Path], None]:
    """As a table of probabilities and, where it is none, as labels."""

    def read(value: bytes, where: Path) -> None:
        path = where / f"table{suffix}"
        path.write_bytes(value)
        try:
            fine = Hierarchy(("fine",), (TREE.names[1],), ())
            for logits in (False, True):
                tables = LevelTables(fine, [open_table(str(path), fine.names[0], where)], logits)
                collections.deque(tables.chunks(1000), maxlen=0)
        except UserError as error:
            try:
                read_labels(str(path), TREE.names[1], 2)
            except UserError as also:
                raise error from also

    return read


def zip_of(name: str, head: bytes, size: int) -> bytes:
    """A zip archive with one member: `head` and so many zeros, compressed a thousandfold."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open(name, "w", force_zip64=True) as member,
    ):
        member.write(head)
        for start in range(0, size, 2**20):
            member.write(bytes(min(2**20, size - start)))
    return file.getvalue()


def npy_head(dtype: str, shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    head = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, head)
    return file.getvalue()


LARGE = 2**30
TABLE_BOMBS = {
    "labels of more rows than there are": lambda: zip_of("y.npy", npy_head("|i1", (LARGE,)), LARGE),
    "labels of long names": lambda: zip_of(
        "y.npy", npy_head(f"<U{LARGE // 8}", (2,)), LARGE // 8 * 8
    ),
    "a header without end": lambda: zip_of(
        "y.npy", b"\x93NUMPY\x02\x00" + LARGE.to_bytes(4, "little"), LARGE
    ),
}


# Predictions of a run.


def saved_predictions(save: Callable = np.savez, **more) -> bytes:
    labels = {"test/labels_coarse": np.int32([0, 1]), "test/labels_fine": np.int32([0, 2])}
    coarse = np.full((2, 2), 0.5, np.float32)
    arrays = {"test/p_coarse": coarse, "test/p_fine": PROBABILITIES} | labels
    return packed(save, **arrays | more)


PREDICTIONS = st.one_of(
    st.dictionaries(
        st.sampled_from(["test/p_coarse", "test/p_fine", "test/labels_fine", "x", "../x", "test/"]),
        ARRAYS,
        max_size=2,
    ).map(lambda more: saved_predictions(**more)),
    damaged([saved_predictions(), saved_predictions(np.savez_compressed)]),
)


def read_predictions(value: bytes, where: Path) -> None:
    path = where / "predictions.npz"
    path.write_bytes(value)
    predictions.load(path, TREE)


PREDICTION_BOMBS = {
    "an array of zeros": lambda: zip_of(
        "test/p_fine.npy", npy_head("<f4", (LARGE // 12, 3)), LARGE // 12 * 12
    ),
    "an array that is not asked for": lambda: zip_of("x.npy", npy_head("|i1", (LARGE,)), LARGE),
    "a header without end": lambda: zip_of(
        "test/p_fine.npy", b"\x93NUMPY\x02\x00" + LARGE.to_bytes(4, "little"), LARGE
    ),
}


# Archives.

COUNTS = {"train": 2, "test": 1}
PREFIX = "cifar-100-binary/"


def members() -> dict[str, bytes]:
    """The files of a good archive of three images."""
    coarse, fine = cifar100_hierarchy().names
    record = bytes([cifar100_hierarchy().fine_to_coarse[0], 0]) + bytes(3072)
    names = {"coarse_label_names.txt": coarse, "fine_label_names.txt": fine}
    images = {f"{split}.bin": record * count for split, count in COUNTS.items()}
    texts = {name: "\n".join(text).encode() + b"\n" for name, text in names.items()}
    return {PREFIX + name: content for name, content in (images | texts).items()}


def tar(contents: dict[str, bytes], extra=(), packing: str = "gz") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=f"w:{packing}") as archive:
        for name, content in contents.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for name, kind, target in extra:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return file.getvalue()


PATHS = st.sampled_from(
    ["../x", "/tmp/x", f"{PREFIX}../../x", f"{PREFIX}train.bin", f"{PREFIX}x", "x" * 300, "a\nb",
     "", "~/x", f"{PREFIX}./train.bin", "\udcff", "C:\\x"]
)  # fmt: skip
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE,
     tarfile.DIRTYPE, tarfile.CONTTYPE, b"Z"]
)  # fmt: skip
ARCHIVES = st.one_of(
    st.builds(
        tar,
        st.dictionaries(PATHS, st.binary(max_size=10), max_size=2).map(lambda d: members() | d),
        st.lists(st.tuples(PATHS, KINDS, PATHS), max_size=2),
        st.sampled_from(["gz", "gz", "gz", "", "bz2", "xz"]),
    ),
    damaged([tar(members())]),
    damaged([tar(members(), packing="")]).map(gzip.compress),
)


def read_archive(value: bytes, where: Path) -> None:
    """As one that was put in its place by hand, of the right size and sum."""
    path = where / "downloads" / "cifar-100-binary.tar.gz"
    path.parent.mkdir()
    path.write_bytes(value)
    checksum = hashlib.sha256(value).hexdigest()
    cifar100_prepare.prepare(where, "http://127.0.0.1:9/", checksum, len(value), COUNTS)


def long_header(kind: bytes) -> bytes:
    """A header of so many zeros in front of a member: its long name, or its attributes."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, LARGE
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + _gzipped_zeros(LARGE)


def _gzipped_zeros(size: int) -> bytes:
    return gzip.compress(bytes(2**20)) * (size // 2**20)


def large_member(name: str) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = LARGE
    return gzip.compress(info.tobuf(tarfile.GNU_FORMAT)) + _gzipped_zeros(LARGE)


ARCHIVE_BOMBS = {
    "a long name": lambda: long_header(tarfile.GNUTYPE_LONGNAME),
    "long attributes": lambda: long_header(tarfile.XHDTYPE),
    "a large file of the right name": lambda: large_member(f"{PREFIX}train.bin"),
    "a large file of another name": lambda: large_member("x"),
}
FOLDER_BOMBS = {
    "a claimed size": lambda: [("train/c", "x.png", png(2**30, 2**30, b""))],
    "many pixels": lambda: [("train/c", "x.png", png(20_000, 20_000, zeros(2501 * 20_000)))],
    "as many pixels as are allowed": lambda: [
        ("train/c", "x.png", png(9_400, 9_400, zeros(1176 * 9_400)))
    ],
    "text": lambda: [
        ("train/c", "x.png", png(8, 8, zeros(16), (b"zTXt", b"x\0\0" + zeros(LARGE // 4))))
    ],
    "a colour profile": lambda: [
        ("train/c", "x.png", png(8, 8, zeros(16), (b"iCCP", b"x\0\0" + zeros(LARGE // 4))))
    ],
}
CHANGED_BOMBS = {  # the image alone
    name: lambda make=make: make()[0][2] for name, make in FOLDER_BOMBS.items()
}
JSON_BOMBS = {
    "nested lists": lambda: b"[" * 10**6 + b"]" * 10**6,
    "a long number": lambda: b'{"levels": ' + b"9" * 10**6 + b"}",
    "one long name and many short ones": lambda: json.dumps(
        {"levels": ["x"], "names": [["y" * 10**6, *map(str, range(10**4))]], "parents": []}
    ).encode(),
    "one long name among the parents": lambda: json.dumps(
        {
            "levels": ["x", "z"],
            "names": [["y"], [str(i) for i in range(10**4)]],
            "parents": [["y" * 10**6, *range(10**4 - 1)]],
        }
    ).encode(),
}
CSV_BOMBS = {
    "one long name and many short ones": lambda: b"label\n" + b"c" * 10**5 + b"\nc" * 10**4,
    "one long line": lambda: b"0," * 10**6,
}
READERS = (
    Reader("the command line and its config", COMMANDS, read_command),
    Reader("hierarchy: JSON", HIERARCHY_JSON, read_hierarchy(".json"), JSON_BOMBS),
    Reader("hierarchy: CSV", HIERARCHY_CSV, read_hierarchy(".csv")),
    Reader("hierarchy: lists, dicts, WordNet", SOURCES, read_source),
    Reader("image folder", FOLDERS, read_folder, FOLDER_BOMBS),
    Reader("image folder, streamed", FOLDERS, stream_folder, FOLDER_BOMBS),
    Reader("image that changes in a stream", damaged(IMAGES), stream_changed, CHANGED_BOMBS),
    Reader("probabilities, labels: .npy", NPY, read_table(".npy")),
    Reader("probabilities, labels: .npz", NPZ, read_table(".npz"), TABLE_BOMBS),
    Reader("probabilities, labels: CSV", CSV, read_table(".csv"), CSV_BOMBS),
    Reader("probabilities, labels: Parquet", PARQUET, read_table(".parquet")),
    Reader("predictions.npz", PREDICTIONS, read_predictions, PREDICTION_BOMBS),
    Reader("CIFAR-100's archive", ARCHIVES, read_archive, ARCHIVE_BOMBS),
)


# What is counted.


@dataclasses.dataclass
class Tally:
    """What a reader did with its inputs; `failures` says of each what else than these two."""

    reader: str
    refused: int = 0
    accepted: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)
    memory: int = 0  # bytes by which the process grew at most

    @property
    def inputs(self) -> int:
        return self.refused + self.accepted + len(self.failures)


def tally(reader: Reader, tries: int, where: Path, seed: int = 0) -> Tally:
    """Feed a reader with its bombs and `tries` other inputs, in the new folder `where`."""
    result, before = Tally(reader.name), _reset_peak()
    shutil.rmtree(where, ignore_errors=True)  # of a tally that was stopped

    def feed(value) -> None:
        where.mkdir(parents=True)
        try:
            with _environment(where), _watched(where) as touched:
                refused = _refused(reader, value, where)
            assert not touched, f"touched {touched}"
            result.refused += refused
            result.accepted += not refused
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            result.failures.append(f"{type(error).__name__}: {error} from {value!r:.500}")
        finally:
            shutil.rmtree(where)

    for make in reader.bombs.values():
        feed(make())
    settings = hypothesis.settings(
        max_examples=tries, database=None, deadline=None, phases=[hypothesis.Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    hypothesis.seed(seed)(settings(hypothesis.given(reader.inputs)(feed)))()
    result.memory = max(0, _peak() - before)
    if result.memory > MEMORY:
        result.failures.append(f"memory grew by {result.memory / 2**20:.0f} MiB")
    return result


def _refused(reader: Reader, value, where: Path) -> bool:
    """Whether a reader refuses an input by one printable line; raises whatever else happens."""
    try:
        reader.read(value, where)
    except UserError as error:
        line = one_line(error)
        assert line.isprintable(), line
        cause = error
        while cause is not None:
            assert not isinstance(cause, MemoryError), "it took all memory that there was"
            cause = cause.__cause__ or cause.__context__
        return True
    return False


@contextlib.contextmanager
def _environment(where: Path):
    """Own folders for cache, home and temporary files, no output, no warnings of libraries, and a
    limit of memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    own = {"XDG_CACHE_HOME": str(where / "cache"), "HOME": str(where / "home")}
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + GUARD, hard))
    try:
        with (
            unittest.mock.patch.dict(os.environ, own),
            unittest.mock.patch.object(tempfile, "tempdir", str(where)),
            contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


_WRITES = {
    "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate",
    "os.chmod", "os.chown", "os.utime", "shutil.rmtree",
}  # fmt: skip
_FOLLOWS = {"os.link", "os.truncate", "os.chmod", "os.chown", "os.utime"}  # links to their targets
_NEVER = {"pickle.find_class", "os.system", "subprocess.Popen", "socket.connect", "os.exec"}
_touched: list[str] | None = None
_inside = ""


def _audit(event: str, arguments: tuple) -> None:
    if _touched is None:
        return
    if event in _NEVER:
        _touched.append(f"{event} {arguments!r:.100}")
    elif event in _WRITES:
        paths = [a for a in arguments if isinstance(a, str | bytes | os.PathLike)]
        if event == "os.symlink":  # a hard link is another name of a file, and a way to it
            paths = paths[-1:]
        if any(not _is_inside(path, event in _FOLLOWS) for path in paths):
            _touched.append(f"{event} {paths}")
    elif event == "open":
        path, mode, how = arguments
        writes = how & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(how, int) else 0
        if (writes or set(str(mode)) & set("wax+")) and not _is_inside(path, follow=True):
            _touched.append(f"open {path!r} {mode} {how}")


def _is_inside(path, follow: bool) -> bool:
    """Whether a path leads into the watched folder; `follow` its last part too, if it is a link."""
    if isinstance(path, int):  # a descriptor, of a file that was opened by its name
        return True
    path = os.fsdecode(path)
    parent, name = os.path.split(path)
    if follow or name in ("", ".", ".."):
        full = os.path.realpath(path)
    else:
        full = os.path.join(os.path.realpath(parent), name)
    own = [_inside, os.path.realpath(jax.config.jax_compilation_cache_dir or _inside)]
    return (
        any(full == folder or full.startswith(folder + os.sep) for folder in own)
        or "__pycache__" in full.split(os.sep)
        or full == os.devnull
    )


sys.addaudithook(_audit)


@contextlib.contextmanager
def _watched(where: Path):
    """Yield a list of what is written, removed or run outside a folder, by whatever links.

    Python tells of all that it does itself; what a library writes, such as TFDS's array_record
    files, it does not know.
    """
    global _touched, _inside
    _touched, _inside = [], os.path.realpath(where)
    try:
        yield _touched
    finally:
        _touched = None


def _reset_peak() -> int:
    """Forget the most memory that this process had, and return what it has now."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
