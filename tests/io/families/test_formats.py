"""Families without other programs: weights through every format, parts, and what is refused."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from rrope_jax.io import pretrained
from rrope_jax.io.conversion import convert
from rrope_jax.io.description import Description
from rrope_jax.io.families.table import FAMILIES
from rrope_jax.io.memory import DecoderSource
from rrope_jax.io.source import read_parameter
from rrope_jax.io.weights import Weight, parameter_shapes
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.rope import RopeSpec
from tests.io import tiny

_WINDOWS = ("sliding_attention", "full_attention")
# What a family has that LLaMA has not, on a small model with a head of another size than
# d_model / num_heads.
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"layer_types": ("sliding_attention",), "sliding_window": 8},
    "ministral3": {},
    "phi3": {"head_dim": 8},
    "qwen2": {"qkv_bias": True, "head_dim": 8},
    "qwen3": {"qk_norm": "head"},
    "smollm3": {"layer_types": ("full_attention",) * 3 + ("nope",), "num_layers": 4},
    "granite": {"embedding_scale": 12.0, "residual_scale": 0.25, "attention_scale": 0.5},
    "olmo2": {"qk_norm": "all_heads", "norm_placement": "after", "head_dim": 8},
    "olmo3": {
        "qk_norm": "all_heads",
        "norm_placement": "after",
        "layer_types": _WINDOWS,
        "sliding_window": 8,
        "head_dim": 8,
    },
    "gemma3_text": {
        "qk_norm": "head",
        "norm_placement": "both",
        "norm_offset": True,
        "activation": "geglu",
        "embedding_scale": 32**0.5,
        "layer_types": _WINDOWS,
        "sliding_window": 8,
    },
}


def test_every_family_is_here() -> None:
    assert MODELS.keys() == FAMILIES.keys()


@functools.cache
def _source(family: str) -> DecoderSource:
    """A random model of a family, in which no two numbers are the same."""
    config = dataclasses.replace(tiny.MODEL, **MODELS[family])
    decoder = Decoder(config, RopeSpec(head_dim=config.head_size), rngs=nnx.Rngs(3))
    leaves, structure = jax.tree.flatten(nnx.state(decoder))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    nnx.update(decoder, jax.tree.unflatten(structure, noisy))
    description = Description(config, decoder.rope, tiny.CONTEXT, family=family)
    return DecoderSource(decoder, description)


def _assert_same(one: Any, other: Any, rtol: float = 0) -> None:
    for weight in parameter_shapes(one.description.model):
        np.testing.assert_allclose(
            read_parameter(one, weight), read_parameter(other, weight), rtol, err_msg=weight.path
        )


def _model(description: Description) -> ModelConfig:
    return dataclasses.replace(description.model, initializer_range=tiny.MODEL.initializer_range)


@pytest.mark.parametrize("name", MODELS)
def test_round_trip(name: str, tmp_path: Path) -> None:
    source = _source(name)
    convert(source, tmp_path / "hf", "hf")
    convert(tmp_path / "hf", tmp_path / "orbax", "orbax")
    convert(tmp_path / "orbax", tmp_path / "again", "hf")
    for folder in ("hf", "orbax", "again"):
        back = pretrained.open_source(tmp_path / folder)
        back.check()
        assert (_model(back.description), back.description.family) == (
            _model(source.description),
            name,
        )
        _assert_same(source, back)
    config, again = (
        json.loads((tmp_path / folder / "config.json").read_text()) for folder in ("hf", "again")
    )
    assert config == again
    assert config["model_type"] == name
    assert config["architectures"] == [FAMILIES[name].architecture]


@pytest.mark.parametrize("name", [name for name in MODELS if name != "mistral"])
def test_gguf(name: str, tmp_path: Path) -> None:
    source = _source(name)
    gguf = FAMILIES[name].gguf
    assert gguf is not None
    convert(source, tmp_path / "a.gguf", "gguf")
    back = pretrained.open_source(tmp_path / "a.gguf")
    back.check()
    assert _model(back.description) == _model(source.description)
    # where norms have an offset, 1 is added and taken away again
    _assert_same(source, back, rtol=1e-4 if gguf.norm_offset else 0)


def _halves(weight: Weight, shape: tuple[int, ...]) -> list[tuple[range, ...]]:
    """The second half of each axis that a mesh may cut: layers, heads and widths, not head_dim."""
    cuts = []
    for axis, size in enumerate(shape):
        is_head = (
            ".attention." in weight.path and axis == len(shape) - 1 and "out" not in weight.path
        )
        if size % 2 == 0 and not is_head:
            cuts.append(
                tuple(
                    range(n // 2, n) if each == axis else range(n) for each, n in enumerate(shape)
                )
            )
    return cuts


@pytest.mark.slow
@pytest.mark.parametrize("target_format", ["hf", "gguf"])
@pytest.mark.parametrize("name", [name for name in MODELS if name != "mistral"])
def test_parts(name: str, target_format: str, tmp_path: Path) -> None:
    """Biases, norms and rows of fused matrices, as a mesh reads them."""
    convert(_source(name), tmp_path / "a", target_format)
    source = pretrained.open_source(tmp_path / "a")
    for weight, shape in parameter_shapes(source.description.model).items():
        whole = read_parameter(source, weight)
        for part in _halves(weight, shape):
            cut = whole[tuple(slice(each.start, each.stop) for each in part)]
            np.testing.assert_array_equal(read_parameter(source, weight, part), cut, weight.path)


def test_fused_matrices(tmp_path: Path) -> None:
    source = _source("phi3")
    convert(source, tmp_path / "hf", "hf")
    weights = load_file(tmp_path / "hf" / "model.safetensors")
    rows = {
        "self_attn.qkv_proj": ("query", "key", "value"),
        "mlp.gate_up_proj": ("gate", "up"),
    }
    by_name = {
        weight.path.rpartition(".")[2]: weight
        for weight in parameter_shapes(source.description.model)
    }
    for name, parts in rows.items():
        expected = np.concatenate([source.matrix(by_name[part], 1) for part in parts])
        np.testing.assert_array_equal(weights[f"model.layers.1.{name}.weight"], expected)


@pytest.mark.parametrize(
    ("model", "family"),
    [
        ({}, "llama"),
        ({"qkv_bias": True}, "qwen2"),
        ({"qk_norm": "head"}, "qwen3"),
        ({"layer_types": ("nope",)}, "smollm3"),
        ({"layer_types": _WINDOWS, "sliding_window": 8}, "qwen2"),
        ({"residual_scale": 0.5}, "granite"),
    ],
)
def test_a_model_without_a_family(model: dict[str, Any], family: str, tmp_path: Path) -> None:
    """It is written as the first that has it."""
    if family == "qwen2":
        model = {"qkv_bias": True} | model
    tiny.save(tiny.decoder(**model), tmp_path / "a", "hf")
    assert pretrained.describe(tmp_path / "a").family == family


def test_no_family_has_everything(tmp_path: Path) -> None:
    made = tiny.decoder(qkv_bias=True, qk_norm="head")
    with pytest.raises(ValueError, match=r"qkv_bias=True is not what llama models.*only False"):
        tiny.save(made, tmp_path / "a", "hf")


def _edited(folder: Path, **keys: Any) -> Description:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))
    return pretrained.describe(folder)


def _folder(name: str, tmp_path: Path) -> Path:
    convert(_source(name), tmp_path / "hf", "hf")
    return tmp_path / "hf"


def test_qwen_windows(tmp_path: Path) -> None:
    """transformers: the first max_window_layers layers see everything, if there are windows."""
    folder = _folder("qwen2", tmp_path)
    model = _edited(folder, layer_types=None, sliding_window=8, max_window_layers=1).model
    assert (model.layer_types, model.sliding_window) == (("full_attention",), None)
    model = _edited(folder, use_sliding_window=True).model
    assert model.layer_types == ("full_attention", "sliding_attention")
    assert model.sliding_window == 8
    model = _edited(folder, layer_types=["sliding_attention", "full_attention"]).model
    assert model.layer_types == ("sliding_attention", "full_attention")
    with pytest.raises(ValueError, match="layer_types has layers with a sliding window, but use_"):
        _edited(folder, use_sliding_window=False)


def test_a_one_in_no_rope_layers_means_rotated(tmp_path: Path) -> None:
    folder = _folder("smollm3", tmp_path)
    model = _edited(folder, no_rope_layers=[0, 1, 1, 1]).model
    assert model.layer_types == ("nope", *("full_attention",) * 3)
    model = _edited(folder, no_rope_layers=None, no_rope_layer_interval=2).model
    assert model.layer_types == ("full_attention", "nope")
    with pytest.raises(ValueError, match="gives a window to layers without rotation"):
        _edited(folder, use_sliding_window=True, sliding_window=8, layer_types=None)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model_type": "gemma3"}, "reads images as well.*save its language model alone"),
        ({"model_type": "qwen3_moe"}, "has experts, which are not implemented"),
        ({"model_type": "qwen3_next"}, "linear attention"),
        ({"attention_bias": True}, "attention_bias=True is not implemented"),
        ({"layer_types": ["full_attention"]}, "entry for each of the 2 layers"),
        (
            {"layer_types": ["full_attention", "linear_attention"]},
            "unknown name 'linear_attention'",
        ),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": None,
                "max_window_layers": "2",
            },
            "max_window_layers=2 must be an integer",
        ),
        (
            {
                "use_sliding_window": True,
                "sliding_window": 8,
                "layer_types": None,
                "num_hidden_layers": 10**9,
            },
            "num_hidden_layers=1000000000 must be at most",
        ),
    ],
)
def test_refused(keys: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        _edited(_folder("qwen3", tmp_path), **keys)


def test_a_window_has_no_gguf(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"layer_types=.* is not what models of llama\.cpp's"):
        convert(_source("mistral"), tmp_path / "a.gguf", "gguf")


def test_qwen2_with_an_embedding_that_only_llama_has_a_list_for(tmp_path: Path) -> None:
    source = _source("qwen2")
    spec = dataclasses.replace(source.description.rope, resonance=True)
    description = dataclasses.replace(source.description, rope=spec)
    done = convert(source, tmp_path / "a.gguf", "gguf", description=description)
    assert done.description.family == "llama"
    back = pretrained.open_source(tmp_path / "a.gguf")
    assert back.description.model.qkv_bias
    convert(back, tmp_path / "hf", "hf")
    assert pretrained.describe(tmp_path / "hf").family == "qwen2"
    with pytest.raises(ValueError, match="'qwen3' reads no list of frequencies"):
        convert(
            _source("qwen3"),
            tmp_path / "b.gguf",
            "gguf",
            description=dataclasses.replace(
                _source("qwen3").description,
                rope=dataclasses.replace(_source("qwen3").description.rope, resonance=True),
            ),
        )
