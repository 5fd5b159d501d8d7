r"""The 15 algorithmic tasks at the lengths of arXiv 2305.16843: train to 40, test to 500.

    rrope algorithmic --config=configs/algorithmic.py --workdir=runs/algorithmic
    rrope algorithmic --config=configs/algorithmic.py --workdir=runs/algorithmic_randomized \
        --config.positions.sampler=randomized --config.positions.target_length=2048

Lengths, batch, steps, width and depth are those of the paper and its code; the model is a decoder,
where theirs is an encoder. For a GPU: 15 tasks x 2 trainings x 3 seeds of 10,000 steps, and in the
test, sequences of up to 1,501 tokens. `--config.test_step=1` tests every length, as the paper does.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The config of `rrope algorithmic`."""
    config = ConfigDict()
    config.name = "algorithmic"
    config.tasks = (
        "even_pairs",
        "modular_arithmetic",
        "parity_check",
        "cycle_navigation",
        "stack_manipulation",
        "reverse_string",
        "modular_arithmetic_brackets",
        "solve_equation",
        "duplicate_string",
        "missing_duplicate_string",
        "odds_first",
        "binary_addition",
        "binary_multiplication",
        "compute_sqrt",
        "bucket_sort",
    )
    config.methods = ("rope", "resonance_rope", "yarn", "resonance_yarn")
    config.protocols = ("scaled_at_test",)
    config.num_seeds = 3
    config.first_seed = 0
    config.lanes = 0
    config.save_every_seconds = 300.0
    config.matmul_precision = config_dict.placeholder(str)  # None: JAX's own choice

    config.train_length = 40
    config.test_length = 500
    config.test_step = 20
    config.test_rows = 512
    config.validation_rows = 64

    # The fields that the methods of the grid read, as under scaled_training.
    config.rope = ConfigDict()
    config.rope.theta = 10_000.0
    config.rope.factor = 12.5
    config.rope.original_context = 82  # a question of 40, its separator, and an answer as long
    config.rope.beta_fast = 2.0
    config.rope.beta_slow = 1.0
    config.rope_at_test = ConfigDict()

    config.mesh = ConfigDict()
    config.mesh.ablation = -1  # all devices share the trainings

    config.positions = ConfigDict()
    config.positions.sampler = "contiguous"

    config.model = ConfigDict()
    config.model.num_layers = 5
    config.model.d_model = 64
    config.model.num_heads = 8
    config.model.d_ff = 256
    config.model.activation = "relu"
    config.model.dropout = 0.1

    config.train = ConfigDict()
    config.train.steps = 10_000
    config.train.batch_size = 128
    config.train.learning_rate = 1e-3
    config.train.warmup_fraction = 0.1
    config.train.weight_decay = 0.0
    config.train.gradient_clip = 1.0
    config.train.validate_every = 1_000
    config.train.steps_per_call = 100
    config.train.eval_batch_size = 64
    return config
