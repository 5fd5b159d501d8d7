"""config.json keys of models whose layers have different embeddings."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rrope_jax import rope
from rrope_jax.rope import SCALINGS, RopeSpec
from tests.rope.strategies import specs

_SIZE = {"head_dim": 64, "max_position_embeddings": 8192}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}
_YARN_FIELDS = {"scaling": "yarn", "factor": 4.0, "original_context": 2048}
_GEMMA = {**_SIZE, "model_type": "gemma3_text"}
_OLMO = {**_SIZE, "model_type": "olmo3"}


def _nested(full: Any, sliding: Any, **beside: Any) -> dict[str, Any]:
    return {"rope_parameters": {_FULL: full, _SLIDING: sliding, **beside}}


# A config, the fields of full-attention layers, and those of layers with a sliding window.
_READ: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "Gemma 3 4B, as released": (
        {
            **_GEMMA,
            "rope_theta": 1e6,
            "rope_local_base_freq": 1e4,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        },
        {"theta": 1e6, "scaling": "linear", "factor": 8.0},
        {},
    ),
    "Gemma 3 by default": (_GEMMA, {"theta": 1e6}, {}),
    "Gemma 3 of transformers 5": (
        {**_GEMMA, **_nested({**_YARN, "rope_theta": 1e6}, {"rope_theta": 2e4})},
        {"theta": 1e6, **_YARN_FIELDS},
        {"theta": 2e4},
    ),
    "full-attention layers alone": (
        {**_GEMMA, "rope_local_base_freq": 2e4, "rope_parameters": {_FULL: {"rope_theta": 5e5}}},
        {"theta": 5e5},
        {"theta": 2e4},
    ),
    "null for default": (
        {**_GEMMA, **_nested({"rope_theta": 5e5}, None)},
        {"theta": 5e5},
        {},
    ),
    "both dialects": (
        {
            **_GEMMA,
            "rope_theta": 1e6,
            "rope_local_base_freq": 2e4,
            "rope_scaling": _YARN,
            **_nested({**_YARN, "rope_theta": 1e6}, {"rope_theta": 2e4}),
        },
        {"theta": 1e6, **_YARN_FIELDS},
        {"theta": 2e4},
    ),
    "resonance in one of them": (
        {**_GEMMA, **_nested({"rope_theta": 1e6, "resonance": True}, {})},
        {"theta": 1e6, "resonance": True},
        {},
    ),
    "resonance in all": (
        {**_GEMMA, "resonance": True},
        {"theta": 1e6, "resonance": True},
        {"resonance": True},
    ),
    "OLMo 3, as released": (
        {**_OLMO, "rope_theta": 500000, "rope_scaling": {**_YARN, "attention_factor": 1.25}},
        {"theta": 5e5, **_YARN_FIELDS, "attention_factor": 1.25},
        {"theta": 5e5},
    ),
    "OLMo 3 of transformers 5": (
        {**_OLMO, **_nested({**_YARN, "rope_theta": 5e5}, {**_YARN, "rope_theta": 5e5})},
        {"theta": 5e5, **_YARN_FIELDS},
        {"theta": 5e5, **_YARN_FIELDS},
    ),
    "ModernBERT, whose layers are all scaled": (
        {
            **_SIZE,
            "model_type": "modernbert",
            "global_rope_theta": 160000.0,
            "local_rope_theta": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        },
        {"theta": 160000.0, "scaling": "linear", "factor": 2.0},
        {"scaling": "linear", "factor": 2.0},
    ),
    "shares of a head": (
        {
            **_SIZE,
            "model_type": "laguna",
            **_nested(
                {"rope_theta": 2e5, "partial_rotary_factor": 0.5},
                {"rope_theta": 1e4, "partial_rotary_factor": 1.0},
            ),
        },
        {"theta": 2e5, "partial_rotary_factor": 0.5},
        {},
    ),
    "no type": (
        {**_SIZE, "rope_theta": 1e6, "rope_local_base_freq": 2e4},
        {"theta": 1e6},
        {"theta": 2e4},
    ),
    "no type, nested": ({**_SIZE, **_nested({"rope_theta": 1e6}, {})}, {"theta": 1e6}, {}),
    "a context of one layer type": (
        {
            **_GEMMA,
            "original_max_position_embeddings": 4096,
            **_nested({**_YARN, "rope_theta": 1e6}, {}),
        },
        {"theta": 1e6, **_YARN_FIELDS},
        {},
    ),
    "truncation said twice": (
        {**_GEMMA, **_nested({**_YARN, "truncate": False}, {}, truncate=False)},
        {"theta": 1e6, **_YARN_FIELDS, "truncate": False},
        {},
    ),
}

# A config, and what the message names.
_REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "one dict for two embeddings": (
        {**_GEMMA, "rope_parameters": {**_YARN, "rope_theta": 1e6}},
        ("rope_parameters=", "does not say which layers", "nest it"),
    ),
    "layer types of another name": (
        {**_SIZE, "rope_parameters": {"a": {"rope_theta": 1e6}, "b": {"rope_theta": 1e4}}},
        ("rope_parameters", "(a, b)", "read each with from_hf"),
    ),
    "a third layer type": (
        {**_GEMMA, **_nested({}, {}, linear_attention={"rope_theta": 5e4})},
        ("linear_attention", "read each with from_hf"),
    ),
    "a type with one embedding": (
        {**_SIZE, "model_type": "llama", **_nested({"rope_theta": 1e6}, {})},
        ("full_attention, sliding_attention", "read each with from_hf"),
    ),
    "another base in a type with one": (
        {**_SIZE, "model_type": "llama", "rope_local_base_freq": 2e4},
        ("rope_local_base_freq=20000.0", "one for all", "remove it"),
    ),
    "a base that versions read differently": (
        {**_OLMO, "rope_theta": 1e6},
        ("rope_theta=1000000.0", "transformers 4", "rope_parameters"),
    ),
    "two bases": (
        {**_GEMMA, "rope_local_base_freq": 2e4, **_nested({}, {"rope_theta": 3e4})},
        ("rope_local_base_freq=20000.0", "rope_theta=30000.0", "contradict"),
    ),
    "two scalings": (
        {**_GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 2.0}, **_nested(_YARN, {})},
        ("rope_scaling=", "rope_parameters=", "remove the wrong one"),
    ),
    "no base of full-attention layers": (
        {**_SIZE, "rope_local_base_freq": 2e4},
        ("rope_local_base_freq", "rope_theta", "missing"),
    ),
    "a wrong base": (
        {**_GEMMA, "rope_local_base_freq": 0.5},
        ("rope_local_base_freq=0.5", "> 1"),
    ),
    "no base in one layer type": (
        {**_SIZE, "model_type": "mellum", **_nested({"rope_theta": 1e6}, {"rope_type": "default"})},
        ("rope_theta is missing from rope_parameters.sliding_attention",),
    ),
    "several embeddings by default": (
        {**_SIZE, "model_type": "mellum", "rope_theta": 1e6},
        ("model_type='mellum'", "several embeddings", "rope_parameters by layer type"),
    ),
    "a scaling beside the layer types": (
        {**_GEMMA, **_nested({}, {}, rope_type="yarn")},
        ("rope_type='yarn' beside the layer types",),
    ),
    "a scaling by a key that only version 4 reads": (
        {**_GEMMA, "rope_scaling": {"type": "linear", "factor": 8.0}},
        ("type='linear'", "transformers 5", "rope_type"),
    ),
    "truncation that only version 4 reads": (
        {**_GEMMA, "rope_scaling": {**_YARN, "truncate": False}},
        ("truncate=False", "transformers 5 ignores", "rope_parameters"),
    ),
    "a factor beside the layer types": (
        {**_GEMMA, **_nested({}, {}, factor=2.0)},
        ("rope_parameters has factor=2.0", "not read"),
    ),
    "truncation where one version reads it": (
        {**_GEMMA, **_nested({**_YARN, "truncate": False}, {})},
        ("truncate=False in full_attention", "set both"),
    ),
    "a context that only one version reads": (
        {
            **_GEMMA,
            "original_max_position_embeddings": 1024,
            **_nested({"rope_type": "yarn", "factor": 2.0}, {}),
        },
        ("original_max_position_embeddings=1024", "beside rope_type='yarn'"),
    ),
    "position temperature in Gemma": (
        {**_GEMMA, **_nested({**_YARN, "llama_4_scaling_beta": 0.1}, {})},
        ("llama_4_scaling_beta=0.1", "model_type='gemma3_text'"),
    ),
}


@pytest.mark.parametrize("name", _READ)
def test_reads(name: str) -> None:
    config, full, sliding = _READ[name]
    spec = rope.from_hf(config)
    assert spec.of(_FULL) == RopeSpec(head_dim=64, **full)
    assert spec.of(_SLIDING) == RopeSpec(head_dim=64, **sliding)


@pytest.mark.smoke
@pytest.mark.parametrize("name", _REFUSED)
def test_refuses(name: str) -> None:
    config, said = _REFUSED[name]
    with pytest.raises(ValueError, match=r".") as error:
        rope.from_hf(config)
    message = str(error.value)
    assert [part for part in said if part not in message] == []
    assert "\n" not in message


@pytest.mark.parametrize("keys", [{}, {"no_rope_layers": [1, 1, 0]}, {"no_rope_layer_interval": 4}])
def test_smollm3_has_one_embedding_in_its_rotated_layers(keys: dict[str, Any]) -> None:
    assert rope.from_hf({**_SIZE, "model_type": "smollm3", **keys}) == RopeSpec(
        head_dim=64, theta=2e6
    )


def test_original_context_of_full_attention_layers() -> None:
    assert rope.original_context({**_GEMMA, **_nested(_YARN, {})}) == 2048


# --- writing ------------------------------------------------------------------------------------

_PLAIN = RopeSpec(head_dim=8, theta=1e4)
_TWO = RopeSpec(
    head_dim=8,
    theta=1e6,
    scaling="yarn",
    factor=4.0,
    original_context=64,
    sliding_attention=_PLAIN,
)


def test_gemma3_has_the_keys_of_both_versions() -> None:
    keys = rope.to_hf(_TWO, model_type="gemma3_text")
    scaling = {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "truncate": True,
    }
    assert keys == {
        "head_dim": 8,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_scaling": scaling,
        "rope_parameters": {
            _FULL: {"rope_theta": 1e6, **scaling},
            _SLIDING: {"rope_theta": 1e4, "rope_type": "default"},
        },
        "max_position_embeddings": 256,
    }


def test_one_embedding_is_written_for_both_layer_types() -> None:
    keys = rope.to_hf(_PLAIN, model_type="gemma3_text")
    assert keys["rope_parameters"][_FULL] == keys["rope_parameters"][_SLIDING]
    assert keys["rope_local_base_freq"] == 1e4


def test_resonance_of_full_attention_layers_alone() -> None:
    spec = RopeSpec(**_TWO.fields() | {"resonance": True})
    keys = rope.to_hf(spec, model_type="gemma3_text")
    nested = keys["rope_parameters"]
    assert nested[_FULL]["rope_type"] == "longrope"
    assert nested[_FULL]["resonance"] is True
    assert "resonance" not in keys
    assert nested[_SLIDING] == {"rope_theta": 1e4, "rope_type": "default"}


@pytest.mark.parametrize(
    ("model_type", "sliding", "warned"),
    [
        ("gemma3_text", {"theta": 2e4}, False),
        ("gemma3_text", {"theta": 1e6, "scaling": "ntk", "factor": 2.0}, False),
        ("gemma3_text", {"theta": 1e6, "scaling": "linear", "factor": 2.0}, True),
        ("olmo3", {"theta": 1e6}, False),
        ("olmo3", {"theta": 2e4}, True),
    ],
)
def test_what_transformers_4_cannot_read_is_said(
    model_type: str, sliding: dict[str, Any], warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    spec = RopeSpec(**_TWO.fields() | {"sliding_attention": {"head_dim": 8, **sliding}})
    with caplog.at_level(logging.WARNING):
        rope.to_hf(spec, model_type=model_type)
    assert ("only transformers 5 computes it" in caplog.text) is warned


@pytest.mark.parametrize("model_type", [None, "llama", "qwen3"])
def test_types_with_one_embedding_refuse_two(model_type: str | None) -> None:
    with pytest.raises(ValueError, match=r"has one embedding for all layers .* gemma3_text"):
        rope.to_hf(_TWO, model_type=model_type)


@st.composite
def _two(draw: st.DrawFn) -> RopeSpec:
    # see below
    some = specs(num_features=4).filter(lambda spec: not SCALINGS[spec.scaling].at_one_length)
    full = draw(some)
    sliding = draw(some.filter(lambda spec: spec.head_dim == full.head_dim))
    return RopeSpec(**full.fields() | {"sliding_attention": sliding})


def _agree(spec: RopeSpec, other: RopeSpec) -> None:
    for seq_len in (None, 10**4 + 1):
        ours, theirs = rope.frequencies(spec, seq_len), rope.frequencies(other, seq_len)
        np.testing.assert_allclose(theirs.inv_freq, ours.inv_freq, rtol=1e-12, atol=1e-25)
        assert theirs.attention_factor == pytest.approx(ours.attention_factor, rel=1e-12)
        finite = np.isfinite(ours.wavelengths)
        if spec.resonance:
            assert theirs.wavelengths[finite].tolist() == ours.wavelengths[finite].tolist()


def _written(spec: RopeSpec, model_type: str) -> dict[str, Any]:
    """The keys, after JSON."""
    keys = rope.to_hf(spec, model_type=model_type)
    loaded: dict[str, Any] = json.loads(json.dumps(keys))
    return {"model_type": model_type, **loaded}


@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3", "modernbert"])
@given(spec=_two())
def test_round_trip_keeps_frequencies(model_type: str, spec: RopeSpec) -> None:
    back = rope.from_hf(_written(spec, model_type))
    _agree(spec.of(_FULL), back.of(_FULL))
    _agree(spec.of(_SLIDING), back.of(_SLIDING))


def test_dynamic_ntk_of_full_attention_layers() -> None:
    fields = {"scaling": "dynamic_ntk", "factor": 2.0, "original_context": 64}
    spec = RopeSpec(head_dim=8, theta=1e6, **fields, sliding_attention=_PLAIN)
    assert rope.from_hf(_written(spec, "gemma3_text")) == spec
    with pytest.raises(ValueError, match="max_position_embeddings=128 must be original_context"):
        rope.to_hf(spec, model_type="gemma3_text", max_position_embeddings=128)


@pytest.mark.parametrize("full", [_TWO.of(_FULL), RopeSpec(head_dim=8, theta=1e6, resonance=True)])
def test_round_trip_by_either_dialect(full: RopeSpec) -> None:
    spec = RopeSpec(**full.fields() | {"sliding_attention": _PLAIN})
    keys = _written(spec, "gemma3_text")
    for dialect in ("rope_scaling", "rope_parameters"):
        back = rope.from_hf({key: value for key, value in keys.items() if key != dialect})
        _agree(spec.of(_FULL), back.of(_FULL))
        assert back.of(_SLIDING) == _PLAIN


def _of_transformers(config: dict[str, Any], seq_len: int) -> dict[str, tuple[np.ndarray, float]]:
    import torch
    from transformers import Gemma3TextConfig, Olmo3Config
    from transformers.models.gemma3.modeling_gemma3 import Gemma3RotaryEmbedding
    from transformers.models.olmo3.modeling_olmo3 import Olmo3RotaryEmbedding

    classes = {
        "gemma3_text": (Gemma3TextConfig, Gemma3RotaryEmbedding),
        "olmo3": (Olmo3Config, Olmo3RotaryEmbedding),
    }
    config_class, embedding_class = classes[config["model_type"]]
    sizes = {"hidden_size": 2 * config["head_dim"], "num_attention_heads": 2}
    made = config_class(num_hidden_layers=12, **sizes, **config)
    embedding = embedding_class(made)
    found = {}
    for name in (_FULL, _SLIDING):
        embedding(torch.zeros(1), torch.arange(seq_len)[None], name)
        inv_freq = getattr(embedding, f"{name}_inv_freq").numpy()
        found[name] = (inv_freq, getattr(embedding, f"{name}_attention_scaling"))
    return found


def _agrees_with_transformers(config: dict[str, Any], spec: RopeSpec, seq_len: int) -> None:
    for name, (inv_freq, attention_factor) in _of_transformers(config, seq_len).items():
        ours = rope.frequencies(spec.of(name), seq_len)
        np.testing.assert_allclose(inv_freq, ours.inv_freq, rtol=2e-6, atol=1e-25)  # float32 there
        assert attention_factor == pytest.approx(ours.attention_factor, rel=1e-6)


@pytest.mark.peers
@pytest.mark.parametrize(
    "name",
    [
        name
        for name, (config, _, _) in _READ.items()
        if config.get("model_type") in ("gemma3_text", "olmo3") and "resonance" not in name
    ],
)
def test_reads_as_transformers_does(name: str) -> None:
    config = json.loads(json.dumps(_READ[name][0]))  # transformers changes what it is given
    spec = rope.from_hf(config)
    for seq_len in (1, 9000):
        _agrees_with_transformers(json.loads(json.dumps(config)), spec, seq_len)


@pytest.mark.peers
@pytest.mark.parametrize("model_type", ["gemma3_text", "olmo3"])
@given(spec=_two())
def test_transformers_reads_what_is_written(model_type: str, spec: RopeSpec) -> None:
    keys = _written(spec, model_type)
    nested = keys["rope_parameters"].values()
    if any(
        each["rope_type"] == "default" and each.get("partial_rotary_factor", 1) != 1
        for each in nested
    ):
        return  # without a scaling, these types rotate the whole head
    for seq_len in (1, 20_000):
        _agrees_with_transformers(json.loads(json.dumps(keys)), spec, seq_len)
