"""SGD with momentum, L2 in the gradient, and the learning-rate schedules of both papers."""

import optax


def make_schedule(config, steps: int) -> optax.Schedule:
    """Return the learning rate by step, its shape given in fractions of the whole run.

    Args:
      config: the `optimizer` part of an experiment's config. Schedule `step` holds
        `learning_rate`, lower by `decay_factor` from each fraction in `decay_at` on, and
        `warmup_learning_rate` for the first `warmup_steps` (He et al. 2016, Huang et al. 2017);
        schedule `onecycle` rises to `learning_rate` until the fraction `peak_at` and falls to
        nearly 0 (Smith and Topin, 2019).
      steps: steps of the whole run.
    """
    if config.schedule == "onecycle":
        return optax.cosine_onecycle_schedule(steps, config.learning_rate, config.peak_at)
    decay = {int(at * steps): config.decay_factor for at in config.decay_at}
    schedule = optax.piecewise_constant_schedule(config.learning_rate, decay)
    if not config.warmup_steps:
        return schedule
    warmup = optax.constant_schedule(config.warmup_learning_rate)
    # join_schedules restarts the count at the boundary; the decay counts from the first step.
    after = config.warmup_steps
    return optax.join_schedules([warmup, lambda step: schedule(step + after)], [after])


def make_optimizer(config, steps: int) -> optax.GradientTransformation:
    """Return SGD; weight decay is L2 in the gradient, on all parameters as in the originals."""
    return optax.chain(
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum, config.nesterov),
        optax.scale_by_learning_rate(make_schedule(config, steps)),
    )
