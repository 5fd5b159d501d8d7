"""A PosGen config small enough for tests: 2 trainings tested as 4 methods."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope posgen`."""
    config = ConfigDict()
    config.name = "tiny"
    config.tasks = ("cot",)
    config.methods = ("rope", "resonance_rope", "yarn", "resonance_yarn")
    config.protocols = ("scaled_at_test",)
    config.num_seeds = 1
    config.first_seed = 0
    config.lanes = 0
    config.save_every_seconds = 0.0

    config.modulus = 5
    config.j = 1
    config.k = 3
    config.train_length = 8
    config.test_length = 16
    config.combination = "modular_sum"
    config.splits = "disjoint"
    config.train_sequences = 40
    config.validation_sequences = 8
    config.test_sequences = 8

    config.rope = ConfigDict()
    config.rope.theta = 10_000.0
    config.rope.factor = 2.0
    config.rope.original_context = 8
    config.rope.beta_fast = 2.0
    config.rope.beta_slow = 1.0
    config.rope_at_test = ConfigDict()
    config.rope_at_test.factor = 17 / 9

    config.mesh = ConfigDict()
    config.mesh.ablation = -1

    config.positions = ConfigDict()
    config.positions.sampler = "contiguous"

    config.model = ConfigDict()
    config.model.num_layers = 1
    config.model.d_model = 16
    config.model.num_heads = 2
    config.model.head_dim = 8
    config.model.d_ff = 32
    config.model.activation = "relu"
    config.model.attention = "auto"

    config.train = ConfigDict()
    config.train.steps = 30
    config.train.batch_size = 8
    config.train.learning_rate = 1e-2
    config.train.validate_every = 10
    config.train.steps_per_call = 2
    config.train.eval_batch_size = 8
    return config
