"""SGD with momentum, Muon on convolution kernels, and learning-rate schedules."""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

Tree = Any  # the parameters, or a tree of their structure


class OptimizerConfig(Protocol):
    """The `optimizer` part of an experiment's config.

    Fields that the schedule and the optimizer do not read may be missing.
    """

    schedule: str  # `step`, `onecycle` or `linear`
    learning_rate: float  # of SGD: after the warm-up of `step`, and at the peak of the others
    decay_at: tuple[float, ...]  # `step`: fractions of the run
    decay_factor: float  # `step`
    warmup_steps: int  # `step`
    warmup_learning_rate: float  # `step`
    peak_at: float  # `onecycle` and `linear`: fraction of the run
    momentum: float
    nesterov: bool
    weight_decay: float
    muon_learning_rate: float  # of convolution kernels; SGD trains them if this field is missing
    muon_momentum: float
    muon_steps: int  # of the Newton-Schulz iteration
    lookahead: int  # steps between averages of the parameters; none if this field is missing


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate of SGD as a function of the step.

    Schedule `step` (He et al., 2016; Huang et al., 2017) is `learning_rate`, multiplied by
    `decay_factor` at each fraction of the run in `decay_at`; the first `warmup_steps` have
    `warmup_learning_rate` instead. Schedule `onecycle` (Smith and Topin, 2019) rises to
    `learning_rate` until the fraction `peak_at` of the run and then falls to nearly 0, both along
    a cosine. Schedule `linear` (Jordan, 2024) rises from 0 and falls to 0 linearly.

    Args:
      config: the schedule and its fields.
      steps: steps of the whole run, at least 1.

    Raises:
      ValueError: for a schedule of another name.

    >>> from types import SimpleNamespace
    >>> by_ten = SimpleNamespace(schedule="step", learning_rate=0.1, decay_at=(0.5, 0.75),
    ...                          decay_factor=0.1, warmup_steps=0)
    >>> [round(float(make_schedule(by_ten, 100)(step)), 4) for step in (0, 60, 90)]
    [0.1, 0.01, 0.001]
    """
    if config.schedule == "onecycle":
        return optax.cosine_onecycle_schedule(steps, config.learning_rate, config.peak_at)
    if config.schedule == "linear":
        peak = max(1, round(config.peak_at * steps))
        rise = optax.linear_schedule(0.0, config.learning_rate, peak)
        fall = optax.linear_schedule(config.learning_rate, 0.0, max(1, steps - peak))
        # Half a step ahead, so that neither the first nor the last step has a rate of 0.
        rates = optax.join_schedules([rise, fall], [peak])
        return lambda step: (rates(step) + rates(step + 1)) / 2
    if config.schedule != "step":
        raise ValueError(f"schedule must be step, onecycle or linear, not '{config.schedule}'")
    decay = {int(at * steps): config.decay_factor for at in config.decay_at}
    schedule = optax.piecewise_constant_schedule(config.learning_rate, decay)
    if not config.warmup_steps:
        return schedule
    warmup = optax.constant_schedule(config.warmup_learning_rate)
    # join_schedules counts from 0 again after the warm-up; the decay counts from the first step.
    after = config.warmup_steps
    return optax.join_schedules([warmup, lambda step: schedule(step + after)], [after])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return SGD, with Muon on convolution kernels if the config has a `muon_learning_rate`.

    SGD has momentum or Nesterov's momentum (Sutskever et al., ICML 2013). With weight decay λ,
    momentum μ and learning rate η, a step takes the gradient ∇ of the loss to

        g = ∇ + λ w,    v ← μ v + g,    w ← w - η v, or w - η (g + μ v) with Nesterov's momentum.

    λ w is on all parameters, biases included, as in the original implementations; beside Muon it is
    on the classifiers' kernels alone. Muon's rate has the schedule of SGD's, at another height.
    If the config has a `lookahead`, the parameters are averaged as `lookahead` says.

    Args:
      config: its rates, and its schedule as for `make_schedule`.
      steps: steps of the whole run, at least 1.
    """
    # Not optax.sgd after the weight decay: a chain in a chain has another state, and checkpoints
    # hold this one.
    schedule = make_schedule(config, steps)
    decay, rest = optax.add_decayed_weights(config.weight_decay), _sgd(config, schedule)
    optimizer: optax.GradientTransformation = optax.chain(decay, *rest)
    if getattr(config, "muon_learning_rate", None) is not None:
        parts = {
            "convolution": _muon(config, schedule),
            "classifier": optimizer,
            "other": optax.chain(*rest),
        }
        optimizer = optax.partition(parts, _parts)
    every = getattr(config, "lookahead", None)
    return optimizer if every is None else lookahead(optimizer, every, steps)


def _sgd(config: OptimizerConfig, schedule: optax.Schedule) -> list[optax.GradientTransformation]:
    return [
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(schedule),
    ]


def _muon(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    ratio = config.muon_learning_rate / config.learning_rate
    return optax.chain(
        scale_by_muon(
            ns_steps=config.muon_steps,
            beta=config.muon_momentum,
            weight_dimension_numbers=_dimension_numbers,
        ),
        optax.scale_by_learning_rate(lambda step: ratio * schedule(step)),
        renormalise_kernels(),
    )


class LookaheadState(NamedTuple):
    """The optimizer's own state, the averaged parameters, and the steps taken (int32 scalar)."""

    inner: optax.OptState
    average: Tree
    step: jax.Array


def lookahead(
    optimizer: optax.GradientTransformation, every: int, steps: int
) -> optax.GradientTransformation:
    """Average the parameters over the last steps of a run, and go on from their average.

    After every `every` steps, and after the last one, with k steps taken,

        average ← d · average + (1 - d) · parameters,    d = 0.95^every · (k / steps)³,
        parameters ← average.

    So there is little averaging at first and much at the end (Zhang et al., Lookahead Optimizer,
    NeurIPS 2019, with the schedule of Jordan, 2024).

    Args:
      optimizer: takes the steps.
      every: at least 1.
      steps: of the whole run.
    """

    def init(params: Tree) -> LookaheadState:
        average = jax.tree.map(jnp.asarray, params)
        return LookaheadState(optimizer.init(params), average, jnp.int32(0))

    def update(grads: Tree, state: LookaheadState, params: Tree) -> tuple[Tree, LookaheadState]:
        updates, inner = optimizer.update(grads, state.inner, params)
        step = state.step + 1
        due = (step % every == 0) | (step == steps)
        kept = jnp.where(due, 0.95**every * (step / steps) ** 3, 1.0)
        average = jax.tree.map(
            lambda average, p, u: average + (1 - kept) * (p + u - average),
            state.average, params, updates,
        )  # fmt: skip
        updates = jax.tree.map(
            lambda average, p, u: jnp.where(due, average - p, u), average, params, updates
        )
        return updates, LookaheadState(inner, average, step)

    return optax.GradientTransformation(init, update)  # type: ignore[arg-type]  # needs params


def renormalise_kernels() -> optax.GradientTransformation:
    """Scale each convolution kernel to the norm √(number of filters) before its update is added.

    So the update has the same relative size throughout training (Jordan, 2024). Kernels are
    `[k, k, C, D]` with D filters; axes in front are those of a batch of kernels.
    """

    def update(updates: Tree, state: optax.EmptyState, params: Tree) -> tuple[Tree, Any]:
        def move(u: jax.Array, p: jax.Array) -> jax.Array:
            squares = jnp.sum(jnp.square(p), axis=(-4, -3, -2, -1), keepdims=True)
            return u + p * (jnp.sqrt(p.shape[-1]) * jax.lax.rsqrt(squares + 1e-12) - 1)

        return jax.tree.map(move, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _parts(params: Tree) -> Tree:
    """Return by which part of the optimizer each parameter is trained."""

    def part(path: tuple[Any, ...], x: jax.Array) -> str:
        if path[-1].key != "kernel":
            return "other"
        return "convolution" if x.ndim >= 4 else "classifier"

    return jax.tree_util.tree_map_with_path(part, params)


def _dimension_numbers(params: Tree) -> Tree:
    """Return, for kernels `[..., k, k, C, D]`, that they are matrices `[k k C, D]`.

    An axis in front, over the blocks of a looped ResNet stage, is one over separate matrices.
    """
    return jax.tree.map(lambda _: MuonDimensionNumbers((-4, -3, -2), (-1,)), params)
