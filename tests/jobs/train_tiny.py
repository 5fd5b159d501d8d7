"""A training config small enough for tests; its text comes by --config.data.source."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope train`: everything random that a run can have."""
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.d_model = 16
    config.model.num_layers = 1
    config.model.num_heads = 2
    config.model.d_ff = 32
    config.model.tie_embeddings = True
    config.model.dropout = 0.1
    config.model.attention = "auto"

    config.rope = ConfigDict()
    config.rope.scaling = "none"
    config.rope.resonance = True

    config.data = ConfigDict()
    config.data.source = ""
    config.data.tokenizer = "bytes"
    config.data.packing = "documents"
    config.data.heldout = ("c.txt",)

    config.train = ConfigDict()
    config.train.steps = 400
    config.train.batch_size = 2
    config.train.length = 16
    config.train.learning_rate = 1e-2
    config.train.positions = ConfigDict()
    config.train.positions.sampler = "pose"
    config.train.positions.target_length = 64

    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.seq = 1
    config.mesh.tensor = 1

    config.checkpoint = ConfigDict()
    config.checkpoint.init_from = placeholder(str)
    config.checkpoint.every_steps = 20
    config.checkpoint.keep = 2

    config.eval = ConfigDict()
    config.eval.every_steps = 100
    config.eval.max_rows = 4
    return config
