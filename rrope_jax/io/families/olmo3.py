"""OLMo 3: OLMo 2 with a sliding window in three of four layers."""

from typing import Any

from rrope_jax.io.families import layer_keys
from rrope_jax.io.families.family import NO_BIASES, SILU, Family, Keys
from rrope_jax.io.families.olmo2 import DEFAULTS, GGUF, NORMS
from rrope_jax.model import ModelConfig

_PATTERN = ("sliding_attention",) * 3 + ("full_attention",)


def _read(keys: Keys) -> dict[str, Any]:
    layer_types = keys.get("layer_types") or _PATTERN[: keys["num_hidden_layers"]]
    return {**NORMS, **layer_keys.fields(layer_types, keys["sliding_window"])}


def _write(model: ModelConfig) -> dict[str, Any]:
    return {
        "hidden_act": "silu",
        "attention_bias": False,
        "layer_types": list(model.layer_types_of_all),
        "sliding_window": model.sliding_window,
    }


OLMO3 = Family(
    name="olmo3",
    architecture="Olmo3ForCausalLM",
    defaults={**DEFAULTS, "sliding_window": 4096},
    refused=SILU | NO_BIASES,
    read=_read,
    write=_write,
    gguf=GGUF,
)
