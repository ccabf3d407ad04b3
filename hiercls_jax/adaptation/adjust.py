"""Classifier adaptation at test time: Algorithm 1 of Dutt, Pellerin and Quénot (CBMI 2017).

    The paper, for one sample                 Here, for all samples at once
    ----------------------------------------  ----------------------------------------------
    Q_coarse[i] = Σ_{s(j)=i} P_fine[j]        q = segment_sum(p_fine, s)
    target = (P_coarse[i] + Q_coarse[i]) / 2
    coarse′[i] = (1-α) P_coarse[i] + α target  coarse = (1-β) p_coarse + β q,     β = α/2
    fine_target = P_fine[j] target / Q[i]     share = p_fine / q[s], 1/n where q is 0
    fine′[j] = (1-α) P_fine[j] + α fine_target fine = (1-β) p_fine + β share p_coarse[s]

The two columns are equal where Q > 0. The right one is what floating point wants: it never goes
negative for α in [0, 2], where (1-α) P + α target cancels to small negative numbers near α = 2,
and dividing p_fine by q before anything else neither overflows nor loses mass when q is tiny.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hiercls_jax.adaptation.layout import classes_first
from hiercls_jax.hierarchy import check_parents

EMPTY_RULES = ("preserve", "literal")


def adjust(p_coarse, p_fine, s, alpha, *, empty: str = "preserve") -> tuple[jax.Array, jax.Array]:
    """Adapt coarse and fine probabilities of each sample to each other (Algorithm 1).

    With Q_i = Σ_{s(j)=i} p_fine_j and β = α/2:

        coarse′_i = (1-β) p_coarse_i + β Q_i
        fine′_j   = p_fine_j [(1-β) + β p_coarse_i / Q_i],  i = s(j)

    α = 0 changes nothing; α = 1 makes the two levels agree, `coarse′_i = Σ_{s(j)=i} fine′_j`; α = 2
    exchanges their opinions about the coarse classes. Both results sum to 1 for every α.

    Where Q_i = 0 there are no ratios to keep, and a group's n_i children share its mass equally:
    fine′_j = β p_coarse_i / n_i. The paper prints coarse′_i / n_i there, which contradicts its own
    text for α ≠ 1 (at α = 0 it changes probabilities although "no adjustment is made", and the
    fine probabilities then sum to more than 1); `empty='literal'` gives that branch. A mass below
    the smallest normal number of the dtype counts as 0.

    Pure and jitted; one compilation serves every α. Differentiable, with finite values and
    gradients for every input. `jax.vmap` over `alpha` gives the whole of the paper's Figure 3.

    Args:
      p_coarse: float `[..., C]`, non-negative, sums to 1 over the last axis.
      p_fine: float `[..., F]`, non-negative, sums to 1 over the last axis; same leading axes.
      s: integer `[F]`, `s[j]` in `[0, C)` is the coarse class of fine class `j`; every coarse
        class has at least one. Checked where it is concrete (not traced).
      alpha: float in `[0, 2]`, a scalar or an array that broadcasts against the leading axes.
      empty: 'preserve' (default) or 'literal', the rule for groups without fine mass.

    Returns:
      (coarse `[..., C]`, fine `[..., F]`): float32, or float64 for float64 input under x64.

    Raises:
      ValueError: for shapes that disagree, an `s` that is no such map, an unknown `empty`, or an
        `alpha` given as a number or NumPy array outside `[0, 2]`.

    >>> coarse, fine = adjust([0.75, 0.25], [0.375, 0.125, 0.5], [0, 0, 1], 1.0)
    >>> coarse.tolist(), fine.tolist()
    ([0.625, 0.375], [0.46875, 0.15625, 0.375])
    """
    if empty not in EMPTY_RULES:
        raise ValueError(f"empty={empty!r} is not one of {EMPTY_RULES}")
    run = _adjust if empty == "preserve" else _adjust_literally
    return run(*checked(p_coarse, p_fine, s, alpha))


def _algorithm_1(levels, s, literal):
    p_coarse, p_fine, alpha = levels
    beta, num_coarse = alpha / 2, len(p_coarse)
    q = jax.ops.segment_sum(p_fine, s, num_coarse)
    coarse = (1 - beta) * p_coarse + beta * q
    fine = (1 - beta) * p_fine + beta * (share_of_group(p_fine, s, num_coarse) * p_coarse[s])
    if literal:
        n = _group_sizes(s, num_coarse, q)
        fine = jnp.where(_empty(q)[s], (coarse / n)[s], fine)
    return coarse, fine


_adjust = classes_first(partial(_algorithm_1, literal=False))
_adjust_literally = classes_first(partial(_algorithm_1, literal=True))


def share_of_group(mass, s, num_groups: int):
    """Return each class's share of its group's mass, equal shares where the group has none.

    Args:
      mass: float `[F, ...]`, non-negative, classes first.
      s: integer `[F]`, the group of each class.
      num_groups: number of groups.
    """
    q = jax.ops.segment_sum(mass, s, num_groups)
    return jnp.where(_empty(q)[s], 1 / _group_sizes(s, num_groups, q)[s], _share(mass, q[s]))


def _empty(q):
    return q < jnp.finfo(q.dtype).tiny


def _group_sizes(s, num_groups, like):
    """Number of classes of each group `[C, 1, …]`, of the dtype and rank of `like`."""
    n = jax.ops.segment_sum(jnp.ones(s.shape, like.dtype), s, num_groups)
    return n.reshape(n.shape + (1,) * (like.ndim - 1))


@jax.custom_jvp
def _share(part, whole):
    """Return part / whole, and 0 where `whole` is below the smallest normal number."""
    kept = ~_empty(whole)
    return jnp.where(kept, part / jnp.where(kept, whole, 1), 0)


@_share.defjvp
def _share_jvp(primals, tangents):
    # The derivative of part / whole written plainly forms whole⁻², which overflows from a whole
    # of about 3e-20 down; (dpart - share dwhole) / whole is the same number without it.
    part, whole = primals
    d_part, d_whole = tangents
    share = _share(part, whole)
    kept = ~_empty(whole)
    return share, jnp.where(kept, (d_part - share * d_whole) / jnp.where(kept, whole, 1), 0)


def checked(p_coarse, p_fine, s, alpha) -> tuple:
    """Return the arguments of `adjust` as ((p_coarse, p_fine, alpha `[..., 1]`), s), checked."""
    p_coarse, p_fine = jnp.asarray(p_coarse), jnp.asarray(p_fine)
    dtype = jnp.promote_types(jnp.result_type(p_coarse, p_fine), jnp.float32)
    _check_alpha(alpha)
    alpha = jnp.asarray(alpha, dtype)
    _check_shapes(p_coarse.shape, p_fine.shape, np.shape(s), alpha.shape)
    if not isinstance(s, jax.core.Tracer):
        s = check_parents(s, p_coarse.shape[-1], "s (the coarse class of each fine class)")
    return (p_coarse.astype(dtype), p_fine.astype(dtype), alpha[..., None]), s


def _check_alpha(alpha) -> None:
    if isinstance(alpha, jax.Array):  # on a device, or traced: reading it would block or fail
        return
    values = np.asarray(alpha, float)
    if values.size and not ((values >= 0) & (values <= 2)).all():
        raise ValueError(f"alpha must lie in [0, 2], got {alpha}")


def _check_shapes(coarse, fine, s, alpha) -> None:
    if not coarse or not fine:
        raise ValueError(
            f"p_coarse is [..., C] and p_fine is [..., F]; got {list(coarse)} and {list(fine)}"
        )
    if coarse[:-1] != fine[:-1]:
        raise ValueError(
            "p_coarse and p_fine must have the same leading axes; got "
            f"{list(coarse)} and {list(fine)}"
        )
    if s != fine[-1:]:
        raise ValueError(
            f"s must give one coarse class for each of the {fine[-1]} fine classes of p_fine "
            f"{list(fine)}, shape [{fine[-1]}]; got {list(s)}"
        )
    try:
        np.broadcast_shapes(coarse[:-1], alpha)
    except ValueError:
        raise ValueError(
            f"alpha {list(alpha)} does not broadcast against the leading axes {list(coarse[:-1])}"
        ) from None
