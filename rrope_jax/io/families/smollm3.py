"""SmolLM3: LLaMA without rotation in some of the layers (NoPE)."""

from collections.abc import Collection
from typing import Any

from rrope_jax.io.families import layer_keys
from rrope_jax.io.families.family import NO_BIASES, SILU, Family, Gguf, Keys
from rrope_jax.model import ModelConfig

_PERIOD = ("full_attention",) * 3 + ("nope",)


def _read(keys: Keys) -> dict[str, Any]:
    layers = keys["num_hidden_layers"]
    rotated = _rotated(keys, layers)
    windowed = [False] * layers
    if keys["use_sliding_window"] and keys["sliding_window"] is not None:
        names = keys["layer_types"]
        if names is None:  # transformers gives the window to the layers without rotation
            windowed = [not each for each in rotated]
        else:
            names = layer_keys.listed(names, "layer_types", layers)
            windowed = [name == "sliding_attention" for name in names]
    if any(window and not turns for window, turns in zip(windowed, rotated, strict=True)):
        raise ValueError(
            f"use_sliding_window={keys['use_sliding_window']!r} gives a window to layers without "
            "rotation, which is not implemented; set it to false if the model was trained so"
        )
    types = [
        "nope" if not turns else "sliding_attention" if window else "full_attention"
        for window, turns in zip(windowed, rotated, strict=True)
    ]
    return layer_keys.fields(types, keys["sliding_window"])


def _rotated(keys: Keys, layers: int) -> list[bool]:
    """Whether each layer is rotated; a 1 in no_rope_layers means that it is."""
    if (flags := keys["no_rope_layers"]) is not None:
        return [bool(flag) for flag in layer_keys.listed(flags, "no_rope_layers", layers)]
    interval = keys["no_rope_layer_interval"]
    if not isinstance(interval, int) or interval < 1:
        raise ValueError(f"no_rope_layer_interval={interval!r} must be a positive integer")
    layer_keys.check_count(layers)
    return [(layer + 1) % interval != 0 for layer in range(layers)]


def _write(model: ModelConfig) -> dict[str, Any]:
    types = model.layer_types_of_all
    return {
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "no_rope_layers": [int(name != "nope") for name in types],
        "layer_types": [name.replace("nope", "full_attention") for name in types],
        "use_sliding_window": model.sliding_window is not None,
        "sliding_window": model.sliding_window,
    }


def _read_gguf(keys: Keys, _: Collection[str]) -> dict[str, Any]:
    return {"layer_types": _PERIOD[: keys["block_count"]]}  # there for all models


SMOLLM3 = Family(
    name="smollm3",
    architecture="SmolLM3ForCausalLM",
    defaults={
        "max_position_embeddings": 32768,
        "num_key_value_heads": 4,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "no_rope_layers": None,
        "no_rope_layer_interval": 4,
        "layer_types": None,
        "use_sliding_window": False,
        "sliding_window": None,
    },
    refused=SILU | NO_BIASES,
    read=_read,
    write=_write,
    # Converted as LLaMA is, with the pairs of q_proj and k_proj adjacent.
    gguf=Gguf(
        "smollm3",
        adjacent_pairs=True,
        refused={"attention.sliding_window": 0},
        read=_read_gguf,
    ),
)
