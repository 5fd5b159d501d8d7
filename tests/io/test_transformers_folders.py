"""Folders that transformers wrote, read here; folders written here, read by transformers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.io import pretrained
from rrope_jax.io.conversion import Options
from rrope_jax.rope import RopeSpec
from tests.io import tiny

pytestmark = pytest.mark.peers

_SHAPE: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 56,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.3,
}
_LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_TOLERANCE = 2e-5


def _their_logits(peer: Any) -> np.ndarray:
    import torch

    with torch.no_grad():
        return peer.eval()(torch.tensor(tiny.TOKENS, dtype=torch.long)).logits.float().numpy()


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("Llama", {}),
        ("Llama", {"head_dim": 12, "rope_parameters": _LLAMA3, "max_position_embeddings": 512}),
        ("Mistral", {"sliding_window": None, "rms_norm_eps": 1e-5}),
    ],
)
def test_folders_of_transformers(
    kind: str, keys: dict[str, Any], tied: bool, tmp_path: Path
) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**_SHAPE, tie_word_embeddings=tied, **keys)
    peer = getattr(transformers, f"{kind}ForCausalLM")(config)
    peer.save_pretrained(tmp_path / "a", max_shard_size="20KB")
    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 1
    decoder, description = pretrained.load(tmp_path / "a")
    assert np.abs(tiny.logits(decoder) - _their_logits(peer)).max() <= _TOLERANCE
    assert description.context == config.max_position_embeddings
    assert (description.extras["bos_token_id"], description.extras["eos_token_id"]) == (1, 2)


_EXTENDED: dict[str, Any] = {"factor": 4.0, "original_context": 64}
_SPECS = {
    "yarn": RopeSpec(head_dim=12, scaling="yarn", **_EXTENDED),
    "resonance yarn": RopeSpec(head_dim=12, scaling="yarn", resonance=True, **_EXTENDED),
    "part_ntk": RopeSpec(head_dim=12, scaling="part_ntk", **_EXTENDED),
    "temperature": RopeSpec(head_dim=12, attention_factor=1.3),
    "llama3": RopeSpec(head_dim=12, scaling="llama3", **_EXTENDED),
    "proportional": RopeSpec(head_dim=12, scaling="proportional", partial_rotary_factor=0.5),
}


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("name", _SPECS)
def test_folders_for_transformers(name: str, portable: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    made = tiny.decoder(_SPECS[name])
    options = Options(portable=portable, shard_bytes=20_000)
    tiny.save(made, tmp_path / "a", "hf", context=256, options=options)
    peer = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    expected = tiny.logits(made)
    assert np.abs(_their_logits(peer) - expected).max() <= _TOLERANCE * np.abs(expected).max()
    assert peer.config.max_position_embeddings == 256


@pytest.mark.parametrize("file", ["model", "model.gguf"])
@pytest.mark.parametrize("scaling", ["none", "yarn"])
def test_a_temperature_that_counts_in_another_length(
    scaling: str, file: str, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    yarn = {"scaling": "yarn", "factor": 4.0, "original_context": 16}
    fields: dict[str, Any] = yarn if scaling == "yarn" else {}
    spec = RopeSpec(head_dim=12, llama_4_scaling_beta=0.8, temperature_context=5, **fields)
    made = tiny.decoder(spec)
    expected = np.asarray(made(tiny.TOKENS))
    folder = tiny.save(made, tmp_path / file, "gguf" if file.endswith("gguf") else "hf")
    read, _ = pretrained.load(folder)
    computed = [np.asarray(read(tiny.TOKENS))]
    if folder.is_dir():
        computed.append(_their_logits(AutoModelForCausalLM.from_pretrained(folder)))
    for logits in computed:
        assert np.abs(logits - expected).max() <= _TOLERANCE * np.abs(expected).max()
