"""Other positions for pairs of tokens that are far apart, so that no distance is one never trained.

Pairs closer than `far_window` tokens keep their positions, and so the precision of the model; pairs
at that distance or beyond get positions that are squeezed together. One softmax goes over both.
Positions stay integers, so every scaling and every rule of resonance applies to them.

A method is one function and one row of `FAR_POSITIONS`. It takes a spec (any object with the fields
that its row reads) and the current length, and returns `FarPositions`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from rrope_jax.rope.fields import INT32_MAX


class FarPositions(NamedTuple):
    """Which pairs are far, and where their tokens are: three integers, or int32[] under jit.

    Attributes:
      window: pairs of tokens at least this far apart are far.
      group: so many tokens in a row share a position.
      shift: added to the positions of queries.
    """

    window: int | jax.Array
    group: int | jax.Array
    shift: int | jax.Array

    def of_queries(self, positions: ArrayLike) -> jax.Array:
        """The positions of queries in far pairs, int32, from their own; a fraction is dropped."""
        return self.of_keys(positions) + self.shift

    def of_keys(self, positions: ArrayLike) -> jax.Array:
        """The positions of keys in far pairs, int32, from their own; a fraction is dropped."""
        return jnp.asarray(positions) // self.group


PLAIN = FarPositions(INT32_MAX, 1, 0)
"""No pair is far, and if one were, it would keep its positions."""


def _none(spec: Any, seq_len: int | None) -> FarPositions:
    return PLAIN


def _self_extend(spec: Any, seq_len: int | None) -> FarPositions:
    """SelfExtend: Jin et al., arXiv 2401.01325, section 3 and Algorithm 1.

    The shift joins the two: at a distance of W, the first far one, keys are W away. The largest
    distance at length n is W + (n - W) / G, so a model of context L reaches (L - W) G + W tokens.
    """
    window, group = spec.far_window, spec.far_group
    return FarPositions(window, group, window - window // group)


def _jet_long(spec: Any, seq_len: int | None) -> FarPositions:
    """Jet-Long: Tang et al., arXiv 2607.07740, as in jet-ai-projects/Jet-Long.

    The group is the smallest that brings the current length n within the context w that the model
    was trained at, ceil(n / w), so nothing changes up to w. Queries are not shifted: the first far
    keys are about W / G away. A pair at distance W = w_0 is far in their decoding and near in their
    prompts; here it is always far.
    """
    length = max(seq_len or 0, spec.far_context)
    return FarPositions(spec.far_window, -(-length // spec.far_context), 0)


@dataclasses.dataclass(frozen=True)
class FarMethod:
    """One method.

    Attributes:
      positions: (spec, current length or None) -> its `FarPositions`, as integers.
      reads: the spec fields that this method reads.
      requires: the subset of `reads` without a usable default.
    """

    positions: Callable[[Any, int | None], FarPositions]
    reads: frozenset[str] = frozenset()
    requires: frozenset[str] = frozenset()


_GROUPS = frozenset({"far_window", "far_group"})
_CONTEXT = frozenset({"far_window", "far_context"})

FAR_POSITIONS: dict[str, FarMethod] = {
    "none": FarMethod(_none),
    "self_extend": FarMethod(_self_extend, _GROUPS, _GROUPS),
    "jet_long": FarMethod(_jet_long, _CONTEXT, _CONTEXT),
}

FAR_FIELDS = frozenset().union(*(row.reads for row in FAR_POSITIONS.values()))
"""The fields that only some methods read."""


def unread_by_far(far_positions: str) -> frozenset[str]:
    """The `FAR_FIELDS` that a method does not read; empty if the method is unknown."""
    known = far_positions in FAR_POSITIONS
    return FAR_FIELDS - FAR_POSITIONS[far_positions].reads if known else frozenset()


def far_positions_of(spec: Any, seq_len: int | None = None) -> FarPositions:
    """The positions of far pairs under a spec.

    Args:
      spec: any object with `far_positions` and the fields that its row reads.
      seq_len: the current length, for the methods that depend on it.
    """
    return FAR_POSITIONS[spec.far_positions].positions(spec, seq_len)


def why_only_here(spec: Any) -> str | None:
    """Says why no file of another runtime can have a spec; None if its far positions are plain."""
    if spec.far_positions == "none":
        return None
    return (
        f"far_positions={spec.far_positions!r}: no other runtime reads other positions for far "
        "pairs from a file; set config.rope.far_positions=none, and choose them where the runtime "
        "has such an option (llama.cpp's own self-extend is --grp-attn-n and --grp-attn-w)"
    )


def far_positions_within(spec: Any, seq_len: int | None, window: int | None) -> FarPositions | None:
    """Like `far_positions_of`, but None if they change nothing in some layers.

    Args:
      spec, seq_len: as for `far_positions_of`; the length also bounds the distances.
      window: the sliding window of the layers, or None.
    """
    far = far_positions_of(spec, seq_len)
    reach = min(each for each in (seq_len, window, INT32_MAX) if each is not None)
    plain = (far.group, far.shift) == (PLAIN.group, PLAIN.shift)
    return None if plain or bool(far.window >= reach) else far
