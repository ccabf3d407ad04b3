"""Hierarchical image classification with merged networks and test-time adaptation, in JAX."""

from hiercls_jax.adaptation.adjust import adjust
from hiercls_jax.hierarchy import Hierarchy

__all__ = ["Hierarchy", "adjust", "load"]


def __getattr__(name: str):
    if name != "load":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Not before it is used: Flax and Orbax take seconds to import, and `adjust` needs neither.
    from hiercls_jax.predictor import load

    return load
