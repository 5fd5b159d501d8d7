"""The paper's PosGen experiment, Table 1: 3 tasks x 4 methods x 5 seeds under both protocols.

    rrope posgen --config=configs/posgen_paper.py --workdir=runs/posgen_paper

Model, data and optimization are those of section 6.1 and Appendix C.1 of arXiv 2403.00071, with
the layers of T5-Small that the authors' code uses. On an accelerator the trainings of a task run
as one program (`lanes`); several devices share them.

The grid of periods (docs/findings.md) at this size, 140 trainings: bash launch/periods.sh paper

Cost: 60 trainings of 11,700 steps (`scaled_training`); `scaled_at_test` tests 30 of them again.
"""

from ml_collections import ConfigDict, config_dict


def get_config() -> ConfigDict:
    """The config of `rrope posgen`."""
    config = ConfigDict()
    config.name = "posgen_paper"
    config.tasks = ("recursive", "cot", "semi_recursive")
    config.methods = ("rope", "resonance_rope", "yarn", "resonance_yarn")
    config.protocols = ("scaled_training", "scaled_at_test")
    config.num_seeds = 5
    config.first_seed = 0
    config.lanes = 0
    config.save_every_seconds = 300.0
    config.matmul_precision = config_dict.placeholder(str)  # None: JAX's own choice

    config.modulus = 17
    config.j = 1
    config.k = 3
    config.train_length = 64
    config.test_length = 256
    config.combination = "modular_sum"
    config.splits = "disjoint"
    config.train_sequences = 10_000
    config.validation_sequences = 1_000
    config.test_sequences = 1_000

    # The fields that the methods of the grid read; the ramp of YaRN is the authors'.
    config.rope = ConfigDict()
    config.rope.theta = 10_000.0
    config.rope.factor = 4.0
    config.rope.original_context = 64
    config.rope.beta_fast = 2.0
    config.rope.beta_slow = 1.0
    # What differs under scaled_at_test: the authors count the start token, and compute the ramp
    # over the extrapolated length.
    config.rope_at_test = ConfigDict()
    config.rope_at_test.factor = 257 / 65
    config.rope_at_test.original_context = 257

    config.mesh = ConfigDict()
    config.mesh.ablation = -1  # all devices share the trainings

    config.positions = ConfigDict()
    config.positions.sampler = "contiguous"

    config.model = ConfigDict()
    config.model.num_layers = 2
    config.model.d_model = 512
    config.model.num_heads = 8
    config.model.head_dim = 64
    config.model.d_ff = 2048
    config.model.activation = "relu"
    config.model.attention_scale = 1.0
    config.model.tie_embeddings = True
    config.model.logit_scale = 512**-0.5
    config.model.initialization = "t5"
    config.model.dropout = 0.1
    config.model.rms_norm_eps = 1e-6

    config.train = ConfigDict()
    config.train.steps = 11_700  # 150 epochs of 78 batches
    config.train.batch_size = 128
    config.train.learning_rate = 2e-4
    config.train.warmup_fraction = 0.1
    config.train.weight_decay = 1e-2
    config.train.validate_every = 78
    config.train.steps_per_call = 13
    config.train.eval_batch_size = 100
    return config
