"""Tests of the scikit-learn estimator: its own properties, scikit-learn's checks, the example."""

import inspect
import runpy
from pathlib import Path

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils import estimator_checks
from trees import closed_form, draw_tree, marginals, to_marginals, trees

from hiercls_jax import Hierarchy
from hiercls_jax.adaptation.answers import DECISIONS
from hiercls_jax.adaptation.estimator import HierarchyAdjuster
from hiercls_jax.adaptation.float64 import enable_x64
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.tree import largest_alpha

EXAMPLE = Path(__file__).parents[1] / "examples" / "digits_svm.py"
PETS = Hierarchy(
    ("kind", "animal"), (("cat", "dog"), ("lynx", "pug", "lion", "corgi")), ((0, 1, 0, 1),)
)
# The dog is a leaf of the first level.
RAGGED = Hierarchy(("kind", "animal"), (("cat", "dog"), ("lynx", "lion")), ((0, 0),), True)
# A few roundings of float64 numbers up to 1.
CLOSE = 1e-14


def to_probabilities(X):
    """Turn rows of any width into softmaxes over the two levels of PETS, row by row."""
    X = np.asarray(X)
    dtype = X.dtype if X.dtype.kind == "f" else float
    logits = X @ np.cos(2 * np.arange(X.shape[1])[:, None] + np.arange(sum(PETS.sizes)))
    levels = np.split(logits, np.cumsum(PETS.sizes)[:-1], axis=1)
    exponentials = [np.exp(x - x.max(axis=1, keepdims=True)) for x in levels]
    return np.hstack([e / e.sum(axis=1, keepdims=True) for e in exponentials]).astype(dtype)


def random_rows(tree, rng, n):
    """X whose every level sums to 1 with the leaves above, and leaf ids that X favours."""
    y = rng.integers(tree.num_leaves, size=n)
    raw = []
    for level, labels in enumerate(tree.labels(y)):
        noise = rng.exponential(size=(n, len(tree.cut(level)))) ** 2
        noise[np.arange(n), labels] += 1
        raw.append(noise[:, : tree.sizes[level]])
    return np.hstack(to_marginals(raw, tree)), y


def split(X, tree):
    """The levels of X, coarsest first."""
    return np.split(X, np.cumsum(tree.sizes)[:-1], axis=1)


def leaf_columns(tree):
    """The column of X of each leaf, by a search."""
    columns = [f"{level}.{i}" for level, n in enumerate(tree.sizes) for i in range(n)]
    return [columns.index(f"{level}.{i}") for level, i in tree.cut(-1)]


EXPECTED_FAILURES = {
    "check_estimators_dtypes": "casts X to integers, and probabilities to 0, which are none",
    "check_classifiers_one_label": (
        "wants the one class of y predicted everywhere; but only alpha is learned from y, and "
        "predictions follow from the probabilities"
    ),
    "check_classifiers_classes": "wants the classes of y to be all: these are the hierarchy's",
    "check_classifiers_train": "wants a column for each class of y: these are the hierarchy's",
}


# An expected failure that passes is a failure, in the versions of scikit-learn that can say so.
KNOWN = inspect.signature(estimator_checks.parametrize_with_checks).parameters
STRICT = {"xfail_strict": True} if "xfail_strict" in KNOWN else {}


@estimator_checks.parametrize_with_checks(
    [HierarchyAdjuster(PETS)],
    expected_failed_checks=lambda estimator: EXPECTED_FAILURES,
    **STRICT,
)
def test_scikit_learn_checks(estimator, check, monkeypatch):
    """Scikit-learn's checks pass, on their own data as probabilities.

    Its tags say of X that it must be positive, categorical or square, and the checks then bring
    their data into that form; for "probabilities" there is no tag, so it is done here.
    """

    def enforce(estimator, X, X_test=None, kernel=None):
        if X_test is None:
            return to_probabilities(X)
        return to_probabilities(X), to_probabilities(X_test)

    monkeypatch.setattr(estimator_checks, "_enforce_estimator_tags_X", enforce)
    check(estimator)


@given(st.data())
def test_transform_is_the_closed_form(data):
    """All levels, side by side, are the closed form at alpha; leaves are picked and named."""
    tree = data.draw(trees())
    levels = [p.astype(float) for p in data.draw(marginals(tree))]
    weights = data.draw(st.sampled_from([None, (1, 2, 1, 3)]))
    alpha = data.draw(st.floats(0, min(largest_alpha(tree.num_levels, weights))))
    X = np.hstack(levels)
    adjuster = HierarchyAdjuster(tree, weights=weights, alpha=alpha).fit(X, [0, 1, 2])
    wanted = closed_form(levels, tree, [alpha] * len(levels), weights)
    wanted = np.hstack(wanted).astype(float)
    np.testing.assert_allclose(adjuster.transform(X), wanted, rtol=0, atol=CLOSE)
    probs = adjuster.predict_proba(X)
    np.testing.assert_allclose(probs, wanted[:, leaf_columns(tree)], rtol=0, atol=CLOSE)
    assert adjuster.predict(X).tolist() == probs.argmax(axis=1).tolist()
    assert adjuster.alpha_ == alpha
    assert adjuster.search_ is None


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("tree", [PETS, RAGGED], ids=["full", "ragged"])
def test_any_rule(tree, rule, rng):
    """At alpha = 1 X becomes the target of the rule, and the leaves still sum to 1."""
    X, y = random_rows(tree, rng, 20)
    adjuster = HierarchyAdjuster(tree, rule=rule, alpha=1).fit(X, y)
    with enable_x64(True):
        wanted = np.hstack(RULES[rule].target(split(X, tree), tree))
    np.testing.assert_allclose(adjuster.transform(X), wanted, rtol=0, atol=CLOSE)
    # X itself was rounded to float32.
    np.testing.assert_allclose(adjuster.predict_proba(X).sum(axis=1), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("objective", "counted"), [("sum", (0, 1, 2)), (0, (0,)), (2, (2,))])
@pytest.mark.parametrize("weights", [None, (2, 1, 1)])
def test_fit_finds_the_best_alpha(objective, counted, weights, rng):
    """No alpha on a grid makes fewer errors on the counted levels than the fitted one."""
    tree = draw_tree(rng, 3)
    X, y = random_rows(tree, rng, 40)
    options = {"weights": weights, "objective": objective}
    tuned = HierarchyAdjuster(tree, **options).fit(X, y)

    def errors(adjuster):
        adapted = split(adjuster.transform(X), tree)
        cuts = [
            np.stack([adapted[of][:, i] for of, i in tree.cut(level)], axis=1)
            for level in range(tree.num_levels)
        ]
        labels = tree.labels(y)
        return sum((cuts[level].argmax(axis=1) != labels[level]).mean() for level in counted)

    largest = min(largest_alpha(tree.num_levels, weights))
    assert 0 <= tuned.alpha_ <= largest
    grid = np.linspace(0, largest, 41)
    errors_on_grid = [errors(clone(tuned).set_params(alpha=a).fit(X, y)) for a in grid]
    assert errors(tuned) == pytest.approx(tuned.search_.value, abs=CLOSE)
    assert errors(tuned) <= min(errors_on_grid) + CLOSE
    assert min(errors_on_grid) < max(errors_on_grid), "or nothing was tested"


def test_likelihood_objective(rng):
    """The objective goes to the search: for two equal levels, likelihood chooses alpha = 1."""
    X, y = random_rows(PETS, rng, 20)
    assert HierarchyAdjuster(PETS, objective="nll").fit(X, y).alpha_ == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("tree", [PETS, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("decision", DECISIONS)
def test_any_decision(tree, decision, rng):
    """Paths and predictions are the decision's, by name or id; '' below an answer, and of a leaf
    below its own level."""
    X, y = random_rows(tree, rng, 40)
    adjuster = HierarchyAdjuster(tree, alpha=0.5, decision=decision)
    adjuster.fit(X, np.array(tree.leaf_names)[y])
    rows = DECISIONS[decision](split(adjuster.transform(X), tree), tree)
    wanted = [
        [tree.names[level][i] if 0 <= i < tree.sizes[level] else "" for level, i in enumerate(path)]
        for path in rows.tolist()
    ]
    assert adjuster.predict_path(X).tolist() == wanted
    deepest = [next((name for name in path[::-1] if name), "") for path in wanted]
    if decision == "independent":
        deepest = [tree.cut_names(1)[path[1]] for path in rows]
    assert adjuster.predict(X).tolist() == deepest
    if decision != "minimum_risk":
        ids = adjuster.fit(X, y).predict(X)
        assert np.array(tree.leaf_names)[ids].tolist() == deepest


@pytest.mark.parametrize("dtype", [str, object])
def test_names_are_classes_as_ids_are(dtype, rng):
    """Text in y is leaf names: the same alpha and predictions, columns in the order of names."""
    X, ids = random_rows(RAGGED, rng, 30)
    names = np.array(["lynx", "lion", "dog"], dtype)
    by_id = HierarchyAdjuster(RAGGED).fit(X, ids)
    by_name = HierarchyAdjuster(RAGGED).fit(X, names[ids])
    assert by_id.classes_.tolist() == [0, 1, 2]
    assert by_name.classes_.tolist() == ["dog", "lion", "lynx"]
    assert by_name.alpha_ == by_id.alpha_
    assert by_name.search_.value == by_id.search_.value
    assert by_name.predict(X).tolist() == names[by_id.predict(X)].tolist()
    assert by_name.predict_proba(X)[:, [2, 1, 0]].tolist() == by_id.predict_proba(X).tolist()
    assert by_name.score(X, names[ids]) == by_id.score(X, ids)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_computes_in_the_dtype_of_x(dtype, rng):
    """float32 stays float32, and float64 float64 to the last digits, whatever JAX is set to."""
    X, y = random_rows(PETS, rng, 20)
    X = X.astype(dtype)
    adapted = HierarchyAdjuster(PETS, alpha=0.3).fit(X, y).transform(X)
    assert adapted.dtype == dtype
    wanted = closed_form([p.astype(float) for p in split(X, PETS)], PETS, [0.3, 0.3])
    error = np.abs(adapted - np.hstack(wanted).astype(float)).max()
    assert error < 8 * np.finfo(dtype).eps
    assert not jax.config.jax_enable_x64


def test_columns_keep_their_names(rng):
    """Column i of the output of `transform` is the adapted column i of X, under the same name."""
    X, y = random_rows(RAGGED, rng, 10)
    adjuster = HierarchyAdjuster(RAGGED).fit(X, y)
    names = [name for level in RAGGED.names for name in level]
    assert adjuster.get_feature_names_out(names).tolist() == names


def test_rule_is_searched_like_any_parameter(rng):
    """A grid search over rules and alphas ends with a fitted estimator, its score an accuracy."""
    X, y = random_rows(PETS, rng, 30)
    grid = {"rule": ["kl", "bottom_up"], "alpha": ["tune", 1.0]}
    found = GridSearchCV(HierarchyAdjuster(PETS), grid, cv=2, error_score="raise").fit(X, y)
    assert found.score(X, y) == (found.predict(X) == y).mean()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"hierarchy": None}, "hierarchy=None: needed is a hiercls_jax.Hierarchy"),
        ({"hierarchy": [[0, 0, 1]]}, "needed is a hiercls_jax.Hierarchy"),
        ({"rule": "kullback"}, "rule='kullback': allowed are 'kl', 'bottom_up'"),
        ({"weights": (1, 2, 3)}, "2 levels take 2 weights"),
        ({"rule": "top_down", "weights": (1, 2)}, "'top_down' takes no weights"),
        ({"alpha": "best"}, "alpha='best': allowed are 'tune' and numbers from 0 to 2"),
        ({"alpha": None}, "alpha=None: allowed"),
        ({"alpha": 2.1}, "alpha=2.1: allowed .* 0 to 2"),
        ({"alpha": float("nan")}, "alpha=nan: allowed"),
        ({"alpha": 1.5, "rule": "bottom_up"}, "alpha=1.5: allowed .* 0 to 1"),
        ({"alpha": 1.5, "weights": (3, 1)}, "alpha=1.5: allowed .* 0 to 1.33333"),
        ({"objective": "f1"}, "objective='f1': allowed"),
        ({"decision": "best"}, "decision='best': allowed are 'independent', 'leaf'"),
        ({"decision": "minimum_risk"}, "no leaf id; give leaf names in y"),
    ],
)
def test_wrong_parameters(parameters, message, rng):
    """`fit`, not the constructor, names the wrong parameter and the allowed values."""
    X, y = random_rows(PETS, rng, 10)
    adjuster = HierarchyAdjuster(PETS).set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        adjuster.fit(X, y)


def test_rule_for_other_hierarchies(rng):
    """`fit` rejects a rule that cannot adapt this hierarchy, also if alpha is given."""
    tree = draw_tree(rng, 3)
    X, y = random_rows(tree, rng, 10)
    with pytest.raises(ValueError, match="for two levels, this hierarchy has 3"):
        HierarchyAdjuster(tree, rule="euclidean_projection", alpha=1).fit(X, y)


def test_wrong_rows(rng):
    """Rows that are not probabilities are named, in `fit` and after it."""
    X, y = random_rows(RAGGED, rng, 10)
    adjuster = HierarchyAdjuster(RAGGED).fit(X, y)
    negative, unscaled, rounded = X.copy(), X.copy(), X.copy()
    negative[3, 1] = -0.25
    unscaled[4, 2:] *= 1 + 0.0011 / unscaled[4, 2:].sum()
    rounded[4, 2:] *= 1 + 0.0009 / rounded[4, 2:].sum()
    for method in (lambda X: adjuster.fit(X, y), adjuster.transform, adjuster.predict_proba):
        with pytest.raises(ValueError, match="Negative .* -0.25 in row 3 .*column 1"):
            method(negative)
        with pytest.raises(ValueError, match="'animal', .*above it, sums to 1.0011 in row 4 "):
            method(unscaled)
        method(rounded)
    with pytest.raises(ValueError, match="'kind' sums to 2 in row 0 .*divide"):
        HierarchyAdjuster(PETS).fit(np.ones((10, 6)), y)
    with pytest.raises(ValueError, match=r"n_features=5 columns.*2 \+ 2 = 4 classes"):
        HierarchyAdjuster(RAGGED).fit(np.hstack([X, X[:, :1]]), y)


def test_wrong_labels(rng):
    """Labels that are not leaves are named; leaves that share a name are an error."""
    X, _ = random_rows(RAGGED, rng, 3)
    for y, message in [
        ([0, 1, 3], "class 3, which is no leaf .* 0 to 2, or .* as 'lynx'"),
        ([0, -1, 2], "class -1, which"),
        (["lynx", "cat", "dog"], "class 'cat', which"),
        ([0.5, 1, 2], "continuous"),
    ]:
        with pytest.raises(ValueError, match=message):
            HierarchyAdjuster(RAGGED).fit(X, y)
    twice = Hierarchy(("kind", "animal"), (("cat", "dog"), ("lynx", "dog")), ((0, 0),), True)
    assert HierarchyAdjuster(twice).fit(X, [0, 1, 2]).classes_.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="same name; use leaf ids"):
        HierarchyAdjuster(twice).fit(X, ["lynx", "dog", "dog"])


def test_unfitted():
    """Before `fit`, `predict` raises scikit-learn's NotFittedError."""
    with pytest.raises(NotFittedError):
        HierarchyAdjuster(PETS).predict(np.ones((1, 6)))


def test_example_of_two_svms(capsys):
    """Adaptation worsens neither level of the digits, and lowers the sum of their errors."""
    run = runpy.run_path(str(EXAMPLE), run_name="__main__")["run"]
    printed = capsys.readouterr().out
    alpha, before, after = run(seed=0)
    assert 0 < alpha <= 2
    assert (after <= before).all()
    assert after.sum() < before.sum()
    assert f"alpha = {alpha:.2f}" in printed
    for level, old, new in zip(("parity", "digit"), before, after, strict=True):
        assert f"{level}: test error {old:.2f} % before, {new:.2f} % after" in printed


@pytest.fixture
def rng():
    return np.random.default_rng(0)
