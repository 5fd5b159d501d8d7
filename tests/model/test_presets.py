"""The presets against published numbers of parameters."""

import dataclasses
import math
from pathlib import Path

import jax
import pytest
from flax import nnx

from rrope_jax.model import Decoder
from rrope_jax.model.presets import PRESETS

# From the index files of the checkpoints (bytes / bytes per parameter; SmolLM2's from its model
# card's safetensors metadata); PosGen's by hand: 18 * 512 tokens, two layers of 4 * 512 * 512 and
# 2 * 512 * 2048 with two norms of 512, and the last norm.
COUNTS = {
    "posgen_paper": 18 * 512 + 2 * (4 * 512 * 512 + 2 * 512 * 2048 + 2 * 512) + 512,
    "smollm2_135m": 134_515_008,
    "llama2_7b": 6_738_415_616,
    "llama2_13b": 13_015_864_320,
    "llama3_8b": 8_030_261_248,
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
    assert PRESETS.keys() - COUNTS.keys() == {"tiny"}


@pytest.mark.parametrize("name", PRESETS)
def test_rope_can_be_scaled_to_four_contexts(name: str) -> None:
    preset = PRESETS[name]
    extended = dataclasses.replace(
        preset.rope,
        scaling="yarn",
        factor=4.0,
        original_context=preset.context,
        resonance=True,
    )
    assert extended.theta == preset.rope.theta
    assert extended.head_dim == preset.model.head_size
