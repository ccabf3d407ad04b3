"""Classifier adaptation at test time: Algorithm 1 of Dutt, Pellerin and Quénot (CBMI 2017).

    The paper, for one sample                    Here, for all samples at once
    -------------------------------------------  ---------------------------------------------
    Q_coarse[i] = Σ_{s(j)=i} P_fine[j]           q = segment_sum(p_fine, s)
    target = (P_coarse[i] + Q_coarse[i]) / 2
    coarse′[i] = (1-α) P_coarse[i] + α target    coarse = (1-β) p_coarse + β q,      β = α/2
    fine_target = P_fine[j] target / Q_coarse[i] share = p_fine / q[s], or 1/n if q is 0
    fine′[j] = (1-α) P_fine[j] + α fine_target   fine = (1-β) p_fine + β share p_coarse[s]

The two columns are equal if Q_coarse > 0. The right one suits floating point. It is never negative
for α in [0, 2], while (1-α) P + α target cancels to small negative numbers near α = 2. It divides
p_fine by q first, which neither overflows nor loses mass if q is tiny.
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from numpy.typing import ArrayLike

from hiercls_jax.adaptation.checks import prepare_pair
from hiercls_jax.adaptation.layout import classes_first
from hiercls_jax.adaptation.share import Ids, group_sizes, is_empty, share_of_group

EmptyRule = Literal["preserve", "literal"]


def adjust(
    p_coarse: ArrayLike,
    p_fine: ArrayLike,
    s: ArrayLike,
    alpha: ArrayLike,
    *,
    empty: EmptyRule = "preserve",
) -> tuple[jax.Array, jax.Array]:
    """Adapt coarse and fine probabilities of each sample to each other (Algorithm 1).

    With Q_i = Σ_{s(j)=i} p_fine_j and β = α/2:

        coarse′_i = (1-β) p_coarse_i + β Q_i
        fine′_j   = p_fine_j [(1-β) + β p_coarse_i / Q_i],  i = s(j)

    α = 0 changes nothing; α = 1 makes the two levels agree, `coarse′_i = Σ_{s(j)=i} fine′_j`; α = 2
    exchanges their opinions about the coarse classes. Both results sum to 1 for every α.

    If Q_i = 0 there are no ratios to keep, and a group's n_i children share its mass equally:
    fine′_j = β p_coarse_i / n_i. The paper prints coarse′_i / n_i, which contradicts its own text
    for α ≠ 1: at α = 0 it changes probabilities although "no adjustment is made", and the fine
    probabilities then sum to more than 1. `empty='literal'` gives that branch. A mass below the
    smallest normal number of the dtype counts as 0.

    Pure and jitted; one compilation serves every α. Differentiable, with finite values and
    gradients for every input. `jax.vmap` over `alpha` gives all of the paper's Figure 3.

    Args:
      p_coarse: float `[..., C]`, non-negative, sums to 1 over the last axis.
      p_fine: float `[..., F]`, non-negative, sums to 1 over the last axis; same leading axes.
      s: integer `[F]`, `s[j]` in `[0, C)` is the coarse class of fine class `j`; every coarse
        class has at least one. Checked unless it is traced.
      alpha: float in `[0, 2]`, a scalar or an array that broadcasts against the leading axes.
      empty: 'preserve' or 'literal', the rule for groups without fine mass.

    Returns:
      (coarse `[..., C]`, fine `[..., F]`): float32, or float64 for float64 input under x64.

    Raises:
      ValueError: for shapes that disagree, an `s` that does not map onto the coarse classes, an
        unknown `empty`, or an `alpha` that is a number or NumPy array outside `[0, 2]`.

    Source: Dutt, Pellerin and Quénot, *Improving Hierarchical Image Classification with Merged CNN
      Architectures* (CBMI 2017), Section 3.2, Algorithm 1; doi:10.1145/3095713.3095745.

    >>> coarse, fine = adjust([0.75, 0.25], [0.375, 0.125, 0.5], [0, 0, 1], 1.0)
    >>> coarse.tolist(), fine.tolist()
    ([0.625, 0.375], [0.46875, 0.15625, 0.375])
    """
    if empty not in get_args(EmptyRule):
        raise ValueError(f"empty={empty!r} is not one of {get_args(EmptyRule)}")
    run = _adjust if empty == "preserve" else _adjust_literally
    coarse, fine = run(*prepare_pair(p_coarse, p_fine, s, alpha))
    return coarse, fine


def _algorithm_1(
    arrays: Sequence[jax.Array], s: Ids, *, literal: bool
) -> tuple[jax.Array, jax.Array]:
    """Adjust p_coarse `[C, ...]` and p_fine `[F, ...]` by alpha `[1, ...]`, classes first."""
    p_coarse, p_fine, alpha = arrays
    beta, num_coarse = alpha / 2, len(p_coarse)
    q = jax.ops.segment_sum(p_fine, s, num_coarse)
    coarse = (1 - beta) * p_coarse + beta * q
    fine = (1 - beta) * p_fine + beta * (share_of_group(p_fine, s, num_coarse) * p_coarse[s])
    if literal:
        n = group_sizes(s, num_coarse, q)
        fine = jnp.where(is_empty(q)[s], (coarse / n)[s], fine)
    return coarse, fine


_adjust = classes_first(partial(_algorithm_1, literal=False))
_adjust_literally = classes_first(partial(_algorithm_1, literal=True))
