"""Parameters and multiply-adds of a network, per stage and branch."""

import math
from collections import defaultdict
from collections.abc import Iterable

import flax.linen as nn
import jax
import jax.numpy as jnp


def summarise(network: nn.Module, image_shape: tuple[int, int, int]) -> dict:
    """Count what a network holds and computes for one image, without running it.

    Args:
      network: a `Branched` network.
      image_shape: (H, W, 3).

    Returns:
      `{"parameters": total, "multiply_adds": total, "stages": {"shared/stem": {"parameters": …,
      "multiply_adds": …}, …}}`; multiply-adds are those of convolutions and linear layers.
    """
    # By module, in the network's order: how often a parameter is used. The body of a loop is traced
    # more than once, each time in another scope.
    uses = defaultdict(lambda: defaultdict(int))

    def count(next_call, args, kwargs, context):
        out = next_call(*args, **kwargs)
        module = context.module
        if context.method_name == "__call__" and len(module.path) > 1:
            of_module = uses[module.path]
            if module.has_variable("params", "kernel"):
                of_module[module.scope] += math.prod(out.shape[:-1])
        return out

    def init():
        return network.init(jax.random.key(0), jnp.zeros((1, *image_shape)), train=False)

    with nn.intercept_methods(count):
        variables = jax.eval_shape(init)
    parameters = {_stage(path): 0 for path in uses}
    multiply_adds = dict(parameters)
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        *path, name = (key.key for key in keys)
        parameters[_stage(path)] += leaf.size
        if name == "kernel":
            multiply_adds[_stage(path)] += leaf.size * max(uses[tuple(path)].values(), default=0)
    return merge_summaries(
        {"stages": {stage: {"parameters": size, "multiply_adds": multiply_adds[stage]}}}
        for stage, size in parameters.items()
    )


def merge_summaries(summaries: Iterable[dict]) -> dict:
    """Return the counts of several networks, of different stages, as those of one."""
    stages = {}
    for summary in summaries:
        stages |= summary["stages"]
    totals = {
        what: sum(stage[what] for stage in stages.values())
        for what in ("parameters", "multiply_adds")
    }
    return {**totals, "stages": stages}


def _stage(path) -> str:
    return "/".join(path[:2])


def format_table(summary: dict) -> str:
    """Return the counts as an aligned table, the totals last."""
    rows = [(name, c["parameters"], c["multiply_adds"]) for name, c in summary["stages"].items()]
    rows.append(("total", summary["parameters"], summary["multiply_adds"]))
    width = max(len(name) for name, *_ in rows)
    lines = [f"{'stage':<{width}}  {'parameters':>12}  {'multiply-adds':>14}"]
    lines += [f"{name:<{width}}  {size:>12,}  {macs:>14,}" for name, size, macs in rows]
    return "\n".join(lines)
