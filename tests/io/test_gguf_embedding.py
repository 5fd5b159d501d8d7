"""The embeddings that each architecture of llama.cpp has, and how a file says so."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.io import pretrained
from rrope_jax.io.conversion import Options
from rrope_jax.io.families import layer_keys
from rrope_jax.io.families.granite import inverse, scale_of
from rrope_jax.io.families.table import FAMILIES
from rrope_jax.io.gguf import container, embedding
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec
from tests.io import tiny

_SLIDING, _FULL = "sliding_attention", "full_attention"
_EXTENDED: dict[str, Any] = {"factor": 4.0, "original_context": 32}
_YARN = RopeSpec(head_dim=8, scaling="yarn", **_EXTENDED)
_PLAIN = RopeSpec(head_dim=8)
# yarn's own temperature at factor 4
_OWN = 0.1 * math.log(4) + 1


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, None),
        ({"attention.sliding_window": 0, "attention.sliding_window_pattern": 2}, None),
        ({"attention.sliding_window": 7}, "SSSFSS"),
        ({"attention.sliding_window": 7, "attention.sliding_window_pattern": 2}, "SFSFSF"),
        ({"attention.sliding_window": 7, "attention.sliding_window_pattern": 1}, None),
        ({"attention.sliding_window": 7, "attention.sliding_window_pattern": 0}, "SSSSSS"),
        ({"attention.sliding_window": 7, "attention.sliding_window_pattern": True}, "SSSSSS"),
        (
            {
                "attention.sliding_window": 7,
                "attention.sliding_window_pattern": [False, True, True, False, False, True],
            },
            "FSSFFS",
        ),
    ],
)
def test_layer_plan(keys: dict[str, Any], expected: str | None) -> None:
    found = layer_keys.read_gguf({"block_count": 6, **keys}, default_period=4)
    if expected is None:
        assert found == {}
        return
    types = tuple({"S": _SLIDING, "F": _FULL}[letter] for letter in expected)
    assert found == {"layer_types": types, "sliding_window": 7}
    written = layer_keys.write_gguf(dataclasses.replace(tiny.MODEL, num_layers=6, **found))
    assert layer_keys.read_gguf({"block_count": 6, **written}, default_period=4) == found


@pytest.mark.parametrize("pattern", [[True], "all", -1])
def test_layer_plan_that_fits_no_model(pattern: Any) -> None:
    keys = {
        "block_count": 6,
        "attention.sliding_window": 7,
        "attention.sliding_window_pattern": pattern,
    }
    with pytest.raises(ValueError, match=r"sliding_window_pattern=.*6 layers"):
        layer_keys.read_gguf(keys, default_period=4)


def _model(**fields: Any) -> ModelConfig:
    return dataclasses.replace(tiny.MODEL, head_dim=8, num_layers=4, **fields)


_WINDOWS = _model(layer_types=(_SLIDING, _FULL), sliding_window=4)


@pytest.mark.parametrize(
    ("family", "spec", "keys"),
    [
        ("llama", _PLAIN, {}),
        ("llama", _YARN, {"scaling.type": "yarn", "scaling.factor": 4.0}),
        ("llama", RopeSpec(head_dim=8, scaling="abf", abf_theta=5e5), {"freq_base": 5e5}),
        # an attention factor that is YaRN's own, as OLMo 3's config spells it out
        (
            "olmo2",
            dataclasses.replace(_YARN, attention_factor=_OWN),
            {"scaling.type": "yarn", "scaling.factor": 4.0},
        ),
        (
            "olmo2",
            dataclasses.replace(_YARN, attention_factor=1.3 * _OWN),
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.attn_factor": 1.3},
        ),
        (
            "ministral3",
            dataclasses.replace(_YARN, mscale=1.0, mscale_all_dim=0.5, llama_4_scaling_beta=0.2),
            {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.yarn_log_multiplier": 0.5},
        ),
    ],
)
def test_keys(family: str, spec: RopeSpec, keys: dict[str, Any]) -> None:
    gguf = FAMILIES[family].gguf
    assert gguf is not None
    assert embedding.is_native(gguf, spec)
    assert embedding.factors_of(gguf, spec) == {}
    expected = {"freq_base": 1e4, "dimension_count": 8, **keys}
    if spec.scaling == "yarn":
        expected["scaling.original_context_length"] = 32
    found = embedding.keys_of(gguf, _model(), spec)
    assert found.pop("attention.temperature_scale", 0) == spec.llama_4_scaling_beta
    assert found == {f"rope.{key}": pytest.approx(value) for key, value in expected.items()}


_LISTS = RopeSpec(
    head_dim=8,
    scaling="longrope",
    partial_rotary_factor=0.75,
    short_factor=(1.0, 1.5, 2.0),
    long_factor=(1.0, 3.0, 4.0),
    **_EXTENDED,
)


def test_two_lists(tmp_path: Path) -> None:
    """Phi-4-mini's: of the rotated part of a head, with the temperature in a key."""
    made = tiny.decoder(_LISTS, head_dim=8)
    path = tiny.save(made, tmp_path / "a.gguf", "gguf", family="phi3")
    contents = container.read_header(path)
    for name, values in (("short", _LISTS.short_factor), ("long", _LISTS.long_factor)):
        tensor = f"rope_factors_{name}.weight"
        stored = container.read_tensor(tensor, contents.tensors[tensor])
        np.testing.assert_array_equal(stored.reshape(-1), np.float32(values))
    temperature = math.sqrt(1 + math.log(4) / math.log(32))  # as in Phi-3's paper
    assert contents.metadata["phi3.rope.scaling.attn_factor"] == pytest.approx(temperature)
    assert contents.metadata["phi3.rope.dimension_count"] == 6
    assert contents.metadata["phi3.rope.scaling.original_context_length"] == 32
    back, description = pretrained.load(path)
    assert description.family == "phi3"
    np.testing.assert_allclose(tiny.logits(back), tiny.logits(made), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no single list"):
        tiny.save(made, tmp_path / "b", "gguf", family="phi3", options=Options(portable=True))


def test_features_that_never_turn_are_divided_by_1e30() -> None:
    gguf = FAMILIES["llama"].gguf
    assert gguf is not None
    spec = RopeSpec(head_dim=8, scaling="cope", clipped_features=3)
    assert not embedding.is_native(gguf, spec)
    (factors,) = embedding.factors_of(gguf, spec).values()
    np.testing.assert_array_equal(factors, np.float32([1, 1, 2, 1e30]))


def test_position_temperature_beside_a_list(tmp_path: Path) -> None:
    """Frequencies without a name stay a list, and the temperature counts in the old context."""
    spec = dataclasses.replace(_YARN, resonance=True, llama_4_scaling_beta=0.3)
    made = tiny.decoder(spec, head_dim=8)
    path = tiny.save(made, tmp_path / "a.gguf", "gguf", family="ministral3", context=128)
    back = pretrained.describe(path).rope
    assert (back.llama_4_scaling_beta, back.original_context) == (0.3, 32)
    assert back.resonance


@pytest.mark.parametrize(
    ("family", "model", "spec", "message"),
    [
        ("olmo2", _model(), dataclasses.replace(_YARN, resonance=True), "reads no list"),
        ("olmo2", _WINDOWS, _YARN, "window scaling='none', "),
        (
            "olmo2",
            _WINDOWS,
            dataclasses.replace(_PLAIN, sliding_attention=RopeSpec(head_dim=8, theta=500.0)),
            "window theta=10000.0, and this model has theta=500.0;",
        ),
        ("llama", _model(), dataclasses.replace(_YARN, llama_4_scaling_beta=0.1), "grows with"),
    ],
)
def test_embeddings_that_an_architecture_lacks(
    family: str, model: ModelConfig, spec: RopeSpec, message: str
) -> None:
    gguf = FAMILIES[family].gguf
    assert gguf is not None
    native = embedding.is_native(gguf, spec)
    found = embedding.obstacle(gguf, model, spec, native=native)
    assert found is not None
    assert message in found


def test_plain_embedding_of_windows() -> None:
    """OLMo 3's, which llama.cpp computes without any key."""
    gguf = FAMILIES["olmo3"].gguf
    assert gguf is not None
    spec = dataclasses.replace(_YARN, sliding_attention=_PLAIN)
    assert embedding.obstacle(gguf, _WINDOWS, spec, native=True) is None


@pytest.mark.parametrize("divisor", [2.6, 7.0, 13.3, 1.0, 16.0, 0.37])
def test_inverse_of_a_decimal(divisor: float) -> None:
    assert inverse(1 / divisor) == divisor
    assert scale_of(divisor) == 1 / divisor


@pytest.mark.parametrize("scale", [0.3, 0.07, 1.7])
def test_decimal_whose_inverse_was_stored(scale: float) -> None:
    assert scale_of(float(str(np.float32(1 / scale)))) == scale
