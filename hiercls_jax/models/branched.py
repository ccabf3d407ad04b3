"""Merged networks: shared first stages, one branch per level behind them (Figure 2, Section 3.4).

    merge = 0            merge = 1            merge = 2            merge = 3
    (Figure 2d)          (Figure 2e)          (Figure 2f)          (Figure 2g)

    stem    stem         stem                 stem                 stem
    stage1  stage1       stage1               stage1               stage1
    stage2  stage2       stage2  stage2       stage2               stage2
    stage3  stage3       stage3  stage3       stage3  stage3       stage3
    coarse  fine         coarse  fine         coarse  fine         coarse, fine

The separate networks of Figure 2c are this network with one head each (`variants.py`). The stem
belongs to stage 1 and the final piece to the last: merge-3 shares all but the classifiers. Stages
end in max-poolings in the paper and in `fast.py`, but not in the networks that the paper cites.
"""

from functools import partial
from typing import Protocol

import flax.linen as nn
import jax

from hiercls_jax.errors import UserError
from hiercls_jax.models.layers import Classifier


class Family(Protocol):
    """A network family: named modules that are applied one after another.

    `pieces(axis_name)` returns a stem, S stages and a final normalisation or pooling. Each is a
    named Flax module that is called as `piece(x, train)`. `registry.register` lists optional parts.
    """

    def pieces(self, axis_name: str | None) -> tuple[nn.Module, ...]: ...


class Branched(nn.Module):
    """A network with `merge` shared stages and one branch per head.

    Parameter paths: `shared/stage1/block0/conv1/kernel`, `fine/stage2/…`, `fine/classifier/bias`.

    Args:
      family: gives the stem, the S stages and the final piece.
      heads: (name, number of classes) of each level, of any number of levels; none is `shared`.
      merge: how many stages the levels share, 0 to S.
      axis_name: mapped axis over which batch statistics are averaged, or None.

    >>> from hiercls_jax.models import registry
    >>> network = Branched(registry.build("resnet11"), (("coarse", 20), ("fine", 100)), merge=1)
    >>> init = partial(network.init_with_output, jax.random.key(0), train=False)
    >>> logits, variables = jax.eval_shape(init, jax.ShapeDtypeStruct((8, 32, 32, 3), "float32"))
    >>> logits["fine"].shape, sorted(variables["params"])
    ((8, 100), ['coarse', 'fine', 'shared'])
    """

    family: Family
    heads: tuple[tuple[str, int], ...]
    merge: int
    axis_name: str | None = None

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> dict[str, jax.Array]:
        """Return logits by level name, float32 `[N, classes]` (float64 if the parameters are).

        `images` are float `[N, H, W, 3]`, standardised. If `train`, layers normalise by the batch.
        """
        if "shared" in dict(self.heads):
            raise UserError("a level cannot be called 'shared', the name of the shared stages")
        part = partial(Segment, self.family, self.merge, self.axis_name)
        shared = part(name="shared")(images, train)
        return {level: part(classes, name=level)(shared, train) for level, classes in self.heads}


class Segment(nn.Module):
    """The shared pieces of a family or, if `classes` is set, the other pieces and a classifier."""

    family: Family
    merge: int
    axis_name: str | None
    classes: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        pieces = self.family.pieces(self.axis_name)
        cut = shared_pieces(len(pieces), self.merge)
        for piece in pieces[:cut] if self.classes is None else pieces[cut:]:
            x = piece(x, train)
        head = getattr(self.family, "head", partial(Classifier, name="classifier"))
        return x if self.classes is None else head(self.classes)(x)


def shared_pieces(count: int, merge: int) -> int:
    """Return how many of `count` pieces are shared: none, the stem and `merge` stages, or all."""
    stages = count - 2
    if not 0 <= merge <= stages:
        raise UserError(f"merge is the number of shared stages, 0 to {stages}, not {merge}")
    if merge == 0:
        return 0
    return count if merge == stages else merge + 1
