"""A decoder of 0.8 million parameters learns this project's documentation, byte by byte.

    rrope train --config=configs/tiny_from_scratch.py --workdir=runs/tiny

Shows that everything works, from text to a checkpoint that `rrope evaluate`, `convert` and

    rrope generate --checkpoint=runs/tiny --tokenizer=bytes --prompt="The model "

read. Run it from the clone's root, since `data.source` is a path. A few minutes on two CPU cores.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope train`."""
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.d_model = 128
    config.model.num_layers = 4
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.d_ff = 384
    config.model.tie_embeddings = True

    config.rope = ConfigDict()
    config.rope.theta = 10_000.0
    config.rope.scaling = "none"
    config.rope.resonance = True

    config.data = ConfigDict()
    config.data.source = "docs/*.md"
    config.data.tokenizer = "bytes"
    config.data.eos = True
    config.data.packing = "documents"
    config.data.heldout = ("*rope.md",)
    config.data.seed = 0

    config.train = ConfigDict()
    config.train.steps = 300
    config.train.batch_size = 16
    config.train.length = 256
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_fraction = 0.1
    config.train.weight_decay = 0.1
    config.train.gradient_clip = 1.0
    config.train.seed = 0
    config.train.positions = ConfigDict()
    config.train.positions.sampler = "contiguous"
    config.train.positions.target_length = placeholder(int)  # for `pose` and `randomized`

    config.checkpoint = ConfigDict()
    config.checkpoint.every_steps = 100
    config.checkpoint.keep = 2

    config.eval = ConfigDict()
    config.eval.every_steps = 100
    config.eval.batch_size = 16
    config.eval.max_rows = 64
    return config
