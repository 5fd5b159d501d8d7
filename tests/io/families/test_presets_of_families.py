"""Presets as models of their families: the keys that we write make the same model elsewhere."""

import math

import jax
import pytest
from flax import nnx

from rrope_jax import rope
from rrope_jax.io.families.table import FAMILIES
from rrope_jax.io.huggingface.config import keys_of, obstacle
from rrope_jax.model.decoder import abstract_decoder
from rrope_jax.model.presets import PRESETS

pytestmark = [pytest.mark.peers, pytest.mark.slow]

# The first words of a preset's name that fit -> its family.
_FAMILY_OF = {
    "smollm2": "llama",
    "smollm3": "smollm3",
    "llama": "llama",
    "mistral": "mistral",
    "ministral3": "ministral3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "gemma3": "gemma3_text",
    "olmo2": "olmo2",
    "olmo3": "olmo3",
    "phi4": "phi3",
    "granite3": "granite",
}
_NAMES = [name for name in PRESETS if name not in ("posgen_paper", "tiny")]


@pytest.mark.parametrize("name", _NAMES)
def test_parameters_in_transformers(name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    preset = PRESETS[name]
    family = FAMILIES[next(each for words, each in _FAMILY_OF.items() if name.startswith(words))]
    assert obstacle(family, preset.model) is None
    embedding = rope.to_hf(
        preset.rope, model_type=family.name, max_position_embeddings=preset.context
    )
    assert rope.from_hf({**embedding, "model_type": family.name}) == preset.rope
    config = AutoConfig.for_model(family.name, **keys_of(family, preset.model) | embedding)
    with torch.device("meta"):
        peer = AutoModelForCausalLM.from_config(config)
    shapes = nnx.state(abstract_decoder(preset.model, preset.rope), nnx.Param)
    ours = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert ours == peer.num_parameters()
