"""SmolLM2-135M from 8K to 32K by Resonance YaRN, fine-tuned shortly on two CPU cores.

    bash launch/smollm2.sh
    bash launch/long_texts.sh
    rrope train --config=configs/extend_smollm2.py --workdir=runs/extended_resonance_yarn

Plain YaRN for comparison: `--config.rope.resonance=False` and a workdir of its own. Any other
checkpoint, format and method: `--config.checkpoint.init_from=PATH`, `--config.rope.scaling=ntk`.

PoSE shows the model distances of up to 32,768 tokens in rows of 2,048, for a fraction of the time
that full rows would take. The held-out documents are for configs/evaluate_smollm2.py;
launch/extend_smollm2.sh runs both configs for every method.

Cost: 123,000 tokens in 29 minutes of one core's time, 6 GB of memory, 2.8 GB of checkpoints.
What it gives is in docs/extension.md.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope train`; what is None is the checkpoint's own."""
    config = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.init_from = "models/SmolLM2-135M-Instruct.Q4_1.gguf"
    config.checkpoint.every_steps = 10
    config.checkpoint.keep = 2

    config.model = ConfigDict()
    config.model.compute_dtype = "float32"  # CPUs gain nothing from bfloat16
    config.model.remat = "dots"
    config.model.attention = placeholder(str)

    config.rope = ConfigDict()
    config.rope.theta = placeholder(float)
    config.rope.scaling = "yarn"
    config.rope.factor = 4.0
    config.rope.original_context = placeholder(int)
    config.rope.resonance = True
    config.rope.attention_factor = placeholder(float)
    config.rope.beta_fast = placeholder(float)
    config.rope.beta_slow = placeholder(float)

    config.data = ConfigDict()
    config.data.source = "texts"
    config.data.data_dir = placeholder(str)
    config.data.text_key = placeholder(str)
    config.data.tokenizer = placeholder(str)
    config.data.packing = "documents"
    config.data.heldout = ("anarchist_faq_E.txt", "austen_persuasion.txt", "debian_reference.txt")
    config.data.heldout_share = 0.0
    config.data.seed = 0
    config.data.cache_dir = placeholder(str)

    config.train = ConfigDict()
    config.train.steps = 30
    config.train.batch_size = 2
    config.train.accumulation = 2
    config.train.length = 2048
    config.train.learning_rate = 1e-4
    config.train.schedule = "linear"
    config.train.warmup_fraction = 0.05
    config.train.weight_decay = 0.01
    config.train.gradient_clip = 1.0
    config.train.loss_chunk = 1024
    config.train.seed = 0
    config.train.positions = ConfigDict()
    config.train.positions.sampler = "pose"
    config.train.positions.target_length = 32_768
    config.train.positions.num_chunks = 2

    config.eval = ConfigDict()
    config.eval.every_steps = 15
    config.eval.length = 2048
    config.eval.batch_size = 1
    config.eval.max_rows = 3
    return config
