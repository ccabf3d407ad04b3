"""Levels that speak of the same classes are left alone; columns in a wrong order are named."""

import re

import numpy as np
import pytest

from hiercls_jax import Hierarchy
from hiercls_jax.adaptation.agreement import (
    LARGEST,
    count_meetings,
    describe_disagreement,
    find_misplaced,
)


def tree(groups=20, children=5) -> Hierarchy:
    """Groups of children, whose parents take turns."""
    coarse = [f"group{i}" for i in range(groups)]
    fine = [f"class{j}" for j in range(groups * children)]
    return Hierarchy(("coarse", "fine"), (coarse, fine), (np.arange(len(fine)) % groups,))


def answers(hierarchy, rows, accuracy=(0.75, 0.7), seed=0):
    """Answers of two independent classifiers, which are wrong about a class next to it or any."""
    rng = np.random.default_rng(seed)
    truth = hierarchy.labels(rng.integers(hierarchy.num_leaves, size=rows))
    given = []
    for y, size, right in zip(truth, hierarchy.sizes, accuracy, strict=True):
        near, any_ = (y + rng.integers(1, 3, rows)) % size, rng.integers(size, size=rows)
        wrong = np.where(rng.random(rows) < 0.5, near, any_)
        given.append(np.where(rng.random(rows) < right, y, wrong))
    return given


def swapped(answer, order):
    """The answers of a level whose columns stand in another order."""
    return np.argsort(order)[answer]


def warnings(hierarchy, given):
    """The warnings, from counts of two chunks."""
    parts = [
        count_meetings([a[rows] for a in given], hierarchy, start)
        for start, rows in ((0, slice(37)), (37, slice(37, None)))
    ]
    return describe_disagreement(
        [sum(of_level) for of_level in zip(*parts, strict=True)], hierarchy
    )


def test_two_swapped_columns_of_twenty():
    """They are named, and no others, with the rates before and after they are put back."""
    hierarchy, order = tree(), np.arange(20)
    order[[3, 7]] = 7, 3
    coarse, fine = answers(hierarchy, 1000)
    (warning,) = warnings(hierarchy, [swapped(coarse, order), fine])
    assert "2 columns of 'coarse'" in warning
    assert "'group3' as 'group7', 'group7' as 'group3'; check the order" in warning
    parents = hierarchy.fine_to_coarse[fine]
    rates = [100 * np.mean(a == parents) for a in (swapped(coarse, order), coarse)]
    assert [float(x) for x in re.findall(r"([\d.]+) %", warning)] == [round(x, 1) for x in rates]


def test_all_columns_in_alphabetical_order():
    """Columns in another order altogether are found from a few hundred rows on."""
    hierarchy = tree()
    order = np.argsort(hierarchy.names[0])  # group0, group1, group10, …
    coarse, fine = answers(hierarchy, 300)
    meetings = count_meetings([swapped(coarse, order), fine], hierarchy)
    np.testing.assert_array_equal(find_misplaced(meetings[0]), order)
    (warning,) = warnings(hierarchy, [swapped(coarse, order), fine])
    assert f"{np.sum(order != np.arange(20))} columns of 'coarse'" in warning
    assert "'group2' as 'group10'" in warning
    assert "and 12 more" in warning


@pytest.mark.parametrize("accuracy", [(0.9, 0.8), (0.5, 0.4), (0.4, 0.9)])
@pytest.mark.parametrize("rows", [100, 1000])
def test_no_warning_without_cause(rows, accuracy):
    """Good and poor classifiers whose columns are in order are left alone, on every of 30 draws."""
    hierarchy = tree(children=2)
    for seed in range(30):
        assert warnings(hierarchy, answers(hierarchy, rows, accuracy, seed)) == []


def test_levels_of_different_rows():
    """Levels that agree hardly more often than by chance are named, as when rows are shuffled."""
    hierarchy = tree()
    coarse, fine = answers(hierarchy, 1000)
    (warning,) = warnings(hierarchy, [coarse[::-1], fine])
    assert "hardly more often than by chance (5." in warning
    assert warnings(hierarchy, [coarse[:99][::-1], fine[:99]]) == []  # too few rows to tell
    assert warnings(hierarchy, [np.zeros(500, int)] * 2) == []  # one and the same answer always


def test_ragged_and_deep_trees():
    """Cuts are compared, so that a leaf above the last level is a class of both; each pair once."""
    ragged = Hierarchy(
        ("a", "b", "c"),
        (("cat", "dog", "emu"), ("lynx", "lion", "pug"), ("grey", "fawn", "big", "small")),
        ((0, 0, 1), (0, 1, 2, 2)),
        ragged=True,
    )
    truth = ragged.labels(np.random.default_rng(0).integers(ragged.num_leaves, size=500))
    assert warnings(ragged, truth) == []
    wrong = [truth[0], np.array([3, 1, 2, 0])[truth[1]], truth[2]]  # lynx for emu in level b
    found = warnings(ragged, wrong)
    assert len(found) == 2
    assert "levels 'a' and 'b'" in found[0]
    assert "'lynx' as 'emu', 'emu' as 'lynx'" in found[1]


def test_counts_of_very_many_classes_are_left_out():
    """Counts of pairs of more than LARGEST classes would fill memory."""
    hierarchy = tree(LARGEST + 1, 1)
    given = [np.arange(200), np.arange(200)]
    assert count_meetings(given, hierarchy)[0].size == 0
    assert warnings(hierarchy, given) == []
