"""Hierarchical image classification with merged networks and test-time adaptation, in JAX."""

from hiercls_jax.adaptation.adjust import adjust
from hiercls_jax.hierarchy import Hierarchy

__all__ = ["Hierarchy", "adjust"]
