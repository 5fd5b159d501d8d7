"""config.json keys against stock transformers and back again."""

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrope_jax import rope
from rrope_jax.rope import SCALINGS, RopeSpec
from tests.rope.strategies import specs

_SIZE = {"hidden_size": 512, "num_attention_heads": 8}  # head_dim 64
_ONES = [1.0] * 32

# A config, and the spec that it means.
_READ: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing but sizes": (_SIZE, {}),
    "v4 plain": ({**_SIZE, "rope_theta": 5e5, "rope_scaling": None}, {"theta": 5e5}),
    "v5 plain": ({"head_dim": 64, "rope_parameters": {"rope_theta": 5e5}}, {"theta": 5e5}),
    "head_dim before sizes": ({**_SIZE, "head_dim": 64, "num_attention_heads": 4}, {}),
    "v4 by its old key": (
        {**_SIZE, "rope_scaling": {"type": "linear", "factor": 4.0}},
        {"scaling": "linear", "factor": 4.0},
    ),
    "rope_type before type": (
        {**_SIZE, "rope_scaling": {"type": "yarn", "rope_type": "linear", "factor": 4.0}},
        {"scaling": "linear", "factor": 4.0},
    ),
    "Llama 3.1": (
        {
            **_SIZE,
            "max_position_embeddings": 131072,
            "rope_theta": 500000.0,
            "rope_scaling": {
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
                "rope_type": "llama3",
            },
        },
        {"scaling": "llama3", "theta": 500000.0, "factor": 8.0, "original_context": 8192},
    ),
    "v5 yarn": (
        {
            **_SIZE,
            "max_position_embeddings": 32768,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 1e6,
                "factor": 4.0,
                "original_max_position_embeddings": 8192,
                "beta_fast": 16,
                "truncate": False,
                "attention_factor": 1.0,
            },
        },
        {
            "scaling": "yarn",
            "theta": 1e6,
            "factor": 4.0,
            "original_context": 8192,
            "beta_fast": 16.0,
            "truncate": False,
            "attention_factor": 1.0,
        },
    ),
    "yarn without an original length": (
        {**_SIZE, "max_position_embeddings": 4096, "rope_scaling": {"type": "yarn", "factor": 2}},
        {"scaling": "yarn", "factor": 2, "original_context": 4096},
    ),
    "yarn with one mscale": (
        {
            **_SIZE,
            "max_position_embeddings": 4096,
            "rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 0.7, "mscale_all_dim": 0},
        },
        {"scaling": "yarn", "factor": 2.0, "original_context": 4096},
    ),
    "DeepSeek": (
        {
            "qk_rope_head_dim": 64,
            "hidden_size": 2048,
            "num_attention_heads": 16,
            "max_position_embeddings": 163840,
            "rope_scaling": {
                "type": "yarn",
                "factor": 40,
                "original_max_position_embeddings": 4096,
                "mscale": 0.707,
                "mscale_all_dim": 0.707,
            },
        },
        {
            "scaling": "yarn",
            "factor": 40,
            "original_context": 4096,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
        },
    ),
    "top-level length before the nested one": (
        {
            **_SIZE,
            "original_max_position_embeddings": 4096,
            "max_position_embeddings": 16384,
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4.0,
                "original_max_position_embeddings": 2048,
            },
        },
        {"scaling": "yarn", "factor": 4.0, "original_context": 4096},
    ),
    "dynamic stretches from the maximum": (
        {
            **_SIZE,
            "max_position_embeddings": 8192,
            "rope_scaling": {
                "type": "dynamic",
                "factor": 1.0,
                "original_max_position_embeddings": 2048,
            },
        },
        {"scaling": "dynamic_ntk", "factor": 1.0, "original_context": 8192},
    ),
    "Phi-3, with the factor implied": (
        {
            **_SIZE,
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_scaling": {"type": "su", "short_factor": _ONES, "long_factor": [2.0] * 32},
        },
        {
            "scaling": "longrope",
            "factor": 32.0,
            "original_context": 4096,
            "short_factor": _ONES,
            "long_factor": [2.0] * 32,
        },
    ),
    "partial rotary": (
        {**_SIZE, "partial_rotary_factor": 0.5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"scaling": "linear", "factor": 2.0, "partial_rotary_factor": 0.5},
    ),
    "p-RoPE": (
        {
            **_SIZE,
            "rope_parameters": {"rope_type": "proportional", "partial_rotary_factor": 0.25},
        },
        {"scaling": "proportional", "partial_rotary_factor": 0.25},
    ),
    "resonance beside the scaling's keys": (
        {**_SIZE, "rope_parameters": {"rope_type": "linear", "factor": 2.0, "resonance": True}},
        {"scaling": "linear", "factor": 2.0, "resonance": True},
    ),
    "resonance at the top level": ({**_SIZE, "resonance": True}, {"resonance": True}),
    "both dialects": (
        {
            **_SIZE,
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5},
        },
        {"scaling": "linear", "factor": 2.0, "theta": 5e5},
    ),
}

# Names and defaults that are not LLaMA's. Here a head is 64 wide, too.
_OTHER_NAMES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "GPT-NeoX": (
        {**_SIZE, "model_type": "gpt_neox", "rotary_pct": 0.5, "rotary_emb_base": 1e6},
        {"theta": 1e6, "partial_rotary_factor": 0.5},
    ),
    "GPT-NeoX by default": ({**_SIZE, "model_type": "gpt_neox"}, {"partial_rotary_factor": 0.25}),
    "GPT-J": (
        {"model_type": "gptj", "n_embd": 512, "n_head": 8, "rotary_dim": 32, "n_positions": 2048},
        {"partial_rotary_factor": 0.5},
    ),
    "StableLM": (
        {**_SIZE, "model_type": "stablelm_epoch", "rope_pct": 0.25, "rope_theta": 1e4},
        {"partial_rotary_factor": 0.25},
    ),
    "StableLM by default": ({**_SIZE, "model_type": "stablelm"}, {"partial_rotary_factor": 0.25}),
    "Phi": ({**_SIZE, "model_type": "phi"}, {"partial_rotary_factor": 0.5}),
    "a share beside the scaling's keys": (
        {**_SIZE, "model_type": "phi", "rope_parameters": {"partial_rotary_factor": 0.25}},
        {"partial_rotary_factor": 0.25},
    ),
    "GLM": (
        {**_SIZE, "model_type": "glm", "head_dim": None, "rope_theta": 1e4},
        {"partial_rotary_factor": 0.5},
    ),
    "ChatGLM": (
        {
            "model_type": "chatglm",
            "hidden_size": 1024,
            "num_attention_heads": 8,
            "kv_channels": 64,
            "original_rope": True,
            "rope_ratio": 500,
            "seq_length": 131072,
        },
        {"theta": 5e6, "partial_rotary_factor": 0.5},
    ),
    "MiniMax": (
        {**_SIZE, "model_type": "minimax_m2", "head_dim": 64, "rotary_dim": 32},
        {"theta": 5e6, "partial_rotary_factor": 0.5},
    ),
    "Mixtral by default": ({**_SIZE, "model_type": "mixtral"}, {"theta": 1e6}),
    "ModernBERT's base alone": ({**_SIZE, "global_rope_theta": 160000.0}, {"theta": 160000.0}),
    "DeepSeek by default": ({"model_type": "deepseek_v3", **_SIZE, "head_dim": 192}, {}),
    "DeepSeek's share": (
        {"head_dim": 128, "qk_rope_head_dim": 64, "partial_rotary_factor": 0.5},
        {},
    ),
    "Bamba": (
        {**_SIZE, "model_type": "bamba", "attn_rotary_emb": 32, "rope_theta": 1e4},
        {"partial_rotary_factor": 0.5},
    ),
    "HunYuan": (
        {
            **_SIZE,
            "use_rotary_pos_emb": True,
            "model_type": "hunyuan_v1_dense",
            "rope_scaling": {"type": "dynamic", "alpha": 50.0, "factor": 1.0, "beta_fast": 32},
        },
        {"scaling": "ntk", "factor": 50.0},
    ),
    "Llama 4's step": (
        {
            **_SIZE,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 2.0,
                "original_max_position_embeddings": 64,
            },
        },
        {
            "scaling": "llama3",
            "factor": 8.0,
            "low_freq_factor": 2.0,
            "high_freq_factor": 2.0,
            "original_context": 64,
        },
    ),
    "Phi-3.5-MoE with one temperature": (
        {
            **_SIZE,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": _ONES,
                "long_factor": [2.0] * 32,
                "short_mscale": 1.25,
                "long_mscale": 1.25,
                "original_max_position_embeddings": 64,
                "factor": 2.0,
            },
        },
        {
            "scaling": "longrope",
            "short_factor": _ONES,
            "long_factor": [2.0] * 32,
            "attention_factor": 1.25,
            "original_context": 64,
            "factor": 2.0,
        },
    ),
    "yarn with null for the factor": (
        {
            **_SIZE,
            "max_position_embeddings": 256,
            "rope_scaling": {
                "type": "yarn",
                "factor": None,
                "original_max_position_embeddings": 64,
            },
        },
        {"scaling": "yarn", "factor": 4.0, "original_context": 64},
    ),
    "Qwen2-VL's text": (
        {
            **_SIZE,
            "model_type": "qwen2_vl_text",
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        },
        {"theta": 1e6},
    ),
    "layer types of one embedding": (
        {
            **_SIZE,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 5e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
            },
        },
        {"theta": 5e5},
    ),
    "local layers of the same base": (
        {**_SIZE, "rope_theta": 5e5, "rope_local_base_freq": 5e5},
        {"theta": 5e5},
    ),
    "all layers rotated": ({**_SIZE, "no_rope_layers": [1, 1], "no_rope_layer_interval": 4}, {}),
    "switched off": (
        {**_SIZE, "alibi": False, "use_dynamic_ntk": False, "use_logn_attn": False, "xpos": None},
        {},
    ),
    "said to be rotary": ({**_SIZE, "position_embedding_type": "rope", "use_rope": True}, {}),
}

# A config, and what the message names.
_REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown type": (
        {**_SIZE, "rope_scaling": {"rope_type": "mrope", "factor": 2.0}},
        ("rope_type='mrope'", "unknown", "longrope"),
    ),
    "no type": ({**_SIZE, "rope_scaling": {"factor": 2.0}}, ("rope_type=None", "choose one of")),
    "type of another kind": ({**_SIZE, "rope_scaling": {"rope_type": ["yarn"]}}, ("rope_type=",)),
    "not a dict": ({**_SIZE, "rope_scaling": "yarn"}, ("rope_scaling='yarn'", "dict", "null")),
    "no factor": (
        {**_SIZE, "rope_scaling": {"type": "linear"}},
        ("factor is missing", "rope_scaling", "rope_type='linear'", "add factor"),
    ),
    "factor below 1": (
        {**_SIZE, "rope_parameters": {"rope_type": "linear", "factor": 0.5}},
        ("factor=0.5", ">= 1", "use 1"),
    ),
    "no low_freq_factor": (
        {
            **_SIZE,
            "max_position_embeddings": 4096,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "high_freq_factor": 4.0},
        },
        ("low_freq_factor is missing", "add low_freq_factor"),
    ),
    "short list": (
        {
            **_SIZE,
            "max_position_embeddings": 4096,
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 2.0,
                "short_factor": _ONES[1:],
                "long_factor": _ONES,
            },
        },
        ("short_factor", "31 entries", "exactly 32"),
    ),
    "no list": (
        {**_SIZE, "rope_scaling": {"rope_type": "longrope", "short_factor": _ONES}},
        ("long_factor is missing", "add long_factor"),
    ),
    "no length": (
        {**_SIZE, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}},
        ("original_max_position_embeddings is missing", "max_position_embeddings", "add"),
    ),
    "negative length": (
        {**_SIZE, "max_position_embeddings": -1, "rope_scaling": {"type": "yarn", "factor": 2.0}},
        ("max_position_embeddings=-1", "positive integer"),
    ),
    "negative original length": (
        {
            **_SIZE,
            "original_max_position_embeddings": -1,
            "rope_scaling": {"type": "yarn", "factor": 2.0},
        },
        ("original_max_position_embeddings=-1", "positive integer"),
    ),
    "no way to a longrope factor": (
        {
            **_SIZE,
            "max_position_embeddings": 2048,
            "rope_scaling": {
                "rope_type": "longrope",
                "short_factor": _ONES,
                "long_factor": _ONES,
                "original_max_position_embeddings": 4096,
            },
        },
        ("factor is missing", "2048 and 4096", "add factor"),
    ),
    "odd head": ({"head_dim": 63}, ("head_dim=63", "even")),
    "odd head from sizes": (
        {"hidden_size": 63, "num_attention_heads": 1},
        ("head_dim=63", "even"),
    ),
    "no head": ({"rope_theta": 1e4}, ("head_dim is missing", "hidden_size", "text_config")),
    "sizes that do not divide": (
        {"hidden_size": 100, "num_attention_heads": 3},
        ("hidden_size=100", "num_attention_heads=3", "add head_dim"),
    ),
    "theta": ({**_SIZE, "rope_theta": 1.0}, ("rope_theta=1.0", "> 1", "10000")),
    "nested theta": ({**_SIZE, "rope_parameters": {"rope_theta": 0}}, ("rope_theta=0", "> 1")),
    "wavelength too short": (
        {
            **_SIZE,
            "max_position_embeddings": 4096,
            "resonance": True,
            "rope_scaling": {
                "rope_type": "longrope",
                "factor": 1.0,
                "short_factor": [0.1] * 32,
                "long_factor": _ONES,
            },
        },
        ("resonance=True", "feature 0", "0.6283 tokens", "resonance=False"),
    ),
    "contradiction": (
        {
            **_SIZE,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default"},
        },
        ("rope_scaling=", "rope_parameters=", "remove the wrong one"),
    ),
    "two names that differ": (
        {**_SIZE, "rope_theta": 1e4, "rotary_emb_base": 1e6},
        ("rope_theta=10000.0", "rotary_emb_base=1000000.0", "remove the wrong one"),
    ),
    "a share and a width that differ": (
        {**_SIZE, "partial_rotary_factor": 0.5, "rotary_dim": 16},
        ("partial_rotary_factor=0.5", "rotary_dim=16", "remove the wrong one"),
    ),
    "a width beyond the head": (
        {**_SIZE, "rotary_dim": 128},
        ("rotary_dim=128", "2 to head_dim=64"),
    ),
    "an odd share": ({**_SIZE, "rotary_pct": 0.3}, ("rotary_pct=0.3", "even number")),
    "ratio": ({**_SIZE, "rope_ratio": "8"}, ("rope_ratio='8'", "> 0")),
    "log n": ({**_SIZE, "use_logn_attn": True}, ("use_logn_attn=True", "null")),
    "dynamic without a dict": ({**_SIZE, "use_dynamic_ntk": True}, ("use_dynamic_ntk=True",)),
    "unknown key": ({**_SIZE, "rope_scaling_factor": 2.0}, ("rope_scaling_factor=2.0", "not read")),
    "unknown nested key": (
        {**_SIZE, "rope_scaling": {"type": "linear", "factor": 2.0, "beta": 2.0}},
        ("beta=2.0", "rope_scaling", "not read"),
    ),
    "DBRX": (
        {"d_model": 512, "n_heads": 8, "attn_config": {"rope_theta": 5e5}},
        ("attn_config.rope_theta=500000.0", "top level"),
    ),
    "another embedding": (
        {**_SIZE, "position_embedding_type": "absolute"},
        ("position_embedding_type='absolute'", "rope"),
    ),
    "ALiBi": ({**_SIZE, "alibi": True}, ("alibi=True",)),
    "no embedding": ({**_SIZE, "use_rope": False}, ("use_rope=False", "no rotary")),
    "layers without": (
        {**_SIZE, "no_rope_layers": [1, 1, 0, 1]},
        ("no_rope_layers=[1, 1, 0, 1]", "without rotation", "'no_rope_layers': None"),
    ),
    "layers without, by an interval": (
        {**_SIZE, "no_rope_layer_interval": 4},
        ("no_rope_layer_interval=4", "without rotation"),
    ),
    "a base for each layer": (
        {**_SIZE, "layer_rope_theta": [1e4, 0, 1e4]},
        ("layer_rope_theta=[10000.0, 0, 10000.0]",),
    ),
    "layer type without": (
        {**_SIZE, "rope_parameters": {"a": {"rope_theta": 1e6}, "b": None}},
        ("a, b", "read each with from_hf"),
    ),
    "extended by default": (
        {**_SIZE, "model_type": "gpt_oss"},
        ("rope_parameters is missing", "model_type='gpt_oss'"),
    ),
    "unknown model": (
        {**_SIZE, "model_type": "acme"},
        ("rope_theta is missing", "model_type='acme'", "add rope_theta"),
    ),
    "a model of images": (
        {**_SIZE, "model_type": "acme_vision", "rope_theta": 1e4},
        ("model_type='acme_vision'", "no model of text"),
    ),
    "its own name": (
        {**_SIZE, "model_type": "gpt_neox", "rope_theta": 1e6},
        ("does not read rope_theta but rotary_emb_base",),
    ),
    "model type that is a list": ({**_SIZE, "model_type": ["llama"]}, ("model_type=['llama']",)),
    "alpha of another type": (
        {**_SIZE, "rope_scaling": {"type": "linear", "factor": 2.0, "alpha": 8.0}},
        ("alpha=8.0", "rope_type='linear'"),
    ),
    "alpha with a factor": (
        {**_SIZE, "rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 8.0}},
        ("alpha=8.0", "factor=2.0"),
    ),
    "small alpha": (
        {**_SIZE, "rope_scaling": {"type": "dynamic", "alpha": 0.5}},
        ("alpha=0.5", ">= 1"),
    ),
    "two temperatures": (
        {
            **_SIZE,
            "max_position_embeddings": 4096,
            "rope_scaling": {
                "type": "longrope",
                "short_factor": _ONES,
                "long_factor": _ONES,
                "short_mscale": 1.1,
                "long_mscale": 1.3,
            },
        },
        ("short_mscale=1.1", "long_mscale=1.3", "one for all lengths"),
    ),
    "a head as wide as memory": ({"head_dim": 2**31}, ("head_dim=2147483648", "<= 16384")),
    "sizes as wide as memory": (
        {"hidden_size": 2**40, "num_attention_heads": 1},
        ("head_dim=1099511627776", "<= 16384"),
    ),
    "a number beyond floats": ({"head_dim": 64, "rope_theta": 10**400}, ("rope_theta=1000",)),
    "a width beyond floats": ({"head_dim": 10**400, "rotary_dim": 2}, ("head_dim=1000",)),
    "huge base": ({**_SIZE, "rope_theta": 1e300}, ("rope_theta=1e+300", "<= 1e+30")),
    "base that is not finite": ({**_SIZE, "rope_theta": math.nan}, ("rope_theta=nan",)),
    "base of another kind": ({**_SIZE, "rope_theta": "1e4"}, ("rope_theta='1e4'",)),
    "length beyond positions": (
        {**_SIZE, "max_position_embeddings": 2**31, "rope_scaling": {"type": "yarn", "factor": 2}},
        ("max_position_embeddings=2147483648", "<= 2147483647"),
    ),
    "switch": ({**_SIZE, "resonance": 1}, ("resonance=1", "True, False or the name of a rule")),
}


@pytest.mark.parametrize("name", _READ)
def test_reads(name: str) -> None:
    config, fields = _READ[name]
    assert rope.from_hf(config) == RopeSpec(head_dim=64, **fields)


@pytest.mark.parametrize("name", _OTHER_NAMES)
def test_reads_other_names_and_defaults(name: str) -> None:
    config, fields = _OTHER_NAMES[name]
    spec = rope.from_hf(config)
    assert spec == RopeSpec(head_dim=64, **fields)
    _agree(spec, rope.from_hf(json.loads(json.dumps(rope.to_hf(spec)))))


@pytest.mark.parametrize(
    ("width", "head_dim"), [(w, h) for h in (48, 80, 96, 112) for w in range(2, h + 1, 2)]
)
def test_rotated_width_is_kept(width: int, head_dim: int) -> None:
    assert rope.from_hf({"head_dim": head_dim, "rotary_dim": width}).rotary_dim == width


def test_step_keeps_or_divides() -> None:
    """Features that turn less than twice within the context become slower, the others stay."""
    spec = rope.from_hf(_OTHER_NAMES["Llama 4's step"][0])
    plain = rope.frequencies(RopeSpec(head_dim=64)).inv_freq
    slow = 64 * plain / (2 * math.pi) < 2
    np.testing.assert_allclose(
        rope.frequencies(spec).inv_freq, np.where(slow, plain / 8, plain), rtol=1e-15
    )
    assert 0 < slow.sum() < 32


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 4096}, None),
        ({"original_max_position_embeddings": 2048, "max_position_embeddings": 4096}, 2048),
        ({"rope_scaling": {"original_max_position_embeddings": 1024}}, 1024),
        ({"rope_parameters": {"original_max_position_embeddings": 512}}, 512),
        ({"max_position_embeddings": 4096, "max_sequence_length": 16384}, 4096),
        ({"max_position_embeddings": 4096, "max_sequence_length": 4096}, None),
        ({"original_max_position_embeddings": True, "rope_scaling": [1]}, None),
    ],
)
def test_original_context_is_what_a_config_names(
    config: dict[str, Any], context: int | None
) -> None:
    assert rope.original_context(config) == context


@pytest.mark.smoke
@pytest.mark.parametrize("name", _REFUSED)
def test_refuses(name: str) -> None:
    config, said = _REFUSED[name]
    with pytest.raises(ValueError, match=r".") as error:
        rope.from_hf(config)
    message = str(error.value)
    assert [part for part in said if part not in message] == []
    assert "\n" not in message


def test_ignored_keys_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    """As in transformers: a linear embedding has no attention factor, whatever the file says."""
    scaling = {"rope_type": "linear", "factor": 2.0, "attention_factor": 1.5, "finetuned": True}
    with caplog.at_level(logging.WARNING):
        spec = rope.from_hf({**_SIZE, "rope_scaling": scaling})
    assert rope.frequencies(spec).attention_factor == 1.0
    assert "rope_type='linear' does not read attention_factor, finetuned" in caplog.text


def test_message_on_layer_types_shows_what_works() -> None:
    config = {
        **_SIZE,
        "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 2.0}},
    }
    with pytest.raises(ValueError, match="read each with ") as error:
        rope.from_hf(config)
    advice = str(error.value).partition("read each with ")[2]
    spec = eval(advice, {"from_hf": rope.from_hf, "config": config})
    assert spec == RopeSpec(head_dim=64, scaling="linear", factor=2.0)


@pytest.mark.parametrize(
    ("config", "fields"),
    [
        (
            {"model_type": "llama4_text", **_SIZE, "no_rope_layers": [1, 0]},
            {"head_dim": 128, "theta": 5e5},
        ),
        ({"model_type": "exaone4", **_SIZE, "sliding_window": 64}, {"head_dim": 64}),
        ({"model_type": "mellum", **_SIZE}, {"head_dim": 128, "theta": 5e5}),
    ],
)
def test_advice_reads_some_of_the_layers(config: dict[str, Any], fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"from_hf\(") as error:
        rope.from_hf(config)
    advice = "from_hf(" + str(error.value).partition("from_hf(")[2]
    spec = eval(advice, {"from_hf": rope.from_hf, "config": config})
    assert spec == RopeSpec(**fields)


def _agree(spec: RopeSpec, other: RopeSpec) -> None:
    for seq_len in (None, 10**4 + 1):
        ours, theirs = rope.frequencies(spec, seq_len), rope.frequencies(other, seq_len)
        np.testing.assert_allclose(theirs.inv_freq, ours.inv_freq, rtol=1e-12, atol=1e-25)
        assert theirs.attention_factor == pytest.approx(ours.attention_factor, rel=1e-12)
        finite = np.isfinite(ours.wavelengths)
        if spec.resonance:
            assert theirs.wavelengths[finite].tolist() == ours.wavelengths[finite].tolist()


@given(spec=specs(), length=st.one_of(st.none(), st.integers(2, 10**5)))
def test_round_trip_keeps_frequencies(spec: RopeSpec, length: int | None) -> None:
    if (fixed := SCALINGS[spec.scaling].at_one_length) is not None:
        length = None
        native = spec.scaling == "dynamic_ntk" and not spec.resonance
        if not native or spec.attention_factor not in (None, 1.0):
            with pytest.raises(ValueError, match=rf"scaling='{spec.scaling}' .* scaling='{fixed}'"):
                rope.to_hf(spec)
            return
    keys = json.loads(json.dumps(rope.to_hf(spec, max_position_embeddings=length)))
    if length is not None:
        assert keys["max_position_embeddings"] == length
    _agree(spec, rope.from_hf(keys))
    for dialect in ("rope_scaling", "rope_parameters"):  # each says it all
        _agree(spec, rope.from_hf({k: v for k, v in keys.items() if k != dialect}))


@pytest.mark.parametrize(
    ("fields", "rope_type"),
    [
        ({"scaling": "none"}, None),
        ({"scaling": "linear", "factor": 4.0}, "linear"),
        ({"scaling": "ntk", "factor": 4.0}, None),
        ({"scaling": "dynamic_ntk", "factor": 4.0, "original_context": 64}, "dynamic"),
        ({"scaling": "ntk_by_parts", "factor": 4.0, "original_context": 64}, "llama3"),
        ({"scaling": "part_ntk", "factor": 4.0, "original_context": 64}, "longrope"),
        ({"scaling": "yarn", "factor": 4.0, "original_context": 64}, "yarn"),
        ({"scaling": "linear", "factor": 4.0, "attention_factor": 1.1}, "longrope"),
        ({"scaling": "none", "resonance": True}, "longrope"),
        ({"scaling": "abf", "abf_theta": 5e5}, None),
        ({"scaling": "cope", "clipped_features": 2}, "longrope"),
        ({"scaling": "nope"}, "longrope"),
    ],
)
def test_writes_the_name_that_transformers_has(
    fields: dict[str, Any], rope_type: str | None
) -> None:
    keys = rope.to_hf(RopeSpec(head_dim=8, **fields))
    assert (keys["rope_scaling"] or {}).get("rope_type") == rope_type
    assert keys["rope_parameters"]["rope_type"] == (rope_type or "default")
    assert keys["rope_parameters"]["rope_theta"] == keys["rope_theta"]
    assert keys.get("resonance", False) == fields.get("resonance", False)


def test_ntk_is_written_as_a_larger_base() -> None:
    keys = rope.to_hf(RopeSpec(head_dim=128, scaling="ntk", factor=8.0))
    assert keys["rope_theta"] == pytest.approx(10000 * 8 ** (128 / 126), rel=1e-14)


def test_abf_is_written_as_its_base() -> None:
    keys = rope.to_hf(RopeSpec(head_dim=8, scaling="abf", abf_theta=5e5))
    assert keys["rope_theta"] == 5e5
    assert keys["rope_scaling"] is None


@pytest.mark.parametrize(
    "fields",
    [
        {"scaling": "nope"},
        {"scaling": "hardclip", "clipped_features": 3},
        {"scaling": "cope", "clipped_features": 3},
        {"scaling": "rope_id", "original_context": 256},
        {"scaling": "dprope", "factor": 4.0, "original_context": 64},
        {"scaling": "abf", "abf_theta": 5e5},
    ],
)
@pytest.mark.parametrize("resonance", [False, True])
def test_features_that_never_turn_come_back(fields: dict[str, Any], resonance: bool) -> None:
    spec = RopeSpec(head_dim=16, resonance=resonance, **fields)
    back = rope.from_hf(json.loads(json.dumps(rope.to_hf(spec))))
    ours, theirs = rope.frequencies(spec), rope.frequencies(back)
    np.testing.assert_array_equal(theirs.inv_freq == 0, ours.inv_freq == 0)
    np.testing.assert_allclose(theirs.inv_freq, ours.inv_freq, rtol=1e-12)  # of float64 factors
    np.testing.assert_array_equal(theirs.periods, ours.periods)


def test_resonance_is_written_as_factor_lists() -> None:
    """The factors are wavelengths after over before; the length is that of the whole extension."""
    spec = RopeSpec(head_dim=8, scaling="yarn", factor=4.0, original_context=64, resonance=True)
    keys = rope.to_hf(spec)
    scaling = keys["rope_scaling"]
    plain = rope.frequencies(RopeSpec(head_dim=8)).wavelengths
    expected = rope.frequencies(spec).wavelengths / plain
    np.testing.assert_allclose(scaling["short_factor"], expected, rtol=1e-14)
    assert scaling["long_factor"] == scaling["short_factor"]
    assert scaling["attention_factor"] == pytest.approx(0.1 * math.log(4) + 1)
    assert scaling["factor"] == 1.0
    lengths = {
        keys["max_position_embeddings"],
        keys["original_max_position_embeddings"],
        scaling["original_max_position_embeddings"],
    }
    assert lengths == {256}


def test_dynamic_ntk_keeps_its_length() -> None:
    spec = RopeSpec(head_dim=8, scaling="dynamic_ntk", factor=2.0, original_context=64)
    with pytest.raises(ValueError, match=r"max_position_embeddings=128 must be .*64.*leave it out"):
        rope.to_hf(spec, max_position_embeddings=128)


def _of_transformers(config: dict[str, Any], seq_len: int) -> tuple[np.ndarray, float]:
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    embedding = LlamaRotaryEmbedding(LlamaConfig(num_hidden_layers=1, **config))
    embedding(torch.zeros(1), torch.arange(seq_len)[None])
    return embedding.inv_freq.numpy(), embedding.attention_scaling


def _agrees_with_transformers(config: dict[str, Any], spec: RopeSpec, seq_len: int) -> None:
    inv_freq, attention_factor = _of_transformers(config, seq_len)
    ours = rope.frequencies(spec, seq_len)
    np.testing.assert_allclose(inv_freq, ours.inv_freq, rtol=2e-6, atol=1e-25)  # float32 there
    assert attention_factor == pytest.approx(ours.attention_factor, rel=1e-6)


# LlamaConfig knows neither DeepSeek's head nor Phi-3's old name, and applies all of a head.
@pytest.mark.peers
@pytest.mark.parametrize(
    "name", sorted(_READ.keys() - {"DeepSeek", "Phi-3, with the factor implied"})
)
def test_reads_as_transformers_does(name: str) -> None:
    config = {key: value for key, value in _READ[name][0].items() if key != "resonance"}
    for dialect in ("rope_scaling", "rope_parameters"):
        if config.get(dialect):
            config[dialect] = {k: v for k, v in config[dialect].items() if k != "resonance"}
    spec = rope.from_hf(config)
    for seq_len in (1, 5000, 9000):
        _agrees_with_transformers({**_SIZE, **config}, spec, seq_len)


@pytest.mark.peers
@given(spec=specs())
def test_transformers_reads_what_is_written(spec: RopeSpec) -> None:
    try:
        keys = rope.to_hf(spec)
    except ValueError:
        return  # dynamic_ntk, see above
    if spec.partial_rotary_factor != 1 and not keys.get("rope_scaling"):
        return  # without a scaling, LLaMA in transformers rotates the whole head
    config = {"hidden_size": 2 * spec.head_dim, "num_attention_heads": 2, **keys}
    for seq_len in (1, 20_000):
        _agrees_with_transformers(config, spec, seq_len)


@pytest.mark.parametrize("scaling", ["none", "yarn"])
def test_ministral3_without_its_temperature(scaling: str) -> None:
    """Its code computes with both keys, and has no defaults for them."""
    extended = {"factor": 4.0, "original_context": 32} if scaling == "yarn" else {}
    spec = RopeSpec(head_dim=16, scaling=scaling, **extended)
    keys = rope.to_hf(spec, model_type="ministral3", max_position_embeddings=128)
    parameters = keys["rope_parameters"]
    assert parameters["llama_4_scaling_beta"] == 0
    assert parameters["original_max_position_embeddings"] == (32 if extended else 128)
    assert rope.from_hf({**keys, "model_type": "ministral3"}) == spec
