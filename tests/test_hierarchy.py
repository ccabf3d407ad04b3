"""Hierarchies: what is derived from the parents, what is refused, and the files they come from."""

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


@st.composite
def hierarchies(draw):
    """Draw a hierarchy of 1 to 4 levels, each class above the last with a child."""
    sizes = sorted(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    parents = []
    for above, below in zip(sizes, sizes[1:], strict=False):
        extra = [draw(st.integers(0, above - 1)) for _ in range(below - above)]
        parents.append(draw(st.permutations([*range(above), *extra])))
    letters = st.text('abcäß中",; ', min_size=1, max_size=4).filter(str.strip)
    count = sum(sizes) + len(sizes)
    names = iter(
        draw(st.lists(letters.map(str.strip), min_size=count, max_size=count, unique=True))
    )
    levels = [next(names) for _ in sizes]
    return Hierarchy(levels, [[next(names) for _ in range(size)] for size in sizes], parents)


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
    """Neither its fields nor its arrays can be written, nor those of its maker through it."""
    given_parents = np.array([0, 1, 0], np.int32)
    tree = Hierarchy(("a", "b"), (("x", "y"), ("p", "q", "r")), (given_parents,))
    given_parents[2] = 1
    assert tree.parents[0].tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="read-only"):
        tree.parents[0][0] = 1
    with pytest.raises(AttributeError):
        tree.levels = ("c", "d")


@pytest.mark.parametrize("level", [3, -4])
def test_a_level_that_is_not_there(level):
    """A level out of range is an error, not another level."""
    with pytest.raises(IndexError, match=f"no level {level} in a hierarchy of 3"):
        animals().ancestors(level)


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
    """A label that names no class is refused rather than wrapped or taken for a mask."""
    with pytest.raises(HierarchyError, match=message):
        animals().labels(np.array(labels))


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


# Files.


@given(tree=hierarchies())
def test_json_returns_what_was_written(tree, tmp_path_factory):
    """JSON holds the whole hierarchy, whatever its names and number of levels."""
    path = tmp_path_factory.getbasetemp() / "tree.json"
    tree.to_json(path)
    again = Hierarchy.from_json(path)
    assert (again.levels, again.names) == (tree.levels, tree.names)
    for read, written in zip(again.parents, tree.parents, strict=True):
        np.testing.assert_array_equal(read, written)
    assert Hierarchy.read(path) == tree


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "a hierarchy is a JSON object, not list"),
        ('{"levels": []}', r"has the keys \['levels', 'names', 'parents'\]; this one has"),
        (json.dumps(animals().to_dict() | {"parents": [[0, 1, 2], [2, 1, 0, 1]]}), "id 2, allowed"),
    ],
)
def test_json_errors_name_the_file(text, message, tmp_path):
    """Whatever is wrong with a JSON file, the error says in which file."""
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no rows"),
        ("class,parent\n", "no rows"),
        ("lynx\n", r"row 1: expected two columns \(class, parent\)"),
        ("lynx,cat\npug,dog,pet\n", "row 2: expected two columns"),
        ("lynx,\n", "row 1: expected two columns"),
        ("lynx,cat\nlynx,dog\n", "class 'lynx' has 2 rows"),
        ("cat,cat\n", "'cat' is its own ancestor"),
        ("a,b\nb,c\nc,a\n", "is its own ancestor"),
        (
            "wolf,dogs\ndogs,mammal\nlynx,mammal\n",
            "leaf 'lynx' is at level 2 but others are at level 3",
        ),
        ('"lynx,cat\n', "is not a CSV file"),
        (b"l\xffnx,cat\n", "is not UTF-8"),
    ],
)
def test_csv_errors_name_the_file(text, message, tmp_path):
    """Whatever is wrong with a CSV file, the error says what and in which file."""
    path = tmp_path / "bad.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(HierarchyError, match=message) as caught:
        Hierarchy.from_csv(path)
    assert str(path) in str(caught.value)


def test_read_refuses_what_it_cannot_read(tmp_path):
    """A file that is not there, or of another kind, is refused by name."""
    with pytest.raises(HierarchyError, match=r"there is no hierarchy file .*gone\.csv"):
        Hierarchy.read(tmp_path / "gone.csv")
    other = tmp_path / "tree.yaml"
    other.write_text("levels: []")
    with pytest.raises(HierarchyError, match=r"ends in \.json or \.csv, not '\.yaml'"):
        Hierarchy.read(other)
