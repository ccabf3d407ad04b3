"""Hierarchical image classification in JAX, for everybody whose classes form a tree.

Two classifiers, one of coarse and one of fine classes, often disagree about an image. `adjust`
pulls their probabilities together at test time, without any training, whatever the classifiers are.
The package also trains merged networks, which share their first stages and answer on every level,
evaluates them before and after adaptation, and turns a run into something to use by `load`. The
method is that of *Improving Hierarchical Image Classification with Merged CNN Architectures* (Dutt,
Pellerin and Quénot, CBMI 2017), for trees of any depth: a `Hierarchy`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hiercls_jax.adaptation.adapt_levels import adapt_levels
    from hiercls_jax.adaptation.adjust import adjust
    from hiercls_jax.experiment.predictor import load
    from hiercls_jax.hierarchy import Hierarchy

__all__ = ["Hierarchy", "adapt_levels", "adjust", "load"]

_MODULES = {
    "Hierarchy": "hiercls_jax.hierarchy",
    "adapt_levels": "hiercls_jax.adaptation.adapt_levels",
    "adjust": "hiercls_jax.adaptation.adjust",
    "load": "hiercls_jax.experiment.predictor",
}


def __getattr__(name: str) -> object:
    # Imported at first use: JAX takes a second to import, Flax and Orbax more, and Ctrl-C meanwhile
    # would end a command with a traceback.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)
