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
from rrope_jax.rope import RopeSpec
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
    "layer types": (
        {
            **_SIZE,
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default"},
            },
        },
        ("rope_parameters", "full_attention, sliding_attention", "read each with from_hf"),
    ),
    "local layers": (
        {**_SIZE, "rope_local_base_freq": 1e4},
        ("rope_local_base_freq=10000.0", "remove it"),
    ),
    "contradiction": (
        {
            **_SIZE,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
            "rope_parameters": {"rope_type": "default"},
        },
        ("rope_scaling=", "rope_parameters=", "remove the wrong one"),
    ),
    "switch": ({**_SIZE, "resonance": 1}, ("resonance=1", "True or False")),
}


@pytest.mark.parametrize("name", _READ)
def test_reads(name: str) -> None:
    config, fields = _READ[name]
    assert rope.from_hf(config) == RopeSpec(head_dim=64, **fields)


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
    if spec.scaling == "dynamic_ntk":
        length = None
        if spec.resonance or spec.attention_factor not in (None, 1.0):
            with pytest.raises(ValueError, match=r"scaling='dynamic_ntk' .* scaling='ntk'"):
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
