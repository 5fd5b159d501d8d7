"""The language model of a Gemma 3 that reads images, saved alone as docs/models.md says."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.io import pretrained
from tests.io.families.case import SIZES

PAGE = Path(__file__).parents[3] / "docs" / "models.md"
TOKENS = np.arange(3, 43, dtype=np.int32)[None]


@pytest.mark.peers
@pytest.mark.slow
def test_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    vision = {
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    tokens = {"image_token_index": 270, "boi_token_index": 268, "eoi_token_index": 269}
    config = Gemma3Config(
        text_config={**SIZES, "num_hidden_layers": 2},
        vision_config=vision,
        mm_tokens_per_image=4,
        **tokens,
    )
    whole = Gemma3ForConditionalGeneration(config).eval()
    monkeypatch.chdir(tmp_path)
    whole.save_pretrained("gemma-3-4b-pt")
    with pytest.raises(ValueError, match=r"reads images as well.*Gemma3ForCausalLM"):
        pretrained.describe("gemma-3-4b-pt")
    (recipe,) = (
        block.split("```")[0]
        for block in PAGE.read_text().split("```text\n")[1:]
        if "Gemma3ForCausalLM" in block
    )
    exec(recipe, {})
    decoder, description = pretrained.load("gemma-3-4b-text")
    with torch.no_grad():
        expected = whole(torch.tensor(TOKENS.astype(np.int64))).logits.numpy()
    ours = np.asarray(decoder(jnp.asarray(TOKENS)))
    assert np.abs(ours - expected).max() <= 2e-5 * np.abs(expected).max()
    assert description.family == "gemma3_text"
