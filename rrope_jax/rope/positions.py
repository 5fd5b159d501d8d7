"""Training positions: contiguous, or spread so that short sequences contain long distances.

A sampler draws one strictly increasing row of positions per sequence from a key, under jit. If a
row packs several documents, index the sampled row by each token's position in its document,
`jnp.take_along_axis(sampled.whole, segment_positions_BT, axis=-1)`, and likewise the fraction.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rrope_jax.rope.fields import INT32_MAX, check_fields, check_method, is_int


class Positions(NamedTuple):
    """Token positions, for `cos_sin(spec, positions.whole, fraction=positions.fraction)`.

    Attributes:
      whole: int32[..., T], the integer part.
      fraction: float32[..., T] in [0, 1), added to `whole`; None if all positions are integers.
    """

    whole: jax.Array
    fraction: jax.Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PositionSampling:
    """How training positions are drawn. Static under jit.

    Attributes:
      sampler: a key of `SAMPLERS`.
      target_length: exclusive upper bound of the positions of `pose` and `randomized`, in tokens.
      num_chunks: number of runs of consecutive positions that `pose` cuts a sequence into.
      max_scale: the largest scale that `e2_llm` draws; the smallest is 1.
      context: the length L, in tokens, that `e2_llm` interpolates to, normally the pretraining
        length; None for the sequence length.
      fixed_tokens: number of initial tokens that `e2_llm` does not shift.

    Raises:
      ValueError: a field is out of range, missing, or not read by the sampler.
    """

    sampler: str = "contiguous"
    target_length: int | None = None
    num_chunks: int = 2
    max_scale: int | None = None
    context: int | None = None
    fixed_tokens: int = 4

    def __post_init__(self) -> None:
        check_method(self, "sampler", SAMPLERS)
        check_fields(self, "sampler", SAMPLERS)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not (is_int(value) and least <= value <= INT32_MAX):
                raise ValueError(
                    f"{name}={value!r} must be an integer from {least} to 2^31 - 1; see "
                    "PositionSampling for what it counts"
                )


_LEAST = {"target_length": 1, "num_chunks": 1, "max_scale": 1, "context": 1, "fixed_tokens": 0}


def sample(sampling: PositionSampling, key: jax.Array, batch: int, length: int) -> Positions:
    """Draws the positions of a batch.

    Args:
      sampling: the method; static under jit.
      key: a JAX random key; `contiguous` does not use it.
      batch: number of sequences, each with its own draw; static under jit.
      length: tokens per sequence, T; static under jit.

    Returns:
      Arrays of shape [batch, length], strictly increasing along a row.

    Raises:
      ValueError: the sampler cannot draw rows of this length.
    """
    row = SAMPLERS[sampling.sampler].row
    return jax.vmap(lambda row_key: row(sampling, row_key, length))(jax.random.split(key, batch))


def _contiguous(sampling: PositionSampling, key: jax.Array, length: int) -> Positions:
    return Positions(jnp.arange(length, dtype=jnp.int32))


def _distinct(key: jax.Array, low: int, high: int, count: int) -> jax.Array:
    """A uniform subset of [low, high) of the given size, ascending, int32[count]."""
    chosen = jax.random.choice(key, high - low, (count,), replace=False)
    return jnp.sort(chosen).astype(jnp.int32) + low


def _pose(sampling: PositionSampling, key: jax.Array, length: int) -> Positions:
    """PoSE: Zhu et al., arXiv 2309.10400, section 3.2.

    Chunk 0 keeps its positions; chunk i is shifted by a bias drawn uniformly between that of chunk
    i - 1 and target_length - length. The paper does not specify where to cut; here all cuts are
    equally likely. (The authors' code for two chunks cuts only in the first half. The distances
    between tokens have the same distribution, since a cut at length - a mirrors one at a.)
    """
    target = _check_target(sampling, length)
    num_chunks = sampling.num_chunks
    if num_chunks > length:
        raise ValueError(
            f"num_chunks={num_chunks} must be at most the sequence length ({length}); a chunk "
            "needs a token"
        )
    cut_key, bias_key = jax.random.split(key)
    cuts = _distinct(cut_key, 1, length, num_chunks - 1)

    def next_bias(bias: jax.Array, step_key: jax.Array) -> tuple[jax.Array, jax.Array]:
        drawn = jax.random.randint(step_key, (), bias, target - length + 1)
        return drawn, drawn

    zero = jnp.zeros((), jnp.int32)
    _, biases = jax.lax.scan(next_bias, zero, jax.random.split(bias_key, num_chunks - 1))
    index = jnp.arange(length, dtype=jnp.int32)
    chunk = jnp.searchsorted(cuts, index, side="right")
    return Positions(index + jnp.concatenate([zero[None], biases])[chunk])


def _e2_llm(sampling: PositionSampling, key: jax.Array, length: int) -> Positions:
    """E2-LLM: Liu et al., arXiv 2401.06951, equations 5 to 7.

    Token m is at (m + t) / g, with g uniform in 1..max_scale and t uniform in 0..g L - length, so
    positions stay below L. The first tokens, which serve as attention sinks, have t = 0. At test
    time, use the model with `scaling="linear"` and any factor up to max_scale.
    """
    context = sampling.context or length
    largest = context * (sampling.max_scale or 1)
    if largest > INT32_MAX or length > INT32_MAX:
        raise ValueError(
            f"max_scale={sampling.max_scale} times the context ({context}) must be below 2^31; "
            "lower max_scale"
        )
    scale_key, shift_key = jax.random.split(key)
    scale = jax.random.randint(scale_key, (), 1, (sampling.max_scale or 1) + 1)
    # a sequence longer than g L is left unshifted
    shift = jax.random.randint(shift_key, (), 0, jnp.maximum(scale * context - length, 0) + 1)
    index = jnp.arange(length, dtype=jnp.int32)
    numerator = jnp.where(index < sampling.fixed_tokens, index, index + shift)
    fraction = (numerator % scale).astype(jnp.float32) / scale.astype(jnp.float32)
    return Positions(numerator // scale, fraction)


def _randomized(sampling: PositionSampling, key: jax.Array, length: int) -> Positions:
    """Randomized positions: Ruoss et al., arXiv 2305.16843, section 3.

    A uniform subset of [0, target_length), ascending. The paper counts from 1, which makes no
    difference to rotary attention, and draws one subset per batch; here every row has its own.
    """
    return Positions(_distinct(key, 0, _check_target(sampling, length), length))


def _check_target(sampling: PositionSampling, length: int) -> int:
    target = sampling.target_length or 0
    if target < length:
        raise ValueError(
            f"target_length={target} must be at least the sequence length ({length}); it is the "
            "length that the model is meant to reach"
        )
    return target


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One way to draw positions.

    Attributes:
      row: (sampling, key, length) -> the positions of one sequence.
      reads: the fields of `PositionSampling` that it reads.
      requires: the subset of `reads` without a usable default.
      at_test: whether its source samples the positions of the test, too.
      scattered: whether a uniform subset of a row is distributed as a shorter row.
    """

    row: Callable[[PositionSampling, jax.Array, int], Positions]
    reads: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()
    at_test: bool = False
    scattered: bool = False


_TARGET = frozenset({"target_length"})
_SCALE = frozenset({"max_scale"})

SAMPLERS: dict[str, Sampler] = {
    "contiguous": Sampler(_contiguous),
    "pose": Sampler(_pose, _TARGET | {"num_chunks"}, _TARGET),
    "e2_llm": Sampler(_e2_llm, _SCALE | {"context", "fixed_tokens"}, _SCALE),
    "randomized": Sampler(_randomized, _TARGET, _TARGET, at_test=True, scattered=True),
}
