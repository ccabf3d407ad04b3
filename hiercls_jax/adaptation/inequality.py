"""Adaptation for labels that are incomplete or not exclusive: only contradictions are mended.

Section 5 of Dutt, Pellerin and Quénot (CBMI 2017): if categories are not exclusive, or an image
may show none of them, "we would have to deal with inequalities rather than equalities", and
"adjustments would have to be done only when inequalities are not satisfied".

    labels                              what must hold      if it does not
    ----------------------------------  ------------------  -----------------------------------
    exclusive, incomplete children      Σ_j f_j ≤ p         p and Σ f move to their midpoint
    multi-label                         max_j f_j ≤ p       p and every f_j above the midpoint
                                                            of p and max f move to it
    multi-label, exhaustive children    also p ≤ Σ_j f_j    p and Σ f move to their midpoint

A group is a coarse class and its children j. A group that violates nothing keeps every bit. α is
the share of the way to go, in [0, 2] as in Algorithm 1. Results lie between 0 and the larger of p
and Σ f, or max f, so in [0, 1]. From α = 1 on, an inequality that was violated holds; at α = 2 its
two sides have exchanged their values.
"""

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.checks import prepare_pair
from hiercls_jax.adaptation.layout import Levels, classes_first
from hiercls_jax.adaptation.share import Ids, share_of_group

Arrays = tuple[jax.Array, jax.Array]


def adjust_incomplete(
    p_coarse: ArrayLike, p_fine: ArrayLike, s: ArrayLike, alpha: ArrayLike
) -> tuple[jax.Array, jax.Array]:
    """Adapt a level and its exclusive but not exhaustive children in groups with Σ f_j > p.

    With Q_i = Σ_{s(j)=i} p_fine_j and β = α/2, in every group with Q_i > p_coarse_i:

        coarse′_i = (1-β) p_coarse_i + β Q_i
        fine′_j   = p_fine_j [(1-β) + β p_coarse_i / Q_i],  i = s(j)

    p_coarse_i + Q_i does not change: the coarse level gains what the fine level loses, and neither
    is normalised. Other groups do not change.

    Pure and jitted, differentiable with finite gradients; `jax.vmap` over `alpha` works.

    Args:
      p_coarse: float `[..., C]` in [0, 1].
      p_fine: float `[..., F]` in [0, 1], same leading axes; siblings exclude each other.
      s: integer `[F]`, `s[j]` in `[0, C)` is the coarse class of fine class `j`.
      alpha: float in `[0, 2]`, a scalar or an array that broadcasts against the leading axes; the
        violations are gone from 1 on.

    Returns:
      (coarse `[..., C]`, fine `[..., F]`): float32, or float64 for float64 input under x64.

    Raises:
      ValueError: for shapes that disagree, an `s` that does not map onto the coarse classes, or
        an `alpha` that is a number or NumPy array outside `[0, 2]`.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Section 5, with Algorithm 1.

    >>> coarse, fine = adjust_incomplete([0.25, 0.5], [0.5, 0.25, 0.125], [0, 0, 1], 1.0)
    >>> coarse.tolist(), [round(p, 4) for p in fine.tolist()]
    ([0.5, 0.5], [0.3333, 0.1667, 0.125])
    """
    coarse, fine = _incomplete(*prepare_pair(p_coarse, p_fine, s, alpha))
    return coarse, fine


def adjust_multilabel(
    p_coarse: ArrayLike,
    p_fine: ArrayLike,
    s: ArrayLike,
    alpha: ArrayLike,
    *,
    exhaustive: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Adapt labels that may occur together in groups in which a child exceeds its parent.

    With m_i = max_{s(j)=i} p_fine_j and t_i = (p_coarse_i + m_i) / 2, in groups with
    m_i > p_coarse_i:

        coarse′_i = (1-α) p_coarse_i + α t_i
        fine′_j   = (1-α) p_fine_j + α min(p_fine_j, t_i),  i = s(j)

    Children at or below t_i do not change. For α > 1 those above t_i are mirrored: their order
    reverses.

    With `exhaustive`, a coarse label implies one of its fine labels, so
    p_coarse_i ≤ Q_i = Σ_{s(j)=i} p_fine_j must hold too. In groups with p_coarse_i > Q_i both move
    to their midpoint by Algorithm 1: children keep their ratios, and share equally if all are 0.
    No group violates both inequalities, because max f ≤ Σ f. Up to α = 1 mending one does not
    break the other: it goes at most to the point of equality, and there p = Σ f implies f_j ≤ p,
    and p = max f implies p ≤ Σ f. Beyond 1 it may: an only child must equal its parent, and
    passes it.

    Pure and jitted, differentiable with finite gradients (children tied for m_i share its
    gradient); `jax.vmap` over `alpha` works.

    Args:
      p_coarse: float `[..., C]` in [0, 1].
      p_fine: float `[..., F]` in [0, 1]; same leading axes.
      s: integer `[F]`, `s[j]` in `[0, C)` is the coarse class of fine class `j`.
      alpha: float in `[0, 2]`, a scalar or an array that broadcasts against the leading axes; the
        violations are gone from 1 on, with `exhaustive` at 1.
      exhaustive: whether a coarse label implies one of its fine labels.

    Returns:
      (coarse `[..., C]`, fine `[..., F]`): float32, or float64 for float64 input under x64.

    Raises:
      ValueError: for shapes that disagree, an `s` that does not map onto the coarse classes, or
        an `alpha` that is a number or NumPy array outside `[0, 2]`.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Section 5.

    >>> coarse, fine = adjust_multilabel([0.25, 1.0], [0.75, 0.375, 0.5], [0, 0, 1], 1.0)
    >>> coarse.tolist(), fine.tolist()
    ([0.5, 1.0], [0.5, 0.375, 0.5])
    >>> coarse, fine = adjust_multilabel([0.25, 1.0], [0.75, 0.375, 0.5], [0, 0, 1], 1.0,
    ...                                  exhaustive=True)
    >>> coarse.tolist(), fine.tolist()
    ([0.5, 0.75], [0.5, 0.375, 0.75])
    """
    run = _exhaustive if exhaustive else _multilabel
    coarse, fine = run(*prepare_pair(p_coarse, p_fine, s, alpha))
    return coarse, fine


@classes_first
def _incomplete(levels: Levels, s: Ids) -> Arrays:
    p, f, alpha = levels
    q = jax.ops.segment_sum(f, s, len(p))
    return _algorithm_1(q > p, p, f, q, s, alpha / 2)


@classes_first
def _multilabel(levels: Levels, s: Ids) -> Arrays:
    p, f, alpha = levels
    return _lower(p, f, p, f, s, alpha / 2)


@classes_first
def _exhaustive(levels: Levels, s: Ids) -> Arrays:
    p, f, alpha = levels
    q = jax.ops.segment_sum(f, s, len(p))
    coarse, fine = _algorithm_1(p > q, p, f, q, s, alpha / 2)
    return _lower(p, f, coarse, fine, s, alpha / 2)


def _lower(
    p: jax.Array, f: jax.Array, coarse: jax.Array, fine: jax.Array, s: Ids, beta: jax.Array
) -> Arrays:
    """Return `coarse` and `fine`, with p and the greatest f adapted in groups with max f > p."""
    m = jax.ops.segment_max(f, s, len(p))
    excess = m > p
    # (1-α) f + α t with 2t = p + m, in positive terms only, so that nothing cancels near α = 2.
    lowered = _mix(f, p[s] + (m[s] - f), beta)
    coarse = jnp.where(excess, _mix(p, m, beta), coarse)
    fine = jnp.where(excess[s] & (f > (p + m)[s] / 2), lowered, fine)
    return coarse, fine


def _algorithm_1(
    violated: jax.Array, p: jax.Array, f: jax.Array, q: jax.Array, s: Ids, beta: jax.Array
) -> Arrays:
    """Adapt the `violated` groups, bool `[C, ...]`, by Algorithm 1; the others do not change."""
    coarse = jnp.where(violated, _mix(p, q, beta), p)
    fine = jnp.where(violated[s], _mix(f, share_of_group(f, s, len(p)) * p[s], beta), f)
    return coarse, fine


def _mix(x: jax.Array, y: jax.Array, beta: jax.Array) -> jax.Array:
    return (1 - beta) * x + beta * y
