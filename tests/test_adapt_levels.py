"""`adapt_levels`: the kernels' numbers, for arrays of every library, or an error that helps.

PyTorch and pandas are optional: their tests run where they are installed. `Frame` has what is used
of a DataFrame, so that its rules are tested without pandas too.
"""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hiercls_jax
from hiercls_jax import Hierarchy, adapt_levels
from hiercls_jax.adaptation.rules import RULES
from hiercls_jax.adaptation.tree import adjust_tree, marginals
from hiercls_jax.errors import UserError

TWO = Hierarchy(
    ("kind", "animal"), (("cat", "dog"), ("lynx", "pug", "lion", "poodle")), ((0, 1, 0, 1),)
)
RAGGED = Hierarchy(
    ("kind", "breed", "animal"),
    (("cat", "dog", "emu"), ("wild", "pug"), ("lynx", "lion")),
    ((0, 1), (0, 0)),
    ragged=True,
)


class Frame:
    """A DataFrame as far as it is used: columns, an index, numbers, and a constructor of them."""

    def __init__(self, data, index=None, columns=None):
        self.data, self.columns = np.asarray(data), columns
        self.index = range(len(self.data)) if index is None else index
        self.dtypes = [self.data.dtype] * self.data.shape[1]

    def to_numpy(self):
        """Return the numbers."""
        return self.data


def example(hierarchy=TWO, rows=7, dtype=np.float32, seed=0):
    """Random probabilities of every level."""
    rng = np.random.default_rng(seed)
    return [rng.dirichlet(np.ones(n), rows).astype(dtype) for n in hierarchy.sizes]


def fails(*args, **kwargs) -> str:
    """The one line with which the function refuses its input."""
    with pytest.raises(UserError) as caught:
        adapt_levels(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_kernel(rule):
    """Any rule and alpha gives what the library's own function gives; NumPy comes back as NumPy."""
    levels = example()
    wanted = RULES[rule].adjust(levels, TWO, 0.5)
    got = hiercls_jax.adapt_levels(levels, TWO, 0.5, rule)
    for p, w in zip(got, wanted, strict=True):
        assert type(p) is np.ndarray
        assert p.flags.writeable
        np.testing.assert_array_equal(p, w)
    by_name = adapt_levels(dict(zip(TWO.levels[::-1], levels[::-1], strict=True)), TWO, 0.5, rule)
    assert list(by_name) == ["animal", "kind"]
    np.testing.assert_array_equal(by_name["animal"], got[1])


def test_dtypes():
    """float64 is computed as such; all other types become float32; shapes of any rank are kept."""
    double = example(dtype=np.float64)
    for p in adapt_levels(double, TWO):
        assert p.dtype == np.float64
    coarse, fine = adapt_levels(double, TWO)
    np.testing.assert_allclose(fine @ np.eye(2)[TWO.fine_to_coarse], coarse, rtol=1e-15)
    hard = [np.eye(2, dtype=int)[[0, 1]], np.eye(4, dtype=bool)[[0, 1]]]
    assert adapt_levels(hard, TWO)[1].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]
    half = [p.astype(np.float16) for p in double]
    assert {p.dtype for p in adapt_levels(half, TWO)} == {np.dtype(np.float32)}
    single = adapt_levels([p[0] for p in double], TWO)
    np.testing.assert_allclose(single[1], fine[0])
    deep = adapt_levels([p[None, :6].reshape(2, 3, -1) for p in double], TWO)
    np.testing.assert_allclose(deep[1].reshape(6, -1), fine[:6])


def test_jax_arrays_may_be_traced():
    """Under `jit` and `grad` values are not checked, and the result is the kernel's."""
    levels = [jnp.asarray(p) for p in example()]
    wanted = adjust_tree(levels, TWO, 1.0)
    got = jax.jit(lambda levels: adapt_levels(levels, TWO))(levels)
    for p, w in zip(got, wanted, strict=True):
        np.testing.assert_allclose(p, w, atol=1e-7)
    assert isinstance(adapt_levels(levels, TWO)[0], jax.Array)
    gradient = jax.grad(lambda levels: adapt_levels(levels, TWO, 0.7)[0][0, 0])(levels)
    assert np.isfinite(gradient[1]).all()


def test_bfloat16_of_jax():
    """A softmax that was rounded to bfloat16 passes the check; a wrong sum beyond it does not."""
    levels = [jnp.asarray(p, jnp.bfloat16) for p in example(rows=99)]
    off = np.abs(np.asarray(levels[1], np.float32).sum(axis=1) - 1)
    assert off.max() > 1e-3
    assert {p.dtype for p in adapt_levels(levels, TWO)} == {np.dtype(np.float32)}
    assert "sums to 1.0" in fails([levels[0], (levels[1] * 1.02).astype(jnp.bfloat16)], TWO)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "level 'animal', row 3 (from 0): nan for class 'lion', allowed are numbers from"),
        (-0.5, "-0.5 for class 'lion', allowed are numbers from 0 to 1; if these are logits, give"),
        (0.9, "sums to 1.", ),
        (None, "sums to 100, allowed is 1 within 0.001; it looks like percent: divide by 100"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
def test_values_are_checked(value, message, kind):
    """What is wrong with which row, and what to do; `check=False` skips it."""
    levels = example()
    if value is None:
        levels[1] = levels[1] * 100
    else:
        levels[1][3, 2] = value
    assert message in fails([kind(p) for p in levels], TWO)
    adapt_levels([kind(p) for p in levels], TWO, check=False)


def test_rows_of_any_rank_are_named():
    """A row of an array of higher rank is named by its place on all leading axes."""
    levels = [p.reshape(2, 3, -1) for p in example(rows=6)]
    levels[0][1, 2, 0] = np.inf
    assert "level 'kind', row 1, 2 (from 0): inf for class 'cat'" in fails(levels, TWO)
    assert "level 'kind': inf for class 'cat'" in fails([p[1, 2] for p in levels], TWO)


HALF, QUARTER = np.full((2, 2), 0.5), np.full((2, 4), 0.25)


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([HALF], "1 levels: allowed is one array for each of the hierarchy's 2"),
        ({"kind": 1, "sort": 1}, "levels 'kind', 'sort': allowed is one array for each of 'kind'"),
        ([QUARTER, QUARTER], "level 'kind': shape [2, 4], allowed is [..., 2]"),
        ([HALF, QUARTER[:1]], "level 'animal' has rows [1] but level 'kind'"),
        ([np.array([["a", "b"]]), QUARTER], "an array of <U1: allowed are real numbers"),
        ([1.0, QUARTER], "level 'kind': shape [], allowed is [..., 2]"),
    ],
)  # fmt: skip
def test_levels_that_do_not_fit(levels, message):
    """Wrong numbers, names, shapes and types of levels are named."""
    assert message in fails(levels, TWO)


def test_an_unknown_rule():
    """The rules are listed; an alpha beyond the rule's largest is the rule's own error."""
    assert "rule='best': allowed are 'kl', 'bottom_up'" in fails(example(), TWO, rule="best")
    with pytest.raises(ValueError, match="alpha of level 0 must lie in"):
        adapt_levels(example(), TWO, 2.5)


def test_columns_without_names_need_a_stated_order():
    """A level whose order nobody stated takes names, a DataFrame or a hierarchy that states it."""
    pairs = [("pug", "dog"), ("lynx", "cat"), ("lion", "cat"), ("poodle", "dog")]
    mentioned = Hierarchy.from_pairs(pairs, TWO.levels)
    stated = Hierarchy.from_pairs([("dog", None), ("cat", None), *pairs], TWO.levels)
    kind, animal = example()
    error = fails([kind, animal], mentioned)
    assert (
        "nobody stated the order of its classes 'dog', 'cat'; give it, names={'kind': [...]}"
        in error
    )
    wanted = adapt_levels([kind[:, ::-1], animal], stated)
    named = adapt_levels([kind, animal], mentioned, names={"kind": ["cat", "dog"]})
    np.testing.assert_array_equal(named[0], wanted[0][:, ::-1])
    np.testing.assert_array_equal(named[1], wanted[1])
    framed = adapt_levels([Frame(kind, columns=["cat", "dog"]), animal], mentioned)
    np.testing.assert_array_equal(framed[0].data, named[0])
    unnamed = Frame(kind, columns=range(2))  # pandas' own names are none
    assert "nobody stated the order" in fails([unnamed, animal], mentioned)
    assert "3 names for 2 columns" in fails([kind, animal], TWO, names={"kind": ["a", "b", "c"]})
    assert "unknown class 'wolf'" in fails([kind, animal], TWO, names={"kind": ["cat", "wolf"]})


def test_frames_are_matched_by_name():
    """Columns may have any order, which the result has too; the index is kept."""
    kind, animal = example()
    order = [2, 0, 3, 1]
    index = [f"{i}.png" for i in range(7)]
    frame = Frame(animal[:, order], index, [TWO.names[1][i] for i in order])
    got = adapt_levels([kind, frame], TWO)
    wanted = adapt_levels([kind, animal], TWO)
    assert type(got[0]) is np.ndarray
    assert (got[1].index, got[1].columns) == (index, frame.columns)
    np.testing.assert_array_equal(got[1].data, wanted[1][:, order])
    other = Frame(kind, index[::-1], ["cat", "dog"])
    assert "the DataFrames have different indices" in fails([other, frame], TWO)
    assert "leave out names['animal']" in fails([kind, frame], TWO, names={"animal": TWO.names[1]})
    text = Frame(np.array([["a", 0.5]] * 7, object), index, ["file", "cat"])
    assert "frame.set_index(...)" in fails([text, frame], TWO)


def test_a_softmax_over_all_leaves():
    """A named softmax over all leaves of a ragged tree is an opinion about every leaf.

    It is adapted as the full tree in which leaves above the last level are their own only children;
    the level between, which has no column for the leaf above, takes that level's opinion about it.
    """
    rng = np.random.default_rng(0)
    kind = rng.dirichlet(np.ones(3), 5).astype(np.float32)
    breed = (rng.dirichlet(np.ones(2), 5) * (1 - kind[:, 2:])).astype(np.float32)
    leaves = rng.dirichlet(np.ones(4), 5).astype(np.float32)
    assert RAGGED.leaf_names == ("lynx", "lion", "emu", "pug")
    assert "softmax over all 4 leaves give names={'animal': [...]}" in fails(
        [kind, breed, leaves], RAGGED
    )
    names = {"animal": ["pug", "lynx", "emu", "lion"]}
    got = adapt_levels([kind, breed, leaves[:, [3, 0, 2, 1]]], RAGGED, names=names)
    full = RAGGED.filled()
    wanted = adjust_tree([kind, np.hstack([breed, kind[:, 2:]]), leaves], full, 1.0)
    np.testing.assert_array_equal(got[0], wanted[0])
    np.testing.assert_array_equal(got[1], np.asarray(wanted[1])[:, :2])
    np.testing.assert_array_equal(got[2], np.asarray(wanted[2])[:, [3, 0, 2, 1]])
    np.testing.assert_allclose(got[0][:, 2], got[2][:, 2], atol=1e-6)  # they agree about the emu


def test_softmaxes_of_a_ragged_tree():
    """A level that sums to 1 beside leaves above is refused with the function that converts it."""
    softmaxes = example(RAGGED)
    error = fails(softmaxes, RAGGED)
    assert "because the leaves above have the rest" in error
    assert "hiercls_jax.adaptation.tree.marginals(levels, hierarchy)" in error
    adapt_levels(marginals(softmaxes, RAGGED), RAGGED)


def test_levels_in_different_orders_are_a_warning():
    """The warning names the columns; it comes with the check, and from the caller's line."""
    rng = np.random.default_rng(0)
    truth = TWO.labels(rng.integers(4, size=300))
    levels = [0.1 / n + 0.9 * np.eye(n)[y] for n, y in zip(TWO.sizes, truth, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapt_levels(levels, TWO)
        adapt_levels([levels[0][:, ::-1], levels[1]], TWO, check=False)
    with pytest.warns(UserWarning, match="'cat' as 'dog', 'dog' as 'cat'") as caught:
        adapt_levels([levels[0][:, ::-1], levels[1]], TWO)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
def test_torch(dtype):
    """Tensors of every type pass by DLPack and come back detached, in memory of their own."""
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    tensors = [torch.tensor(p, dtype=kind, requires_grad=True) for p in example(rows=1)]
    tensors[1] = tensors[1].T.contiguous().T  # not contiguous
    got = adapt_levels(tensors, TWO)
    as_numpy = [p.detach().double().numpy() for p in tensors]
    wanted = adapt_levels(as_numpy, TWO, check=False)
    for p, w in zip(got, wanted, strict=True):
        assert type(p) is torch.Tensor
        assert not p.requires_grad
        assert p.dtype == (torch.float64 if dtype == "float64" else torch.float32)
        np.testing.assert_allclose(p.numpy(), w, atol=1e-6)
        p += 1  # does not write into JAX's memory
    tensors[0].data[0, 0] = float("nan")
    assert re.search("level 'kind', row 0 .*: nan for class 'cat'", fails(tensors, TWO))


def test_pandas():
    """A DataFrame comes back as one, with its index and its columns in their order."""
    pandas = pytest.importorskip("pandas")
    kind, animal = example()
    index = pandas.Index([f"{i}.png" for i in range(7)], name="file")
    frame = pandas.DataFrame(animal, index, TWO.names[1])[["pug", "lion", "lynx", "poodle"]]
    got = adapt_levels({"animal": frame, "kind": kind}, TWO)
    wanted = adapt_levels([kind, animal], TWO)
    assert got["animal"].index.equals(index)
    assert list(got["animal"].columns) == list(frame.columns)
    np.testing.assert_array_equal(got["animal"][list(TWO.names[1])].to_numpy(), wanted[1])
    with_file = frame.reset_index()
    assert "frame.set_index(...)" in fails([kind, with_file], TWO)
    unnamed = pandas.DataFrame(animal)
    np.testing.assert_array_equal(adapt_levels([kind, unnamed], TWO)[1], wanted[1])
