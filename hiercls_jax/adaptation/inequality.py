"""Adaptation where labels are incomplete or not exclusive: Algorithm 1 where levels contradict.

Section 5 of Dutt, Pellerin and Quénot (CBMI 2017): where categories are not exclusive, or an image
may show none of them, "we would have to deal with inequalities rather than equalities", and
"adjustments would have to be done only when inequalities are not satisfied".

    labels                              what must hold      where it does not
    ----------------------------------  ------------------  -----------------------------------
    exclusive, incomplete children      Σ_j f_j ≤ p         p and Σ f move to their midpoint
    multi-label                         max_j f_j ≤ p       p and every f_j above the midpoint
                                                            of p and max f move to it
    multi-label, exhaustive children    also p ≤ Σ_j f_j    p and Σ f move to their midpoint

A group (a coarse class and its children j) in which nothing is violated keeps every bit. α is the
part of the way to go. It may be anything in [0, 2], as in Algorithm 1: results then lie between 0
and the larger of p and Σ f, or max f, so in [0, 1]; at α = 2 the two sides of a violated
inequality have exchanged their values. From α = 1 on an inequality that was violated holds.
"""

import jax
import jax.numpy as jnp

from hiercls_jax.adaptation.adjust import checked, share_of_group
from hiercls_jax.adaptation.layout import classes_first


def adjust_incomplete(p_coarse, p_fine, s, alpha) -> tuple[jax.Array, jax.Array]:
    """Adapt a level and its exclusive but not exhaustive children, where Σ f_j > p.

    With Q_i = Σ_{s(j)=i} p_fine_j and β = α/2, in every group with Q_i > p_coarse_i:

        coarse′_i = (1-β) p_coarse_i + β Q_i
        fine′_j   = p_fine_j [(1-β) + β p_coarse_i / Q_i],  i = s(j)

    p_coarse_i + Q_i stays: the coarse level gains what the fine level loses, and neither is
    normalised. Other groups stay as they are.

    Pure and jitted, differentiable with finite gradients; `jax.vmap` over `alpha` works.

    Args:
      p_coarse: float `[..., C]` in [0, 1].
      p_fine: float `[..., F]` in [0, 1], where siblings exclude each other; same leading axes.
      s: integer `[F]`, `s[j]` in `[0, C)` is the coarse class of fine class `j`.
      alpha: float in `[0, 2]`, a scalar or an array that broadcasts against the leading axes; the
        violations are gone from 1 on.

    Returns:
      (coarse `[..., C]`, fine `[..., F]`): float32, or float64 for float64 input under x64.

    Raises:
      ValueError: for shapes that disagree, an `s` that is no such map, or an `alpha` given as a
        number or NumPy array outside `[0, 2]`.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Section 5, with Algorithm 1.

    >>> coarse, fine = adjust_incomplete([0.25, 0.5], [0.5, 0.25, 0.125], [0, 0, 1], 1.0)
    >>> coarse.tolist(), [round(p, 4) for p in fine.tolist()]
    ([0.5, 0.5], [0.3333, 0.1667, 0.125])
    """
    return _incomplete(*checked(p_coarse, p_fine, s, alpha))


def adjust_multilabel(
    p_coarse, p_fine, s, alpha, *, exhaustive: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Adapt the probabilities of labels that may occur together, where a child exceeds its parent.

    With m_i = max_{s(j)=i} p_fine_j and t_i = (p_coarse_i + m_i) / 2, in groups with
    m_i > p_coarse_i:

        coarse′_i = (1-α) p_coarse_i + α t_i
        fine′_j   = (1-α) p_fine_j + α min(p_fine_j, t_i),  i = s(j)

    so children at or below t_i stay. For α > 1 those above it are mirrored: their order turns.

    With `exhaustive`, whoever has a coarse label has one of its fine labels, so that also
    p_coarse_i ≤ Q_i = Σ_{s(j)=i} p_fine_j. In groups with p_coarse_i > Q_i both move to their
    midpoint by Algorithm 1: children keep their ratios, and share equally where all are 0. No
    group violates both (max f ≤ Σ f), and up to α = 1 no repair breaks the other inequality: it
    stops at or before the point where both sides agree, and there p = Σ f gives f_j ≤ p, and
    p = max f gives p ≤ Σ f. Beyond 1 it may: an only child has to equal its parent, and passes it.

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
      ValueError: for shapes that disagree, an `s` that is no such map, or an `alpha` given as a
        number or NumPy array outside `[0, 2]`.

    Source: Dutt, Pellerin and Quénot (CBMI 2017), Section 5.

    >>> coarse, fine = adjust_multilabel([0.25, 1.0], [0.75, 0.375, 0.5], [0, 0, 1], 1.0)
    >>> coarse.tolist(), fine.tolist()
    ([0.5, 1.0], [0.5, 0.375, 0.5])
    >>> coarse, fine = adjust_multilabel([0.25, 1.0], [0.75, 0.375, 0.5], [0, 0, 1], 1.0,
    ...                                  exhaustive=True)
    >>> coarse.tolist(), fine.tolist()
    ([0.5, 0.75], [0.5, 0.375, 0.75])
    """
    return (_exhaustive if exhaustive else _multilabel)(*checked(p_coarse, p_fine, s, alpha))


@classes_first
def _incomplete(levels, s):
    p, f, alpha = levels
    q = jax.ops.segment_sum(f, s, len(p))
    return _algorithm_1(q > p, p, f, q, s, alpha / 2)


@classes_first
def _multilabel(levels, s):
    p, f, alpha = levels
    return _lower(p, f, p, f, s, alpha / 2)


@classes_first
def _exhaustive(levels, s):
    p, f, alpha = levels
    q = jax.ops.segment_sum(f, s, len(p))
    return _lower(p, f, *_algorithm_1(p > q, p, f, q, s, alpha / 2), s, alpha / 2)


def _lower(p, f, coarse, fine, s, beta):
    """Pull a group's probability and its greatest fine ones together where one is above it."""
    m = jax.ops.segment_max(f, s, len(p))
    excess = m > p
    # (1-α) f + α t with 2t = p + m, all terms positive: near α = 2 the other form cancels.
    lowered = _mix(f, p[s] + (m[s] - f), beta)
    coarse = jnp.where(excess, _mix(p, m, beta), coarse)
    fine = jnp.where(excess[s] & (f > (p + m)[s] / 2), lowered, fine)
    return coarse, fine


def _algorithm_1(where, p, f, q, s, beta):
    """Algorithm 1 in the groups `where` holds (bool `[C, ...]`); the others as they are."""
    coarse = jnp.where(where, _mix(p, q, beta), p)
    fine = jnp.where(where[s], _mix(f, share_of_group(f, s, len(p)) * p[s], beta), f)
    return coarse, fine


def _mix(x, y, beta):
    return (1 - beta) * x + beta * y
