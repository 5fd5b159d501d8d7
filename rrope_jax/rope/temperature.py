"""The temperature that grows with a query's position, one function and one row each.

Attention over more tokens is flatter, since the denominator of the softmax grows with them. A
factor on queries that grows with their position makes up for it. A row turns a spec into the
coefficients of that factor, which programs can take as an argument, as they do `PhaseTable`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from rrope_jax.rope.scalings import SCALINGS


class QueryTemperature(NamedTuple):
    """The coefficients of (1 + beta ln(1 + floor(p / context))) max(1, log_weight ln(1 + p)).

    All temperatures have arrays of the same shapes, so they can be stacked under `jax.vmap`.

    Attributes:
      beta: float32[]; 0 for none of the first term.
      context: int32[], tokens.
      log_weight: float32[]; 0 for none of the second term.
    """

    beta: ArrayLike
    context: ArrayLike
    log_weight: ArrayLike


def _coefficients(*, beta: float = 0.0, context: int = 1, log: float = 0.0) -> QueryTemperature:
    return QueryTemperature(np.float32(beta), np.int32(context), np.float32(log))


def _none(spec: Any) -> QueryTemperature:
    return _coefficients()


def _llama4(spec: Any) -> QueryTemperature:
    """1 + beta ln(1 + floor(p / L)), as transformers computes it for Ministral 3 and Llama 4."""
    return _coefficients(beta=spec.llama_4_scaling_beta, context=counted_in(spec))


def _log_n(spec: Any) -> QueryTemperature:
    """max(1, log_L(1 + p)), for a query that attends to 1 + p tokens.

    Chiang and Cholak, arXiv 2202.12172, and Su (kexue.fm/archives/8823) scale logits by the
    logarithm of the number of tokens. That it is 1 up to the training length L is the form in which
    Qwen's first release has it (`use_logn_attn`).
    """
    return _coefficients(log=1 / math.log(counted_in(spec)))


@dataclasses.dataclass(frozen=True)
class PositionTemperature:
    """One temperature.

    Attributes:
      coefficients: spec -> its coefficients.
      reads: the spec fields that it reads, beside `original_context`, which is the scaling's.
      requires: the subset of `reads` without a usable default.
    """

    coefficients: Callable[[Any], QueryTemperature]
    reads: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()


_CONTEXT = frozenset({"temperature_context"})

POSITION_TEMPERATURES: dict[str, PositionTemperature] = {
    "none": PositionTemperature(_none),
    "llama4": PositionTemperature(_llama4, _CONTEXT | {"llama_4_scaling_beta"}),
    "log_n": PositionTemperature(_log_n, _CONTEXT),
}


def name_by_beta(spec: Any) -> str:
    """The key of `POSITION_TEMPERATURES` for a spec that says no more than beta."""
    return "llama4" if spec.llama_4_scaling_beta else "none"


def temperature_name(spec: Any) -> str:
    """The key of `POSITION_TEMPERATURES` for a spec."""
    return str(spec.position_temperature or name_by_beta(spec))


def counted_in(spec: Any) -> Any:
    """The context length L that a spec's temperature counts in, in tokens; None without one."""
    if spec.temperature_context is not None:
        return spec.temperature_context
    return spec.original_context


def counts_in_original_context(spec: Any) -> bool:
    """Whether a spec has a temperature whose L is the scaling's."""
    return temperature_name(spec) != "none" and spec.temperature_context is None


def why_not_in_runtimes(spec: Any) -> str | None:
    """Says what about a spec's temperature no other runtime has; None if some have it all."""
    name = temperature_name(spec)
    if name not in ("none", "llama4"):
        return (
            f"position_temperature={name!r}: other runtimes have no such factor on queries, only "
            "that of llama_4_scaling_beta; keep the model as a checkpoint of ours, or set "
            "position_temperature to 'none' for another model"
        )
    if spec.temperature_context in (None, spec.original_context):
        return None
    fixed = SCALINGS[spec.scaling].at_one_length
    if fixed is not None or spec.short_factor != spec.long_factor:
        mend = (
            "convert with one of its lists as both"
            if fixed is None
            else f"convert with scaling={fixed!r} and a fixed factor"
        )
        return (
            f"temperature_context={spec.temperature_context}: other runtimes count the position "
            f"temperature in original_context ({spec.original_context}), from which scaling="
            f"{spec.scaling!r} also tells which frequencies apply; {mend}"
        )
    return None


def query_temperature_table(spec: Any) -> QueryTemperature:
    """The coefficients of a spec's temperature, on the host; those of a factor of 1 for none."""
    return POSITION_TEMPERATURES[temperature_name(spec)].coefficients(spec)


def query_temperature(spec: Any, positions: ArrayLike) -> jax.Array | None:
    """The factor on queries by their position: see `POSITION_TEMPERATURES`.

    Unlike the attention factor, it applies to all of head_dim, rotated or not, and to queries only.

    Args:
      spec: the embedding.
      positions: int[...], positions of queries, not negative.

    Returns:
      float32[...], or None if the embedding has no such temperature.
    """
    if temperature_name(spec) == "none":
        return None
    return query_temperature_from_table(query_temperature_table(spec), positions)


def query_temperature_from_table(table: QueryTemperature, positions: ArrayLike) -> jax.Array:
    """`query_temperature` from coefficients, whose arrays may be traced."""
    position = jnp.asarray(positions)
    contexts = position // jnp.asarray(table.context)
    steps = 1 + jnp.asarray(table.beta) * jnp.log1p(contexts.astype(jnp.float32))
    growth = jnp.asarray(table.log_weight) * jnp.log1p(position.astype(jnp.float32))
    return steps * jnp.maximum(growth, 1)
