"""Parameters and multiply-adds of a network, per stage and branch."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypedDict

import flax.linen as nn
import jax
import jax.numpy as jnp

COLLECTIONS = ("params", "batch_stats")  # a kernel that is not trained is in the second


class Costs(TypedDict):
    """Parameters, and multiply-adds of convolutions and linear layers for one image."""

    parameters: int
    multiply_adds: int


class Summary(Costs):
    """The costs of whole networks, and those of each stage by its path, such as `fine/stage3`."""

    stages: dict[str, Costs]


def summarise(network: nn.Module, image_shape: tuple[int, int, int]) -> Summary:
    """Count a network's parameters and multiply-adds, without running it.

    Args:
      network: a `Branched` network.
      image_shape: (H, W, 3).
    """
    # How often each module's kernel is used, by the module's path, in the network's order. The body
    # of a loop is traced more than once, each time in another scope.
    uses: dict[tuple[str, ...], dict[Any, int]] = defaultdict(lambda: defaultdict(int))

    def count(
        next_call: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        context: nn.module.InterceptorContext,
    ) -> Any:
        out = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and len(module.path) > 1:
            of_module = uses[module.path]
            if any(module.has_variable(collection, "kernel") for collection in COLLECTIONS):
                of_module[module.scope] += math.prod(out.shape[:-1])
        return out

    def init() -> Any:
        return network.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)

    with nn.intercept_methods(count):
        variables = jax.eval_shape(init)
    parameters = {_stage(path): 0 for path in uses}
    multiply_adds = dict(parameters)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(dict(variables)):
        collection, *path, name = (key.key for key in keys)
        if collection == "params":
            parameters[_stage(path)] += leaf.size
        if name == "kernel":
            multiply_adds[_stage(path)] += leaf.size * max(uses[tuple(path)].values(), default=0)
    return _summary(
        {
            stage: {"parameters": size, "multiply_adds": multiply_adds[stage]}
            for stage, size in parameters.items()
        }
    )


def merge_summaries(summaries: Iterable[Summary]) -> Summary:
    """Return the costs of several networks, none with a stage of another, as those of one."""
    stages: dict[str, Costs] = {}
    for summary in summaries:
        stages |= summary["stages"]
    return _summary(stages)


def _summary(stages: dict[str, Costs]) -> Summary:
    return {
        "parameters": sum(costs["parameters"] for costs in stages.values()),
        "multiply_adds": sum(costs["multiply_adds"] for costs in stages.values()),
        "stages": stages,
    }


def _stage(path: Sequence[str]) -> str:
    return "/".join(path[:2])


def format_table(summary: Summary) -> str:
    """Return the costs as an aligned table, the totals last."""
    rows = [(name, c["parameters"], c["multiply_adds"]) for name, c in summary["stages"].items()]
    rows.append(("total", summary["parameters"], summary["multiply_adds"]))
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'stage':<{width}}  {'parameters':>12}  {'multiply-adds':>14}"]
    lines += [f"{name:<{width}}  {size:>12,}  {macs:>14,}" for name, size, macs in rows]
    return "\n".join(lines)
