"""The presets against published numbers of parameters."""

import math
from pathlib import Path

import jax
import pytest
from flax import nnx

from rrope_jax.model import Decoder
from rrope_jax.model.presets import PRESETS
from rrope_jax.rope.spec import spec_for_method

# From the index files of the checkpoints (bytes / bytes per parameter) or the hub's safetensors
# metadata; Qwen3 0.6B without the copy of its embedding that its file holds, Gemma 3 and Ministral
# 3 3B without the parts for images; PosGen's by hand: 18 * 512 tokens, two layers of
# 4 * 512 * 512 and 2 * 512 * 2048 with two norms of 512, and the last norm.
COUNTS = {
    "posgen_paper": 18 * 512 + 2 * (4 * 512 * 512 + 2 * 512 * 2048 + 2 * 512) + 512,
    "smollm2_135m": 134_515_008,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
    "llama3.2_1b": 1_235_814_400,
    "mistral_7b": 7_241_732_096,
    "ministral3_3b": 3_429_006_336,
    "smollm3_3b": 3_075_098_624,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_7b": 7_615_616_512,
    "qwen3_0.6b": 596_049_920,
    "qwen3_8b": 8_190_735_360,
    "gemma3_270m": 268_098_176,
    "gemma3_1b": 999_885_952,
    "gemma3_27b": 27_009_346_304,
    "olmo2_7b": 7_298_617_344,
    "olmo3_7b": 7_298_011_136,
    "phi4_mini": 3_836_021_760,
    "granite3_2b": 2_533_539_840,
    "granite3_8b": 8_170_864_640,
}


@pytest.mark.smoke
@pytest.mark.parametrize("name", PRESETS)
def test_parameters(name: str) -> None:
    preset = PRESETS[name]
    shapes = nnx.eval_shape(lambda: Decoder(preset.model, preset.rope, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(shapes, nnx.Param))
    count = sum(math.prod(leaf.shape) for leaf in leaves)
    assert count == COUNTS.get(name, count)
    assert {leaf.dtype.name for leaf in leaves} == {"float32"}

    page = (Path(__file__).parents[2] / "docs" / "model.md").read_text().splitlines()
    assert [row.split(" | ")[-1] for row in page if row.startswith(f"| `{name}`")] == [
        f"{count:,} |"
    ]


def test_all_published_models_are_counted() -> None:
    # the exact count of Ministral 3 8B is not known here; it has the shape of transformers' default
    assert PRESETS.keys() - COUNTS.keys() == {"tiny", "ministral3_8b"}


@pytest.mark.parametrize("name", PRESETS)
def test_rope_can_be_scaled_to_four_contexts(name: str) -> None:
    preset = PRESETS[name]
    fields = vars(preset.rope) | {"factor": 4.0, "original_context": preset.context}
    extended = spec_for_method(fields, "yarn", resonance=True)
    assert extended.theta == preset.rope.theta
    assert extended.head_dim == preset.model.head_size
