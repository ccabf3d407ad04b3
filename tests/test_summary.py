"""`summary.npz` holds what a comparison needs of the runs' predictions, and nothing else."""

import dataclasses
import json

import numpy as np
import pytest
from made_up_runs import made_up

from hiercls_jax.adaptation.adjust import adjust
from hiercls_jax.errors import UserError
from hiercls_jax.evaluation.evaluate import evaluate
from hiercls_jax.hierarchy import cifar100
from hiercls_jax.metrics import child_sums
from hiercls_jax.study import ensembles, summary
from hiercls_jax.study.summary import METHODS, Summary

CIFAR = cifar100()
ALPHAS = summary.alpha_grid(CIFAR)
COSTS = {name: [7.0, 8.0, 9.0] for name in summary.COSTS}


@pytest.fixture(scope="module")
def runs():
    """Three seeds' predictions of 120 validation and 150 test images."""
    return {
        seed: {
            "validation": made_up(CIFAR, 120, seed, data=1),
            "test": made_up(CIFAR, 150, seed, data=0),
        }
        for seed in (2, 0, 1)
    }


@pytest.fixture(scope="module")
def cell(runs):
    return summary.summarise("resnet20", "merge1", runs, CIFAR, {"train.epochs": 8}, COSTS)


@pytest.fixture(scope="module")
def cell_without_validation(runs):
    tests = {seed: {"test": splits["test"]} for seed, splits in runs.items()}
    return summary.summarise("resnet20", "merge1", tests, CIFAR, {}, COSTS)


@pytest.fixture(scope="module")
def whole(runs, cell):
    labels = runs[0]["test"].labels["fine"]
    return Summary(CIFAR, labels, ALPHAS, {("resnet20", "merge1"): cell})


def test_single_networks_have_the_errors_of_their_own_reports(runs, cell):
    """Seed by seed, at alpha 0, 1 and 2; the tuned alpha is that of the report to two decimals."""
    assert cell.seeds == (0, 1, 2)
    for row, seed in enumerate(cell.seeds):
        results = evaluate(runs[seed], CIFAR)
        assert ALPHAS[cell.tuned["averaged"][1][row]] == pytest.approx(
            results["alpha"], abs=0.00501
        )
        for alpha in (0, 1, 2):
            wrong = cell.wrong["averaged"][1][row, :, round(alpha / summary.STEP)]
            expected = results["test_error"][f"alpha={alpha}"].values()
            assert (wrong / 150).tolist() == list(expected)


def test_validation_errors_are_those_of_single_networks(runs, cell):
    """Seed by seed, at alpha 0, 1 and 2, they are those of the reports."""
    for row, seed in enumerate(cell.seeds):
        errors = evaluate(runs[seed], CIFAR)["validation_error"]
        for alpha in (0, 1, 2):
            wrong = cell.validation[row, :, round(alpha / summary.STEP)]
            assert (wrong / 120).tolist() == list(errors[f"alpha={alpha}"].values())


def test_every_ensemble_of_each_size_is_counted(cell):
    """Three of one, three of two, none of four; the counts follow from the images' alphas."""
    assert {size: len(a) for size, a in cell.right.items()} == {1: 3, 2: 3}
    for size, right in cell.right.items():
        assert right.shape == (len(right), 2, 150, 2)
        counts = ensembles.wrong_counts(right, len(ALPHAS))
        np.testing.assert_array_equal(counts, cell.wrong["averaged"][size])


def test_methods_differ_as_they_should(cell):
    """Adapted first is the same for one network; for two, only the coarse level is the same."""
    averaged, first = cell.wrong["averaged"], cell.wrong["adapted_first"]
    np.testing.assert_array_equal(averaged[1], first[1])
    assert np.abs(averaged[2][:, 0] - first[2][:, 0]).max() <= 1  # float32 rounding
    np.testing.assert_array_equal(averaged[2][..., 0], first[2][..., 0])  # alpha 0 adapts nothing
    assert (averaged[2] != first[2]).any()
    calibrated = cell.wrong["calibrated"]
    np.testing.assert_array_equal(averaged[1][..., 0], calibrated[1][..., 0])  # argmax stays
    assert (averaged[1] != calibrated[1]).any()


def test_without_validation_alpha_is_1_and_nothing_is_calibrated(cell_without_validation):
    """As in the paper's own comparison."""
    cell = cell_without_validation
    assert (ALPHAS[cell.tuned["averaged"][2]] == 1).all()
    assert cell.validation.shape == (0, 2, len(ALPHAS))
    assert "calibrated" not in cell.wrong


def test_the_control_is_adaptation_under_shuffled_groups(runs, cell):
    """The true groups first, then random ones of the same sizes; compared with a direct count."""
    assert cell.control.shape == (3, 1 + summary.SHUFFLES, 2, len(ALPHAS))
    mine, other = runs[2]["test"], runs[0]["test"]  # of the last seed, the first is the next
    orders = [np.arange(100), np.random.default_rng(0).permutation(100)]
    for i, order in enumerate(orders):
        group_of = np.empty(100, int)
        group_of[order] = CIFAR.parents[-1]  # class order[k] is in the group that k was in
        coarse = child_sums(other.probs["fine"], group_of)
        p_coarse, p_fine = adjust(coarse.astype(np.float32), mine.probs["fine"], group_of, 1.0)
        y = mine.labels["fine"]
        wrong = [(np.argmax(p_coarse, 1) != group_of[y]).sum(), (np.argmax(p_fine, 1) != y).sum()]
        np.testing.assert_allclose(cell.control[2, i, :, 100], wrong, atol=1)  # equal scores
    # At alpha 0 no group matters to the fine level.
    assert len(np.unique(cell.control[0, :, 1, 0])) == 1


def test_the_points_are_those_of_the_first_seed(runs, cell):
    """P and Q, each rounded to a 255th."""
    test = runs[0]["test"]
    q = child_sums(test.probs["fine"], CIFAR.parents[-1])
    np.testing.assert_allclose(cell.points[..., 0] / 255, test.probs["coarse"], atol=0.002)
    np.testing.assert_allclose(cell.points[..., 1] / 255, q, atol=0.002)


def test_a_summary_is_read_as_it_was_written(whole, tmp_path):
    """Every array and name is the same, and writing it again gives the same bytes."""
    summary.save(tmp_path / "a.npz", whole)
    found = summary.load(tmp_path / "a.npz")
    assert found.hierarchy == CIFAR
    np.testing.assert_array_equal(found.labels, whole.labels)
    np.testing.assert_array_equal(found.alphas, ALPHAS)
    before, after = whole.cells["resnet20", "merge1"], found.cells["resnet20", "merge1"]
    for field in dataclasses.fields(before):
        _same(getattr(before, field.name), getattr(after, field.name))
    summary.save(tmp_path / "b.npz", found)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def _same(before, after):
    if isinstance(before, dict):
        assert before.keys() == after.keys()
        for key, value in before.items():
            _same(value, after[key])
    else:
        np.testing.assert_array_equal(before, after)


def test_methods_survive_the_file(runs, cell_without_validation, tmp_path):
    """A cell without calibration is read without it."""
    cell = cell_without_validation
    labels = runs[0]["test"].labels["fine"]
    summary.save(tmp_path / "a.npz", Summary(CIFAR, labels, ALPHAS, {("resnet20", "merge1"): cell}))
    found = summary.load(tmp_path / "a.npz").cells["resnet20", "merge1"]
    assert set(found.wrong) == set(METHODS) - {"calibrated"}


@pytest.mark.parametrize("damage", ["missing", "cut", "no zip", "format"])
def test_a_damaged_summary_is_refused_by_name(whole, tmp_path, damage):
    """One error names the file."""
    path = tmp_path / "summary.npz"
    summary.save(path, whole)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    elif damage == "no zip":
        path.write_bytes(b"no zip")
    else:
        with np.load(path) as file:
            arrays = dict(file)
        meta = json.loads(str(arrays["meta"])) | {"format": 99}
        np.savez(path, **arrays | {"meta": np.array(json.dumps(meta))})
    with pytest.raises(UserError, match=r"summary\.npz cannot be read as a summary"):
        summary.load(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("labels", lambda a: a[:-1]),
        ("labels", lambda a: a + 50),
        ("labels", lambda a: a.astype(float)),
        ("alphas", lambda a: a[:-1]),
        ("resnet20/merge1/right/2", lambda a: a[:2]),
        ("resnet20/merge1/right/1", lambda a: np.full_like(a, 255)),
        ("resnet20/merge1/wrong/averaged/2", lambda a: a[..., 1:]),
        ("resnet20/merge1/wrong/calibrated/1", lambda a: a[:, :1]),
        ("resnet20/merge1/tuned/adapted_first/1", lambda a: np.full_like(a, 201)),
        ("resnet20/merge1/validation", lambda a: a[:2]),
        ("resnet20/merge1/control", lambda a: a[:, :5]),
        ("resnet20/merge1/points", lambda a: a[:, 1:]),
        ("resnet20/merge1/costs/training", lambda a: a * np.nan),
        ("resnet20/merge1/costs/epochs", lambda a: a[:1]),
        ("resnet20/merge1/tuned/averaged/1", None),
        ("meta", lambda a: np.array(str(a).replace('"merge1"', '"../../merge1"'))),
        ("meta", lambda a: np.array(str(a).replace('"resnet20"', '"../resnet20"'))),
        ("labels", lambda a: np.array([object()])),
    ],
)
def test_arrays_of_other_shapes_or_values_are_refused(whole, tmp_path, name, change):
    """One error, before anything is computed from them; nothing is unpickled."""
    path = tmp_path / "summary.npz"
    summary.save(path, whole)
    with np.load(path) as file:
        arrays = dict(file)
    before = arrays.pop(name)
    if change is not None:
        arrays[name] = change(before)
    np.savez(path, **arrays)
    with pytest.raises(UserError, match=r"summary\.npz cannot be read as a summary"):
        summary.load(path)


def test_parts_are_merged_cell_by_cell(whole, cell):
    """Other cells are added; the same cell twice, and other test images, are refused."""
    other = dataclasses.replace(cell, variant="merge2")
    part = dataclasses.replace(whole, cells={("resnet20", "merge2"): other})
    merged = summary.merge([whole, part])
    assert list(merged.cells) == [("resnet20", "merge1"), ("resnet20", "merge2")]
    with pytest.raises(UserError, match="resnet20 merge1 is there twice"):
        summary.merge([whole, whole])
    with pytest.raises(UserError, match="different hierarchies or test images"):
        summary.merge([whole, dataclasses.replace(part, labels=part.labels[::-1])])
