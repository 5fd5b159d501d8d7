"""Hugging Face folders of models whose layers have different embeddings."""

import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.huggingface.write import express
from rrope_jax.io.portable import rope_of_rotated
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.rope import RopeSpec, frequencies
from tests.io import tiny

_FULL, _SLIDING = "full_attention", "sliding_attention"
_OLMO3 = ModelConfig(
    vocab_size=8,
    d_model=32,
    num_layers=4,
    num_heads=2,
    d_ff=8,
    layer_types=(_SLIDING, _SLIDING, _SLIDING, _FULL),
    sliding_window=4,
    qk_norm="all_heads",
    norm_placement="after",
)
_PLAIN = RopeSpec(head_dim=16, theta=5e5)
_YARN = RopeSpec(
    head_dim=16,
    theta=5e5,
    scaling="yarn",
    factor=4.0,
    original_context=64,
    resonance=True,
    sliding_attention=_PLAIN,
)


def test_lists_of_factors_for_the_layers_that_need_them() -> None:
    described = Description(_OLMO3, _YARN, context=256, family="olmo3")
    written, temperatures = express(described, portable=False)
    assert written.family == "olmo3"
    assert written.rope.scaling == "longrope"
    assert written.rope.of(_SLIDING) == _PLAIN
    temperature = frequencies(_YARN).attention_factor
    assert temperatures == {_FULL: temperature, _SLIDING: 1.0}
    assert written.extras[FOLDED_TEMPERATURE] == temperature
    np.testing.assert_allclose(
        frequencies(written.rope).inv_freq, frequencies(_YARN).inv_freq, rtol=1e-14
    )


def test_two_embeddings_need_a_family_that_has_them() -> None:
    llama = ModelConfig(vocab_size=8, d_model=32, num_layers=1, num_heads=2, d_ff=8)
    windowed = ModelConfig(
        **{**vars(llama), "layer_types": (_SLIDING,), "sliding_window": 4, "num_layers": 2}
    )
    for model, expected in ((llama, _YARN.of(_FULL)), (windowed, _PLAIN)):
        described = Description(model, _YARN, context=256)
        assert rope_of_rotated(described) == expected  # other layer types are not there
        express(described, portable=False)


def test_a_family_without_two_embeddings_refuses_them() -> None:
    mixed = ModelConfig(
        **{**vars(_OLMO3), "qk_norm": "none", "norm_placement": "before"},
    )
    with pytest.raises(ValueError, match=r"layer_types|one embedding"):
        express(Description(mixed, _YARN, context=256), portable=False)


def test_original_context_beside_plain_layers(tmp_path: Path) -> None:
    decoder = Decoder(_OLMO3, _PLAIN, rngs=nnx.Rngs(0))
    saved = tiny.save(decoder, tmp_path / "model", "hf", original_context=40)
    keys = json.loads((saved / "config.json").read_text())
    assert keys["rope_parameters"][_SLIDING] == {"rope_type": "default", "rope_theta": 5e5}
    assert keys["original_max_position_embeddings"] == 40
