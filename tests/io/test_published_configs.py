"""Presets are what the families make of the config.json files that the models were published with.

Keys that no reader needs are left out. The values are those of the repositories on Hugging Face.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.io.huggingface.read import HuggingFaceSource
from rrope_jax.model.presets import PRESETS


def _sizes(hidden: int, layers: int, heads: int, key_heads: int, feed_forward: int) -> Any:
    return {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "intermediate_size": feed_forward,
    }


_QWEN = {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32_768}
_QWEN |= {"hidden_act": "silu", "use_sliding_window": False, "sliding_window": None}
_OLMO = {"rms_norm_eps": 1e-6, "rope_theta": 500_000, "hidden_act": "silu"}
_OLMO |= {"tie_word_embeddings": False, "attention_bias": False}
_GRANITE = {"model_type": "granite", "vocab_size": 49_159, "rms_norm_eps": 1e-5, "rope_theta": 1e7}
_GRANITE |= {"embedding_multiplier": 12.0, "residual_multiplier": 0.22, "mlp_bias": False}
_GRANITE |= {"tie_word_embeddings": True, "max_position_embeddings": 131_072}
_GEMMA = {"model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh"}
_GEMMA |= {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "rope_local_base_freq": 1e4}
_MINISTRAL = {"model_type": "ministral3", "vocab_size": 131_072, "head_dim": 128}
_MINISTRAL |= {"max_position_embeddings": 262_144, "rms_norm_eps": 1e-5, "sliding_window": None}
_MINISTRAL |= {
    "rope_parameters": {
        "type": "yarn",
        "rope_type": "yarn",
        "rope_theta": 1e6,
        "factor": 16.0,
        "original_max_position_embeddings": 16_384,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
}
_PHI = PRESETS["phi4_mini"].rope

PUBLISHED: dict[str, dict[str, Any]] = {
    "llama3.2_1b": {
        "model_type": "llama",
        "vocab_size": 128_256,
        **_sizes(2048, 16, 32, 8, 8192),
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131_072,
        "rope_theta": 500_000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "mistral_7b": {
        "model_type": "mistral",
        "vocab_size": 32_000,
        **_sizes(4096, 32, 32, 8, 14_336),
        "tie_word_embeddings": False,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 32_768,
        "rope_theta": 10_000.0,
        "sliding_window": 4096,
    },
    "ministral3_3b": _MINISTRAL | _sizes(3072, 26, 32, 8, 9216) | {"tie_word_embeddings": True},
    "ministral3_8b": _MINISTRAL | _sizes(4096, 34, 32, 8, 14_336) | {"tie_word_embeddings": False},
    "smollm3_3b": {
        "model_type": "smollm3",
        "vocab_size": 128_256,
        **_sizes(2048, 36, 16, 4, 11_008),
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": 65_536,
        "rope_theta": 5_000_000.0,
        "rope_scaling": None,
        "no_rope_layer_interval": 4,
        "no_rope_layers": [1, 1, 1, 0] * 9,
        "use_sliding_window": False,
        "sliding_window": None,
        "layer_types": ["full_attention"] * 36,
    },
    "qwen2.5_0.5b": {
        "model_type": "qwen2",
        "vocab_size": 151_936,
        **_sizes(896, 24, 14, 2, 4864),
        **_QWEN,
        "tie_word_embeddings": True,
    },
    "qwen2.5_7b": {
        "model_type": "qwen2",
        "vocab_size": 152_064,
        **_sizes(3584, 28, 28, 4, 18_944),
        **_QWEN,
        "tie_word_embeddings": False,
    },
    "qwen3_0.6b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        **_sizes(1024, 28, 16, 8, 3072),
        **_QWEN,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "qwen3_8b": {
        "model_type": "qwen3",
        "vocab_size": 151_936,
        **_sizes(4096, 36, 32, 8, 12_288),
        **_QWEN,
        "head_dim": 128,
        "tie_word_embeddings": False,
    },
    "gemma3_270m": {
        **_GEMMA,
        "vocab_size": 262_144,
        **_sizes(640, 18, 4, 1, 2048),
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 32_768,
    },
    "gemma3_1b": {
        **_GEMMA,
        "vocab_size": 262_144,
        **_sizes(1152, 26, 4, 1, 6912),
        "head_dim": 256,
        "query_pre_attn_scalar": 256,
        "sliding_window": 512,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 32_768,
    },
    "gemma3_27b": {
        **_GEMMA,
        "vocab_size": 262_208,
        **_sizes(5376, 62, 32, 16, 21_504),
        "head_dim": 128,
        "query_pre_attn_scalar": 168,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131_072,
    },
    "olmo2_7b": {
        "model_type": "olmo2",
        "vocab_size": 100_352,
        **_sizes(4096, 32, 32, 32, 11_008),
        **_OLMO,
        "max_position_embeddings": 4096,
    },
    "olmo3_7b": {
        "model_type": "olmo3",
        "vocab_size": 100_278,
        **_sizes(4096, 32, 32, 32, 11_008),
        **_OLMO,
        "max_position_embeddings": 65_536,
        "sliding_window": 4096,
        "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
        "rope_scaling": {
            "attention_factor": 1.2079441541679836,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 8.0,
            "original_max_position_embeddings": 8192,
            "rope_type": "yarn",
        },
    },
    "phi4_mini": {
        "model_type": "phi3",
        "vocab_size": 200_064,
        **_sizes(3072, 32, 24, 8, 8192),
        "tie_word_embeddings": True,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "partial_rotary_factor": 0.75,
        "max_position_embeddings": 131_072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 262_144,
        "rope_scaling": {
            "type": "longrope",
            "short_factor": list(_PHI.short_factor or ()),
            "long_factor": list(_PHI.long_factor or ()),
        },
    },
    "granite3_2b": {
        **_GRANITE,
        **_sizes(2048, 40, 32, 8, 8192),
        "attention_multiplier": 0.015625,
        "logits_scaling": 8.0,
    },
    "granite3_8b": {
        **_GRANITE,
        **_sizes(4096, 40, 32, 8, 12_800),
        "attention_multiplier": 0.0078125,
        "logits_scaling": 16.0,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_preset(name: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    read, preset = HuggingFaceSource(tmp_path).description, PRESETS[name]
    assert read.context == preset.context
    assert read.model == preset.model
    changed = {"attention_factor": None} if name == "olmo3_7b" else {}  # the one of its factor
    fields = read.rope.fields()
    assert fields | changed == preset.rope.fields() | changed


def test_all_newer_presets_are_published() -> None:
    older = {"tiny", "posgen_paper", "smollm2_135m", "llama2_7b", "llama2_13b", "llama3_8b"}
    assert PRESETS.keys() - PUBLISHED.keys() == older
