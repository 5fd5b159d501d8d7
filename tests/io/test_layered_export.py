"""Hugging Face folders of models whose layers have different embeddings."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from rrope_jax.io.conversion import Options, convert
from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.huggingface.write import express
from rrope_jax.io.memory import DecoderSource
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


_GEMMA3 = ModelConfig(
    vocab_size=40,
    d_model=32,
    num_layers=4,
    num_heads=4,
    num_kv_heads=1,
    head_dim=16,
    d_ff=56,
    activation="geglu",
    layer_types=(_SLIDING, _SLIDING, _FULL),
    sliding_window=4,
    qk_norm="head",
    norm_placement="both",
    norm_offset=True,
    embedding_scale=32**0.5,
    tie_embeddings=True,
    initializer_range=0.3,
)
_LOCAL_LINEAR = {"head_dim": 16, "theta": 1e4, "scaling": "linear", "factor": 2.0}


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "model"),
    [
        ("gemma3_text", _GEMMA3),
        ("olmo3", dataclasses.replace(_OLMO3, vocab_size=40, initializer_range=0.3)),
    ],
)
@pytest.mark.parametrize(
    ("spec", "portable"),
    [
        (RopeSpec(**_YARN.fields() | {"original_context": 8, "resonance": False}), False),
        (RopeSpec(**_YARN.fields() | {"original_context": 8}), False),
        (RopeSpec(**_YARN.fields() | {"original_context": 8}), True),
        (RopeSpec(**_YARN.fields() | {"original_context": 8, _SLIDING: _LOCAL_LINEAR}), False),
    ],
    ids=["yarn", "resonance_yarn", "portable", "linear in windows"],
)
def test_transformers_runs_what_is_exported(
    family: str, model: ModelConfig, spec: RopeSpec, portable: bool, tmp_path: Path
) -> None:
    """Beyond the window and the original context; 2e-5 of the largest logit, all in float32."""
    import torch
    from transformers import AutoModelForCausalLM

    decoder = Decoder(model, spec, rngs=nnx.Rngs(0))
    described = Description(model, spec, context=32, family=family)
    source = DecoderSource(decoder, described)
    options = Options(portable=portable)
    convert(source, tmp_path / "model", "hf", options=options)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tiny.TOKENS.astype(np.int64))).logits.numpy()
    found = np.asarray(decoder(tiny.TOKENS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
