"""Three algorithmic tasks, one of each level, under four methods, some minutes on two CPU cores.

    rrope algorithmic --config=configs/algorithmic_quick.py --workdir=runs/algorithmic_quick

Questions of up to 20 tokens in training, up to 100 in the test, and a small model. Models are
trained unscaled and the scaling is switched on for the test, so 12 trainings serve 24 cells. It was
chosen on seed 100 and is reported on seeds 0 and 1; docs/algorithmic.md says what to expect.
`--config.tasks` takes any of the 15 names.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope algorithmic`."""
    config = ConfigDict()
    config.name = "algorithmic_quick"
    config.tasks = ("even_pairs", "reverse_string", "bucket_sort")
    config.methods = ("rope", "resonance_rope", "yarn", "resonance_yarn")
    config.protocols = ("scaled_at_test",)
    config.num_seeds = 2
    config.first_seed = 0
    config.lanes = 0
    config.save_every_seconds = 30.0

    config.train_length = 20
    config.test_length = 100
    config.test_step = 5
    config.test_rows = 50
    config.validation_rows = 50

    # The fields that the methods of the grid read, as under scaled_training.
    config.rope = ConfigDict()
    config.rope.theta = 10_000.0
    config.rope.factor = 5.0
    config.rope.original_context = 42  # a question of 20, its separator, and an answer as long
    config.rope.beta_fast = 2.0
    config.rope.beta_slow = 1.0
    config.rope_at_test = ConfigDict()

    config.mesh = ConfigDict()
    config.mesh.ablation = -1  # all devices share the trainings

    config.positions = ConfigDict()
    config.positions.sampler = "contiguous"

    config.model = ConfigDict()
    config.model.num_layers = 2
    config.model.d_model = 64
    config.model.num_heads = 2
    config.model.d_ff = 256
    config.model.activation = "relu"

    config.train = ConfigDict()
    config.train.steps = 1_500
    config.train.batch_size = 32
    config.train.learning_rate = 2e-3
    config.train.warmup_fraction = 0.1
    config.train.weight_decay = 1e-2
    config.train.gradient_clip = 1.0
    config.train.validate_every = 500
    config.train.steps_per_call = 50
    config.train.eval_batch_size = 50
    return config
