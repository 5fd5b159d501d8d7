"""config.json keys of types with rules of their own: Ministral 3 and Phi-3."""

import dataclasses
import json
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from rrope_jax import rope
from rrope_jax.rope import SCALINGS, RopeSpec
from tests.rope.strategies import specs

_SIZE = {"head_dim": 128, "max_position_embeddings": 262144}
_MINISTRAL = {
    "type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "max_position_embeddings": 262144,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale_all_dim": 1.0,
    "mscale": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_MINISTRAL_SPEC = RopeSpec(
    head_dim=128,
    theta=1e6,
    scaling="yarn",
    factor=16.0,
    original_context=16384,
    mscale=1.0,
    mscale_all_dim=1.0,
    llama_4_scaling_beta=0.1,
)
_YARN = {"rope_type": "yarn", "factor": 16.0, "original_max_position_embeddings": 16384}
_BETA = {"llama_4_scaling_beta": 0.1}


@pytest.mark.parametrize("model_type", [{"model_type": "ministral3"}, {}])
def test_ministral3_has_a_temperature_that_grows(model_type: dict[str, str]) -> None:
    config = {**_SIZE, **model_type, "rope_parameters": _MINISTRAL}
    assert rope.from_hf(config) == _MINISTRAL_SPEC


def test_temperature_without_an_extension() -> None:
    parameters = {"rope_theta": 1e6, "original_max_position_embeddings": 64, **_BETA}
    spec = rope.from_hf({**_SIZE, "model_type": "ministral3", "rope_parameters": parameters})
    assert (spec.original_context, spec.llama_4_scaling_beta) == (64, 0.1)
    plain = rope.frequencies(RopeSpec(head_dim=128, theta=1e6))
    np.testing.assert_array_equal(rope.frequencies(spec).inv_freq, plain.inv_freq)
    assert rope.frequencies(spec).attention_factor == 1.0


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"rope_parameters": _YARN, **_BETA}, "beside rope_type in rope_parameters"),
        ({"llama_4_scaling": {"beta": 0.1}}, "llama_4_scaling={'beta': 0.1}"),
        ({"attn_temperature_tuning": True}, "attn_temperature_tuning=True"),
        (
            {"model_type": "mistral", "rope_parameters": {**_YARN, **_BETA}},
            "model_type='mistral' does not read there",
        ),
        ({"rope_parameters": {"rope_theta": 1e6, **_BETA}}, "counts in original_max_position"),
        (
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, **_BETA}},
            "rope_type='linear' does not read",
        ),
        (
            {"rope_parameters": {**_YARN, "llama_4_scaling_beta": -0.1}},
            "llama_4_scaling_beta=-0.1 must be",
        ),
    ],
)
def test_other_temperatures_that_grow_are_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"llama_4|attn_temp") as error:
        rope.from_hf({**_SIZE, **config})
    assert said in str(error.value)


def test_llama4_has_its_temperature_in_layers_without_rotation_only() -> None:
    llama4 = {"model_type": "llama4_text", "attn_temperature_tuning": True}
    spec = rope.from_hf({**_SIZE, **llama4, "no_rope_layers": [1, 1]})
    assert spec == RopeSpec(head_dim=128, theta=5e5)


@pytest.mark.parametrize("resonance", [False, True])
def test_ministral3_is_written_with_its_temperature(resonance: bool) -> None:
    """The factor lists switch at the context that the temperature counts in; they are the same."""
    spec = RopeSpec(**_MINISTRAL_SPEC.fields() | {"resonance": resonance})
    keys = json.loads(json.dumps(rope.to_hf(spec, model_type="ministral3")))
    parameters = keys["rope_parameters"]
    assert parameters["rope_type"] == ("longrope" if resonance else "yarn")
    assert parameters["llama_4_scaling_beta"] == 0.1
    assert parameters["original_max_position_embeddings"] == 16384
    assert keys["max_position_embeddings"] == 262144
    back = rope.from_hf({"model_type": "ministral3", **keys})
    _agree(spec, back)
    assert (back.original_context, back.llama_4_scaling_beta) == (16384, 0.1)


def _written(spec: RopeSpec) -> dict[str, Any] | str:
    """The keys of Ministral 3, or why there are none."""
    try:
        return rope.to_hf(spec, model_type="ministral3")
    except ValueError as error:
        return str(error)


@given(
    spec=specs(num_features=4),
    temperature=st.sampled_from([{"llama_4_scaling_beta": 0.1}, {"position_temperature": "log_n"}]),
    context=st.sampled_from([None, 32, "original"]),
)
def test_any_scaling_with_a_temperature_comes_back_or_is_refused(
    spec: RopeSpec, temperature: dict[str, Any], context: int | str | None
) -> None:
    length = spec.original_context if context == "original" else context
    assume(length or spec.original_context)
    spec = RopeSpec(**spec.fields(), **temperature, temperature_context=length)
    keys = _written(spec)
    if isinstance(keys, str):
        assert re.match("(position_temperature|temperature_context|scaling)=", keys)
        return
    back = rope.from_hf({"model_type": "ministral3", **json.loads(json.dumps(keys))})
    _agree(spec, back)
    positions = np.array([0, 31, 32, 10**4, 10**5])
    np.testing.assert_array_equal(
        rope.query_temperature(back, positions), rope.query_temperature(spec, positions)
    )


_DYNAMIC = RopeSpec(
    head_dim=128, scaling="dynamic_ntk", factor=2.0, original_context=16384, **_BETA
)


def test_dynamic_scaling_and_a_temperature_count_in_one_length_or_in_two() -> None:
    keys = rope.to_hf(_DYNAMIC, model_type="ministral3")
    assert rope.from_hf({"model_type": "ministral3", **keys}) == _DYNAMIC
    keys["rope_parameters"]["original_max_position_embeddings"] = 4096
    read = rope.from_hf({"model_type": "ministral3", **keys, "rope_scaling": None})
    assert read == dataclasses.replace(_DYNAMIC, temperature_context=4096)


def test_a_temperature_beside_linear_counts_in_the_length_beside_it() -> None:
    parameters = {"rope_type": "linear", "factor": 2.0, "original_max_position_embeddings": 4096}
    read = rope.from_hf({**_SIZE, "rope_parameters": {**parameters, **_BETA}})
    expected = {"scaling": "linear", "factor": 2.0, "temperature_context": 4096, **_BETA}
    assert read == RopeSpec(head_dim=128, **expected)
    none = {**parameters, **_BETA, "original_max_position_embeddings": 0}
    with pytest.raises(ValueError, match="original_max_position_embeddings=0 must be"):
        rope.from_hf({**_SIZE, "rope_parameters": none})


@pytest.mark.parametrize("model_type", [None, "mistral"])
def test_types_without_such_a_temperature_refuse_it(model_type: str | None) -> None:
    with pytest.raises(ValueError, match=r"llama_4_scaling_beta=0\.1.*ministral3"):
        rope.to_hf(_MINISTRAL_SPEC, model_type=model_type)


def _agree(spec: RopeSpec, other: RopeSpec) -> None:
    for seq_len in (None, 10**6):
        ours, theirs = rope.frequencies(spec, seq_len), rope.frequencies(other, seq_len)
        np.testing.assert_allclose(theirs.inv_freq, ours.inv_freq, rtol=1e-12, atol=1e-25)
        assert theirs.attention_factor == pytest.approx(ours.attention_factor, rel=1e-12)


@pytest.mark.peers
@pytest.mark.parametrize(
    "spec",
    [_MINISTRAL_SPEC, RopeSpec(**_MINISTRAL_SPEC.fields() | {"resonance": True}), _DYNAMIC],
    ids=["yarn", "resonance_yarn", "dynamic_ntk"],
)
def test_ministral3_in_transformers(spec: RopeSpec) -> None:
    import torch
    from transformers import Ministral3Config
    from transformers.models.ministral3 import modeling_ministral3

    config = Ministral3Config(num_hidden_layers=1, **rope.to_hf(spec, model_type="ministral3"))
    embedding = modeling_ministral3.Ministral3RotaryEmbedding(config)
    ours = rope.frequencies(spec)
    np.testing.assert_allclose(embedding.inv_freq.numpy(), ours.inv_freq, rtol=2e-6)
    assert embedding.attention_scaling == pytest.approx(ours.attention_factor, rel=1e-6)
    positions = [0, 16383, 16384, 70000, 262143]
    theirs = modeling_ministral3.get_llama_4_attn_scale(
        torch.tensor([positions]),
        config.rope_parameters["llama_4_scaling_beta"],
        config.rope_parameters["original_max_position_embeddings"],
    )
    temperature = rope.query_temperature(spec, np.array(positions))
    assert temperature is not None
    np.testing.assert_allclose(theirs.flatten().numpy(), temperature, rtol=1e-6)  # float32


# --- Phi-3 --------------------------------------------------------------------------------------

_PHI = {"model_type": "phi3", "hidden_size": 64, "num_attention_heads": 4}  # head_dim 16
_LISTS = {"short_factor": [1.0] * 8, "long_factor": [2.0] * 8}


def test_phi3_has_a_context_by_default() -> None:
    scaling = {"type": "su", **_LISTS}
    spec = rope.from_hf({**_PHI, "max_position_embeddings": 131072, "rope_scaling": scaling})
    assert (spec.original_context, spec.factor) == (4096, 32.0)


def test_yarn_is_another_name_of_longrope_in_phi3() -> None:
    spec = rope.from_hf(
        {**_PHI, "max_position_embeddings": 8192, "rope_scaling": {"type": "yarn", **_LISTS}}
    )
    assert (spec.scaling, spec.factor, spec.long_factor) == ("longrope", 2.0, (2.0,) * 8)


def test_phi3_is_written_as_its_class_wants_it() -> None:
    spec = RopeSpec(
        head_dim=16,
        scaling="longrope",
        factor=32.0,
        original_context=64,
        short_factor=(1.0,) * 8,
        long_factor=(2.0,) * 8,
    )
    keys = rope.to_hf(spec, model_type="phi3")
    assert keys["rope_scaling"] == {"type": "longrope", **_LISTS}
    assert keys["original_max_position_embeddings"] == 64
    assert keys["max_position_embeddings"] == 2048


@given(spec=specs(num_features=4))
def test_phi3_round_trip(spec: RopeSpec) -> None:
    if SCALINGS[spec.scaling].at_one_length:
        return  # frequencies of every length: no lists
    keys = rope.to_hf(spec, model_type="phi3")
    assert keys["rope_parameters"]["rope_type"] in ("default", "longrope")
    _agree(spec, rope.from_hf({"model_type": "phi3", **json.loads(json.dumps(keys))}))


@pytest.mark.peers
@given(spec=specs(num_features=4))
def test_phi3_in_transformers(spec: RopeSpec) -> None:
    import torch
    from transformers import Phi3Config
    from transformers.models.phi3.modeling_phi3 import Phi3RotaryEmbedding

    if SCALINGS[spec.scaling].at_one_length:
        return
    keys = json.loads(json.dumps(rope.to_hf(spec, model_type="phi3")))
    sizes = {"hidden_size": 2 * spec.head_dim, "num_attention_heads": 2}
    embedding = Phi3RotaryEmbedding(Phi3Config(num_hidden_layers=1, **sizes, **keys))
    for seq_len in (1, 20_000):
        embedding(torch.zeros(1), torch.arange(seq_len)[None])
        ours = rope.frequencies(spec, seq_len)
        # transformers computes in float32
        np.testing.assert_allclose(embedding.inv_freq.numpy(), ours.inv_freq, rtol=2e-6, atol=1e-25)
        assert embedding.attention_scaling == pytest.approx(ours.attention_factor, rel=1e-6)
