"""Hierarchies: values derived from the parents, errors, and the files they come from."""

import contextlib
import csv
import dataclasses
import hashlib
import json
from collections import Counter

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from hiercls_jax import Hierarchy
from hiercls_jax.errors import UserError
from hiercls_jax.hierarchy import HierarchyError, check_parents, cifar100

# SHA-256 of the table in the design notes as comma-separated text.
NOTES_TABLE = "3a9790b7ff45ea61a5f9d5d5c798ef0e028ebce0211201a9cd93372be327536a"


def animals() -> Hierarchy:
    """Three levels, 2, 3 and 4 classes, parents not in order."""
    return Hierarchy(
        levels=("class", "order", "species"),
        names=(("bird", "mammal"), ("owls", "cats", "dogs"), ("wolf", "lynx", "barn owl", "lion")),
        parents=((0, 1, 1), (2, 1, 0, 1)),
    )


def pets() -> Hierarchy:
    """A ragged hierarchy: leaves are fish (level 0), owls (1), dogs (1) and two cats (2)."""
    return Hierarchy(
        levels=("class", "order", "species"),
        names=(("bird", "fish", "mammal"), ("dogs", "owls", "cats"), ("lynx", "lion")),
        parents=((2, 0, 2), (2, 2)),
        ragged=True,
    )


@st.composite
def hierarchies(draw, ragged=False):
    """Draw a hierarchy of 1 to 4 levels; unless `ragged`, each class above the last has a child."""
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    sizes = sizes if ragged else sorted(sizes)
    parents = []
    for above, below in zip(sizes, sizes[1:], strict=False):
        needed = [] if ragged else [*range(above)]
        extra = [draw(st.integers(0, above - 1)) for _ in range(below - len(needed))]
        parents.append(draw(st.permutations([*needed, *extra])))
    letters = st.text('abcäß中",; ', min_size=1, max_size=4).filter(str.strip)
    count = sum(sizes) + len(sizes)
    names = iter(
        draw(st.lists(letters.map(str.strip), min_size=count, max_size=count, unique=True))
    )
    levels = [next(names) for _ in sizes]
    return Hierarchy(
        levels, [[next(names) for _ in range(size)] for size in sizes], parents, ragged
    )


def paths(tree: Hierarchy) -> list[list[int]]:
    """The classes from the first level down to each leaf, by a literal walk up; any order."""
    found = []
    for level, names in enumerate(tree.names):
        for j in range(len(names)):
            if level + 1 < tree.num_levels and j in tree.parents[level]:
                continue
            path = [j]
            for parents in reversed(tree.parents[:level]):
                path.insert(0, int(parents[path[0]]))
            found.append(path)
    return found


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["levels", "names", "parents", "ragged", "a", ""]), inner, max_size=4
        )
    ),
    max_leaves=12,
)


# What a hierarchy knows.


def test_sizes_ancestors_and_labels():
    """Ancestors compose the parent maps; labels follow them for every level."""
    tree = animals()
    assert (tree.num_levels, tree.sizes) == (3, (2, 3, 4))
    assert [tree.ancestors(level).tolist() for level in range(3)] == [
        [1, 1, 0, 1],
        [2, 1, 0, 1],
        [0, 1, 2, 3],
    ]
    assert tree.ancestors(-2).tolist() == tree.ancestors(1).tolist()
    assert tree.fine_to_coarse.tolist() == [1, 1, 0, 1]
    labels = tree.labels(np.array([3, 2, 2, 0]))
    assert [level.tolist() for level in labels] == [[1, 0, 0, 1], [1, 0, 0, 2], [3, 2, 2, 0]]
    assert {level.dtype for level in labels} == {np.dtype(np.int32)}


def test_one_level_is_a_hierarchy():
    """A flat set of classes has no parents, and is its own coarsest level."""
    flat = Hierarchy(["digit"], [["zero", "one"]], [])
    assert flat.fine_to_coarse.tolist() == [0, 1]
    assert [level.tolist() for level in flat.labels(np.array([1, 0]))] == [[1, 0]]


def test_equality_is_by_content():
    """Equal content is equal and hashes alike; another parent makes another hierarchy."""
    tree, data = animals(), animals().to_dict()
    assert tree == animals()
    assert hash(tree) == hash(animals())
    data["parents"][1] = [1, 2, 0, 1]
    assert Hierarchy.from_dict(data) != tree
    assert tree != "animals"


def test_a_hierarchy_cannot_be_changed():
    """Its fields and arrays are read-only, and it shares no array with its maker."""
    given_parents = np.array([0, 1, 0], np.int32)
    tree = Hierarchy(("a", "b"), (("x", "y"), ("p", "q", "r")), (given_parents,))
    given_parents[2] = 1
    assert tree.parents[0].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        tree.parents[0][0] = 1
    with pytest.raises(AttributeError):
        tree.levels = ("c", "d")


@pytest.mark.parametrize("level", [3, -4])
@pytest.mark.parametrize("method", ["ancestors", "is_leaf", "cut", "cut_parents"])
def test_a_level_that_is_not_there(method, level):
    """A level out of range is an error, not another level."""
    with pytest.raises(IndexError, match=f"no level {level} in a hierarchy of 3"):
        getattr(animals(), method)(level)


def test_nothing_is_below_the_last_level():
    """The last level has no cut below it whose rows could have parents."""
    for level in (2, -1):
        with pytest.raises(IndexError, match="no level 3 in a hierarchy of 3"):
            animals().cut_parents(level)
    assert animals().cut_parents(-2).tolist() == [2, 1, 0, 1]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 4], "label 4 is out of range: level 'species' has 4 classes, 0 to 3"),
        ([-1, 0], "label -1 is out of range"),
        ([0.0, 1.0], "labels are integers, not float64"),
        ([True, False, True, True], "labels are integers, not bool"),
    ],
)
def test_wrong_labels_are_refused(labels, message):
    """A label out of range is an error; it is not wrapped, and booleans are not taken as a mask."""
    with pytest.raises(HierarchyError, match=message):
        animals().labels(np.array(labels))


# Ragged hierarchies.


def test_cuts_and_labels_of_a_ragged_hierarchy():
    """By hand: a cut is the level, then the leaves above it; labels are positions in the cuts."""
    tree = pets()
    assert tree.ragged
    assert [tree.is_leaf(level).tolist() for level in range(3)] == [
        [False, True, False],
        [True, True, False],
        [True, True],
    ]
    assert [tree.cut(level).tolist() for level in range(3)] == [
        [[0, 0], [0, 1], [0, 2]],
        [[1, 0], [1, 1], [1, 2], [0, 1]],
        [[2, 0], [2, 1], [0, 1], [1, 0], [1, 1]],
    ]
    assert tree.num_leaves == 5
    assert tree.leaf_names == ("lynx", "lion", "fish", "dogs", "owls")
    assert [level.tolist() for level in tree.labels(np.arange(5))] == [
        [2, 2, 1, 2, 0],
        [2, 2, 3, 0, 1],
        [0, 1, 2, 3, 4],
    ]
    assert [tree.cut_parents(level).tolist() for level in range(2)] == [
        [2, 0, 2, 1],
        [2, 2, 3, 0, 1],
    ]


@given(tree=hierarchies(ragged=True))
def test_labels_of_every_leaf_are_its_ancestors(tree):
    """At every level a leaf's label is the row of the cut that a walk up from the leaf meets."""
    labels = tree.labels(np.arange(tree.num_leaves))
    assert {level.dtype for level in labels} == {np.dtype(np.int32)}
    cuts = [tree.cut(level).tolist() for level in range(tree.num_levels)]
    met = []
    for leaf in range(tree.num_leaves):
        rows = [cut[level[leaf]] for cut, level in zip(cuts, labels, strict=True)]
        depth = rows[-1][0]
        assert [row[0] for row in rows] == [min(level, depth) for level in range(tree.num_levels)]
        assert all(row == rows[-1] for row in rows[depth:])
        met.append([row[1] for row in rows[: depth + 1]])
    assert sorted(met) == sorted(paths(tree))


@given(tree=hierarchies(ragged=True))
def test_cuts_are_in_order_and_nested(tree):
    """A cut is its level, then the leaves above, in order; its rows' parents are the cut above."""
    for level in range(tree.num_levels):
        cut, size = tree.cut(level), tree.sizes[level]
        assert cut.dtype == np.int32
        assert cut[:size].tolist() == [[level, i] for i in range(size)]
        leaves = [[a, i] for a in range(level) for i in np.flatnonzero(tree.is_leaf(a))]
        assert cut[size:].tolist() == leaves
    for level, parents in enumerate(tree.parents):
        above, below, rows = tree.cut(level), tree.cut(level + 1), tree.cut_parents(level)
        assert sorted(set(rows)) == list(range(len(above)))
        for (where, i), row in zip(below, rows, strict=True):
            wanted = [level, parents[i]] if where == level + 1 else [where, i]
            assert above[row].tolist() == wanted


@given(tree=hierarchies() | hierarchies(ragged=True))
def test_probabilities_of_a_cut_are_those_of_its_rows(tree):
    """Each column of `cut_probs` is the class that the row of the cut names."""
    rng = np.random.default_rng(0)
    levels = [rng.random((2, n)) for n in tree.sizes]
    for level, probs in enumerate(tree.cut_probs(levels)):
        wanted = [levels[of_level][:, i] for of_level, i in tree.cut(level)]
        np.testing.assert_array_equal(probs, np.stack(wanted, axis=1))


@given(tree=hierarchies())
def test_a_full_tree_passed_as_ragged_is_a_full_tree(tree):
    """`ragged=True` changes nothing if no class is childless: cuts are levels, labels are ids."""
    again = dataclasses.replace(tree, ragged=True)
    assert again.ragged is tree.ragged is False
    assert again == tree
    assert hash(again) == hash(tree)
    assert again.to_dict() == tree.to_dict()
    assert tree.num_leaves == tree.sizes[-1]
    assert tree.leaf_names == tree.names[-1]
    labels = tree.labels(np.arange(tree.num_leaves))
    for level, size in enumerate(tree.sizes):
        assert tree.cut(level).tolist() == [[level, i] for i in range(size)]
        assert tree.is_leaf(level).tolist() == [level == tree.num_levels - 1] * size
        np.testing.assert_array_equal(tree.ancestors(level), labels[level])
        if level:
            np.testing.assert_array_equal(tree.cut_parents(level - 1), tree.parents[level - 1])


@given(tree=hierarchies(ragged=True))
def test_a_filled_tree_has_the_cuts_as_levels(tree):
    """Every leaf above the last level is its own only child; labels and leaf names stay."""
    full = tree.filled()
    assert not full.ragged
    assert full.names == tuple(tree.cut_names(level) for level in range(tree.num_levels))
    assert full.leaf_names == tree.leaf_names
    leaves = np.arange(tree.num_leaves)
    for filled, labels in zip(full.labels(leaves), tree.labels(leaves), strict=True):
        np.testing.assert_array_equal(filled, labels)


def test_raggedness_is_content():
    """A ragged hierarchy equals one of the same content, hashes like it, and is read-only."""
    tree = pets()
    assert tree == pets()
    assert hash(tree) == hash(pets())
    data = tree.to_dict()
    data["parents"][0] = [2, 1, 2]
    assert Hierarchy.from_dict(data) != tree
    with pytest.raises(ValueError, match="read-only"):
        tree.parents[0][0] = 1


def test_a_ragged_hierarchy_has_no_map_from_fine_to_coarse():
    """Its leaves are not the last level's classes, so the error names what to use instead."""
    message = r"ragged: its 5 leaves are not the 2 classes of level 'species'; use labels"
    with pytest.raises(HierarchyError, match=message):
        pets().fine_to_coarse  # noqa: B018
    with pytest.raises(HierarchyError, match=message):
        pets().ancestors(-1)


def test_a_label_beyond_the_leaves_of_a_ragged_hierarchy():
    """Leaf ids run over the leaves of all levels."""
    assert [level.tolist() for level in pets().labels(np.array([4]))] == [[0], [1], [4]]
    with pytest.raises(HierarchyError, match="label 5 is out of range: the hierarchy has 5 leaves"):
        pets().labels(np.array([5]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ragged": False}, r"'order'.*class 1 \('fish'\) has no children.*ragged=True"),
        ({"ragged": 1}, "ragged: expected true or false, got 1"),
        ({"ragged": None}, "ragged: expected true or false, got None"),
        ({"parents": [[2, 0, 3], [2, 2]]}, "class 2 has id 3, allowed are 0 to 2"),
        ({"parents": [[2, 0, 2], []]}, "'species' has 2 classes but 0 parents"),
        (
            {"names": [["bird", "fish", "mammal"], ["dogs", "owls", "cats"], []]}
            | {"parents": [[2, 0, 2], []]},
            "level 'species': no classes",
        ),
    ],
)
def test_each_fault_of_a_ragged_hierarchy_has_its_own_error(change, message):
    """Ragged or not, ids are checked, the last level has a class, and the field is a truth."""
    with pytest.raises(HierarchyError, match=message):
        Hierarchy.from_dict(pets().to_dict() | change)


def test_adjust_takes_no_childless_parents():
    """`check_parents`, the check of Algorithm 1's map, knows no ragged trees."""
    with pytest.raises(HierarchyError, match="s: class 1 has no children; remove it, or give it"):
        check_parents([0, 2, 0], 3, "s")


# CIFAR-100.


def test_cifar100_is_the_official_table():
    """20 x 5 classes, fine names alphabetical, the table of the design notes, known groups."""
    tree = cifar100()
    assert tree.sizes == (20, 100)
    assert tree.levels == ("coarse", "fine")
    assert list(tree.names[0]) == sorted(tree.names[0])
    assert list(tree.names[1]) == sorted(tree.names[1])
    assert set(Counter(tree.fine_to_coarse.tolist()).values()) == {5}
    text = ",".join(map(str, tree.fine_to_coarse)).encode()
    assert hashlib.sha256(text).hexdigest() == NOTES_TABLE
    members = {
        coarse: {tree.names[1][j] for j in np.flatnonzero(tree.fine_to_coarse == i)}
        for i, coarse in enumerate(tree.names[0])
    }
    # From the table on Krizhevsky's page; the groups that wrong copies get wrong.
    assert members["vehicles_1"] == {"bicycle", "bus", "motorcycle", "pickup_truck", "train"}
    assert members["vehicles_2"] == {"lawn_mower", "rocket", "streetcar", "tank", "tractor"}
    assert members["people"] == {"baby", "boy", "girl", "man", "woman"}
    assert members["aquatic_mammals"] == {"beaver", "dolphin", "otter", "seal", "whale"}
    assert members["fish"] == {"aquarium_fish", "flatfish", "ray", "shark", "trout"}
    assert members["trees"] == {
        "maple_tree",
        "oak_tree",
        "palm_tree",
        "pine_tree",
        "willow_tree",
    }


# What is refused.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levels": []}, "at least one level"),
        ({"levels": ["class", "order"]}, "2 levels but 3 lists of class names"),
        ({"levels": ["class", "order", "class"]}, "the levels: the name 'class' stands 2 times"),
        ({"levels": ["class", "order", " "]}, "the levels: a name is a non-empty string, got ' '"),
        ({"levels": "abc"}, "levels: expected a list, got 'abc'"),
        ({"levels": 3}, "levels: expected a list, got 3"),
        ({"names": None}, "names: expected a list, got None"),
        ({"names": [["a", "b"], "pqr", ["w", "x", "y", "z"]]}, "names of level 2: expected a list"),
        ({"names": [["a", "b"], ["p", "q", "p"], ["w", "x", "y", "z"]]}, "'order': the name 'p' s"),
        ({"names": [["a", "b"], ["p", "q", 7], ["w", "x", "y", "z"]]}, "non-empty string, got 7"),
        ({"names": [["a", "b"], [], ["w", "x", "y", "z"]]}, "'order' has 0 classes but 3 parents"),
        ({"parents": [[0, 1, 1]]}, "3 levels need 2 lists of parents, got 1"),
        ({"parents": 5}, "parents: expected a list, got 5"),
        ({"parents": [[0, 1], [2, 1, 0, 1]]}, "'order' has 3 classes but 2 parents"),
        ({"parents": [[0, 1, 2], [2, 1, 0, 1]]}, "'order'.*class 2 has id 2, allowed are 0 to 1$"),
        ({"parents": [[0, -1, 1], [2, 1, 0, 1]]}, "class 1 has id -1, allowed are 0 to 1$"),
        ({"parents": [[1, 2, 2], [2, 1, 0, 1]]}, "id 2, allowed.*1-based: subtract 1"),
        ({"parents": [[1, 1, 1], [2, 1, 0, 1]]}, r"class 0 \('bird'\) has no children"),
        ({"parents": [[0, 1, 1], [2, 0, 0, 2]]}, r"'species'.*class 1 \('cats'\) has no children"),
        ({"parents": [[0, 1, 1.5], [2, 1, 0, 1]]}, "expected integers, got float64"),
        ({"parents": [[0, 1, None], [2, 1, 0, 1]]}, "expected integers, got object"),
        ({"parents": [[0, 1, "1"], [2, 1, 0, 1]]}, "expected integers, got object"),
        ({"parents": [[[0], [1], [1]], [2, 1, 0, 1]]}, r"expected shape \[F\].*got \[3, 1\]"),
        ({"parents": [[[0], [1, 1]], [2, 1, 0, 1]]}, r"expected shape \[F\], got nested lists"),
    ],
)
def test_each_fault_has_its_own_error(change, message):
    """A hierarchy with one fault is refused, with the level, class and value in the message."""
    data = animals().to_dict() | change
    with pytest.raises(HierarchyError, match=message) as caught:
        Hierarchy.from_dict(data)
    assert isinstance(caught.value, UserError)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_ids_of_every_integer_type(dtype):
    """Parents of any integer type are taken as int32; ids too large for one are out of range."""
    ids = check_parents(np.array([1, 0, 1], dtype), 2, "s")
    assert ids.dtype == np.int32
    assert ids.tolist() == [1, 0, 1]
    largest = np.iinfo(dtype).max
    with pytest.raises(HierarchyError, match=f"class 0 has id {largest}, allowed are 0 to 1"):
        check_parents(np.array([largest, 0, 1], dtype), 2, "s")


def test_text_among_ids_takes_no_memory():
    """A long text among many ids is rejected before it becomes an array of long texts (4 TB)."""
    with pytest.raises(HierarchyError, match="s: expected integers, got object"):
        check_parents(["x" * 10**7] + [0] * 10**5, 1, "s")


@given(value=json_values)
def test_whatever_is_no_hierarchy_is_a_hierarchy_error(value):
    """Any JSON value, whole or in place of a field, is a hierarchy or a HierarchyError."""
    for data in [value, *(pets().to_dict() | {key: value} for key in pets().to_dict())]:
        with contextlib.suppress(HierarchyError):
            Hierarchy.from_dict(data)


def test_a_deep_nest_is_refused():
    """Lists and objects 100,000 deep end in an error of their own, wherever they stand."""
    lists, objects = [], {}
    for _ in range(100_000):
        lists, objects = [lists], {"a": objects}
    for nest in (lists, objects):
        for data in [nest, *(animals().to_dict() | {key: nest} for key in pets().to_dict())]:
            with pytest.raises(HierarchyError):
                Hierarchy.from_dict(data)


# Files.


@given(tree=hierarchies() | hierarchies(ragged=True))
def test_json_returns_what_was_written(tree, tmp_path_factory):
    """JSON holds the whole hierarchy, whatever its names and number of levels."""
    path = tmp_path_factory.getbasetemp() / "tree.json"
    tree.to_json(path)
    again = Hierarchy.from_json(path)
    assert (again.levels, again.names) == (tree.levels, tree.names)
    for read, written in zip(again.parents, tree.parents, strict=True):
        np.testing.assert_array_equal(read, written)
    assert Hierarchy.read(path) == tree
    assert json.loads(path.read_text()).get("ragged") is (True if tree.ragged else None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"levels": ' + "1" * 5000 + "}", "is not JSON"),
        ("[]", "a hierarchy is a JSON object, not list"),
        ('{"levels": []}', r"has the keys \['levels', 'names', 'parents'\]; this one has"),
        (json.dumps(animals().to_dict() | {"parents": [[0, 1, 2], [2, 1, 0, 1]]}), "id 2, allowed"),
    ],
)
def test_json_errors_name_the_file(text, message, tmp_path):
    """The error of every fault in a JSON file names the file."""
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(HierarchyError, match=message) as caught:
        Hierarchy.from_json(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("header", ["", "class,parent\n", "Class, Parent\n", "\n\nclass,parent\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_csv_of_two_levels(header, start, tmp_path):
    """Rows of (class, parent) give two levels in order of appearance, with or without header."""
    path = tmp_path / "two.csv"
    path.write_text(start + header + 'lynx,cat\n pug , dog\n\n"lion, old",cat\n', encoding="utf-8")
    assert Hierarchy.from_csv(path) == Hierarchy(
        ("coarse", "fine"), (("cat", "dog"), ("lynx", "pug", "lion, old")), ((0, 1, 0),)
    )


def test_csv_of_three_levels(tmp_path):
    """A parent with a row of its own is a class between; rows may come in any order."""
    path = tmp_path / "three.csv"
    path.write_text("wolf,dogs\nowls,bird\nlynx,cats\ncats,mammal\nbarn owl,owls\ndogs,mammal\n")
    wanted = Hierarchy(
        ("level1", "level2", "level3"),
        (("bird", "mammal"), ("owls", "cats", "dogs"), ("wolf", "lynx", "barn owl")),
        ((0, 1, 1), (2, 1, 0)),
    )
    assert Hierarchy.read(path) == wanted
    named = Hierarchy.from_csv(path, ["class", "order", "species"])
    assert named.levels == ("class", "order", "species")
    assert named.names == wanted.names


def test_csv_of_unequal_depths(tmp_path):
    """With `ragged`, leaves lie where their parents put them; one at the top has no parent."""
    path = tmp_path / "ragged.csv"
    path.write_text("wolf,dogs\nfish,\ndogs,mammal\nlynx,mammal\nowl,bird\n")
    wanted = Hierarchy(
        ("level1", "level2", "level3"),
        (("fish", "mammal", "bird"), ("dogs", "lynx", "owl"), ("wolf",)),
        ((1, 1, 2), (0,)),
        ragged=True,
    )
    assert Hierarchy.read(path, ragged=True) == Hierarchy.from_csv(path, ragged=True) == wanted
    with pytest.raises(HierarchyError, match="leaf 'fish' is at level 1 but others.*ragged=True"):
        Hierarchy.read(path)


def test_csv_rows_of_the_first_level(tmp_path):
    """A row without a parent states the order of the first level, where it stands; no flag needed.

    If one class of the level has none, the order is one of first mention, and nobody stated it.
    """
    path = tmp_path / "two.csv"
    path.write_text("dog,\npug,dog\nlynx,cat\ncat,\n")
    stated = Hierarchy.read(path)
    assert stated.names == (("dog", "cat"), ("pug", "lynx"))
    assert stated.unordered == ()
    path.write_text("pug,dog\nlynx,cat\ncat,\n")
    assert Hierarchy.read(path).unordered == ("coarse",)
    assert Hierarchy.from_csv(path, ["kind", "animal"]).unordered == ("kind",)
    assert Hierarchy.read(path) == stated  # what was stated is no part of the content
    stated.to_json(tmp_path / "two.json")
    assert Hierarchy.read(tmp_path / "two.json").unordered == ()


@given(tree=hierarchies() | hierarchies(ragged=True))
def test_csv_can_hold_every_tree(tree, tmp_path_factory):
    """The (class, parent) rows of any tree with distinct names give it back, ragged or full."""
    path = tmp_path_factory.getbasetemp() / "tree.csv"
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "parent"])
        writer.writerows([name, None] for name in tree.names[0])
        for above, below, ids in zip(tree.names, tree.names[1:], tree.parents, strict=False):
            writer.writerows([name, above[i]] for name, i in zip(below, ids, strict=True))
    assert Hierarchy.from_csv(path, tree.levels, ragged=True) == tree


@given(
    text=st.lists(
        st.tuples(st.sampled_from('abc"\0'), st.sampled_from(["", "a", "b", "c", '"d', "\r"])),
        max_size=6,
    ).map(lambda rows: "\n".join(map(",".join, rows)).encode())
    | st.binary(max_size=20),
    ragged=st.booleans(),
)
def test_any_file_is_a_hierarchy_or_a_hierarchy_error(text, ragged, tmp_path_factory):
    """Whatever a file holds, reading it ends in a hierarchy or a HierarchyError."""
    for name in ("any.csv", "any.json"):
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(text)
        with contextlib.suppress(HierarchyError):
            assert ragged or not Hierarchy.read(path, ragged).ragged


def test_a_long_chain_is_read(tmp_path):
    """10,000 levels of one class each, given from the last: no recursion on the way."""
    path = tmp_path / "chain.csv"
    path.write_text("".join(f"{i},{i + 1}\n" for i in range(10_000)))
    assert Hierarchy.from_csv(path).num_levels == 10_001


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (5, r"expected \(class, parent\) pairs, got 5"),
        ([], "no classes"),
        (["ab"], r"pair 1: expected \(class, parent\), got 'ab'"),
        ([("a", "b"), ("c",)], r"pair 2: expected \(class, parent\)"),
        ([("a", "b"), (3, "b")], "pair 2: a name is a non-empty string, got 3"),
        ([("a", "")], "pair 1: a name is a non-empty string, got ''"),
        ([("a", "b"), ("a", None)], r"class 'a' has 2 rows, with the parents \['b', None\]"),
        ([("a", "b"), ("b", "a")], "'a' is its own ancestor"),
        ([("a", "b"), ("c", None)], "leaf 'c' is at level 1 but others are at level 2"),
    ],
)
def test_each_fault_of_pairs_has_its_own_error(pairs, message):
    """Pairs that are no tree are refused, with the pair or class in the message."""
    with pytest.raises(HierarchyError, match=message):
        Hierarchy.from_pairs(pairs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("class,parent\n", "no rows"),
        ("lynx\n", r"row 1: expected two columns \(class, parent\)"),
        ("lynx,cat\npug,dog,pet\n", "row 2: expected two columns"),
        ("lynx,\n", "no row has a parent"),
        (",cat\n", "row 1: expected two columns"),
        ("lynx,cat\nlynx,dog\n", r"class 'lynx' has 2 rows, with the parents \['cat', 'dog'\]"),
        ("cat,cat\n", "'cat' is its own ancestor"),
        ("a,b\nb,c\nc,a\n", "is its own ancestor"),
        (
            "wolf,dogs\ndogs,mammal\nlynx,mammal\n",
            "leaf 'lynx' is at level 2 but others are at level 3.*ragged=True",
        ),
        ('"lynx,cat\n', "is not a CSV file"),
        (b"l\xffnx,cat\n", "is not UTF-8"),
    ],
)
def test_csv_errors_name_the_file(text, message, tmp_path):
    """The error of every fault in a CSV file names the fault and the file."""
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(HierarchyError, match=message) as caught:
        Hierarchy.from_csv(path)
    assert str(path) in str(caught.value)


def test_read_refuses_what_it_cannot_read(tmp_path):
    """A file that is missing or of another kind is an error that names it."""
    with pytest.raises(HierarchyError, match=r"there is no hierarchy file .*gone\.csv"):
        Hierarchy.read(tmp_path / "gone.csv")
    other = tmp_path / "tree.yaml"
    other.write_text("levels: []")
    with pytest.raises(HierarchyError, match=r"ends in \.json or \.csv, not '\.yaml'"):
        Hierarchy.read(other)
