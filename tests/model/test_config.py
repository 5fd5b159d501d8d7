import dataclasses
import json
from typing import Any

import pytest

from rrope_jax.model import ModelConfig

SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "d_model": 24,
    "num_layers": 2,
    "num_heads": 4,
    "d_ff": 32,
}


def test_unset_head_fields_follow_the_others() -> None:
    config = ModelConfig(**SMALL)
    assert (config.num_kv_heads, config.head_dim, config.scale) == (4, 6, 6**-0.5)
    assert (config.kv_heads, config.head_size) == (4, 6)


def test_set_head_fields_are_kept() -> None:
    config = ModelConfig(**SMALL, num_kv_heads=2, head_dim=10, attention_scale=1.0)
    assert (config.num_kv_heads, config.head_dim, config.scale) == (2, 10, 1.0)


def test_spelled_out_defaults_make_the_same_config() -> None:
    spelled_out = ModelConfig(**SMALL, num_kv_heads=4, head_dim=6)
    assert spelled_out == ModelConfig(**SMALL)
    assert hash(spelled_out) == hash(ModelConfig(**SMALL))


def test_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        ModelConfig(**SMALL).d_model = 12  # type: ignore[misc]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": 24.0}, "d_model=24.0 must be an integer"),
        ({"num_layers": True}, "num_layers=True must be an integer"),
        ({"num_kv_heads": "2"}, "num_kv_heads='2' must be an integer or None"),
        ({"dropout": "0.1"}, "dropout='0.1' must be a finite number"),
        ({"dropout": True}, "dropout=True must be a finite number"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan must be a finite number"),
        ({"attention_scale": "1"}, "attention_scale='1' must be a finite number or None"),
        ({"tie_embeddings": 1}, "tie_embeddings=1 must be True or False"),
        ({"activation": None}, "activation=None must be a string"),
        ({"vocab_size": 0}, "vocab_size=0 must be at least 1"),
        ({"num_kv_heads": 0}, "num_kv_heads=0 must be at least 1"),
        ({"num_kv_heads": 3}, "num_kv_heads=3 must divide num_heads=4"),
        ({"d_model": 25}, "d_model=25 is not divisible by num_heads=4; set head_dim"),
        ({"d_model": 12}, "head_dim=3 must be even"),
        ({"head_dim": 5}, "head_dim=5 must be even"),
        ({"head_dim": 0}, "head_dim=0 must be even and at least 2"),
        ({"vocab_size": 2**25}, "vocab_size=33554432 must be at most 16777216"),
        ({"d_model": 2**40}, "d_model=1099511627776 must be at most 1048576"),
        ({"d_ff": 10**9}, "d_ff=1000000000 must be at most"),
        ({"num_heads": 2**31}, "num_heads=2147483648 must be at most"),
        ({"num_layers": 2**31}, "num_layers=2147483648 must be at most"),
        ({"head_dim": 2**31}, "head_dim=2147483648 must be at most 16384"),
        ({"d_model": 2**20, "num_heads": 1}, "head_dim=1048576 must be .* at most 16384"),
        ({"attention_scale": 10**400}, "must be a finite number"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout=-0.1 must be in \[0, 1\)"),
        ({"logit_scale": 0.0}, "logit_scale=0.0 must be greater than 0"),
        ({"attention_scale": -1.0}, "attention_scale=-1.0 must be greater than 0"),
        ({"activation": "gelu"}, "activation='gelu' is unknown; choose one of swiglu, geglu, relu"),
        ({"initialization": "xavier"}, "choose one of normal, t5"),
        ({"compute_dtype": "float16"}, "choose one of float32, bfloat16"),
        ({"remat": "some"}, "choose one of none, full, dots"),
        ({"attention": "flash"}, "attention='flash' is unknown; choose one of auto, splash, cudnn"),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig(**SMALL | fields)


def test_large_models_are_within_bounds() -> None:
    """Llama 3.1 405B, and a vocabulary and width beyond it."""
    llama = {"vocab_size": 128256, "d_model": 16384, "num_layers": 126, "num_heads": 128}
    ModelConfig(**llama, num_kv_heads=8, d_ff=53248)
    ModelConfig(vocab_size=2**20, d_model=65536, num_layers=1000, num_heads=512, d_ff=2**18)


def test_whole_numbers_are_floats() -> None:
    assert ModelConfig(**SMALL, attention_scale=1, dropout=0).scale == 1.0


FAMILY_FIELDS: dict[str, Any] = {
    "layer_types": ("sliding_attention", "nope"),
    "sliding_window": 5,
    "qkv_bias": True,
    "qk_norm": "head",
    "norm_placement": "both",
    "norm_offset": True,
    "embedding_scale": 2.0,
    "residual_scale": 0.5,
}


def test_fields_of_the_first_models_are_what_they_were() -> None:
    """The metadata of old checkpoints, and the identity of old workdirs, must not change."""
    assert list(ModelConfig(**SMALL).fields()) == [
        *("vocab_size", "d_model", "num_layers", "num_heads", "d_ff", "num_kv_heads", "head_dim"),
        *("activation", "attention_scale", "logit_scale", "tie_embeddings", "dropout"),
        *("initialization", "initializer_range", "rms_norm_eps", "compute_dtype", "remat"),
        "attention",
    ]


@pytest.mark.parametrize("fields", [{}, FAMILY_FIELDS, {"qkv_bias": True}])
def test_fields_make_the_same_config_through_json(fields: dict[str, Any]) -> None:
    config = ModelConfig(**SMALL | fields)
    assert fields.items() <= config.fields().items()
    assert ModelConfig(**json.loads(json.dumps(config.fields()))) == config


def test_the_window_goes_with_the_last_sliding_layer() -> None:
    config = ModelConfig(**SMALL | FAMILY_FIELDS)
    assert config.changed({"layer_types": ("nope",)}).sliding_window is None
    assert config.changed({"remat": "full"}) == dataclasses.replace(config, remat="full")
    assert config.changed({"sliding_window": 7}).sliding_window == 7
    with pytest.raises(ValueError, match="sliding_window=7 has no effect without"):
        config.changed({"layer_types": ("nope",), "sliding_window": 7})
