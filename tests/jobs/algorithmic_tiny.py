"""An algorithmic config small enough for tests: 2 tasks, each 1 training tested as 2 methods."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope algorithmic`."""
    config = ConfigDict()
    config.name = "tiny"
    config.tasks = ("reverse_string", "modular_arithmetic")
    config.methods = ("rope", "yarn")
    config.protocols = ("scaled_at_test",)
    config.num_seeds = 1
    config.first_seed = 0
    config.lanes = 0
    config.save_every_seconds = 0.0

    config.train_length = 6
    config.test_length = 12
    config.test_step = 3
    config.test_rows = 8
    config.validation_rows = 4

    config.rope = ConfigDict()
    config.rope.theta = 10_000.0
    config.rope.factor = 2.0
    config.rope.original_context = 14
    config.rope.beta_fast = 2.0
    config.rope.beta_slow = 1.0
    config.rope_at_test = ConfigDict()

    config.mesh = ConfigDict()
    config.mesh.ablation = -1

    config.positions = ConfigDict()
    config.positions.sampler = "contiguous"

    config.model = ConfigDict()
    config.model.num_layers = 1
    config.model.d_model = 16
    config.model.num_heads = 2
    config.model.d_ff = 32
    config.model.activation = "relu"

    config.train = ConfigDict()
    config.train.steps = 20
    config.train.batch_size = 8
    config.train.learning_rate = 1e-2
    config.train.validate_every = 10
    config.train.steps_per_call = 2
    config.train.eval_batch_size = 4
    return config
