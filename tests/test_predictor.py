"""A finished run as a predictor: `load`, the commands `predict` and `export`, and mistakes.

Tolerance: probabilities are float32 and of at most 1, and another batch size, number of devices or
number of threads may change the order of their sums (SUM).
"""

import contextlib
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import types
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import small
from PIL import Image

import hiercls_jax
from hiercls_jax import __main__, experiment
from hiercls_jax.adaptation.answers import DECISIONS
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.stopping import calibrate_threshold, climb_paths, stop
from hiercls_jax.commands import predict
from hiercls_jax.data import folder
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation import predictions
from hiercls_jax.experiment import predictor, run
from hiercls_jax.hierarchy.nodes import node_names, node_numbers
from hiercls_jax.models import registry
from hiercls_jax.models.resnet import ResNet
from hiercls_jax.runtime import parallel
from hiercls_jax.training import checkpoint
from hiercls_jax.training.state import State

SUM = 2e-6
ALPHA = 0.7  # not 0, not 1, and not the value that so few images would give
# Not in alphabetical order, because JAX sorts the keys of a dictionary.
HIERARCHY = dataclasses.replace(small.HIERARCHY, levels=("tone", "colour"))
TEST = 20  # images


@pytest.fixture(scope="module")
def cache():
    """The tests' compilation cache; a command replaces it, so each test restores it."""
    return jax.config.jax_compilation_cache_dir


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An image folder with its hierarchy; the runs of two variants go there too."""
    root = small.image_folder(tmp_path_factory.mktemp("images"), train=64, test=TEST)
    HIERARCHY.to_json(root / "tree.json")
    return root


def untrained(name, task, key, train_split, validation, schedule, folder):
    """Save made-up parameters as training saves its own; compiling a training takes seconds."""
    rng = np.random.default_rng(0)
    image = jax.ShapeDtypeStruct((1, *train_split.image_shape), np.float32)
    shapes = jax.eval_shape(partial(task.network.init, train=False), key, image)
    variables = jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(x.dtype), shapes)
    opt_state = jax.device_get(task.optimizer.init(variables["params"]))
    state = State(np.int32(7), **variables, opt_state=opt_state)
    progress = checkpoint.Progress(step=7, seconds=1.0)
    checkpoint.save(folder / "checkpoints", state, progress)
    return state, progress


@pytest.fixture(scope="module", autouse=True)
def _here(root, cache):
    """The toy family on the tests' devices, with its own cache, made-up training and no figures.

    tests/test_main.py loads a run that was really trained.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "train", untrained)
        patch.setitem(registry._FAMILIES, "toy", small.Toy)
        patch.setattr(parallel, "use_cpu_devices", lambda *_: None)
        patch.setattr(run.figures, "draw_run", lambda *_: None)
        patch.setenv("XDG_CACHE_HOME", str(root / "cache"))
        yield


def train(root, variant: str, rule: str = "kl") -> Path:
    """A finished run whose alpha is changed to `ALPHA`."""
    config = experiment.compose(variant, "arch=toy4,dataset=folder,epochs=1,batch=8")
    config.adapt.rule = rule
    with config.unlocked():
        config.data.dir, config.data.hierarchy = str(root), str(root / "tree.json")
        config.data.image_size = 8
        config.optimizer.warmup_steps = 0
        config.workdir = str(root / variant)
    run.run(config, True, [f"--config=configs/{variant}.py"])
    change(root / variant, alpha=ALPHA)
    return root / variant


def change(workdir: Path, **values) -> None:
    """Change `results.json`; None removes a value."""
    path = workdir / "results.json"
    results = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in results.items() if v is not None}))


@pytest.fixture(scope="module")
def workdir(root):
    """A finished run of one merged network."""
    return train(root, "merge1")


@pytest.fixture(scope="module")
def trained(workdir):
    """The predictor of that run."""
    return hiercls_jax.load(workdir, batch=8)


@pytest.fixture(scope="module")
def images(root):
    """The test images as the run read them: uint8 `[20, 8, 8, 3]`."""
    return folder.read(root, HIERARCHY, 8)["test"].images


@pytest.fixture
def command(capsys, cache):
    """`command(*arguments)` calls `python -m hiercls_jax`: (exit status, stdout, stderr)."""

    def call(*arguments) -> tuple[int, str, str]:
        try:
            status = __main__.main(["hiercls_jax", *map(str, arguments)])
        finally:
            jax.config.update("jax_compilation_cache_dir", cache)
        return status, *capsys.readouterr()

    return call


def check(trained, workdir, images, rule: str = "kl"):
    """A predictor gives the test images its run's probabilities, and adapts them by its rule."""
    (split,) = (
        p for name, p in predictions.load(workdir / "predictions.npz", HIERARCHY).items()
        if name == "test"
    )  # fmt: skip
    answer = trained(images)
    target = RULES[rule].adjust(list(split.probs.values()), HIERARCHY, ALPHA)
    results = json.loads((workdir / "results.json").read_text())
    assert trained.rule == results["rule"] == results["config"]["adapt.rule"] == rule
    for part in (answer.adapted, answer.unadapted, answer.names):
        assert list(part) == ["tone", "colour"]
    leaf = answer.adapted["colour"].argmax(axis=1)
    np.testing.assert_array_equal(answer.probability, answer.adapted["colour"].max(axis=1))
    assert answer.name.tolist() == answer.names["colour"].tolist()
    assert set(answer.level) == {"colour"}
    for i, level in enumerate(HIERARCHY.levels):
        np.testing.assert_allclose(answer.unadapted[level], split.probs[level], rtol=0, atol=SUM)
        np.testing.assert_allclose(answer.adapted[level], target[i], rtol=0, atol=SUM)
        assert np.abs(answer.adapted[level] - answer.unadapted[level]).max() > 100 * SUM
        path = [HIERARCHY.names[i][j] for j in HIERARCHY.labels(leaf)[i]]
        assert answer.names[level].tolist() == path


def test_it_repeats_the_predictions_of_its_run(trained, workdir, images):
    """Probabilities as in `predictions.npz`, adapted with the alpha of `results.json`."""
    assert (trained.alpha, trained.shape, trained.hierarchy) == (ALPHA, (8, 8, 3), HIERARCHY)
    check(trained, workdir, images)


def test_repr_is_one_line(trained):
    """`repr` shows input, output, rule and alpha, but not the parameters."""
    assert repr(trained) == (
        "Predictor(uint8 [N, 8, 8, 3] to 'tone' [N, 2], 'colour' [N, 4]; rule 'kl', alpha = 0.70, "
        "decision 'leaf')"
    )


def test_separate_networks_answer_together(root, images):
    """A run of a network per level is one predictor, which adapts by the rule of the config."""
    workdir = train(root, "separate", "geometric_pooling")
    check(hiercls_jax.load(workdir), workdir, images, "geometric_pooling")


def test_a_run_of_an_older_version_adapts_by_algorithm_1(workdir, trained, images, tmp_path):
    """A run whose record lacks the fields of later versions predicts as its own version did."""
    copy = shutil.copytree(workdir, tmp_path / "copy")
    config = json.loads((copy / "results.json").read_text())["config"]
    recipe = {f"optimizer.{field}" for field in ResNet.RECIPE["optimizer"]}  # recorded always
    added = {name: config.pop(name) for name in experiment.ADDED_LATER if name not in recipe}
    assert added.items() <= experiment.ADDED_LATER.items()
    assert {"adapt.rule", "train.parts", "optimizer.muon_steps"} <= added.keys()
    change(copy, config=config, rule=None)
    older = hiercls_jax.load(copy, batch=8)
    assert older.rule == "kl"
    for level, p in older(images[:8]).adapted.items():
        np.testing.assert_array_equal(p, trained(images[:8]).adapted[level])


@pytest.mark.parametrize(("accuracy", "confidence"), [(0.6, None), (0.5, 0.9)])
def test_it_stops_where_the_validation_images_say(workdir, images, accuracy, confidence):
    """A target accuracy becomes the threshold of the run's validation images, at alpha = 1."""
    splits = predictions.load(workdir / "predictions.npz", HIERARCHY)

    def coherent(split):
        levels = [*splits[split].probs.values()]
        return [np.asarray(p) for p in RULES["kl"].target(levels, HIERARCHY)]

    labels = splits["validation"].labels["colour"]
    threshold = calibrate_threshold(coherent("validation"), labels, HIERARCHY, accuracy, confidence)
    sure = hiercls_jax.load(workdir, 8, target_accuracy=accuracy, confidence=confidence)
    assert sure.threshold == threshold
    assert f"alpha = 0.70, stops below {threshold:.4g})" in repr(sure)
    # An image whose probability is the threshold but for a rounding may stop on either side of it.
    path = climb_paths(coherent("test"), HIERARCHY).probability
    far = (np.abs(path - threshold) > 10 * SUM).all(axis=1)
    assert far.any()
    wanted = stop([p[far] for p in coherent("test")], HIERARCHY, threshold)
    answer = sure(images[far])
    np.testing.assert_allclose(answer.probability, wanted.probability, rtol=0, atol=SUM)
    names = np.array(node_names(HIERARCHY))[node_numbers(wanted.node, HIERARCHY)]
    assert answer.name.tolist() == names.tolist()
    assert answer.level.tolist() == np.array(["tone", "colour", ""])[wanted.node[:, 0]].tolist()
    for i, level in enumerate(HIERARCHY.levels):
        below = np.array([*HIERARCHY.names[i], ""])[wanted.path[:, i]]
        assert answer.names[level].tolist() == below.tolist()


@pytest.mark.parametrize("decision", ["independent", "minimum_risk"])
def test_another_decision(workdir, images, decision):
    """`decision` chooses any of the library's; the probabilities of the levels are the same."""
    answer = hiercls_jax.load(workdir, 8, decision=decision)(images)
    rows = DECISIONS[decision]([*answer.adapted.values()], HIERARCHY)
    for i, level in enumerate(HIERARCHY.levels):
        assert answer.names[level].tolist() == [(*HIERARCHY.names[i], "")[j] for j in rows[:, i]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decision": "best"}, "decision='best': allowed are 'independent', 'leaf'"),
        ({"target_accuracy": 90}, "target_accuracy=90: allowed is a share between 0 and 1"),
        ({"target_accuracy": 0.9, "confidence": 95}, "confidence=95: allowed is a share"),
        ({"confidence": 0.9}, "confidence=0.9 is of target_accuracy, which is not given"),
        ({"target_accuracy": 0.999}, "8 labelled samples are too few .* at least 999"),
        ({"target_accuracy": 0.9, "decision": "top_down"}, "climb from the most probable leaf"),
    ],
)
def test_answers_that_cannot_be(workdir, options, message):
    """An option out of range, and a promise that the validation images cannot keep, are errors."""
    with pytest.raises(UserError, match=message):
        hiercls_jax.load(workdir, **options)


def test_a_target_needs_validation_images(workdir, tmp_path):
    """A run that held out no images has nothing to calibrate on, and says so."""
    copy = shutil.copytree(workdir, tmp_path / "copy")
    splits = predictions.load(copy / "predictions.npz", HIERARCHY)
    predictions.save(copy / "predictions.npz", {"test": splits["test"]})
    with pytest.raises(UserError, match="has no validation images to calibrate"):
        hiercls_jax.load(copy, target_accuracy=0.5)


def test_predict_says_where_it_stops(command, workdir, root):
    """With a target, an answer may be a class above the leaf, or nothing; and it is approximate."""
    file = first_two(root)[0]
    sure = hiercls_jax.load(workdir, 8, target_accuracy=0.8)
    status, out, err = command("predict", f"--workdir={workdir}", "--target_accuracy=0.8", file)
    assert (status, err) == (0, "")
    answer = sure.of_files([file])
    told = " > ".join(names[0] for names in answer.names.values() if names[0])
    assert f"  answer: {told or 'nothing is sure enough'}" in out.splitlines()[2]
    assert out.splitlines()[-1].startswith(f"answers stop below {sure.threshold:.4g}; ")
    assert "approximate" in out.splitlines()[-1]


def test_any_number_of_images_compiles_once(trained, images):
    """0 images, 1, a batch and more than a batch give the same rows, from one compilation."""
    whole = trained(images)
    for count in (0, 1, 8, 9):
        part = trained(images[:count])
        for level, classes in zip(HIERARCHY.levels, HIERARCHY.sizes, strict=True):
            assert part.adapted[level].shape == part.unadapted[level].shape == (count, classes)
            assert part.names[level].tolist() == whole.names[level][:count].tolist()
            np.testing.assert_array_equal(part.adapted[level], whole.adapted[level][:count])
    assert trained.forward._cache_size() == 1


def test_one_image_has_no_axis_of_images(trained, images):
    """`[H, W, 3]` in, `[classes]` and a name out: the row of that image in a batch."""
    one, whole = trained(images[3]), trained(images)
    assert (one.name, one.level, one.probability) == (
        whole.name[3], whole.level[3], whole.probability[3],
    )  # fmt: skip
    for level in HIERARCHY.levels:
        for got, wanted in ((one.adapted, whole.adapted), (one.unadapted, whole.unadapted)):
            np.testing.assert_array_equal(got[level], wanted[level][3])
        assert one.names[level] == whole.names[level][3]
        assert isinstance(one.names[level], str)


@pytest.mark.parametrize(
    ("shape", "dtype", "got"),
    [
        ((2, 8, 8, 3), np.float32, r"float32 \[2, 8, 8, 3\]"),
        ((2, 8, 9, 3), np.uint8, r"uint8 \[2, 8, 9, 3\]"),
        ((8, 8), np.uint8, r"uint8 \[8, 8\]"),
        ((1, 2, 8, 8, 3), np.uint8, r"uint8 \[1, 2, 8, 8, 3\]"),
    ],
)
def test_other_images_are_refused(trained, shape, dtype, got):
    """Another dtype, size or rank is an error that says what is allowed."""
    with pytest.raises(UserError, match=rf"uint8 \[N, 8, 8, 3\] or \[8, 8, 3\]; got {got}"):
        trained(np.zeros(shape, dtype))


def test_files_are_read_as_the_image_folder_is(trained, root, images):
    """`read` gives the test images, if it reads the files of the test split in their order."""
    files = sorted((root / "test").glob("*/*.png"))
    np.testing.assert_array_equal(trained.read(files), images)


def test_files_of_another_size_are_resized(trained, tmp_path):
    """They get the height and width of training (here not equal) by Pillow's bilinear filter."""
    picture = Image.fromarray(small.split(1, size=32).images[0][:24])
    picture.save(tmp_path / "a.png")
    high = dataclasses.replace(trained, shape=(8, 4, 3))
    wanted = np.asarray(picture.resize((4, 8), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(high.read([tmp_path / "a.png"]), wanted[None])


def test_loading_changes_nothing(workdir):
    """`load` changes no byte of the workdir and adds no file."""

    def content():
        return {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}

    before = content()
    hiercls_jax.load(workdir)
    assert content() == before


def damage_checkpoint(copy):
    (path,) = (copy / "checkpoints").glob("step_*")
    data = bytearray((path / "meta.json").read_bytes())
    data[3] ^= 1
    (path / "meta.json").write_bytes(data)


MISTAKES = {
    "no folder": (shutil.rmtree, "there is no folder .*; give the workdir of a training run"),
    "not a run": (lambda c: (c / "config.json").unlink(), "is not the workdir .* no config.json"),
    "not finished": (
        lambda c: (c / "results.json").unlink(),
        "no tuned alpha yet, .* its command again, or add --mode=evaluate",
    ),
    "broken results": (
        lambda c: (c / "results.json").write_text("{"),
        "results.json cannot be read: .* the run's command with --mode=evaluate",
    ),
    "older version": (
        lambda c: change(c, input=None),
        "does not say of what size .*: python -m hiercls_jax.main --config=configs/merge1.py "
        "--mode=evaluate",
    ),
    "trained on": (
        lambda c: change(c, steps={"merge1": 3}),
        "is of step 7, and alpha was tuned at step 3; make them anew",
    ),
    "no checkpoint": (
        lambda c: shutil.rmtree(c / "checkpoints"),
        "cannot be used .there is none.; restore it from a copy",
    ),
    "damaged": (
        damage_checkpoint,
        "cannot be used .meta.json does not match its SHA-256.; restore it",
    ),
    "no hierarchy": (lambda c: (c / "hierarchy.json").unlink(), "there is no .*hierarchy.json"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_workdir_that_is_not_a_finished_run(workdir, tmp_path, command, mistake):
    """A missing, older, damaged or newer part is an error in one line that says what to do."""
    damage, message = MISTAKES[mistake]
    copy = shutil.copytree(workdir, tmp_path / "copy")
    damage(copy)
    status, out, err = command("predict", f"--workdir={copy}", "a.png")
    assert (status, out) == (1, "")
    assert len(err.splitlines()) == 1
    with pytest.raises(UserError, match=message):
        hiercls_jax.load(copy)


def test_a_batch_has_images(workdir):
    """A batch below 1 is rejected."""
    with pytest.raises(UserError, match="at least 1 image, not 0"):
        hiercls_jax.load(workdir, batch=0)


def first_two(root):
    return sorted((root / "test").glob("*/*.png"))[:2]


def test_the_table_of_guesses(command, workdir, trained, root, images):
    """Under each file, the classes of each level, most probable first, aligned in two columns."""
    files = first_two(root)
    status, out, err = command("predict", *files, f"--workdir={workdir}")
    assert (status, err) == (0, "")
    answer = trained(images[:2])
    lines = out.splitlines()
    assert lines[0].split("  ")[-1] == "  adapted, alpha = 0.70".strip()
    wanted = []
    for i, file in enumerate(files):
        path = f"{answer.names['tone'][i]} > {answer.names['colour'][i]}"
        wanted += [[str(file)], f"answer: {path} {100 * answer.probability[i]:.1f} %".split()]
        for level, names in zip(HIERARCHY.levels, HIERARCHY.names, strict=True):
            parts = (answer.unadapted[level][i], answer.adapted[level][i])
            orders = [sorted(range(len(names)), key=lambda j, p=p: -p[j]) for p in parts]
            for row in range(min(3, len(names))):
                cells = [
                    f"{names[order[row]]} {100 * p[order[row]]:.1f} %"
                    for p, order in zip(parts, orders, strict=True)
                ]
                wanted.append(" ".join([level] * (row == 0) + cells).split())
    assert [line.split() for line in lines[1:]] == wanted
    rows = [line for line in lines[1:] if not line.startswith(("/", "  answer"))]
    assert len({tuple(i for i, c in enumerate(line) if c == "%") for line in rows}) == 1
    assert lines[0].index("adapted, alpha") == rows[0].index(wanted[2][4], 20)


def test_another_alpha_and_rule(workdir, trained, images):
    """A given alpha or rule takes the place of the run's; another rule alone adapts with 1."""
    levels = list(trained(images).unadapted.values())
    for options, rule, alpha in (
        ({"alpha": 0.25}, "kl", 0.25),
        ({"rule": "top_down"}, "top_down", 1.0),
        ({"rule": "kl"}, "kl", ALPHA),
    ):
        other = hiercls_jax.load(workdir, 8, **options)
        assert (other.rule, other.alpha) == (rule, alpha)
        wanted = RULES[rule].adjust(levels, HIERARCHY, alpha)
        for p, w in zip(other(images).adapted.values(), wanted, strict=True):
            np.testing.assert_allclose(p, w, atol=SUM)
    with pytest.raises(UserError, match="alpha=1.5: allowed is 0 to 1 by the rule 'top_down'"):
        hiercls_jax.load(workdir, alpha=1.5, rule="top_down")
    with pytest.raises(UserError, match="rule='best': allowed are 'kl'"):
        hiercls_jax.load(workdir, rule="best")


@pytest.mark.parametrize("columns", [50, 80, 400])
def test_the_table_fits_the_terminal(monkeypatch, columns):
    """On a terminal no row of guesses is wider than it; elsewhere names are never cut."""
    names = ("cat", "貓" * 30), ("x" * 90, "a long name of many words, as ImageNet has them", "pug")
    tree = hiercls_jax.Hierarchy(("kind", "animal"), names, ((0, 1, 0),))
    p = {"kind": np.full((1, 2), 0.5), "animal": np.full((1, 3), 1 / 3)}
    shown = {"kind": np.array(["cat"]), "animal": np.array(["pug"])}
    answer = types.SimpleNamespace(adapted=p, unadapted=p, names=shown, probability=np.ones(1))
    trained = types.SimpleNamespace(hierarchy=tree, alpha=1.0, threshold=None)
    whole = predict._as_table(trained, ["cat.png"], answer)
    assert "x" * 90 in whole
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(shutil, "get_terminal_size", lambda: os.terminal_size((columns, 24)))
    table = predict._as_table(trained, ["cat.png"], answer)
    widths = {predict._columns(line) for line in table.splitlines()}
    assert max(widths) <= columns
    assert ("…" in table) == (columns < 400)
    assert "pug" in table


def test_the_guesses_as_json(command, workdir, trained, root, images):
    """`--json`: the same with all digits, by file and level."""
    files = first_two(root)
    status, out, err = command("predict", f"--workdir={workdir}", "--json", *files)
    assert (status, err) == (0, "")
    found, answer = json.loads(out), trained(images[:2])
    assert found["alpha"] == ALPHA
    assert [image["file"] for image in found["images"]] == list(map(str, files))
    assert (found["decision"], found["threshold"]) == ("leaf", None)
    for i, image in enumerate(found["images"]):
        told = image["answer"]
        assert (told["class"], told["level"]) == (answer.name[i], "colour")
        assert told["probability"] == pytest.approx(answer.probability[i], abs=SUM)
        assert told["path"] == {level: answer.names[level][i] for level in HIERARCHY.levels}
        for kind in ("unadapted", "adapted"):
            for level, names in zip(HIERARCHY.levels, HIERARCHY.names, strict=True):
                p = getattr(answer, kind)[level][i]
                guesses = image[kind][level]
                got = [guess["probability"] for guess in guesses]
                np.testing.assert_allclose(got, np.sort(p)[::-1][:3], rtol=0, atol=SUM)
                best = [names[j] for j in np.argsort(-p, kind="stable")[:3]]
                assert [guess["class"] for guess in guesses] == best


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["predict", "a.png"], 2, "error: --workdir is missing"),
        (["predict", "WORK"], 2, "no image file is named; see python -m hiercls_jax predict"),
        (["predict", "WORK", "--out=x", "a.png"], 2, "Unknown command line flag 'out'"),
        (["predict", "WORK", "none.png"], 1, "there is no image file none.png"),
        (["predict", "WORK", "folder"], 1, "folder is a folder; name the image files in it, such"),
        (["predict", "WORK", "text.png"], 1, "text.png cannot be read as an image, PNG or JPEG"),
        (["export", "WORK"], 2, "error: --out is missing"),
        (["export", "WORK", "--out=x", "y"], 2, "Unknown command line flag 'y'; see"),
        (["export", "WORK", "--out=none/x"], 1, "none/x cannot be written: No such file"),
        (["export", "WORK", "--out=folder"], 1, "folder cannot be written: Is a directory"),
    ],
)
def test_mistakes_are_one_line(command, workdir, tmp_path, monkeypatch, arguments, status, message):
    """Each mistake ends with its status and one line about it, and leaves no file behind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder").mkdir()
    words = [f"--workdir={workdir}" if word == "WORK" else word for word in arguments]
    found, out, err = command(*words)
    assert (found, out) == (status, "")
    assert err.startswith("error: ")
    assert message in err
    assert len(err.splitlines()) == 1
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "text.png"]


def test_a_reader_that_has_seen_enough_is_no_error(command, workdir, root):
    """`predict | head` reports no broken pipe: `__main__` ends the command quietly."""
    with contextlib.redirect_stdout(small.ClosedPipe()), pytest.raises(BrokenPipeError):
        command("predict", f"--workdir={workdir}", *first_two(root))


@pytest.mark.parametrize("words", [["predict", "a.png"], ["export", "--out=model"]])
def test_ctrl_c_is_one_line(command, monkeypatch, words):
    """Ctrl-C ends either command with status 130 and what to do."""

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(predictor, "load", interrupt)
    said = "stopped; nothing was written, and the same command begins anew\n"
    assert command(*words, "--workdir=work") == (130, "", said)


@pytest.mark.parametrize(
    ("name", "flag_names"),
    [
        ("predict", ["--workdir", "--[no]json", "--decision", "--target_accuracy", "--alpha"]),
        ("export", ["--workdir", "--out", "--decision", "--confidence"]),
    ],
)
def test_help_has_an_example(command, name, flag_names):
    """`--help` shows how either command is called, and all its flags."""
    status, out, err = command(name, "--help")
    assert (status, err) == (0, "")
    assert f"python -m hiercls_jax {name} --workdir=runs/merge1-quick" in out
    for flag in flag_names:
        assert flag in out


ALONE = """
import sys
import types

sys.modules |= dict.fromkeys(["hiercls_jax", "flax", "orbax", "optax", "ml_collections"])  # refused
import numpy as np
from jax import export

program = export.deserialize(open("model.stablehlo", "rb").read())
assert program.platforms == ("cpu", "cuda", "tpu"), program.platforms
assert [str(aval) for aval in program.in_avals] == ["uint8[batch,8,8,3]"], program.in_avals
images = np.load("images.npy")
found = {}
for count in (1, 8, len(images)):
    outputs = program.call(images[:count])
    answer = outputs.pop("answer")
    for level, ids in answer.pop("path").items():
        found[f"path/{level}/{count}"] = ids
    for name, values in answer.items():
        found[f"answer/{name}/{count}"] = values
    for kind, levels in outputs.items():
        for level, p in levels.items():
            found[f"{kind}/{level}/{count}"] = p
np.savez("found.npz", **found)
"""


def test_an_exported_file_needs_jax_alone(command, workdir, trained, images, tmp_path, monkeypatch):
    """A process without this package gets the same numbers from it, for any number of images.

    The file does not contain the paths of the source files.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.stablehlo").write_text("of before")
    status, out, err = command("export", f"--workdir={workdir}", "--out=model.stablehlo")
    assert (status, err) == (0, "")
    assert "uint8 images [N, 8, 8, 3]" in out
    assert "'tone' [N, 2], 'colour' [N, 4], and to 'answer'; alpha = 0.70" in out
    assert [path.name for path in tmp_path.iterdir()] == ["model.stablehlo"]
    assert b".py" not in (tmp_path / "model.stablehlo").read_bytes()
    np.save("images.npy", images)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", ALONE], check=True, timeout=120, env=environment)
    answer = trained(images)
    leaf = answer.adapted["colour"].argmax(axis=1)
    told = {"level": np.ones(TEST), "class": leaf, "probability": answer.probability}
    path = dict(zip(HIERARCHY.levels, HIERARCHY.labels(leaf), strict=True))
    every = answer._asdict() | {"path": path, "answer": told}
    with np.load("found.npz") as found:
        assert len(found.files) == (2 * 2 + 2 + 3) * 3
        for key in found.files:
            kind, level, count = key.split("/")
            wanted = every[kind][level][: int(count)]
            np.testing.assert_allclose(found[key], wanted, rtol=0, atol=SUM)


def test_a_failed_export_leaves_what_was_there(trained, tmp_path, monkeypatch):
    """If the disk is full at the end, the older file stays, and nothing beside it."""

    def fail(*_):
        raise OSError(28, "No space left on device")

    (tmp_path / "model").write_text("of before")
    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(UserError, match="model cannot be written: No space left on device"):
        trained.export(tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (tmp_path / "model").read_text() == "of before"


def test_the_package_stays_light():
    """`import hiercls_jax` imports neither JAX nor Flax nor Orbax; `load` does when it is used."""
    code = """
import sys, hiercls_jax
heavy = {"jax", "flax", "orbax", "optax", "PIL", "ml_collections"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
assert "hiercls_jax.experiment.predictor" not in sys.modules
assert not hasattr(hiercls_jax, "loda")
"""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, cwd=root)
    assert hiercls_jax.load is predictor.load
