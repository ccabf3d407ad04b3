"""A check that the levels speak of the same classes, from how often their answers meet.

If the columns of a level stand in a wrong order, nothing about a single row is wrong: each is a
distribution. But the answer of the level and the parent of the answer below it then meet in the
wrong places, and another assignment of the columns makes them agree more often.
"""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.stats import binom, norm

from hiercls_jax.hierarchy import Hierarchy

LEAST_ROWS = 100  # rows below which the check says nothing
SIGNIFICANCE = 1e-3  # probability at which a better assignment is no longer chance
UNRELATED = 0.05  # Cohen's kappa below which levels hardly speak of the same rows and classes
LARGEST = 2000  # classes of a level above which it is not checked: the counts would fill memory


def count_meetings(
    answers: Sequence[np.ndarray], hierarchy: Hierarchy, start: int = 0
) -> list[np.ndarray]:
    """Count how often each answer of a level meets each parent of the answer below it.

    Args:
      answers: L integer arrays `[N]`, the most probable row of each level's cut.
      hierarchy: L levels.
      start: number of the first row.

    Returns:
      L - 1 arrays, int64 `[2, K, K]` over the level's cut: of the rows with even and with odd
      numbers, how many have answer i and the parent k below. A level of more than `LARGEST` classes
      has none, `[2, 0, 0]`. Counts of different rows add up.
    """
    counts = []
    for level, (answer, below) in enumerate(zip(answers, answers[1:], strict=False)):
        parents = hierarchy.cut_parents(level)
        counts.append(count_pairs(answer, parents[below], int(parents.max()) + 1, start))
    return counts


def count_pairs(first: np.ndarray, second: np.ndarray, size: int, start: int = 0) -> np.ndarray:
    """Count how often each class of one answer meets each class of another.

    Args:
      first, second: integer `[N]` in `[0, size)`.
      size: number of classes K.
      start: number of the first row.

    Returns:
      int64 `[2, K, K]`, as `count_meetings` returns them.
    """
    if size > LARGEST:
        return np.zeros((2, 0, 0), np.int64)
    half = (start + np.arange(len(first))) % 2
    cells = (half * size + first) * size + second
    return np.bincount(cells, minlength=2 * size * size).reshape(2, size, size)


def find_misplaced(meetings: np.ndarray) -> np.ndarray | None:
    """Return a better assignment of a level's columns, if one agrees significantly more often.

    The assignment maximises how often answer and parent meet (`linear_sum_assignment`), each column
    that moves less one standard deviation of its counts. An assignment that was chosen on rows
    looks better on the same rows, so its significance is measured on others: the one that is best
    on either half of the rows is compared with the given one on the other half, by the exact sign
    test (McNemar, Psychometrika 1947).

    Args:
      meetings: integer `[2, K, K]`, as `count_meetings` returns them.

    Returns:
      int `[K]`, the class that each column agrees with; None if the given assignment stands.

    >>> find_misplaced(np.tile([[5, 90], [80, 5]], (2, 1, 1))).tolist()
    [1, 0]
    """
    columns = np.arange(meetings.shape[1])
    lost = won = 0
    for chosen_on, measured_on in (meetings, meetings[::-1]):
        best = _assign(chosen_on)
        moved = columns[best != columns]
        lost += int(measured_on[moved, moved].sum())
        won += int(measured_on[moved, best[moved]].sum())
    if won <= lost or binom.sf(won - 1, won + lost, 0.5) >= SIGNIFICANCE:
        return None
    best = _assign(meetings.sum(axis=0))
    return None if (best == columns).all() else best


def describe_disagreement(meetings: Sequence[np.ndarray], hierarchy: Hierarchy) -> list[str]:
    """Return a warning for each pair of neighbouring levels that may not speak of the same classes.

    Args:
      meetings: as `count_meetings` returns them, of all rows; fewer than `LEAST_ROWS` say nothing.
      hierarchy: the levels.
    """
    warnings = []
    for level, counts in enumerate(meetings):
        upper, lower = hierarchy.levels[level : level + 2]
        warnings += _describe(
            counts,
            hierarchy.cut_names(level),
            f"levels '{upper}' and '{lower}' agree",
            f"columns of '{upper}'",
            "the order of the columns of both levels",
        )
    return warnings


def describe_labels(meetings: np.ndarray, hierarchy: Hierarchy) -> list[str]:
    """Return a warning if labels may not speak of the classes of the last level's answers.

    Args:
      meetings: int64 `[2, K, K]`, as `count_pairs` returns them, of labels and answers of the last
        level's cut.
      hierarchy: the levels.
    """
    return _describe(
        meetings,
        hierarchy.leaf_names,
        f"the labels and the answers of level '{hierarchy.levels[-1]}' agree",
        "classes of the labels",
        "which class each number among the labels stands for, and the order of the columns",
    )


def _describe(
    counts: np.ndarray, names: Sequence[str], said: str, moved_what: str, check: str
) -> list[str]:
    """Return the warning about counts of pairs, if there is cause for one."""
    total = counts.sum(axis=0)
    rows = int(total.sum())
    if rows < LEAST_ROWS:
        return []
    agree, chance = np.trace(total) / rows, _by_chance(total)
    said = f"{said} on {100 * agree:.1f} % of the rows"
    better = find_misplaced(counts)
    if better is not None:
        moved = np.flatnonzero(better != np.arange(len(better)))
        listed = [f"'{names[i]}' as '{names[better[i]]}'" for i in moved[:6]]
        more = f", and {len(moved) - 6} more" if len(moved) > 6 else ""
        rate = 100 * total[np.arange(len(better)), better].sum() / rows
        return [
            f"{said}, but on {rate:.1f} % if {len(moved)} {moved_what} are read as other classes: "
            f"{', '.join(listed)}{more}; check {check}"
        ]
    if _largest_kappa(agree, chance, rows) < UNRELATED:
        return [
            f"{said}, hardly more often than by chance ({100 * chance:.1f} %); check {check}, and "
            "whether the rows are the same"
        ]
    return []


def _assign(meetings: np.ndarray) -> np.ndarray:
    own = np.diag(meetings).astype(float)
    gain = meetings - np.sqrt(meetings + own[:, None])
    np.fill_diagonal(gain, own)
    return linear_sum_assignment(gain, maximize=True)[1]


def _by_chance(total: np.ndarray) -> float:
    """Return how often answers would agree if those of one level said nothing of the other."""
    return float(total.sum(axis=1) @ total.sum(axis=0)) / float(total.sum()) ** 2


def _largest_kappa(agree: float, chance: float, rows: int) -> float:
    """Return the upper end of the 98 % interval of (agree - chance) / (1 - chance)."""
    if chance == 1:
        return 1.0  # both levels always give the same answer
    deviation = np.sqrt(chance * (1 - chance) / rows)
    return float((agree + norm.isf(0.01) * deviation - chance) / (1 - chance))
