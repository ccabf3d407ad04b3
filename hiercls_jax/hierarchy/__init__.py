"""Class hierarchies: the tree, its cuts, and where trees come from."""

from hiercls_jax.hierarchy.hierarchy import (
    Hierarchy,
    HierarchyError,
    check_name,
    check_names,
    check_parents,
    cifar100,
    is_list,
)

__all__ = [
    "Hierarchy",
    "HierarchyError",
    "check_name",
    "check_names",
    "check_parents",
    "cifar100",
    "is_list",
]
