"""Class hierarchies: the tree, its cuts, its files and other sources."""

from hiercls_jax.hierarchy.checks import (
    HierarchyError,
    check_name,
    check_names,
    check_parents,
    is_list,
    match_columns,
)
from hiercls_jax.hierarchy.cifar100 import cifar100
from hiercls_jax.hierarchy.hierarchy import Hierarchy

__all__ = [
    "Hierarchy",
    "HierarchyError",
    "check_name",
    "check_names",
    "check_parents",
    "cifar100",
    "is_list",
    "match_columns",
]
