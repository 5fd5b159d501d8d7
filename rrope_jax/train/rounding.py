"""Training state in bfloat16: stochastic rounding, and optimizers whose state is stored so.

A bfloat16 has 8 bits of precision. Rounded to the nearest, a parameter loses every update of less
than 1/512 of it, which most updates of a fine-tune are; and a second moment that decays slowly does
not decay at all. Rounded stochastically, both are right in the mean (arXiv 1502.02551, 2010.06192).

The random bits are a function of the run's key, the step, the array's place in the tree and the
element's index. So they are the same when a run goes on, and on every mesh.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

DTYPES = ("float32", "bfloat16")
"""The dtypes of parameters and of optimizer states."""

_DROPPED = 16  # bits of a float32 that a bfloat16 lacks


def round_stochastically(key: jax.Array, x: jax.Array) -> jax.Array:
    """Rounds to one of the two nearest bfloat16, whose mean is the number itself.

    With 0 <= p < 1 for how far a number is from the one toward 0, in units of their distance, the
    other one has probability p, exact to the last bit. So a number that is a bfloat16 stays.

    Args:
      key: a PRNG key.
      x: float32. What is not finite stays so.

    Returns:
      bfloat16, in the shape of `x`.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    random = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    kept = ((bits + random) >> _DROPPED).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(kept, jnp.bfloat16)
    # a sum of the bits of a NaN could be another number
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def round_like(key: jax.Array, tree: Any, like: Any) -> Any:
    """Rounds the float32 arrays of a tree stochastically where `like` has bfloat16."""
    leaves, structure = jax.tree.flatten(tree)
    keys = jax.random.split(key, max(1, len(leaves)))
    rounded = [
        round_stochastically(keys[i], leaf) if old.dtype == jnp.bfloat16 else leaf
        for i, (leaf, old) in enumerate(zip(leaves, jax.tree.leaves(like), strict=True))
    ]
    return jax.tree.unflatten(structure, rounded)


def in_float32(tree: Any) -> Any:
    """The arrays of a tree with those of bfloat16 in float32."""
    return jax.tree.map(_widened, tree)


def stored_in_bfloat16(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """An optimizer whose float32 state is stored in bfloat16, and computed with in float32.

    Its `update` takes a `rounding_key`, from which the stochastic rounding of a step draws.
    """
    optimizer = optax.with_extra_args_support(optimizer)

    def init(params: Any) -> Any:
        return jax.tree.map(_narrowed, optimizer.init(params))

    def update(
        updates: Any, state: Any, params: Any = None, *, rounding_key: jax.Array, **extra: Any
    ) -> tuple[Any, Any]:
        updates, wide = optimizer.update(updates, in_float32(state), params, **extra)
        return updates, round_like(rounding_key, wide, state)

    return optax.GradientTransformationExtraArgs(init, update)


def _widened(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32) if x.dtype == jnp.bfloat16 else x


def _narrowed(x: jax.Array) -> jax.Array:
    return x.astype(jnp.bfloat16) if x.dtype == jnp.float32 else x
