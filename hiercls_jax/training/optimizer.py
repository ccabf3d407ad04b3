"""SGD with momentum, L2 in the gradient, and the learning-rate schedules of the recipes."""

from typing import Protocol

import optax


class OptimizerConfig(Protocol):
    """The `optimizer` part of an experiment's config.

    `decay_at`, `decay_factor` and the warm-up are read if the schedule is `step`; `peak_at` is
    read if it is `onecycle`. Fields that are not read may be missing.
    """

    schedule: str  # `step` or `onecycle`
    learning_rate: float  # after the warm-up; at the peak of a cycle
    decay_at: tuple[float, ...]  # fractions of the run
    decay_factor: float
    warmup_steps: int
    warmup_learning_rate: float
    peak_at: float  # fraction of the run
    momentum: float
    nesterov: bool
    weight_decay: float


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Return the learning rate as a function of the step.

    Schedule `step` (He et al., 2016; Huang et al., 2017) is `learning_rate`, multiplied by
    `decay_factor` at each fraction of the run in `decay_at`; the first `warmup_steps` have
    `warmup_learning_rate` instead. Schedule `onecycle` (Smith and Topin, 2019) rises to
    `learning_rate` until the fraction `peak_at` of the run and then falls to nearly 0.

    Args:
      config: the schedule and its fields.
      steps: steps of the whole run, at least 1.

    >>> from types import SimpleNamespace
    >>> by_ten = SimpleNamespace(schedule="step", learning_rate=0.1, decay_at=(0.5, 0.75),
    ...                          decay_factor=0.1, warmup_steps=0)
    >>> [round(float(make_schedule(by_ten, 100)(step)), 4) for step in (0, 60, 90)]
    [0.1, 0.01, 0.001]
    """
    if config.schedule == "onecycle":
        return optax.cosine_onecycle_schedule(steps, config.learning_rate, config.peak_at)
    decay = {int(at * steps): config.decay_factor for at in config.decay_at}
    schedule = optax.piecewise_constant_schedule(config.learning_rate, decay)
    if not config.warmup_steps:
        return schedule
    warmup = optax.constant_schedule(config.warmup_learning_rate)
    # join_schedules counts from 0 again after the warm-up; the decay counts from the first step.
    after = config.warmup_steps
    return optax.join_schedules([warmup, lambda step: schedule(step + after)], [after])


def make_optimizer(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """Return SGD with momentum, or with Nesterov's momentum (Sutskever et al., ICML 2013).

    With weight decay λ, momentum μ and learning rate η, a step takes the gradient ∇ of the loss to

        g = ∇ + λ w,    v ← μ v + g,    w ← w - η v, or w - η (g + μ v) with Nesterov's momentum.

    λ w is on all parameters, biases included, as in the original implementations.

    Args:
      config: its rates, and its schedule as for `make_schedule`.
      steps: steps of the whole run, at least 1.
    """
    # Not optax.sgd after the weight decay: a chain in a chain has another state, and checkpoints
    # hold this one.
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )
