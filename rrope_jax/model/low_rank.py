"""A kernel with a low-rank update, as LoRA trains it (arXiv 2106.09685)."""

import dataclasses

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LowRankUpdated:
    """The kernel `base + scaling * a b`, whose sum is never computed.

    It stands for a kernel wherever a layer multiplies with one, at the place of the parameter. Any
    of its arrays may have an axis of layers in front, as stacked parameters have.

    Attributes:
      base: [*I, *O], any floating-point dtype.
      a: float32[*I, R], from the inputs to the rank.
      b: float32[R, *O], from the rank to the outputs.
      key: a PRNG key for dropout of the inputs of `a`; None for no dropout.
      scaling: the factor of the update.
      rate: the rate of that dropout.
    """

    base: jax.Array
    a: jax.Array
    b: jax.Array
    key: jax.Array | None = None
    scaling: float = dataclasses.field(default=1.0, metadata={"static": True})
    rate: float = dataclasses.field(default=0.0, metadata={"static": True})
