"""Configs: their defaults, how arguments compose, and which values are rejected."""

import dataclasses
import json
import runpy
from pathlib import Path

import jax
import numpy as np
import pytest
import small

from hiercls_jax import experiment
from hiercls_jax.data import cifar100, embedded
from hiercls_jax.data.dataset import Split
from hiercls_jax.errors import UserError
from hiercls_jax.experiment import (
    ConfigError,
    check,
    check_devices,
    compose,
    flatten,
    identity,
    named_config,
    unflatten,
)
from hiercls_jax.hierarchy import cifar100 as cifar100_hierarchy
from hiercls_jax.models import registry
from hiercls_jax.models.variants import VARIANTS

CONFIGS = Path(__file__).parents[1] / "configs"
RESNET = {
    "schedule": "step", "learning_rate": 0.1, "decay_at": [0.5, 0.75], "decay_factor": 0.1,
    "warmup_steps": 400, "warmup_learning_rate": 0.01, "momentum": 0.9, "nesterov": False,
    "weight_decay": 1e-4, "peak_at": None, "muon_learning_rate": None, "muon_momentum": 0.6,
    "muon_steps": 3, "lookahead": None,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _toy(monkeypatch):
    monkeypatch.setitem(registry._FAMILIES, "toy", small.Toy)


def changed(config, **fields):
    """The config with `data__dir=…` set at `data.dir`."""
    with config.unlocked():
        for path, value in fields.items():
            *parents, name = path.split("__")
            target = config
            for parent in parents:
                target = target[parent]
            target[name] = value
    return config


@pytest.mark.parametrize("name", VARIANTS)
def test_each_config_file_is_the_paper_s_experiment(name):
    """Without arguments: ResNet-164, CIFAR-100, 164 epochs of batch 128, He et al.'s recipe."""
    config = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]()
    check(config)
    flat = flatten(config)
    expected = {
        "variant": name, "model.arch": "resnet164", "model.width": 1.0, "model.stem_stride": 1,
        "data.dataset": "cifar100", "train.epochs": 164, "train.batch": 128,
        "workdir": f"runs/{name}", "seed": 0, "data.augment": True, "data.final": False,
        "data.validation": 0.1, "train.loss_weights": None,
    }  # fmt: skip
    assert expected.items() <= flat.items()
    assert {key: flat[f"optimizer.{key}"] for key in config.optimizer} == RESNET


def test_what_a_run_recorded_is_its_config():
    """`unflatten` undoes `flatten`, through JSON too, in which tuples are lists."""
    flat = flatten(compose("merge1", "cpu,seed=3")) | {"optimizer.decay_at": [0.5, 0.75]}
    found = unflatten(json.loads(json.dumps(flat)))
    assert flatten(found) == flat
    assert (found.model.arch, found.data.dir, found.seed) == ("resnet20", None, 3)


def test_a_record_of_an_older_version_is_complete():
    """Fields that older runs did not record have the values that they used."""
    flat = flatten(compose("merge1", "quick"))
    used = {
        "dtype": "float32", "adapt.rule": "kl", "data.reflect": False, "data.mirror_mean": False,
        "train.label_smoothing": 0.0, "train.parts": 1, "train.sizes": [],
        "data.alternate_mirror": False, "optimizer.muon_learning_rate": None,
        "optimizer.muon_momentum": 0.6, "optimizer.muon_steps": 3, "optimizer.lookahead": None,
        "optimizer.decay_at": None, "optimizer.decay_factor": 0.1, "optimizer.warmup_steps": 0,
        "optimizer.warmup_learning_rate": 0.01,
    }  # fmt: skip
    older = {key: value for key, value in flat.items() if key not in used}
    assert flatten(unflatten(older)) == flat
    assert used.items() <= flat.items()


@pytest.mark.parametrize("name", VARIANTS)
def test_a_named_config_is_that_of_the_file(name):
    """`merge1:quick` is `configs/merge1.py:quick`, and `merge1` is `configs/merge1.py`."""
    from_file = runpy.run_path(str(CONFIGS / f"{name}.py"))["get_config"]
    assert flatten(named_config(name)) == flatten(from_file())
    assert flatten(named_config(f"{name}:quick,seed=3")) == flatten(from_file("quick,seed=3"))


@pytest.mark.parametrize("text", ["merge9", "configs/merge1.py", ":quick", "merge1 :quick"])
def test_an_unknown_name_is_refused(text):
    """The error lists the known names, and says how to give a file."""
    message = "there is no config '.*'; allowed are separate, merge0.*--config=FILE"
    with pytest.raises(ConfigError, match=message):
        named_config(text)


def test_there_is_a_config_file_for_each_variant():
    """configs/ has a file for each variant, the grid's file, and no other."""
    assert {path.stem for path in CONFIGS.glob("*.py")} == {*VARIANTS, "grid"}


def test_arguments_compose():
    """Arguments set their fields, and nothing else but the workdir, which names them."""
    config = compose("merge2", "arch=resnet20, seed=3,epochs=7,batch=64,dataset=embedded")
    before, after = flatten(compose("merge2")), flatten(config)
    differing = {key: after[key] for key in after if after[key] != before[key]}
    assert differing == {
        "model.arch": "resnet20", "seed": 3, "train.epochs": 7, "train.batch": 64,
        "data.dataset": "embedded",
        "workdir": "runs/merge2-arch-resnet20-seed-3-epochs-7-batch-64-dataset-embedded",
    }  # fmt: skip
    check(config)


def test_the_quick_preset():
    """`quick` is a small network on the embedded data, in one learning-rate cycle."""
    config = compose("merge1", "quick")
    check(config)
    expected = {
        "variant": "merge1", "model.arch": "resnet11", "model.stem_stride": 2,
        "data.dataset": "embedded", "optimizer.schedule": "onecycle",
        "workdir": "runs/merge1-quick",
    }  # fmt: skip
    assert expected.items() <= flatten(config).items()
    assert config.train.epochs <= 10
    assert config.optimizer.decay_at is None


def test_arguments_win_over_presets():
    """Arguments change a preset's fields in any order; its options stay if the arch has them."""
    for arguments in ("quick,epochs=1,seed=2", "seed=2,epochs=1,quick"):
        config = compose("merge1", arguments)
        assert (config.train.epochs, config.seed, config.train.batch) == (1, 2, 100)
    config = compose("merge1", "quick,arch=resnet20")
    assert (config.model.arch, config.model.stem_stride) == ("resnet20", 2)
    check(config)


def test_densenet_gets_its_own_recipe():
    """DenseNet-BC-100 trains as in Huang et al.: Nesterov, batch 64, 300 epochs, no warm-up."""
    config = compose("merge1", "arch=densenet100")
    check(config)
    expected = {
        "model.arch": "densenet100", "model.growth": 12, "model.compression": 0.5,
        "train.epochs": 300, "train.batch": 64, "optimizer.nesterov": True,
        "optimizer.warmup_steps": 0, "optimizer.learning_rate": 0.1,
        "optimizer.decay_at": [0.5, 0.75], "optimizer.weight_decay": 1e-4,
    }  # fmt: skip
    assert expected.items() <= flatten(config).items()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "quik",
            "unknown config argument 'quik'; allowed are quick, cpu, fast, and arch=…, dataset=…",
        ),
        ("lr=0.1", "'lr=0.1'; allowed are.*any other field is set by --config.<field>=…"),
        ("quick=1", "unknown config argument 'quick=1'"),
        ("arch", "unknown config argument 'arch'"),
        ("quick,cpu", "'quick,cpu' names two presets; choose one"),
        ("quick,quick", "names two presets"),
        ("seed=x", "config argument 'seed=x': seed is an integer"),
        ("epochs=1.5", "epochs is an integer"),
        ("batch=", "batch is an integer"),
        ("arch=vgg16", "unknown arch 'vgg16'.*families: resnet, densenet"),
        ("arch=", "unknown arch ''"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    """Unknown words, two presets, values that are not integers: errors say what is allowed."""
    with pytest.raises(UserError, match=message):
        compose("merge1", arguments)


def test_a_config_is_locked():
    """A misspelt field is an error that names the field that was meant."""
    with pytest.raises(AttributeError, match="Did you mean.*epochs"):
        compose("merge1").train.epoch = 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"variant": "merge4"}, "variant must be one of separate, merge0, .*, not 'merge4'"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16, not 'float16'"),
        ({"model__arch": "resnet12"}, r"resnet12: .* depth 9n \+ 2"),
        ({"model__arch": "vgg16"}, "unknown arch 'vgg16'"),
        ({"model__growth": 3}, "resnet164 has no option 'growth'; it has width, stem_stride"),
        ({"model__width": 0.0}, "width is a positive multiplier, not 0.0"),
        ({"model__width": float("nan")}, "width is a positive multiplier, not nan"),
        ({"model__stem_stride": 0}, "stem_stride is at least 1, not 0"),
        ({"data__dataset": "cifar10"}, "data.dataset 'cifar10' is not one of embedded, cifar100"),
        ({"data__dataset": "embedded:x"}, "'embedded:x' is not one of"),
        ({"data__dataset": "tfds"}, "'tfds' is not one of.*tfds:NAME"),
        ({"data__dataset": "tfds:"}, "'tfds:' is not one of.*tfds:NAME"),
        ({"data__dataset": "tfds:mnist"}, "needs a hierarchy: a JSON file, or a CSV"),
        ({"data__dataset": "folder"}, "needs a hierarchy: a JSON file, or a CSV"),
        ({"data__dataset": "folder", "data__hierarchy": "x.csv"}, "needs --config.data.dir"),
        (
            {"data__dataset": "folder", "data__hierarchy": "x.csv", "data__dir": "x"},
            "--config.data.image_size",
        ),
        (
            {"data__dataset": "tfds:x", "data__hierarchy": "x.csv", "data__image_size": -1},
            "data.image_size must be at least 1 .*, not -1",
        ),
        ({"data__image_size": 64}, "cifar100 is 32x32; data.image_size=64"),
        ({"data__dataset": "embedded", "data__dir": "x"}, "it has no data.dir"),
        ({"train__epochs": 0}, "train.epochs must be at least 1 .*, not 0"),
        ({"train__batch": -1}, "train.batch must be at least 1 .*, not -1"),
        ({"run__log_every": 0}, "run.log_every must be at least 1"),
        ({"run__cpu_devices": 0}, "run.cpu_devices must be at least 1"),
        ({"run__save_minutes": 0.0}, "run.save_minutes must be above 0"),
        ({"run__streaming": True}, "run.streaming is for data.dataset=folder"),
        ({"seed": -1}, r"seed must be an integer from 0 to 2\*\*32 - 1, not -1"),
        ({"seed": 2**32}, r"seed must be an integer from 0 to 2\*\*32 - 1"),
        ({"data__validation_seed": -1}, "data.validation_seed must be an integer from 0"),
        ({"data__validation": 0.0}, "between 0 and 1, not 0.0; to hold nothing out.*final=True"),
        ({"data__validation": 1.0}, "between 0 and 1, not 1.0"),
        (
            {"train__loss_weights": (1.0, -1.0)},
            r"must be numbers of at least 0, .*, not \(1.0, -1.0\)",
        ),
        ({"train__loss_weights": ("a", "b")}, "numbers of at least 0"),
        ({"train__loss_weights": (1.0, float("nan"))}, "numbers of at least 0"),
        (
            {"optimizer__schedule": "cosine"},
            "optimizer.schedule must be one of step, onecycle, linear, not 'cosine'",
        ),
        (
            {"optimizer__schedule": "onecycle"},
            "onecycle needs optimizer.peak_at, which is not set; set --config.optimizer.peak_at=0",
        ),
        ({"optimizer__learning_rate": 0.0}, "optimizer.learning_rate must be above 0 .*, not 0.0"),
        (
            {"optimizer__learning_rate": float("nan")},
            "optimizer.learning_rate must be above 0 .*, not nan",
        ),
        ({"optimizer__learning_rate": 1e39}, "above 0 and finite in float32, not 1e.39"),
        (
            {"optimizer__warmup_learning_rate": float("nan")},
            "warmup_learning_rate must be at least 0",
        ),
        ({"optimizer__warmup_steps": -1}, "warmup_steps must be at least 0 and below"),
        ({"optimizer__momentum": 1.0}, "momentum must be at least 0 and below 1, not 1.0"),
        (
            {"optimizer__weight_decay": float("inf")},
            "weight_decay must be at least 0 and finite in float32, not inf",
        ),
        ({"optimizer__decay_factor": -1.0}, "decay_factor must be at least 0 .*, not -1.0"),
        ({"optimizer__decay_at": ("a",)}, r"decay_at must be a tuple of fractions.*, not \('a',\)"),
        ({"optimizer__decay_at": (0.5, 1.5)}, r"each from 0 to 1, not \(0.5, 1.5\)"),
        ({"train__parts": 0}, "train.parts must be at least 1"),
        ({"train__label_smoothing": 1.0}, "label_smoothing must be at least 0 and below 1, not 1"),
        ({"optimizer__muon_learning_rate": 0.0}, "muon_learning_rate must be above 0 .*, not 0.0"),
        ({"optimizer__muon_momentum": 1.0}, "muon_momentum must be at least 0 and below 1"),
        ({"optimizer__muon_steps": 0}, "muon_steps must be from 1 to 20, not 0"),
        ({"optimizer__lookahead": 0}, "lookahead must be at least 1 .*, not 0"),
        ({"train__sizes": (20, 0.4)}, r"sizes must be pairs \(pixels, fraction .*not \(20, 0.4\)"),
        ({"train__sizes": ((0, 0.4),)}, r"sizes must be pairs .*not \(\(0, 0.4\),\)"),
        ({"train__sizes": ((20.5, 0.4),)}, "sizes must be pairs .*not"),
        ({"train__sizes": ((20, 1.0),)}, "increasing and below 1.*not"),
        ({"train__sizes": ((20, 0.4), (24, 0.4))}, "increasing and below 1.*not"),
        ({"train__epochs": 2**31}, r"below 2\*\*31, not 2147483648"),
        ({"train__loss_weights": (1.0, 1e39)}, "numbers of at least 0"),
        ({"run__save_minutes": float("nan")}, "run.save_minutes must be above 0, not nan"),
        ({"adapt__rule": "magic"}, "adapt.rule must be one of kl, bottom_up, .*, not 'magic'"),
        ({"model__width": 1e300}, "width is a positive multiplier, not 1e.300; at most 1000"),
        ({"model__stem_stride": 2**31}, "stem_stride is at least 1, not 2147483648; at most"),
    ],
)
def test_wrong_fields_are_refused(fields, message):
    """A wrong value is rejected; the error names the field, the value and what is allowed."""
    with pytest.raises(UserError, match=message):
        check(changed(compose("merge1"), **fields))


@pytest.mark.parametrize("value", [0.0, 1.0, float("nan")])
def test_a_cycle_has_its_peak_inside(value):
    """The peak of the learning rate lies between the first step and the last."""
    with pytest.raises(
        ConfigError, match=f"peak_at must be a fraction .*between 0 and 1, not {value}"
    ):
        check(changed(compose("merge1", "quick"), optimizer__peak_at=value))


def test_good_fields_are_not_refused():
    """An image folder, a TFDS set, weights and CIFAR-100's own size pass the check."""
    for fields in (
        {"data__dataset": "folder", "data__hierarchy": "x.csv", "data__dir": "x",
         "data__image_size": 16},
        {"data__dataset": "tfds:mnist", "data__hierarchy": "x.csv"},
        {"train__loss_weights": (1, 0.5), "data__image_size": 32},
    ):  # fmt: skip
        assert check(changed(compose("merge1"), **fields)) is None


def test_a_batch_that_the_devices_do_not_divide_is_refused():
    """128 images can be divided among 4 devices, but not among 3."""
    config = compose("merge1")
    assert check_devices(config, 4) is None
    with pytest.raises(ConfigError, match="batch=128 cannot be divided among 3.*multiples of 3"):
        check_devices(config, 3)
    parts = changed(config, train__parts=64)
    assert check_devices(parts, 2) is None
    with pytest.raises(ConfigError, match="among 4 devices in train.parts=64 each; .* of 256, or"):
        check_devices(parts, 4)


def test_a_family_s_recipe_has_parts_for_its_own_batch():
    """The fast family brings its whole recipe; with another batch it is not divided into parts."""
    config = compose("merge2", "arch=fast11")
    check(config)
    check_devices(config, 2)
    assert (config.train.batch, config.train.parts, config.train.label_smoothing) == (1024, 8, 0.25)
    assert (config.data.reflect, config.data.mirror_mean) == (True, True)
    assert (config.data.alternate_mirror, config.train.sizes) == (True, ((20, 0.4),))
    assert (config.optimizer.schedule, config.optimizer.muon_learning_rate) == ("linear", 0.18)
    assert compose("merge2", "arch=fast11,batch=100").train.parts == 1
    assert compose("merge2", "quick,arch=fast11").train.parts == 1


def test_the_fast_preset_is_the_family_on_cifar100():
    """`fast` names the family's network and data set; `width` changes the network alone."""
    fast, narrow = compose("merge2", "fast"), compose("merge2", "fast,width=0.5")
    check(narrow)
    assert (fast.model.arch, fast.data.dataset, fast.model.width) == ("fast11", "cifar100", 1.0)
    assert flatten(narrow) == flatten(fast) | {
        "model.width": 0.5, "workdir": "runs/merge2-fast-width-0.5",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="toy4 has no width; it has no options"):
        compose("merge2", "arch=toy4,width=0.5")
    with pytest.raises(ConfigError, match="'width=wide': width is a number"):
        compose("merge2", "fast,width=wide")


def test_every_family_can_use_every_field_of_the_recipe():
    """ResNet with Muon, lookahead and a linear schedule passes the check; so does `step` for Fast.

    Images that are too small for the architecture are refused.
    """
    fields = {
        "optimizer__muon_learning_rate": 0.1, "optimizer__lookahead": 5,
        "optimizer__schedule": "linear", "optimizer__peak_at": 0.2, "train__sizes": [[8, 0.5]],
        "data__alternate_mirror": True,
    }  # fmt: skip
    check(changed(compose("merge1"), **fields))
    by_steps = {"optimizer__schedule": "step", "optimizer__decay_at": (0.5,)}
    check(changed(compose("merge1", "fast"), **by_steps))
    with pytest.raises(ConfigError, match="of 12 pixels; fast11 needs at least 13"):
        check(changed(compose("merge1", "fast"), train__sizes=((20, 0.2), (12, 0.4))))


def test_identity_ignores_where_and_how():
    """Only the workdir, the data folder and the `run` part may change when a run resumes."""
    config = compose("merge1", "quick")
    before = identity(config)
    same = changed(compose("merge1", "quick"), workdir="x", run__log_every=3, run__cpu_devices=1,
                   run__save_minutes=0.5, data__dir="y")  # fmt: skip
    assert identity(same) == before
    assert before.items() <= flatten(config).items()
    assert set(flatten(config)) - set(before) == {
        "workdir", "data.dir", "run.cpu_devices", "run.log_every", "run.save_minutes",
        "run.streaming",
    }  # fmt: skip


@pytest.fixture
def tiny(monkeypatch) -> Split:
    """Replace the embedded set and CIFAR-100 by 400 images of 100 classes; each holds its index."""
    index = np.arange(400)
    images = np.zeros((400, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = index % 256, index // 256
    train = Split(images, (index % 100).astype(np.int32))
    splits = {"train": train, "test": train.take(index[:100])}
    monkeypatch.setattr(embedded, "load", lambda: splits)
    monkeypatch.setattr(cifar100, "load", lambda data_dir: splits)
    return train


def indices(split: Split) -> list[int]:
    return (split.images[:, 0, 0, :2] @ np.array([1, 256])).tolist()


def test_validation_is_the_same_for_every_seed(tiny):
    """The stratified validation share depends on data.validation_seed, not on the seed."""
    configs = [
        changed(compose("merge1", "quick,batch=8"), data__validation=0.25, **fields)
        for fields in ({}, {"seed": 5}, {"data__validation_seed": 5})
    ]
    data = [experiment.load_data(config) for config in configs]
    assert (data[0].name, data[0].hierarchy) == ("embedded", embedded.hierarchy())
    assert np.bincount(data[0].validation.labels).tolist() == [1] * 100
    held = [indices(d.validation) for d in data]
    assert held[0] == held[1] != held[2]
    assert sorted(indices(data[0].train) + held[0]) == list(range(400))


def test_final_holds_nothing_out(tiny):
    """`data.final=True` trains on every image, as the paper did."""
    data = experiment.load_data(changed(compose("merge1", "quick"), data__final=True))
    assert data.validation is None
    assert indices(data.train) == list(range(400))


def test_a_batch_larger_than_the_data_is_refused(tiny):
    """No step would be possible; the error says which batches are, and how to set one."""
    config = changed(compose("merge1", "batch=512"), data__final=True)
    message = (
        "train.batch=512 is more than the 400 training images; allowed are 1 to 400, by batch="
    )
    with pytest.raises(ConfigError, match=message):
        experiment.load_data(config)


def test_networks_of_a_variant(tiny):
    """A merged variant is one network in the workdir; separate networks share nothing."""
    config = changed(compose("merge2", "quick,arch=toy4"), data__final=True, workdir="w")
    data = experiment.load_data(config)
    (merged,) = experiment.networks(config, data, "axis")
    assert (merged.name, merged.folder) == ("merge2", Path("w"))
    assert merged.task.network.merge == 2
    assert merged.task.weights == {"coarse": 1.0, "fine": 1.0}
    assert merged.schedule.seed == (0, 0)
    coarse, fine = experiment.networks(changed(config, variant="separate"), data, "axis")
    assert (coarse.name, fine.name) == ("coarse", "fine")
    assert (coarse.folder, fine.folder) == (Path("w/coarse"), Path("w/fine"))
    assert [network.task.network.heads for network in (coarse, fine)] == [
        (("coarse", 20),), (("fine", 100),)
    ]  # fmt: skip
    np.testing.assert_array_equal(coarse.task.ancestors["coarse"], np.arange(100) // 5)
    keys = [k for network in (coarse, fine) for k in (network.key, network.task.key)]
    assert len({str(jax.random.key_data(key)) for key in keys}) == 4
    assert coarse.schedule.seed != fine.schedule.seed


def test_loss_weights_are_one_per_level(tiny):
    """Weights belong to the levels in order; another number of weights is rejected."""
    config = changed(compose("merge1", "quick,arch=toy4"), train__loss_weights=(0.5, 2))
    data = experiment.load_data(config)
    (network,) = experiment.networks(config, data, None)
    assert network.task.weights == {"coarse": 0.5, "fine": 2.0}
    with pytest.raises(ConfigError, match=r"needs 2 numbers, one for each of coarse, fine; got"):
        experiment.networks(changed(config, train__loss_weights=(1.0,)), data, None)


def test_wrong_hierarchies_are_refused(tiny, tmp_path):
    """A hierarchy file is rejected if its size is not the data set's, or if it has one level."""
    small.HIERARCHY.to_json(tmp_path / "small.json")
    config = changed(compose("merge1", "quick"), data__hierarchy=str(tmp_path / "small.json"))
    with pytest.raises(ConfigError, match="small.json has 4 classes.*embedded has 100"):
        experiment.load_data(config)
    config = changed(compose("merge1"), data__hierarchy=str(tmp_path / "small.json"))
    with pytest.raises(ConfigError, match="small.json has 4 classes.*cifar100 has 100"):
        experiment.load_data(config)
    dataclasses.replace(
        small.HIERARCHY, levels=("fine",), names=small.HIERARCHY.names[1:], parents=()
    ).to_json(tmp_path / "flat.json")
    config = changed(compose("merge1", "quick"), data__hierarchy=str(tmp_path / "flat.json"))
    with pytest.raises(ConfigError, match="one level has nothing to merge or adapt"):
        experiment.load_data(config)


def test_a_rule_that_cannot_adapt_the_hierarchy_is_refused(tiny, tmp_path):
    """`euclidean_projection` takes two levels; three are rejected before images are read."""
    one = cifar100_hierarchy()
    three = dataclasses.replace(
        one,
        levels=("all", *one.levels),
        names=(("living", "made"), *one.names),
        parents=([int(i > 9) for i in range(20)], *one.parents),
    )
    three.to_json(tmp_path / "three.json")
    fields = {"data__hierarchy": str(tmp_path / "three.json"), "data__final": True}
    config = changed(compose("merge1", "quick"), adapt__rule="euclidean_projection", **fields)
    with pytest.raises(ConfigError, match="adapt.rule=euclidean_projection: .*two levels"):
        experiment.load_data(config)
    config = changed(compose("merge1", "quick"), adapt__rule="top_down", **fields)
    assert experiment.load_data(config).hierarchy == three


def test_a_ragged_hierarchy_is_not_trained_on(tiny, tmp_path):
    """Leaves above the last level are rejected before images are read, with advice."""
    text = '{"levels": ["a", "b"], "names": [["x", "y"], ["z"]], "parents": [[0]], "ragged": true}'
    (tmp_path / "ragged.json").write_text(text)
    config = changed(compose("merge1", "quick"), data__hierarchy=str(tmp_path / "ragged.json"))
    with pytest.raises(ConfigError, match=r"ragged.json has leaves above its last level.*only chi"):
        experiment.load_hierarchy(config)
