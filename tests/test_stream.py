"""Streaming trains, reads and refuses the same as images in memory."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small import HIERARCHY, image_folder, schedule, task

from hiercls_jax.data import folder, image_files, stream
from hiercls_jax.data.dataset import DataError, Dataset, hold_out
from hiercls_jax.experiment import predictor
from hiercls_jax.runtime import parallel
from hiercls_jax.training.feed import Order, make_feed
from hiercls_jax.training.loop import Interrupted, train
from hiercls_jax.training.recorder import TrainingError
from hiercls_jax.training.split_predictor import SplitPredictor

HERE = Path(__file__).parent
KEY = jax.random.key(1)
EPOCHS = {"batch": 4, "epochs": 3}  # of every run here: 38 images, 9 steps an epoch


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """An image folder of 50 and 19 images, one of each kind that is not read as it is stored."""
    root = image_folder(tmp_path_factory.mktemp("images") / "images", train=50, test=19)
    first, second, third, fourth = sorted((root / "train" / "grey").iterdir())[:4]
    noise = np.random.default_rng(0).integers(0, 256, (31, 17, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    Image.fromarray(noise).save(first.with_suffix(".jpg"), exif=exif)
    Image.fromarray(noise).quantize(8).save(second)
    Image.fromarray(noise[..., 0]).save(third)
    Image.fromarray(noise).save(fourth.with_suffix(".webp"), exif=b"Exif\0\0II*\0\x08\0\0\0\x01\0")
    first.unlink()
    fourth.unlink()
    return root


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def root(images, tmp_path, monkeypatch):
    """A copy of the image folder to change, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(images, tmp_path / "images")


def watched(samples, seen):
    """`samples` that call `seen(indices)` before they are read."""

    class Watched(type(samples)):
        def read(self, indices):
            seen(indices)
            return super().read(indices)

    return Watched(**vars(samples))


@dataclasses.dataclass(frozen=True)
class Trained:
    """The final state of a run, its records, and its folder."""

    state: object
    records: list[dict]
    workdir: Path


def train_on(samples, workdir, seen=lambda indices: None) -> Trained:
    """Train the toy network with a quarter held out."""
    kept, held = hold_out(samples, 0.25, seed=0)
    mean, std = Dataset("toy", HIERARCHY, kept, held, held).channel_statistics()
    a_task = dataclasses.replace(task(), mean=mean, std=std)
    kept = watched(kept, seen)
    state, _ = train("toy", a_task, KEY, kept, held, schedule(**EPOCHS), workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    records = [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]
    return Trained(state, records, workdir)


@pytest.fixture(scope="module")
def whole(images, tmp_path_factory) -> Trained:
    """A run on images in memory that nothing interrupts."""
    samples = folder.read(images, HIERARCHY, 8)["train"]
    return train_on(samples, tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture(scope="module")
def streamed(images, tmp_path_factory) -> Trained:
    """The same run, streamed."""
    samples = folder.stream(images, HIERARCHY, 8)["train"]
    return train_on(samples, tmp_path_factory.mktemp("runs") / "streamed")


def same(a, b) -> bool:
    """Whether two trees have the same bits."""
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_streams_equal_what_is_read_into_memory(images):
    """Images, labels, their parts and channel statistics are those of `read`, to the last bit."""
    held, streamed = folder.read(images, HIERARCHY, 8), folder.stream(images, HIERARCHY, 8)
    assert list(held) == list(streamed)
    rng = np.random.default_rng(0)
    for name in held:
        whole, lazy = held[name], streamed[name]
        assert (len(lazy), lazy.image_shape) == (len(whole), whole.image_shape)
        for some in (np.arange(len(whole)), rng.integers(len(whole), size=70), np.array([3])):
            np.testing.assert_array_equal(lazy.take(some).labels, whole.labels[some])
            np.testing.assert_array_equal(lazy.read(some), whole.images[some])
            np.testing.assert_array_equal(
                lazy.take(some).read(some[:1] * 0), whole.images[some[:1]]
            )
            found, expected = (
                Dataset("x", HIERARCHY, samples.take(some), None, samples).channel_statistics()
                for samples in (lazy, whole)
            )
            np.testing.assert_array_equal(found, expected)


def test_streaming_trains_bit_for_bit_what_memory_trains(images, whole, streamed):
    """Records with losses and validation errors, final state, and predictions are the same."""
    assert same(streamed.state, whole.state)
    assert streamed.records == whole.records
    assert {record["split"] for record in whole.records} == {"train", "validation"}
    predict = SplitPredictor(task(), 8)
    of_whole, of_streamed = (
        predict(parallel.replicate(trained.state), read(images, HIERARCHY, 8)["test"])
        for trained, read in ((whole, folder.read), (streamed, folder.stream))
    )
    assert of_whole.keys() == of_streamed.keys() == set(HIERARCHY.levels)
    assert same(of_streamed, of_whole)


def test_a_run_resumes_in_the_middle_of_an_epoch(images, whole, tmp_path):
    """Stopped in memory it goes on streaming, and the other way round, to the same result.

    The checkpoint holds the iterator's state, and no image of an earlier step is read again.
    """
    held, streamed = (read(images, HIERARCHY, 8)["train"] for read in (folder.read, folder.stream))
    order = schedule(**EPOCHS).order(38)
    seen: list[list[int]] = []

    def stop_at(step):
        def stop(indices):
            seen.append(indices.tolist())
            if indices.tolist() == order[step].tolist():
                os.kill(os.getpid(), signal.SIGTERM)

        return stop

    def stopped(samples, epoch) -> int:
        """Train until the middle of an epoch, and return the number of steps."""
        seen.clear()
        with pytest.raises(Interrupted, match=r"after step \d+; saved") as stopped:
            train_on(samples, tmp_path / "run", stop_at(9 * epoch + 2))
        step = int(str(stopped.value).split("step ")[1].split(";")[0])
        assert 9 * epoch < step < 9 * (epoch + 1)
        meta = tmp_path / "run" / "checkpoints" / f"step_{step:08d}" / "meta.json"
        assert json.loads(meta.read_text())["iterator"] == {"next_index": step}
        return step

    first = stopped(held, epoch=1)
    second = stopped(streamed, epoch=2)
    read_once = [order[i].tolist() for i in range(first, second)]
    assert [batch for batch in read_once if batch not in seen] == []
    assert [batch for batch in seen if batch in [order[i].tolist() for i in range(first)]] == []
    seen.clear()
    found = train_on(held, tmp_path / "run", lambda indices: seen.append(indices.tolist()))
    assert sorted(seen) == sorted(order[i].tolist() for i in range(second, 27))
    assert same(found.state, whole.state)
    assert found.records == whole.records


def test_a_run_on_other_images_is_not_resumed(root, streamed, tmp_path):
    """If images were added since a checkpoint, its steps would be of others: it is refused."""
    run = shutil.copytree(streamed.workdir, tmp_path / "run")
    last = max((run / "checkpoints").iterdir())
    shutil.rmtree(last)  # so that the run is not finished
    Image.new("RGB", (8, 8)).save(root / "train" / "grey" / "new.png")
    with pytest.raises(TrainingError, match="was trained on other images"):
        train_on(folder.stream(root, HIERARCHY, 8)["train"], run)


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_reads_only_its_share(root, monkeypatch, process):
    """Of each batch of 8, process 0 of 2 reads the first four images, process 1 the others."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: process)
    train_split, read = folder.stream(root, HIERARCHY, 8)["train"], []
    feed = make_feed(watched(train_split, lambda i: read.append(i.tolist())), resident=False)
    order = Order((0, 0), 50, 8, 2)
    batches = list(feed(order))
    expected = [order[i][4 * process : 4 * process + 4].tolist() for i in range(12)]
    assert sorted(read) == sorted(expected)
    for batch, mine in zip(batches, expected, strict=True):
        images = train_split.read(np.array(mine)).reshape(batch["images"].shape)
        np.testing.assert_array_equal(batch["images"], images)
        assert batch["positions"].ravel().tolist() == list(range(4 * process, 4 * process + 4))


def test_an_order_is_its_epochs_one_after_another():
    """The batches of every epoch are disjoint, in the epoch's order; the rest of it is left out."""
    order = Order((3, 1), 50, 8, epochs=3)
    assert len(order) == 18
    for epoch in range(3):
        taken = np.concatenate([order[6 * epoch + i] for i in range(6)])
        whole = np.random.Generator(np.random.PCG64([3, 1, epoch])).permutation(50)
        np.testing.assert_array_equal(taken, whole[:48])


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_broken_image_is_refused_before_training(root, name):
    """An unreadable image in either split is named at the start, and read once it is repaired."""
    path = sorted((root / name / "white").iterdir())[2]
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        folder.stream(root, HIERARCHY, 8)
    path.write_bytes(content)
    folder.stream(root, HIERARCHY, 8)


def test_an_image_that_is_gone_later_is_named(root):
    """If a file was removed since the start, its batch raises one line with its name."""
    test_split = folder.stream(root, HIERARCHY, 8)["test"]
    path = sorted((root / "test" / "white").iterdir())[2]
    path.unlink()
    with pytest.raises(DataError, match=f"^{path} cannot be read") as error:
        list(make_feed(test_split, False)([np.arange(8), np.arange(8, 16), np.arange(11, 19)]))
    assert "\n" not in str(error.value)


def test_an_image_that_breaks_later_is_named(root, whole, tmp_path):
    """The run ends with its name; once it is repaired, the run goes on to the same result."""
    train_split = folder.stream(root, HIERARCHY, 8)["train"]
    path = sorted((root / "train" / "white").iterdir())[2]
    content, decode, decoded = path.read_bytes(), train_split.decode, []

    def breaking(numbers):
        decoded.extend(numbers)
        if len(decoded) > 60:  # in the second epoch
            path.write_bytes(content[:-30])
        return decode(numbers)

    broken = stream.Stream(breaking, train_split.numbers, train_split.survey, (8, 8, 3))
    with pytest.raises(DataError, match=f"{path} cannot be read") as error:
        train_on(broken, tmp_path / "run")
    assert "\n" not in str(error.value)
    path.write_bytes(content)
    found = train_on(folder.stream(root, HIERARCHY, 8)["train"], tmp_path / "run")
    assert same(found.state, whole.state)
    assert found.records == whole.records


def test_images_are_surveyed_once(root, monkeypatch):
    """A second start decodes nothing; after a change to a file, everything is surveyed again."""
    before = folder.stream(root, HIERARCHY, 8)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "survey_images", None)
        again = folder.stream(root, HIERARCHY, 8)
    for name in before:
        np.testing.assert_array_equal(before[name].sums(), again[name].sums())
    path = sorted((root / "train" / "white").iterdir())[2]
    Image.new("RGB", (8, 8)).save(path)
    assert (folder.stream(root, HIERARCHY, 8)["train"].sums() < before["train"].sums()).all()


def test_one_process_surveys_for_all(root, monkeypatch):
    """The others receive its survey and decode nothing; with other files they are refused."""
    sent = []
    folder.stream(root, HIERARCHY, 8, lambda compute: sent.append(compute()) or sent[0])
    monkeypatch.setattr(folder, "survey_images", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "another"))
    other = folder.stream(root, HIERARCHY, 8, lambda compute: sent[0])
    held = folder.read(root, HIERARCHY, 8)
    np.testing.assert_array_equal(other["train"].sums(), held["train"].sums())
    Image.new("RGB", (8, 8)).save(root / "train" / "grey" / "new.png")
    with pytest.raises(DataError, match="other images than the first one"):
        folder.stream(root, HIERARCHY, 8, lambda compute: sent[0])


def test_files_are_predicted_a_batch_at_a_time(root, monkeypatch):
    """50 files get the same answer as their images, and no more than 8 are read at once."""

    def forward(images):
        p = {
            level: np.pad(images[:, 0, 0, :1] / np.float32(255), ((0, 0), (0, classes - 1)))
            for level, classes in zip(HIERARCHY.levels, HIERARCHY.sizes, strict=True)
        }
        answer = {"path": {level: np.argmax(p[level], -1) for level in p}}
        answer["probability"] = p[HIERARCHY.levels[-1]].max(-1)
        return {"adapted": p, "unadapted": p, "answer": answer}

    trained = predictor.Predictor(HIERARCHY, (8, 8, 3), alpha=1.0, batch=8, forward=forward)
    files, read, read_files = sorted((root / "train").rglob("*.*")), [], image_files.read_files
    expected = trained(trained.read(files))

    def counting(paths, shape):
        read.append(len(paths))
        return read_files(paths, shape)

    monkeypatch.setattr(image_files, "read_files", counting)
    found = trained.of_files(files)
    assert read == [8] * 6 + [2]
    for part in ("adapted", "unadapted", "names"):
        for level in HIERARCHY.levels:
            one, other = getattr(found, part)[level], getattr(expected, part)[level]
            np.testing.assert_array_equal(one, other)


def test_memory_does_not_grow_with_the_images(tmp_path):
    """800 images of 256 pixels more, 157 MB, take less than a tenth of that: none is kept.

    One process surveys images and takes an epoch of batches, of 200 images first, then of 1,000.
    """
    # Of one colour, because it is decoded faster; all are as large in memory.
    Image.new("RGB", (256, 256), "grey").save(tmp_path / "picture.jpg")
    for name, count in (("few", 200), ("many", 1000)):
        for i in range(count):
            place = tmp_path / name / "train" / HIERARCHY.names[1][i % 4]
            place.mkdir(parents=True, exist_ok=True)
            os.link(tmp_path / "picture.jpg", place / f"{i}.jpg")
        (tmp_path / name / "test" / "grey").mkdir(parents=True)
        os.link(tmp_path / "picture.jpg", tmp_path / name / "test" / "grey" / "0.jpg")
    code = (
        "import sys, pathlib\n"
        "from hiercls_jax.data import folder\n"
        "from hiercls_jax.hierarchy import Hierarchy\n"
        "from hiercls_jax.training.feed import Order, make_feed\n"
        f"tree = Hierarchy.from_dict({HIERARCHY.to_dict()!r})\n"
        "for root in sys.argv[1:]:\n"
        "    samples = folder.stream(root, tree, 256)['train']\n"
        "    for _ in make_feed(samples, False)(Order((0,), len(samples), 10, 1)): pass\n"
        "    status = pathlib.Path('/proc/self/status').read_text().split()\n"
        "    print('peak', status[status.index('VmHWM:') + 1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("few", "many"))],
        env={
            **os.environ,
            "PYTHONPATH": str(HERE.parent),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    few, many = (int(n.split()[1]) for n in done.stdout.splitlines() if n.startswith("peak"))
    assert many - few < 800 * 256 * 256 * 3 / 1024 / 10, done.stdout
