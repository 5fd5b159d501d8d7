"""config.json: the keys of the rotary embedding, read, computed and written again."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax import rope
from tests.fuzz.judging import Target, UnfitError

_MODEL = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
}
_LISTS = {"short_factor": [1.0, 1.5, 2.0, 3.0] * 2, "long_factor": [2.0, 3.0, 4.0, 5.0] * 2}
_YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "attention_factor": 1.1,
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": False,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Other families, with names and defaults of their own.
_TRUNCATED = {**_YARN, "truncate": True}
_LAYERS = {
    "full_attention": {**_TRUNCATED, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
_FAMILIES: tuple[dict[str, Any], ...] = (
    {"model_type": "gemma3_text", "rope_local_base_freq": 1e4, "rope_scaling": _TRUNCATED},
    {"model_type": "gemma3_text", "head_dim": 16, "rope_parameters": _LAYERS},
    {"model_type": "olmo3", "rope_theta": 5e5, "rope_scaling": _LLAMA3},
    {"model_type": "modernbert", "rope_parameters": _LAYERS, "global_rope_theta": 1e4},
    {
        "model_type": "phi3",
        "original_max_position_embeddings": 64,
        "rope_scaling": {"type": "longrope", **_LISTS},
    },
    {"model_type": "ministral3", "rope_parameters": {**_YARN, "llama_4_scaling_beta": 0.1}},
    {"model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 10000},
    {"model_type": "chatglm", "rope_ratio": 2.0, "kv_channels": 16, "rotary_dim": 8},
    {"model_type": "smollm3", "no_rope_layers": [1, 1], "no_rope_layer_interval": None},
    {"model_type": "qwen3", "layer_types": ["full_attention", "full_attention"]},
    {"model_type": "deepseek_v3", "qk_rope_head_dim": 8, "rope_scaling": _YARN},
)


def _seeds() -> Sequence[dict[str, Any]]:
    scalings: list[dict[str, Any]] = [
        {},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        {
            "model_type": "hunyuan_v1_dense",
            "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
        },
        {"rope_scaling": _YARN},
        {"rope_scaling": _LLAMA3, "resonance": True},
        {"rope_scaling": {"rope_type": "longrope", **_LISTS}},
        {"rope_scaling": {"type": "su", **_LISTS}, "original_max_position_embeddings": 64},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 0.7, "resonance": True}},
        {"rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.25}},
        {"head_dim": 12, "qk_rope_head_dim": 8, "rope_scaling": _YARN},
        *_FAMILIES,
    ]
    return [{"config.json": _MODEL | keys} for keys in scalings]


def _run(folder: Path) -> None:
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        raise UnfitError from None
    if not isinstance(config, dict):
        raise UnfitError
    spec = rope.from_hf(config)
    model_type = None if spec.sliding_attention is None else "gemma3_text"
    if spec.llama_4_scaling_beta:
        model_type = "ministral3"
    keys = rope.to_hf(spec, model_type=model_type)
    json.dumps(keys, allow_nan=False)
    back = rope.from_hf({**keys, "model_type": model_type})
    for name in ("full_attention", "sliding_attention"):
        found = rope.frequencies(spec.of(name))
        rope.frequencies(spec.of(name), 2**31 - 1)
        assert np.isfinite(found.inv_freq).all(), found.inv_freq
        again = rope.frequencies(back.of(name))
        np.testing.assert_allclose(again.inv_freq, found.inv_freq, rtol=1e-6)
        np.testing.assert_allclose(again.attention_factor, found.attention_factor, rtol=1e-6)


TARGET = Target("rope_keys", _seeds, _run)
