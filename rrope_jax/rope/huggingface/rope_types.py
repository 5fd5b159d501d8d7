"""The `rope_type`s of transformers, and the keys of `rope_scaling` and `rope_parameters`.

transformers v4 has `rope_theta` at the top level of a config.json and the rest in `rope_scaling`;
v5 has everything in `rope_parameters`. Keys are interpreted as in transformers 5.23.
"""

import dataclasses

from rrope_jax.rope.resonance import RULE_FIELDS
from rrope_jax.rope.scalings import SCALINGS

DIALECTS = ("rope_scaling", "rope_parameters")
ORIGINAL, MAXIMUM = "original_max_position_embeddings", "max_position_embeddings"
BETA = "llama_4_scaling_beta"
"""The key of the temperature that grows with the position, with any rope_type."""
# Spec fields whose Hugging Face key has a different name.
KEY_OF_FIELD = {
    "theta": "rope_theta",
    "scaling": "rope_type",
    "original_context": ORIGINAL,
}
# Keys allowed with any rope_type, which ignores those that it does not need.
COMMON_KEYS = (
    frozenset(
        {"rope_type", "type", "rope_theta", "partial_rotary_factor", "resonance", ORIGINAL, BETA}
    )
    | RULE_FIELDS
)
# Keys without effect on text positions: axes of images, and remarks.
REMARKS = frozenset({"mrope_section", "mrope_interleaved", "interleaved", "finetuned", MAXIMUM})
# The temperatures of Phi-3.5-MoE, up to the original context and beyond it.
MSCALES = ("short_mscale", "long_mscale")


@dataclasses.dataclass(frozen=True)
class RopeType:
    """One `rope_type` of transformers.

    Attributes:
      scaling: the equivalent `RopeSpec.scaling`.
      requires: keys that must be present.
      attention_factor: whether the key `attention_factor` is read; otherwise the factor is 1.
      context_is_maximum: whether the original context is always `max_position_embeddings`, even if
        `original_max_position_embeddings` is present.
      factor_key: the key that holds the spec's factor.
    """

    scaling: str
    requires: tuple[str, ...] = ()
    attention_factor: bool = False
    context_is_maximum: bool = False
    factor_key: str = "factor"

    @property
    def reads(self) -> frozenset[str]:
        """The spec fields that this type takes from its dict."""
        reads = SCALINGS[self.scaling].reads
        return reads | {"attention_factor"} if self.attention_factor else reads


LONGROPE = RopeType("longrope", ("short_factor", "long_factor"), attention_factor=True)
# HunYuan's `dynamic` with an alpha, which does not depend on the length.
ALPHA = RopeType("ntk", ("alpha",), factor_key="alpha")

ROPE_TYPES = {
    "default": RopeType("none"),
    "linear": RopeType("linear", ("factor",)),
    "dynamic": RopeType("dynamic_ntk", ("factor",), context_is_maximum=True),
    "yarn": RopeType("yarn", ("factor",), attention_factor=True),
    "llama3": RopeType("llama3", ("factor", "low_freq_factor", "high_freq_factor")),
    "longrope": LONGROPE,
    "proportional": RopeType("proportional"),
    "su": LONGROPE,  # its name in the first Phi-3 configs
}
NESTED_KEYS = (
    COMMON_KEYS.union(REMARKS, MSCALES, {"alpha", "attention_factor"})
    .union(*(row.reads.union(row.requires) for row in ROPE_TYPES.values()))
    .difference({"original_context"})
)
"""All keys that `from_hf` understands in `rope_scaling` and `rope_parameters`."""
