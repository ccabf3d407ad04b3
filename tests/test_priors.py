"""Other classes than in training: Bayes' rule on every level at once, and EM.

Tolerances: float32 sums of a few rounded terms (SUM).
"""

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from trees import trees

from hiercls_jax import Hierarchy
from hiercls_jax.adaptation.priors import estimate_prior, leaf_mask, restrict, reweight
from hiercls_jax.adaptation.tree import adjust_tree, marginals
from hiercls_jax.errors import UserError

SUM = 2e-6
TWO = Hierarchy(
    ("kind", "animal"), (("cat", "dog"), ("lynx", "pug", "lion", "poodle")), ((0, 1, 0, 1),)
)
RAGGED = Hierarchy(
    ("kind", "breed", "animal"),
    (("cat", "dog", "emu"), ("wild", "pug", "husky"), ("lynx", "lion")),
    ((0, 1, 1), (0, 0)),
    ragged=True,
)


def example(hierarchy, rows=6, seed=0):
    """Random marginals of every level, which do not agree."""
    rng = np.random.default_rng(seed)
    levels = [rng.dirichlet(np.ones(n), rows).astype(np.float32) for n in hierarchy.sizes]
    return [np.array(p) for p in marginals(levels, hierarchy)]


def by_hand(levels, hierarchy, weights):
    """The formulas of the module, class by class and row by row, in float64."""
    weight = {tuple(row): w for row, w in zip(hierarchy.cut(-1).tolist(), weights, strict=True)}
    result = []
    for row in zip(*levels, strict=True):
        factors: list[dict[int, float]] = [{} for _ in row]
        for level in reversed(range(len(row))):
            for i in range(hierarchy.sizes[level]):
                if (level, i) in weight:
                    factors[level][i] = weight[level, i]
                    continue
                children = np.flatnonzero(hierarchy.parents[level] == i)
                f = row[level + 1][children].astype(float)
                shares = f / f.sum() if f.sum() > 0 else np.full(len(f), 1 / len(f))
                below = [factors[level + 1][j] for j in children]
                factors[level][i] = float(shares @ below)
        room, new = 1.0, []
        for level, p in enumerate(row):
            q = p.astype(float) * [factors[level][i] for i in range(len(p))]
            new.append(q / q.sum() * room if q.sum() > 0 else q)
            room = new[-1][~hierarchy.is_leaf(level)].sum()
        result.append(new)
    return [np.array(of_level) for of_level in zip(*result, strict=True)]


@pytest.mark.parametrize("hierarchy", [TWO, RAGGED])
def test_it_is_bayes_rule_on_every_level(hierarchy):
    """The kernel is the formulas by hand, for full and ragged trees, with an empty group."""
    levels = example(hierarchy)
    if hierarchy is TWO:
        levels[1][0] = [0, 0.25, 0, 0.75]  # no child of the cat has mass: equal shares
    rng = np.random.default_rng(1)
    old, new = rng.dirichlet(np.ones(hierarchy.num_leaves), 2)
    wanted = by_hand(levels, hierarchy, new / old)
    for p, w in zip(reweight(levels, hierarchy, old, new), wanted, strict=True):
        np.testing.assert_allclose(p, w, atol=SUM)
    for p, w in zip(reweight(levels, hierarchy, 7 * old, 9 * new), wanted, strict=True):
        np.testing.assert_allclose(p, w, atol=SUM)  # counts serve as frequencies


@settings(max_examples=6)
@given(tree=trees() | trees((2, 3, 5), ragged=False), seed=st.integers(0, 9))
def test_what_any_change_of_frequencies_keeps(tree, seed):
    """Levels stay marginals, coherent ones stay coherent, changes compose, and none is none."""
    levels = example(tree, seed=seed)
    rng = np.random.default_rng(seed)
    a, b, c = rng.dirichlet(np.full(tree.num_leaves, 5.0), 3)
    once = reweight(levels, tree, a, b)
    for cut in tree.cut_probs([np.asarray(p) for p in once]):
        np.testing.assert_allclose(cut.sum(axis=1), 1, atol=1e-5)
    for p, w in zip(reweight(levels, tree, a, a), levels, strict=True):
        np.testing.assert_allclose(p, w, atol=1e-5)
    if tree.num_levels > 1:
        coherent = reweight(adjust_tree(levels, tree, 1.0), tree, a, b)
        for level, s in enumerate(tree.parents):
            sums = np.zeros_like(coherent[level])
            np.add.at(sums.T, s, np.asarray(coherent[level + 1]).T)
            inner = ~tree.is_leaf(level)
            np.testing.assert_allclose(sums[:, inner], coherent[level][:, inner], atol=1e-5)
    for p, w in zip(
        reweight(once, tree, b, c)[-1:], reweight(levels, tree, a, c)[-1:], strict=True
    ):
        if not tree.ragged:  # the mass that leaves above leave changes with the levels above
            np.testing.assert_allclose(p, w, atol=1e-4)


def test_restricting_leaves_classes_out_on_every_level():
    """No level gives mass to a class without a kept leaf, before adaptation or after it."""
    levels = example(TWO)
    for keep in (["lynx", "pug", "poodle"], ["dog", "lynx"], np.array([True, True, False, True])):
        kind, animal = restrict(levels, TWO, keep)
        np.testing.assert_allclose(np.sum(kind, axis=1), 1, atol=SUM)
        f = levels[1] * [1, 1, 0, 1]
        np.testing.assert_allclose(animal, f / f.sum(axis=1, keepdims=True), atol=SUM)
        share = levels[1][:, 0] / (levels[1][:, 0] + levels[1][:, 2])
        p = levels[0] * np.stack([share, np.ones(6)], axis=1)
        np.testing.assert_allclose(kind, p / p.sum(axis=1, keepdims=True), atol=SUM)
        assert not np.asarray(adjust_tree([kind, animal], TWO, 1.0)[1])[:, 2].any()
    kind, animal = restrict(levels, TWO, ["dog"])
    np.testing.assert_allclose(kind, [[0, 1]] * 6, atol=SUM)
    assert not np.asarray(animal)[:, [0, 2]].any()


def test_names_of_any_level_are_kept():
    """A class keeps all leaves below it, and a leaf above the last level itself."""
    assert RAGGED.leaf_names == ("lynx", "lion", "emu", "pug", "husky")
    assert leaf_mask(RAGGED, ["cat"]).tolist() == [True, True, False, False, False]
    assert leaf_mask(RAGGED, ["emu", "lion", "husky"]).tolist() == [False, True, True, False, True]
    assert leaf_mask(RAGGED, ["dog", "pug"]).tolist() == [False, False, False, True, True]


def test_restricting_to_everything_changes_nothing():
    """All leaves, or all classes of the first level, are the whole tree."""
    levels = example(RAGGED)
    for p, w in zip(restrict(levels, RAGGED, ["cat", "dog", "emu"]), levels, strict=True):
        np.testing.assert_allclose(p, w, atol=SUM)


def test_a_row_without_mass_is_named():
    """If a row has no mass on kept classes, the error names the row and the level."""
    levels = example(TWO)
    levels[1][3] = [0, 0.5, 0, 0.5]
    with pytest.raises(UserError, match=r"row 3 \(from 0\) has no mass left on level 'animal'"):
        restrict(levels, TWO, ["cat"])
    with pytest.raises(UserError, match="the sample has no mass left on level 'kind'"):
        restrict([np.array([1.0, 0]), levels[1][0]], TWO, ["dog"])
    with pytest.raises(UserError, match=r"row 1, 0 \(from 0\)"):
        restrict([p.reshape(3, 2, -1)[[0, 1]][:, ::-1] for p in levels], TWO, ["cat"])


def test_it_may_be_traced():
    """Under `jit` and `grad` no row is checked, and values and gradients are finite."""
    levels = example(TWO)
    levels[1][3] = [0, 0.5, 0, 0.5]
    kept = np.array([True, False, True, False])
    traced = jax.jit(lambda levels: restrict(levels, TWO, kept))(levels)
    assert not np.asarray(traced[1])[3].any()
    gradient = jax.grad(lambda levels: restrict(levels, TWO, kept)[0][:, 0].sum())(levels)
    assert all(np.isfinite(g).all() for g in gradient)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ([1, 1, 1], [1, 1, 1, 1], "prior has 3 frequencies; allowed is one for each of the 4"),
        ([1, 1, 1, 1], [1, 1, -1, 1], "new_prior: frequencies are .* not negative"),
        ([1, 1, 1, np.nan], [1, 1, 1, 1], "prior: frequencies are .* finite"),
        ([0, 0, 0, 0], [1, 1, 1, 1], "prior: .* not all 0"),
        ([1, 0, 1, 1], [1, 1, 1, 1], "'pug' has frequency 0 in training but 0.25 now"),
    ],
)
def test_wrong_frequencies(old, new, message):
    """Frequencies of another number, negative, not finite or impossible are refused."""
    with pytest.raises(ValueError, match=message):
        reweight(example(TWO), TWO, old, new)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (["lynx", "wolf"], "unknown class 'wolf'; allowed are the classes of all levels"),
        ([], "no class is kept"),
        (np.array([True]), r"keep \[1\]: allowed are names of classes, or bool \[4\]"),
    ],
)
def test_wrong_classes_to_keep(keep, message):
    """Unknown classes, none, and masks of another length are refused."""
    with pytest.raises(UserError, match=message):
        restrict(example(TWO), TWO, keep)


def calibrated(prior, new, rows, seed=0, spread=1.3):
    """Posteriors under `prior` of samples whose classes have the frequencies `new`."""
    rng = np.random.default_rng(seed)
    means = np.eye(len(new)) * 3
    labels = rng.choice(len(new), rows, p=new)
    x = means[labels] + spread * rng.standard_normal((rows, len(new)))
    log_p = -((x[:, None] - means) ** 2).sum(-1) / (2 * spread**2) + np.log(prior)
    p = np.exp(log_p - log_p.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize("prior", [[0.25, 0.25, 0.25, 0.25], [0.4, 0.3, 0.2, 0.1]])
def test_frequencies_are_estimated(prior):
    """On 20,000 calibrated rows the estimate is within 0.01 in total variation, far from the start.

    Reweighting by it lowers the error, as Bayes' rule says.
    """
    new = np.array([0.7, 0.2, 0.05, 0.05])
    p, labels = calibrated(np.array(prior), new, 20_000)
    estimate = estimate_prior(p, prior)
    assert estimate.sum() == pytest.approx(1)
    assert np.abs(estimate - new).sum() / 2 < 0.01
    assert np.abs(p.mean(axis=0) - new).sum() / 2 > 0.03  # what the answers' mean would give
    changed = p * estimate / prior
    assert np.mean(changed.argmax(axis=1) != labels) < np.mean(p.argmax(axis=1) != labels)


def test_the_estimate_is_the_maximum_of_the_likelihood():
    """No other frequencies near it make the samples more probable; a class never seen stays 0."""
    prior = np.array([0.5, 0.3, 0.2])
    p, _ = calibrated(prior, [0.2, 0.2, 0.6], 500, spread=2)
    estimate = estimate_prior(p, prior)

    def likelihood(frequencies):
        return np.log(p @ (frequencies / prior)).mean()

    rng = np.random.default_rng(0)
    for _ in range(100):
        other = np.abs(estimate + 0.02 * rng.standard_normal(3))
        assert likelihood(other / other.sum()) <= likelihood(estimate) + 1e-9
    assert estimate_prior(np.array([[0.5, 0.5, 0]]), [1, 1, 0])[2] == 0
    with pytest.raises(ValueError, match=r"p_leaf is \[N, 3\]"):
        estimate_prior(p[:, :2], prior)
