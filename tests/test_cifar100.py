"""CIFAR-100: download, verification and preparation on small archives; the real set's counts."""

import contextlib
import errno
import functools
import gzip
import hashlib
import http.server
import io
import os
import shutil
import tarfile
import threading
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from hiercls_jax.data import cifar100, cifar100_prepare, download, tfds_source
from hiercls_jax.data.dataset import DataError
from hiercls_jax.hierarchy import cifar100 as hierarchy

COUNTS = {"train": 20, "test": 5}
PREFIX = "cifar-100-binary/"


@pytest.fixture(autouse=True)
def _environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(scope="module")
def server():
    """Serve `server.pages` (path to (status, bytes, announced length)) and record the requests."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.requests.append(self.path)
            status, body, length = self.server.pages[self.path]
            self.send_response(status)
            if length is not None:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            with contextlib.suppress(ConnectionError):  # the client may have had enough
                for _ in range(100 if "endless" in self.path else 1):
                    self.wfile.write(body)
                    self.server.sent += len(body)
            if length is not None and length > len(body) and "stall" in self.path:
                time.sleep(1)

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        served.pages, served.requests, served.sent = {}, [], 0
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        served.url = f"http://127.0.0.1:{served.server_address[1]}"
        yield served
        served.shutdown()
        thread.join()


def records(split) -> np.ndarray:
    """Return a split in the official layout, uint8 `[N, 3074]`: random pixels, true coarse ids."""
    rng = np.random.Generator(np.random.PCG64(len(split)))
    array = rng.integers(0, 256, (COUNTS[split], 3074), np.uint8)
    array[:, 1] = rng.permutation(COUNTS[split]) % 100
    array[:, 0] = hierarchy().fine_to_coarse[array[:, 1]]
    return array


def files() -> dict[str, bytes]:
    """Return the members of a good archive."""
    contents = {f"{PREFIX}{split}.bin": records(split).tobytes() for split in COUNTS}
    for level, names in zip(("coarse", "fine"), hierarchy().names, strict=True):
        contents[f"{PREFIX}{level}_label_names.txt"] = ("\n".join(names) + "\n").encode()
    return contents


def pack(contents, extra=()) -> bytes:
    """Return a .tar.gz of files, and of `extra` members without content."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
        folder = tarfile.TarInfo(PREFIX)
        folder.type = tarfile.DIRTYPE
        for member in (folder, *extra):
            tar.addfile(member)
        for name, content in contents.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


@pytest.fixture(scope="module")
def good() -> bytes:
    """Return a good archive."""
    return pack(files())


def prepare(server, folder, archive, path="/a.tar.gz", **changed):
    """Prepare from `archive`, served as `path`, with its own sum and size but for `changed`."""
    server.pages.setdefault(path, (200, archive, len(archive)))
    options = {"checksum": hashlib.sha256(archive).hexdigest(), "size": len(archive)}
    options |= {"counts": COUNTS} | changed
    return cifar100_prepare.prepare(folder, url=server.url + path, **options)


@pytest.fixture(autouse=True)
def _pages(server):
    server.pages.clear()
    server.requests.clear()


def refused(server, folder, archive, *parts, kept=False, good=None, **changed):
    """Check that preparing raises one DataError with `parts` in it and leaves nothing behind.

    With `kept`, only the archive, which is verified again before each use. Then check that a
    good archive is prepared in the same folder.
    """
    with pytest.raises(DataError) as caught:
        prepare(server, folder, archive, **changed)
    for part in parts:
        assert str(part) in str(caught.value)
    left = [path for path in folder.rglob("*") if path.is_file()]
    stored = folder / "downloads" / "cifar-100-binary.tar.gz"
    assert left == ([stored] if kept else [])
    assert tfds_source.find("cifar100", folder) is None
    assert not list(folder.glob("cifar100/*"))
    if good is not None:
        stored.unlink(missing_ok=True)
        prepare(server, folder, good, "/good.tar.gz")
        assert (
            len(tfds_source.read("cifar100", folder, "label", hierarchy())["test"])
            == COUNTS["test"]
        )


def test_end_to_end(server, good, tmp_path, capfd):
    """Download, verify, prepare: `tfds.data_source` reads back the same pixels and labels."""
    folder = prepare(server, tmp_path, good)
    assert folder == tmp_path / "cifar100" / "3.0.2"
    said = capfd.readouterr()
    assert said.out.lower().count("download") == 1
    assert said.err == ""
    sources = tfds.data_source("cifar100", data_dir=tmp_path)
    for split, count in COUNTS.items():
        official = records(split)
        items = sorted(sources[split], key=lambda item: item["id"])
        assert [item["id"].decode() for item in items] == [f"{split}_{i:05d}" for i in range(count)]
        pixels = np.stack([item["image"] for item in items])
        assert np.array_equal(pixels.transpose(0, 3, 1, 2).reshape(count, -1), official[:, 2:])
        assert [item["label"] for item in items] == official[:, 1].tolist()
        assert [item["coarse_label"] for item in items] == official[:, 0].tolist()


def test_format_is_tfds_own(server, good, tmp_path):
    """The set's description is that of TFDS's own builder, which is not shadowed by ours."""
    own = tfds.builder_cls("cifar100")
    folder = prepare(server, tmp_path, good)
    assert tfds.builder_cls("cifar100") is own
    info = tfds.builder_from_directory(folder).info
    theirs = own(data_dir=tmp_path / "elsewhere").info
    assert info.features.to_json() == theirs.features.to_json()
    for key in ("name", "description", "citation", "supervised_keys", "homepage", "module_name"):
        assert getattr(info, key) == getattr(theirs, key)
    assert info.version == "3.0.2"
    assert info.features["label"].names == list(hierarchy().names[1])
    assert info.features["coarse_label"].names == list(hierarchy().names[0])


def test_load_prepares_once(server, good, tmp_path, monkeypatch):
    """`load` downloads only if the archive is missing, with the cache or without."""
    small = functools.partial(
        cifar100_prepare.prepare,
        url=server.url + "/a.tar.gz",
        checksum=hashlib.sha256(good).hexdigest(),
        size=len(good),
        counts=COUNTS,
    )
    monkeypatch.setattr(cifar100_prepare, "prepare", small)
    server.pages["/a.tar.gz"] = (200, good, len(good))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "sets"))
    first = cifar100.load()
    again = cifar100.load()
    for folder in ("cache", "sets/downloads"):
        shutil.rmtree(tmp_path / folder)
    anew = cifar100.load(tmp_path / "sets")
    assert server.requests == ["/a.tar.gz"]
    for split, count in COUNTS.items():
        assert first[split].images.shape == (count, 32, 32, 3)
        for other in (again, anew):
            assert np.array_equal(first[split].images, other[split].images)
            assert np.array_equal(first[split].labels, other[split].labels)


def test_source_is_tfds_table(tmp_path, monkeypatch):
    """Address, sum and size are those of TFDS's own table for the official archive."""

    def stop(url, path, name, checksum, size):
        asked.append((url, checksum, size))
        raise DataError("far enough")

    asked = []
    monkeypatch.setattr(cifar100_prepare, "download", stop)
    with pytest.raises(DataError, match="far enough"):
        cifar100_prepare.prepare(tmp_path)
    ((url, info),) = tfds.builder_cls("cifar100").url_infos.items()
    assert url.startswith("https://")
    assert url.endswith("/cifar-100-binary.tar.gz")
    assert len(info.checksum) == 64
    assert int(info.size) == 168_513_733  # 161 MiB, as on the data set's page
    assert asked == [(url, info.checksum, 168_513_733)]


def test_archive_placed_by_hand(server, good, tmp_path):
    """An archive in downloads/ is verified and used without the network; a wrong one is refused."""
    stored = tmp_path / "downloads" / "cifar-100-binary.tar.gz"
    stored.parent.mkdir()
    stored.write_bytes(good[:-1])
    with pytest.raises(DataError, match="is not CIFAR-100's archive.*delete it"):
        prepare(server, tmp_path, good)
    assert stored.read_bytes() == good[:-1]  # the user's file is not ours to delete
    stored.write_bytes(good)
    prepare(server, tmp_path, good)
    assert server.requests == []


def test_wrong_checksum(server, good, tmp_path):
    """A download of the right size and other bytes is refused and not kept."""
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 1
    server.pages["/a.tar.gz"] = (200, bytes(bad), len(bad))
    refused(server, tmp_path, good, "SHA-256", "downloads/cifar-100-binary.tar.gz", good=good)


@pytest.mark.parametrize("announced", ["full", "short", None])
def test_truncated_download(server, good, tmp_path, announced):
    """A download that breaks off is refused, whatever length the server announced."""
    half = good[: len(good) // 2]
    length = {"full": len(good), "short": len(half), None: None}[announced]
    server.pages["/a.tar.gz"] = (200, half, length)
    refused(server, tmp_path, good, f"{len(half)} bytes", "try again", good=good)


def test_endless_download(server, good, tmp_path):
    """A download longer than the archive is stopped there."""
    server.pages["/endless"] = (200, bytes(1_000_000), None)
    before = server.sent
    refused(server, tmp_path, good, f"more than {len(good)} bytes", path="/endless")
    assert server.sent - before < 50_000_000  # of 100 MB; some lie in the sockets' buffers


@pytest.mark.parametrize("status", [403, 404, 500])
def test_http_error(server, good, tmp_path, status):
    """An HTTP error is reported with its number and the other way to get the archive."""
    server.pages["/a.tar.gz"] = (status, b"no", 2)
    refused(server, tmp_path, good, status, "put it at", good=good)


def test_no_network(tmp_path):
    """A server that cannot be reached, or a bad address, is one error that says what to do."""
    for url in ("http://127.0.0.1:1/a.tar.gz", "nonsense"):
        with pytest.raises(DataError, match="cannot be downloaded.*put it at"):
            cifar100_prepare.prepare(tmp_path, url=url, counts=COUNTS)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_server_that_stalls(server, good, tmp_path, monkeypatch):
    """A server that stops sending is given up after the timeout."""
    monkeypatch.setattr(download, "_TIMEOUT", 0.1)
    server.pages["/stall"] = (200, good[:1000], len(good))
    refused(server, tmp_path, good, "timed out", path="/stall")


def test_no_space(server, good, tmp_path, monkeypatch):
    """Too little space for archive and set is an error before the download, and during it."""
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2 * len(good) - 1))
        refused(server, tmp_path, good, "free space", "TFDS_DATA_DIR")
    assert server.requests == []

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        refused(server, tmp_path, good, "No space left", "TFDS_DATA_DIR")
    with monkeypatch.context() as patch:
        patch.setattr(cifar100_prepare, "_png", full)
        refused(server, tmp_path, good, "No space left", "TFDS_DATA_DIR", kept=True)
    prepare(server, tmp_path, good)


def test_folder_that_cannot_be_made(server, good, tmp_path):
    """A data_dir that is a file is an error with its name."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file.*--config.data.dir"):
        prepare(server, tmp_path / "file", good)


def test_interrupted_preparation(server, good, tmp_path, monkeypatch):
    """An interruption leaves no set; the next run uses the archive that is there already."""

    def interrupt(image):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(cifar100_prepare, "_png", interrupt)
        with pytest.raises(KeyboardInterrupt, match="prepared in .* archive is kept"):
            prepare(server, tmp_path, good)
    assert tfds_source.find("cifar100", tmp_path) is None
    prepare(server, tmp_path, good)
    assert server.requests == ["/a.tar.gz"]


def test_interrupted_download(server, good, tmp_path, monkeypatch):
    """An interrupted download prints its progress and leaves no file; the next run starts anew."""

    def some(url, advice):
        yield good[:1000]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(download, "_blocks", some)
        said = "downloaded, at 0 of 0 MB; the same command downloads it again"
        with pytest.raises(KeyboardInterrupt, match=said):
            prepare(server, tmp_path, good)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    prepare(server, tmp_path, good)


@pytest.mark.parametrize("name", sorted(files()))
def test_missing_member(server, good, tmp_path, name):
    """Each of the four files must be in the archive."""
    contents = files()
    contents["elsewhere/" + Path(name).name] = contents.pop(name)
    refused(server, tmp_path, pack(contents), f"lacks {name}", kept=True, good=good)


def member(name, kind=tarfile.REGTYPE, target="") -> tarfile.TarInfo:
    """Return an empty archive member."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    "extra",
    [
        member("../escaped"),
        member(PREFIX + "../../escaped"),
        member("/tmp/escaped"),
        member(PREFIX + "train.bin", tarfile.SYMTYPE, "/etc/passwd"),
        member(PREFIX + "x", tarfile.LNKTYPE, PREFIX + "train.bin"),
        member(PREFIX + "x", tarfile.FIFOTYPE),
    ],
    ids=["above", "hidden-above", "absolute", "symlink", "hardlink", "fifo"],
)
def test_unsafe_member(server, tmp_path, extra):
    """Members outside the archive's folder, links and devices are refused; nothing is written."""
    folder = tmp_path / "deep" / "sets"
    refused(server, folder, pack(files(), [extra]), f"member '{extra.name}'", kept=True)
    assert not list(tmp_path.rglob("escaped"))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.REGTYPE])
def test_decompression_bomb(server, tmp_path, kind):
    """A member or name of a huge stated length takes no memory: only the needed bytes are read."""
    bomb = tarfile.TarInfo("x")
    bomb.type, bomb.size = kind, 1 << 25
    archive = gzip.compress(bomb.tobuf(tarfile.GNU_FORMAT) + bytes(bomb.size))
    tracemalloc.start()
    refused(
        server, tmp_path, archive, "bytes or more when it is decompressed", "delete it", kept=True
    )
    assert tracemalloc.get_traced_memory()[1] < 1 << 23
    tracemalloc.stop()


def test_member_twice(server, tmp_path):
    """A file that stands in the archive twice is an error, because either may be wrong."""
    archive = pack(files(), [member(PREFIX + "test.bin")])
    refused(server, tmp_path, archive, "more than once", kept=True)


@pytest.mark.parametrize("change", [-3074, -1, 1, 3074])
def test_wrong_size_of_binary_file(server, tmp_path, change):
    """A binary file has exactly its number of records, of 3,074 bytes each."""
    contents = files()
    content = contents[PREFIX + "test.bin"]
    contents[PREFIX + "test.bin"] = (content + bytes(3074))[: len(content) + change]
    said = (
        f"test.bin has {len(content) + change} bytes{', more than' if change > 0 else ' instead'}"
    )
    refused(server, tmp_path, pack(contents), said, len(content), kept=True)


@pytest.mark.parametrize("labels", [(0, 0), (4, 100), (20, 0), (0, 255)])
def test_wrong_labels(server, good, tmp_path, labels):
    """Labels out of range are refused, and fine labels below another coarse label."""
    contents = files()
    array = records("train")
    array[7, :2] = labels
    contents[PREFIX + "train.bin"] = array.tobytes()
    said = f"record 7 of train.bin has the coarse label {labels[0]} and the fine label {labels[1]}"
    refused(server, tmp_path, pack(contents), said, kept=True)


def test_wrong_class_names(server, tmp_path):
    """Other class names, or the right ones in another order, are refused."""
    contents = files()
    contents[PREFIX + "fine_label_names.txt"] = b"\n".join(
        contents[PREFIX + "fine_label_names.txt"].split()[::-1]
    )
    refused(server, tmp_path / "a", pack(contents), "fine_label_names.txt", kept=True)
    contents[PREFIX + "fine_label_names.txt"] = bytes(70_000)
    server.pages.clear()
    refused(server, tmp_path / "b", pack(contents), "more than 65536", kept=True)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "no tar"])
def test_broken_archive(server, good, tmp_path, damage):
    """An archive that cannot be unpacked is one error, even under a checksum that matches."""
    bad = {
        "truncated": good[: len(good) // 2],
        "no gzip": b"x" * 5000,
        "no tar": gzip.compress(b"x" * 5000),
    }
    refused(server, tmp_path, bad[damage], "cannot be read as .tar.gz", "delete it", kept=True)


def test_another_process_was_first(server, good, tmp_path, monkeypatch):
    """Two processes that prepare at once both succeed, with one whole set."""
    encode, done = cifar100_prepare._png, []

    def race(image):
        if not done:
            done.append(True)
            prepare(server, tmp_path, good)
        return encode(image)

    monkeypatch.setattr(cifar100_prepare, "_png", race)
    folder = prepare(server, tmp_path, good)
    assert [path.name for path in folder.parent.iterdir()] == ["3.0.2"]
    assert (
        len(tfds_source.read("cifar100", tmp_path, "label", hierarchy())["train"])
        == COUNTS["train"]
    )


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Return (CIFAR-100 as `load` reads it, its prepared folder)."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if not folder or tfds_source.find("cifar100", folder) is None:
        pytest.skip("needs TFDS_DATA_DIR, a folder in which TFDS has prepared cifar100")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield cifar100.load(), tfds_source.find("cifar100", folder)


def test_real_counts(real):
    """CIFAR-100 has 50,000 + 10,000 images, 500 + 100 of each fine class."""
    splits, _ = real
    for split, count in (("train", 50_000), ("test", 10_000)):
        images, labels = splits[split].images, splits[split].labels
        assert images.shape == (count, 32, 32, 3)
        assert images.dtype == np.uint8
        assert np.bincount(labels, minlength=100).tolist() == [count // 100] * 100


def test_real_labels_agree(real):
    """Both labels of every image, parsed apart from `read`, are the hierarchy's."""
    splits, folder = real
    builder = tfds.builder_from_directory(folder)
    raw = tfds.decode.DeserializeMethod.RAW_BYTES
    for name, split in splits.items():
        source = builder.as_data_source(name, deserialize_method=raw)
        parsed = map(tf_example_pb2.Example.FromString, source.__getitems__([*range(len(split))]))
        both = [
            [example.features.feature[key].int64_list.value[0] for key in ("coarse_label", "label")]
            for example in parsed
        ]
        assert np.array_equal(np.transpose(both), hierarchy().labels(split.labels))


def test_real_pixels(real):
    """The training images have the channel means that are published for CIFAR-100."""
    splits, folder = real
    means = np.stack([splits["train"].images[..., c].mean() for c in range(3)]) / 255
    # Published to four digits, as in the normalisation of most CIFAR-100 code.
    assert np.allclose(means, [0.5071, 0.4865, 0.4409], atol=6e-5)
    theirs = tfds.builder_from_directory(folder).as_data_source("test")
    for i in (0, 1, 9_999):
        assert np.array_equal(splits["test"].images[i], theirs[i]["image"])
