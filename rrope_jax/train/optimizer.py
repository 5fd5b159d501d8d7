"""The optimizer of a run: clipping, then the config's transformation with its schedule.

The schedule does not use optax's, whose products are rounded in a different order (up to 2e-4 of a
rate): a run resumed with them would not repeat bit for bit.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from rrope_jax.train.config import SCHEDULES, TrainConfig
from rrope_jax.train.optimizers import OPTIMIZERS
from rrope_jax.train.rounding import stored_in_bfloat16

LOG_RATIOS = "log_ratios"
"""The key of learned frequencies among the trained parameters, beside those of the decoder."""


def learning_rate(config: TrainConfig, step: jax.Array) -> jax.Array:
    """The learning rate of a step.

    The rate rises linearly to the peak, which it reaches at the last warm-up step (without warm-up,
    at the first step), and then decays to `final_fraction` of it, which it would reach one step
    after the last. So no step has a rate of 0.

    Args:
      config: the schedule.
      step: int32[], number of steps already done.

    Returns:
      float32[].
    """
    warmup = max(1, config.warmup_steps)
    rise = (step + 1) / warmup
    progress = jnp.clip((step + 1 - warmup) / (config.steps + 1 - warmup), 0, 1)
    left = SCHEDULES[config.schedule](progress)
    fall = config.final_fraction + (1 - config.final_fraction) * left
    return config.learning_rate * jnp.minimum(rise, fall).astype(jnp.float32)


def make_optimizer(config: TrainConfig) -> optax.GradientTransformationExtraArgs:
    """Global-norm clipping, then the config's optimizer with decay on matrices only.

    The decay of a step is `rate * weight_decay * parameter`, as in optax and PyTorch. Learned
    frequencies are clipped by a norm of their own, so that the decoder is trained as without them,
    and have `frequency_rate` times the learning rate.

    With `moment_dtype="bfloat16"`, its `update` takes a `rounding_key`.
    """
    rule = OPTIMIZERS[config.optimizer](
        lambda step: learning_rate(config, step),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=matrices,
    )
    if config.moment_dtype == "bfloat16":
        rule = stored_in_bfloat16(rule)
    clips = []
    if config.gradient_clip is not None:
        clips = [optax.clip_by_global_norm(config.gradient_clip)]
    if config.frequency_rate is None:
        return optax.with_extra_args_support(optax.chain(*clips, rule) if clips else rule)
    apart = [optax.masked(clip, mask) for clip in clips for mask in (_decoder, _frequencies)]
    return optax.with_extra_args_support(
        optax.chain(*apart, rule, optax.masked(optax.scale(config.frequency_rate), _frequencies))
    )


def _frequencies(params: dict[str, Any]) -> dict[str, Any]:
    return {name: name == LOG_RATIOS for name in params}


def _decoder(params: dict[str, Any]) -> dict[str, Any]:
    return {name: name != LOG_RATIOS for name in params}


def matrices(params: dict[str, Any]) -> dict[str, Any]:
    """Distinguishes a decoder's matrices from its scales and biases, and from `LOG_RATIOS`.

    Args:
      params: the pure dict of a decoder's parameters, with or without learned frequencies.

    Returns:
      A tree of bools like params, True for matrices.
    """

    def is_matrix(path: tuple[Any, ...], parameter: Any) -> bool:
        name: str = path[-1].key  # the shape does not tell: those of all heads have two axes
        is_vector = name == "scale" or name.endswith("_bias") or path[0].key == LOG_RATIOS
        return not is_vector

    mask: dict[str, Any] = jax.tree.map_with_path(is_matrix, params)
    return mask
