"""A training config that compiles in seconds, for `rrope plan`; it names no text and no weights."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope train`."""
    config = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.init_from = "a-folder-that-is-not-here"

    config.model = ConfigDict()
    config.model.preset = "tiny"
    config.model.remat = "none"
    config.model.attention = placeholder(str)
    config.model.dropout = 0.0

    config.rope = ConfigDict()
    config.rope.scaling = "yarn"
    config.rope.factor = 4.0
    config.rope.resonance = True

    config.data = ConfigDict()
    config.data.source = "tfds:pg19"
    config.data.tokenizer = placeholder(str)

    config.train = ConfigDict()
    config.train.steps = 10
    config.train.batch_size = 8
    config.train.length = 32

    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.seq = 1
    config.mesh.tensor = 1
    config.mesh.num_slices = 1
    return config
