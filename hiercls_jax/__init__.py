"""Hierarchical image classification with merged networks and test-time adaptation, in JAX."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hiercls_jax.adaptation.adjust import adjust
    from hiercls_jax.experiment.predictor import load
    from hiercls_jax.hierarchy import Hierarchy

__all__ = ["Hierarchy", "adjust", "load"]


def __getattr__(name: str):
    # Not before it is used: JAX takes a second to import, Flax and Orbax more, and a command that
    # is stopped meanwhile could not say so.
    if name == "Hierarchy":
        from hiercls_jax.hierarchy import Hierarchy as found
    elif name == "adjust":
        from hiercls_jax.adaptation.adjust import adjust as found
    elif name == "load":
        from hiercls_jax.experiment.predictor import load as found
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return found
