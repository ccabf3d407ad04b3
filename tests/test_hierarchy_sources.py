"""Parent lists, nested dicts and WordNet's is-a lines: the trees they make, and their errors."""

import contextlib
from collections import Counter
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from hiercls_jax import Hierarchy
from hiercls_jax.hierarchy import HierarchyError, cifar100
from hiercls_jax.hierarchy.sources import from_nested, from_parent_lists, from_wordnet

WORDNET = Path(__file__).parent / "data" / "cifar100_wordnet.txt"

PETS = Hierarchy(
    levels=("level1", "level2", "level3"),
    names=(("bird", "fish", "mammal"), ("owls", "cats", "dogs"), ("lynx", "lion")),
    parents=((0, 2, 2), (1, 1)),
    ragged=True,
)

FULL = Hierarchy(("coarse", "fine"), (("cat", "dog"), ("lynx", "pug", "lion")), ((0, 1, 0),))

names = st.sampled_from(["", "a", "b", "c", "d", "e", "#", "-1"])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 5) | st.floats() | names,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)


def nest(depth: int, wrap, inner=None):
    """Return `inner` inside `depth` wrappings, `wrap(i, inside)`, built without recursion."""
    for i in range(depth):
        inner = wrap(i, inner)
    return inner


def parent_names(tree: Hierarchy) -> dict[str, str | None]:
    """The parent of every class of a tree with distinct names, None at the first level."""
    found = dict.fromkeys(tree.names[0])
    for above, below, ids in zip(tree.names, tree.names[1:], tree.parents, strict=False):
        found |= {name: above[i] for name, i in zip(below, ids, strict=True)}
    return found


@st.composite
def trees(draw):
    """Draw parents {class: parent or None} of up to 12 classes, parents first."""
    classes = [f"c{i}" for i in range(draw(st.integers(1, 12)))]
    return {name: draw(st.sampled_from([None, *classes[:i]])) for i, name in enumerate(classes)}


# Parent lists.


@pytest.mark.parametrize("none", [-1, None, np.int64(-1)])
def test_parents_by_index_and_by_name(none):
    """Indices and names of parents say the same; -1 and None are the first level."""
    listed = ["bird", "owls", "fish", "mammal", "cats", "lynx", "lion", "dogs"]
    by_index = [none, 0, none, none, 3, 4, 4, 3]
    by_name = [None, "bird", None, None, "mammal", "cats", "cats", "mammal"]
    assert from_parent_lists(listed, by_index, ragged=True) == PETS
    assert from_parent_lists(listed, by_name, ragged=True) == PETS


def test_arrays_are_parent_lists():
    """NumPy arrays of names and indices are lists too."""
    tree = from_parent_lists(np.array(["cat", "pug", "dog", "lion"]), np.array([-1, 2, -1, 0]))
    assert tree.names == (("cat", "dog"), ("pug", "lion"))


def test_a_parent_beyond_the_names_is_of_the_first_level():
    """Fine names beside their coarse ones are enough, in either order of the levels' names."""
    assert from_parent_lists(["lynx", "pug", "lion"], ["cat", "dog", "cat"]) == FULL
    named = from_parent_lists(["lynx", "pug"], ["cat", "dog"], levels=["kind", "animal"])
    assert named.levels == ("kind", "animal")


def test_cifar100_from_its_two_columns():
    """The names of CIFAR-100's fine classes beside those of their coarse ones are its hierarchy."""
    tree = cifar100()
    coarse = [tree.names[0][i] for i in tree.fine_to_coarse]
    again = parent_names(from_parent_lists(tree.names[1], coarse))
    assert again == parent_names(tree)


@pytest.mark.parametrize(
    ("names", "parents", "message"),
    [
        ("abc", [None] * 3, "names: expected a list, got 'abc'"),
        (["a"], 3, "parents: expected a list, got 3"),
        (np.array("a"), [None], "names: expected a list"),
        (["a", "b"], [None], "2 names but 1 parents"),
        ([], [], "no classes"),
        (["a", "b"], [-1, 2], "class 'b' has the parent 2; allowed are 0 to 1, and -1"),
        (["a", "b"], [-2, 0], "class 'a' has the parent -2; allowed are"),
        (["a", "b"], [-1, True], "a name is a non-empty string, got True"),
        (["a", "b"], [-1, 0.0], "a name is a non-empty string, got 0.0"),
        (["a", " "], [-1, 0], "a name is a non-empty string, got ' '"),
        (["a", "b", "b"], [-1, 0, 0], r"class 'b' has 2 rows, with the parents \['a', 'a'\]"),
        (["a", "b", "c", "b"], [-1, 0, -1, 2], r"class 'b' has 2 rows.*\['a', 'c'\]"),
        (["a", "b", "c"], [1, 2, 0], "is its own ancestor"),
        (["a"], [0], "'a' is its own ancestor"),
        (["a", "b", "c"], [-1, 0, -1], "leaf 'c' is at level 1 but others.*ragged=True"),
    ],
)
def test_each_fault_of_parent_lists_has_its_own_error(names, parents, message):
    """Lists that are no tree are refused, with the class in the message."""
    with pytest.raises(HierarchyError, match=message):
        from_parent_lists(names, parents)


# Nested dicts.


def test_nested_dicts_and_lists():
    """Dicts nest; lists, None, {} and [] end the nest; each level keeps the order of the text."""
    tree = {
        "bird": ["owls"],
        "fish": None,
        "mammal": {"cats": ("lynx", "lion"), "dogs": {}},
    }
    assert from_nested(tree, ragged=True) == PETS
    assert from_nested({"cat": {"lynx": [], "lion": None}, "dog": ["pug"]}).names == (
        ("cat", "dog"),
        ("lynx", "lion", "pug"),
    )
    assert from_nested(["a", "b"], levels=["flat"]).names == (("a", "b"),)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (3, "the tree: expected a dict or a list of names, got 3"),
        ("cat", "the tree: expected a dict or a list of names, got 'cat'"),
        (None, "no classes"),
        ({}, "no classes"),
        ({"cat": "lynx"}, "below 'cat': expected a dict or a list of names, got 'lynx'"),
        ({"cat": ["lynx", ["lion"]]}, r"below 'cat': a name is a non-empty string, got \['lion'\]"),
        ({"cat": {"": None}}, "below 'cat': a name is a non-empty string, got ''"),
        ({1: ["lynx"]}, "the tree: a name is a non-empty string, got 1"),
        (
            {"cat": ["lynx"], "dog": ["lynx"]},
            "class 'lynx' stands below 'cat' and below 'dog'; it has exactly one place",
        ),
        ({"cat": ["lynx", "lynx"]}, "class 'lynx' stands below 'cat' and below 'cat'"),
        ({"cat": ["cat"]}, "class 'cat' stands at the top and below 'cat'"),
        ({"cat": ["lynx"], "fish": None}, "leaf 'fish' is at level 1 but others.*ragged=True"),
    ],
)
def test_each_fault_of_a_nest_has_its_own_error(tree, message):
    """Values that are no tree are refused, with the place and the class in the message."""
    with pytest.raises(HierarchyError, match=message):
        from_nested(tree)


def test_a_nest_that_holds_itself_is_refused():
    """A dict inside itself repeats a name at once; it is not followed for ever."""
    tree = {}
    tree["cat"] = tree
    with pytest.raises(HierarchyError, match="class 'cat' stands at the top and below 'cat'"):
        from_nested(tree)


# WordNet.


def test_leaves_and_what_is_above_them():
    """Synsets with one child become one with it, the top is dropped, and leaves keep their names.

    Below mammal are a cat line of two and a fox alone under canine and carnivore's other branch.
    """
    lines = """
    # parent child
    entity animal
    animal mammal
    mammal carnivore
    carnivore feline
    feline big_cat
    big_cat lion
    big_cat tiger
    carnivore canine
    canine fox
    canine wolf
    mammal ungulate
    ungulate horse
    animal fish
    fish shark
    """.splitlines()
    tree = from_wordnet(lines, ["shark", "tiger", "fox", "lion", "horse"])
    # wolf is no leaf, so canine is fox; feline is big_cat; fish is shark, entity is animal.
    assert tree == Hierarchy(
        ("level1", "level2", "level3", "level4"),
        (("shark", "mammal"), ("carnivore", "horse"), ("big_cat", "fox"), ("tiger", "lion")),
        ((1, 1), (0, 0), (0, 0)),
        ragged=True,
    )
    assert tree.leaf_names == ("tiger", "lion", "shark", "horse", "fox")
    assert from_wordnet("\n".join(lines), tree.leaf_names).leaf_names == tree.leaf_names


def test_one_leaf_and_several_tops():
    """One leaf is a hierarchy of itself; of several classes at the top none is left out."""
    assert from_wordnet(["animal cat", "cat lynx"], ["lynx"]).names == (("lynx",),)
    lines = ["cat lynx", "cat lion", "dog pug", "dog husky"]
    tree = from_wordnet(lines, ["lynx", "pug", "lion", "husky"], levels=["kind", "animal"])
    assert tree.names == (("cat", "dog"), ("lynx", "pug", "lion", "husky"))
    assert tree.levels == ("kind", "animal")
    assert not tree.ragged


def test_names_for_ids():
    """Ids with a name become that name; two ids of one name may stand at different levels."""
    lines = ["n1 n2", "n1 n3", "n2 n4", "n2 n5", "n3 n6", "n3 n7"]
    names = {"n2": "bird", "n4": "crane", "n5": "owl", "n6": "crane", "n3": "machine"}
    leaves = ["n4", "n5", "n6"]
    tree = from_wordnet(lines, leaves, names)
    assert tree.names == (("bird", "crane"), ("crane", "owl"))
    with pytest.raises(HierarchyError, match="level 'fine': the name 'crane' stands 2 times"):
        from_wordnet(lines, [*leaves, "n7"], names)


@pytest.mark.parametrize(
    ("lines", "leaves", "message"),
    [
        (["a b", "a b c"], ["b"], r"line 2: expected two columns \(parent, child\), got 'a b c'"),
        (["a b", "a"], ["b"], "line 2: expected two columns"),
        (["a b", b"a c"], ["b"], r"line 2: expected two columns \(parent, child\), got b'a c'"),
        (5, ["a"], "expected lines of text, got 5"),
        ("a b", "b", "the leaves: expected a list of names, got 'b'"),
        ("a b", [], "the leaves: no classes"),
        ("a b", ["b", "b"], "the leaves: the name 'b' stands 2 times"),
        ("a b", [3], "the leaves: a name is a non-empty string, got 3"),
        ("", ["b"], "leaf 'b' is in none of the lines"),
        ("a b\na c", ["b", "d"], "leaf 'd' is in none of the lines"),
        ("#a b\na c", ["b"], "leaf 'b' is in none of the lines"),
        ("a b\nb c", ["c", "b"], "'b' is a leaf, but 'c' is below it; leave it out.*'b NAME'"),
        ("a b\nb c\nc a", ["c"], "'c' is its own ancestor"),
        ("a a", ["a"], "'a' is its own ancestor"),
        ("a b\nb a\na c", ["c"], "'a' is its own ancestor"),
    ],
)
def test_each_fault_of_is_a_lines_has_its_own_error(lines, leaves, message):
    """Lines and leaves that make no tree are refused, with the line or class in the message."""
    with pytest.raises(HierarchyError, match=message):
        from_wordnet(lines, leaves)


def test_names_are_a_dict():
    """Names in another form than a dict from id to name are refused."""
    for names in (["b"], [], 3):
        with pytest.raises(HierarchyError, match="names: expected a dict, got"):
            from_wordnet("a b\na c", ["b", "c"], names=names)
    with pytest.raises(HierarchyError, match="a name is a non-empty string, got 3"):
        from_wordnet("a b\na c", ["b", "c"], names={"b": 3})


def test_every_class_with_two_parents_is_named():
    """Two parents of a leaf's ancestor are an error that names the lines; others are ignored."""
    lines = ["a b", "a c", "b x", "c x", "b y", "d b", "c z", "d z", "b x"]
    message = (
        r"delete all but one of the lines of 'x' under 'b' \(line 9\) and 'c' \(line 4\); "
        r"'b' under 'a' \(line 1\) and 'd' \(line 6\)$"
    )
    with pytest.raises(HierarchyError, match=message):
        from_wordnet(lines, ["x", "y"])
    mended = [line for line in lines if line not in ("c x", "d b")]
    assert from_wordnet(mended, ["x", "y"]).names == (("x", "y"),)
    assert from_wordnet([*mended, "a b"], ["x", "y"]).names == (("x", "y"),)


def test_the_first_of_two_parents():
    """`several='first'` takes the parent that the lines name first, and lists each choice."""
    lines = ["a b", "a c", "b x", "c x", "b y", "c z", "d z"]
    with pytest.warns(UserWarning, match="several parents") as caught:
        tree = from_wordnet(lines, ["x", "y", "z"], {"x": "lynx", "b": "cat"}, several="first")
    assert tree.names == (("cat", "z"), ("lynx", "y"))
    assert str(caught[0].message) == (
        "2 of 6 classes have several parents, of which the first was taken: 'lynx' (x) under "
        "'cat' (b) (line 3), not 'c' (line 4); 'z' under 'c' (line 6), not 'd' (line 7)"
    )
    assert caught[0].filename == __file__
    with pytest.raises(HierarchyError, match="allowed are 'refuse' and 'first', got 'last'"):
        from_wordnet(lines, ["x", "y"], several="last")


def test_errors_about_synsets_name_them():
    """Where an id has a name, errors say the name, and the id by which the lines have it."""
    names = {"n1": "animal", "n2": "cat", "n3": "lynx", "n9": "dog"}
    for lines, leaves, message in (
        (["n1 n2", "n2 n3"], ["n9"], r"leaf 'dog' \(n9\) is in none of the lines"),
        (["n1 n2", "n2 n3"], ["n2", "n3"], r"'cat' \(n2\) is a leaf, but 'lynx' \(n3\) is below"),
        (["n1 n2", "n2 n3", "n3 n1"], ["n3"], r"'lynx' \(n3\) is its own ancestor"),
        (["n1 n3", "n2 n3", "n9 n2"], ["n3"], r"'lynx' \(n3\) under 'animal' \(n1\) \(line 1\)"),
    ):
        with pytest.raises(HierarchyError, match=message):
            from_wordnet(lines, leaves, names)


def test_the_order_of_wordnets_levels_is_not_stated():
    """Only the last level has an order that the caller gave; JSON lists all of them."""
    tree = from_wordnet(
        ["cat lynx", "cat lion", "dog pug", "dog fox"], ["lynx", "lion", "pug", "fox"]
    )
    assert tree.unordered == ("coarse",)


@given(parents=trees(), data=st.data())
def test_contraction_keeps_who_is_above_whom(parents, data):
    """A class that is kept is above the same leaves as before, and has at least 2 children.

    The classes left are the leaves and those where two of them part, less one above them all.
    """
    inner = set(parents.values())
    ends = [name for name in parents if name not in inner]
    leaves = data.draw(st.permutations(ends))[: data.draw(st.integers(1, len(ends)))]
    lines = data.draw(st.permutations([f"{p or 'top'} {c}" for c, p in parents.items()]))
    tree = from_wordnet(lines, leaves)
    left = parent_names(tree)

    def above(name, parents):
        chain = [name]
        while parents.get(chain[-1]):
            chain.append(parents[chain[-1]])
        return chain

    for leaf in leaves:
        assert above(leaf, left) == [name for name in above(leaf, parents) if name in left]
    assert sorted(tree.leaf_names) == sorted(leaves)
    reached = {}
    for leaf in leaves:
        for below, name in zip(above(leaf, parents), above(leaf, parents)[1:], strict=False):
            reached.setdefault(name, set()).add(below)
    parting = {name for name, below in reached.items() if len(below) > 1}
    over_all = {name for name in parting if all(name in above(leaf, parents) for leaf in leaves)}
    assert len(over_all) <= 1
    assert set(left) == set(leaves) | parting - over_all


def test_cifar100_in_wordnet():
    """WordNet's nouns above CIFAR-100's classes make a ragged tree with known relatives."""
    leaves = cifar100().names[1]
    with open(WORDNET, encoding="utf-8") as lines:
        tree = from_wordnet(lines, leaves)
    assert tree.ragged
    assert tree.num_leaves == 100
    assert set(tree.leaf_names) == set(leaves)
    parent_of = parent_names(tree)
    children = Counter(parent_of.values())
    assert min(children.values()) >= 2
    members = {}
    for name, parent in parent_of.items():
        members.setdefault(parent, set()).add(name)
    assert members["big_cat.n.01"] == {"tiger", "lion", "leopard"}
    assert members["tree.n.01"] == {
        "maple_tree",
        "oak_tree",
        "palm_tree",
        "pine_tree",
        "willow_tree",
    }
    assert members["woman.n.01"] == {"woman", "girl"}
    assert members["whale.n.02"] == {"whale", "dolphin"}
    assert parent_of["wolf"] == "canine.n.02"
    assert parent_of["canine.n.02"] == parent_of["big_cat.n.01"] == "carnivore.n.01"
    labels = tree.labels(np.arange(100))
    mammal = tree.names[5].index("mammal.n.01")
    mammals = [name for name, i in zip(tree.leaf_names, labels[5], strict=True) if i == mammal]
    assert len(mammals) == 25
    assert {"chimpanzee", "kangaroo", "otter", "shrew"} < set(mammals)


def test_cifar100_in_wordnet_as_json(tmp_path):
    """The tree that WordNet makes of CIFAR-100 is the same after a JSON file."""
    tree = from_wordnet(WORDNET.read_text(encoding="utf-8"), cifar100().names[1])
    tree.to_json(tmp_path / "wordnet.json")
    assert Hierarchy.read(tmp_path / "wordnet.json") == tree


# All sources.


@given(parents=trees())
def test_all_sources_make_the_same_tree(parents):
    """One tree, as pairs, parent lists and a nest, is one hierarchy with the parents it had."""
    tree = Hierarchy.from_pairs(parents.items(), ragged=True)
    assert parent_names(tree) == parents
    assert from_parent_lists([*parents], [*parents.values()], ragged=True) == tree
    nested = {name: {} for name in parents}
    for name, parent in parents.items():
        if parent:
            nested[parent][name] = nested[name]
    top = {name: nested[name] for name, parent in parents.items() if parent is None}
    assert parent_names(from_nested(top, ragged=True)) == parents


@given(value=json_values, other=json_values, ragged=st.booleans())
def test_whatever_is_no_tree_is_a_hierarchy_error(value, other, ragged):
    """Any JSON values make a hierarchy or a HierarchyError, full unless `ragged` is asked for."""
    for make in (
        lambda: from_nested(value, ragged=ragged),
        lambda: from_parent_lists(value, other, ragged=ragged),
        lambda: Hierarchy.from_pairs(value, ragged=ragged),
    ):
        with contextlib.suppress(HierarchyError):
            assert ragged or not make().ragged
    with contextlib.suppress(HierarchyError):
        from_wordnet(value, other)
    with contextlib.suppress(HierarchyError):
        from_nested({"a": {"b": None}}, levels=value)
    with contextlib.suppress(HierarchyError):
        from_wordnet("a b\na c", ["b", "c"], names=value)


@given(text=st.text("ab#\n \t\x85é", max_size=40), leaves=st.lists(names, max_size=3))
def test_any_text_is_a_tree_or_a_hierarchy_error(text, leaves):
    """With any text as is-a lines, the tree has the given leaves, or the text is rejected."""
    with contextlib.suppress(HierarchyError):
        assert sorted(from_wordnet(text, leaves).leaf_names) == sorted(leaves)


def test_nests_of_any_depth_are_read():
    """A chain of 10,000 classes is a hierarchy from every source: none of them recurses."""
    depth = 10_000
    tree = from_nested(nest(depth, lambda i, inner: {f"c{i}": inner}))
    assert tree.sizes == (1,) * depth
    assert from_parent_lists([*sum(tree.names, ())], [*range(-1, depth - 1)]) == tree
    lines = [f"c{i + 1} c{i}" for i in range(depth - 1)]
    assert from_wordnet([*lines, "c9 x"], ["c0", "x"]).names == (("c0", "x"),)


def test_a_deep_nest_without_names_is_refused():
    """Every source rejects lists 100,000 deep, and its error shows them in short."""
    deep = nest(100_000, lambda i, inner: [inner])
    for make in (
        lambda: from_nested(deep),
        lambda: from_nested({"a": deep}),
        lambda: from_parent_lists(deep, deep),
        lambda: from_parent_lists(["a"], deep),
        lambda: from_wordnet(deep, ["a"]),
        lambda: from_wordnet("a b", deep),
        lambda: from_wordnet("a b", ["b"], names=deep),
    ):
        with pytest.raises(HierarchyError) as caught:
            make()
        assert len(str(caught.value)) < 200
