"""PosGen in miniature (draft)."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope posgen`."""
    config = ConfigDict()
    config.name = "posgen_quick"
    config.tasks = ("recursive", "cot", "semi_recursive")
    config.methods = ("rope", "resonance_rope", "yarn", "resonance_yarn")
    config.protocols = ("scaled_at_test",)
    config.num_seeds = 3
    config.first_seed = 0
    config.lanes = 0
    config.save_every_seconds = 60.0

    config.modulus = 7
    config.j = 1
    config.k = 3
    config.train_length = 16
    config.test_length = 64
    config.train_sequences = 1500
    config.validation_sequences = 100
    config.test_sequences = 500

    config.rope = ConfigDict()
    config.rope.theta = 10000.0
    config.rope.factor = 4.0
    config.rope.original_context = 16
    config.rope.beta_fast = 2.0
    config.rope.beta_slow = 1.0
    config.rope_at_test = ConfigDict()

    config.positions = ConfigDict({"sampler": "contiguous"})

    config.model = ConfigDict()
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.num_heads = 4
    config.model.d_ff = 256
    config.model.activation = "relu"

    config.train = ConfigDict()
    config.train.steps = 1500
    config.train.batch_size = 64
    config.train.learning_rate = 2e-3
    config.train.validate_every = 100
    return config
