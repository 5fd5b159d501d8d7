"""Gemma 3, text only: windows in five of six layers, which have an embedding of their own.

Norms are before and after each sublayer, and of queries and keys; they multiply by 1 + w.
"""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families import layer_keys
from rrope_jax.io.families.family import NO_BIASES, Family, Gguf, Keys
from rrope_jax.model import ModelConfig

_PERIOD = 6
_PERIOD_KEYS = ("sliding_window_pattern", "_sliding_window_pattern")
# llama.cpp takes a model of so many layers for that of 27 billion parameters, whose scale differs.
_LAYERS_27B = 62


def _fields(d_model: int) -> dict[str, Any]:
    return {
        "activation": "geglu",
        "qk_norm": "head",
        "norm_placement": "both",
        "norm_offset": True,
        "embedding_scale": d_model**0.5,
    }


def _read(keys: Keys) -> dict[str, Any]:
    types, layers = keys["layer_types"], keys["num_hidden_layers"]
    if types is None:
        name = next((name for name in _PERIOD_KEYS if keys.get(name) is not None), _PERIOD_KEYS[0])
        types = layer_keys.periodic(keys.get(name, _PERIOD), name, layers)
    else:
        types = layer_keys.listed(types, "layer_types", layers)
    scalar = keys["query_pre_attn_scalar"]
    if not isinstance(scalar, int | float) or not scalar > 0:
        raise ValueError(f"query_pre_attn_scalar={str(scalar)[:80]} must be a number above 0")
    return {
        **_fields(keys["hidden_size"]),
        **layer_keys.fields(types, keys["sliding_window"]),
        "attention_scale": None if scalar == keys["head_dim"] else float(scalar) ** -0.5,
    }


def _write(model: ModelConfig) -> dict[str, Any]:
    scalar = model.scale**-2
    # all known ones are whole numbers, whose power is not exact
    whole = round(scalar) if abs(scalar - round(scalar)) < 1e-9 * scalar else scalar
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "query_pre_attn_scalar": whole,
        "layer_types": list(model.layer_types_of_all),
        "sliding_window": model.sliding_window,
    }


def _read_gguf(keys: Keys, _: Collection[str]) -> dict[str, Any]:
    # llama.cpp, src/models/gemma3.cpp: the layers, and the scale by the number of layers
    heads = keys.get("attention.head_count", 1)
    is_27b = keys["block_count"] == _LAYERS_27B
    return {
        **_fields(keys["embedding_length"]),
        **layer_keys.read_gguf(keys, default_period=_PERIOD),
        **({"attention_scale": (keys["embedding_length"] / heads) ** -0.5} if is_27b else {}),
    }


GEMMA3 = Family(
    name="gemma3_text",
    architecture="Gemma3ForCausalLM",
    defaults={
        "max_position_embeddings": 131_072,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "layer_types": None,
    },
    refused={
        "hidden_activation": (None, "gelu_pytorch_tanh"),
        "final_logit_softcapping": (None,),
        "attn_logit_softcapping": (None,),
        "use_bidirectional_attention": (None, False),
    }
    | NO_BIASES,
    read=_read,
    write=_write,
    huggingface={
        "blocks.feed_forward_norm.scale": "model.layers.{layer}.pre_feedforward_layernorm.weight"
    },
    gguf=Gguf(
        "gemma3",
        sliding_rope="own base",
        norm_offset=True,
        refused={"final_logit_softcapping": 0.0, "attn_logit_softcapping": 0.0},
        read=_read_gguf,
        write=layer_keys.write_gguf,
    ),
)
