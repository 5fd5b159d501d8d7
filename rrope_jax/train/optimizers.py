"""The optimizers by name, as transformations of optax.

Each is made of its learning rate, a function of the number of steps done, of the fields `b1`,
`b2`, `eps` and `weight_decay` of TrainConfig, and of the mask of what decays. All read all of them,
so that no field is without effect.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

Rate = Callable[[jax.Array], jax.Array]
Mask = Callable[[Any], Any]


class _Make(Protocol):
    def __call__(
        self, rate: Rate, *, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask
    ) -> optax.GradientTransformation: ...


def _adamw(
    rate: Rate, *, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask
) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101): two moments for each parameter."""
    return optax.adamw(rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay, mask=mask)


def _adafactor(
    rate: Rate, *, b1: float, b2: float, eps: float, weight_decay: float, mask: Mask
) -> optax.GradientTransformation:
    """Adafactor (arXiv 1804.04235) with AdamW's learning rates, as in arXiv 2106.04560.

    The second moment of a matrix is kept as the means of its rows and columns. Its decay rises as
    1 - step^-0.8 up to `b2`, which saves the correction of its bias. Updates are clipped to a
    root mean square of 1 and are not scaled by parameters. With `b1` = 0 there is no first moment.
    """

    def decay(step: Any, exponent: Any) -> jax.Array:
        return jnp.minimum(b2, 1.0 - (step + 1.0) ** -exponent)

    return optax.chain(
        optax.scale_by_factored_rms(decay_rate_fn=decay, epsilon=eps**2),
        optax.clip_by_block_rms(1.0),
        *([optax.ema(b1, debias=False)] if b1 else []),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(rate),
    )


OPTIMIZERS: dict[str, _Make] = {"adamw": _adamw, "adafactor": _adafactor}
"""The optimizers of `train.optimizer`."""
