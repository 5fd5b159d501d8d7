"""A tiny model as a training workdir holds it, for the commands that read checkpoints."""

from pathlib import Path

from flax import nnx

from rrope_jax.io.orbax.checkpoint import Checkpoints
from rrope_jax.io.orbax.layout import description_to_json
from rrope_jax.io.pretrained import Description
from tests.evaluation.tiny import byte_decoder

CONTEXT = 64


def write_checkpoint(folder: Path) -> Path:
    """Writes it and returns the folder; its ids are bytes, and no tokenizer comes with it."""
    decoder = byte_decoder()
    description = Description(decoder.config, decoder.rope, CONTEXT, extras={"eos_token_id": 257})
    params = nnx.to_pure_dict(nnx.state(decoder, nnx.Param))
    Checkpoints(folder / "checkpoints").save(
        1, {"params": params}, {"description": description_to_json(description)}
    )
    return folder
