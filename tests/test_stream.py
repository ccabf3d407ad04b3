"""Streaming: what it trains, reads and refuses is what the images in memory do."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from small import HIERARCHY, image_folder, schedule, split, task

from hiercls_jax.data import folder, image_files, stream
from hiercls_jax.data.dataset import DataError, Dataset, hold_out
from hiercls_jax.experiment import predictor
from hiercls_jax.runtime import parallel
from hiercls_jax.training.feed import Order, make_feed
from hiercls_jax.training.loop import (
    Interrupted,
    SplitPredictor,
    TrainingError,
    train,
)

HERE = Path(__file__).parent
KEY = jax.random.key(1)


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An image folder of 50 and 19 images, one of each kind that is not read as it is stored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = image_folder(tmp_path / "images", train=50, test=19)
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


def watched(samples, seen):
    """`samples` that call `seen(indices)` before they are read."""

    class Watched(type(samples)):
        def read(self, indices):
            seen(indices)
            return super().read(indices)

    return Watched(**vars(samples))


def train_on(samples, workdir, seen=lambda indices: None, **changes):
    """Train the toy network with a quarter held out; return the final state and the records."""
    kept, held = hold_out(samples, 0.25, seed=0)
    mean, std = Dataset("toy", HIERARCHY, kept, held, held).channel_statistics()
    a_task = dataclasses.replace(task(), mean=mean, std=std)
    kept = watched(kept, seen)
    state, _ = train("toy", a_task, KEY, kept, held, schedule(**changes), workdir)
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    return state, [{k: v for k, v in r.items() if k != "images_per_second"} for r in records]


def same(a, b) -> bool:
    """Whether two trees have the same bits."""
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def test_streams_are_what_is_read_into_memory(root):
    """Images, labels, their parts and channel statistics are those of `read`, to the last bit."""
    held, streamed = folder.read(root, HIERARCHY, 8), folder.stream(root, HIERARCHY, 8)
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


def test_streaming_trains_bit_for_bit_what_memory_trains(root, tmp_path):
    """Records with losses and validation errors, final state, and predictions are the same."""
    results = []
    for read in (folder.read, folder.stream):
        splits = read(root, HIERARCHY, 8)
        state, records = train_on(splits["train"], tmp_path / read.__name__, epochs=2)
        predicted = SplitPredictor(task(), 8)(parallel.replicate(state), splits["test"])
        results.append((state, predicted, records))
    held, streamed = results
    assert same(held[:2], streamed[:2])
    assert held[2] == streamed[2]
    assert {record["split"] for record in held[2]} == {"train", "validation"}


@pytest.mark.parametrize("first", ["read", "stream"])
def test_a_run_goes_on_in_the_middle_of_an_epoch(root, tmp_path, first):
    """Stopped in memory it goes on streaming, and the other way round; each is the whole run.

    The checkpoint holds the iterator's state, and nothing of the steps before is read again.
    """
    parts = [read(root, HIERARCHY, 8)["train"] for read in (folder.read, folder.stream)]
    if first == "stream":
        parts.reverse()
    expected = train_on(parts[0], tmp_path / "whole", batch=4, epochs=3)
    order = schedule(batch=4, epochs=3).order(38)  # 9 steps an epoch
    seen = []

    def stop(indices):
        if indices.tolist() == order[11].tolist():
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match=r"after step \d+; saved") as stopped:
        train_on(parts[0], tmp_path / "broken", stop, batch=4, epochs=3)
    step = int(str(stopped.value).split("step ")[1].split(";")[0])
    assert 9 < step < 18
    meta = tmp_path / "broken" / "checkpoints" / f"step_{step:08d}" / "meta.json"
    assert json.loads(meta.read_text())["iterator"] == {"next_index": step}
    found = train_on(
        parts[1], tmp_path / "broken", lambda i: seen.append(i.tolist()), batch=4, epochs=3
    )
    assert same(found[0], expected[0])
    assert found[1] == expected[1]
    assert sorted(seen) == sorted(order[i].tolist() for i in range(step, 27))


def test_other_images_are_not_gone_on_with(root, tmp_path):
    """Where images were added since a checkpoint, its steps would be of others: refused."""
    train_on(folder.stream(root, HIERARCHY, 8)["train"], tmp_path / "run", epochs=1)
    Image.new("RGB", (8, 8)).save(root / "train" / "grey" / "new.png")
    with pytest.raises(TrainingError, match="was trained on other images"):
        train_on(folder.stream(root, HIERARCHY, 8)["train"], tmp_path / "run", epochs=2)


@pytest.mark.parametrize("process", [0, 1])
def test_a_process_reads_its_share_alone(root, monkeypatch, process):
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
    """One that cannot be read, in either split, is named at the start; mended, all is well."""
    path = sorted((root / name / "white").iterdir())[2]
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    with pytest.raises(DataError, match=f"{path} cannot be read"):
        folder.stream(root, HIERARCHY, 8)
    path.write_bytes(content)
    folder.stream(root, HIERARCHY, 8)


def test_an_image_that_is_gone_later_is_named(root):
    """A batch with a file that was removed since the start raises one line with its name."""
    test_split = folder.stream(root, HIERARCHY, 8)["test"]
    path = sorted((root / "test" / "white").iterdir())[2]
    path.unlink()
    with pytest.raises(DataError, match=f"^{path} cannot be read") as error:
        list(make_feed(test_split, False)([np.arange(8), np.arange(8, 16), np.arange(11, 19)]))
    assert "\n" not in str(error.value)


def test_an_image_that_breaks_later_is_named(root, tmp_path):
    """The run ends with its name; once it is mended, the run goes on to what it would have been."""
    whole = folder.read(root, HIERARCHY, 8)["train"]
    expected = train_on(whole, tmp_path / "whole", epochs=2)
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
        train_on(broken, tmp_path / "run", epochs=2)
    assert "\n" not in str(error.value)
    path.write_bytes(content)
    found = train_on(folder.stream(root, HIERARCHY, 8)["train"], tmp_path / "run", epochs=2)
    assert same(found[0], expected[0])
    assert found[1] == expected[1]


def test_images_are_looked_at_once(root, monkeypatch):
    """A second start decodes nothing; after a change to a file, everything is looked at again."""
    before = folder.stream(root, HIERARCHY, 8)
    with monkeypatch.context() as patch:
        patch.setattr(folder, "survey_images", None)
        again = folder.stream(root, HIERARCHY, 8)
    for name in before:
        np.testing.assert_array_equal(before[name].sums(), again[name].sums())
    path = sorted((root / "train" / "white").iterdir())[2]
    Image.new("RGB", (8, 8)).save(path)
    assert (folder.stream(root, HIERARCHY, 8)["train"].sums() < before["train"].sums()).all()


def test_one_process_looks_for_all(root, monkeypatch):
    """The others take what it found, and decode nothing; with other files they are refused."""
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
    """The answer for 50 files is that for all their images, and no more than 8 are read at once."""

    def forward(images):
        p = {
            level: np.pad(images[:, 0, 0, :1] / np.float32(255), ((0, 0), (0, classes - 1)))
            for level, classes in zip(HIERARCHY.levels, HIERARCHY.sizes, strict=True)
        }
        return {"adapted": p, "unadapted": p}

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

    One process looks at images and takes an epoch of batches, 200 of them first, then 1,000.
    """
    picture = split(1, size=256).images[0]
    for name, count in (("few", 200), ("many", 1000)):
        for i in range(count):
            place = tmp_path / name / "train" / HIERARCHY.names[1][i % 4]
            place.mkdir(parents=True, exist_ok=True)
            if i == 0:
                Image.fromarray(picture).save(tmp_path / "picture.jpg")
            os.link(tmp_path / "picture.jpg", place / f"{i}.jpg")
        (tmp_path / name / "test" / "grey").mkdir(parents=True)
        os.link(tmp_path / "picture.jpg", tmp_path / name / "test" / "grey" / "0.jpg")
    code = (
        "import sys, pathlib, small, jax; from hiercls_jax.data import folder\n"
        "from hiercls_jax.training.feed import Order, make_feed\n"
        "for root in sys.argv[1:]:\n"
        "    samples = folder.stream(root, small.HIERARCHY, 256)['train']\n"
        "    for _ in make_feed(samples, False)(Order((0,), len(samples), 10, 1)): pass\n"
        "    status = pathlib.Path('/proc/self/status').read_text().split()\n"
        "    print('peak', status[status.index('VmHWM:') + 1])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *(str(tmp_path / name) for name in ("few", "many"))],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE)]),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
        },
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    few, many = (int(n.split()[1]) for n in done.stdout.splitlines() if n.startswith("peak"))
    assert many - few < 800 * 256 * 256 * 3 / 1024 / 10, done.stdout
