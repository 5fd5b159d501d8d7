"""LLaMA 2 7B Chat from 4K to 32K by Resonance YaRN, as in section 6.2 of arXiv 2403.00071.

    rrope train --config=configs/llama2_7b_resonance_yarn_32k.py --workdir=runs/llama2_7b_32k \
        --config.checkpoint.init_from=Llama-2-7b-chat-hf --config.data.data_dir=tensorflow_datasets

Rows, steps, learning rate, decay and warm-up are the paper's; batch (64 rows, on 4 GPUs one at a
time), betas, linear decay and the absence of clipping are those of the authors' code. 50 steps of
64 x 32,768 are 105 million tokens of PG19; docs/data.md says how to prepare it.
llama2_7b_resonance_yarn_32k_rows_4k.py is the paper's other setting, 400 steps of rows of 4,096.

On a pod, give every part of a batch as many rows as `data` x `fsdp`, for 64 chips
--config.train.accumulation=1; docs/plan.md says what it then needs.

Cost, computed and not run here: 7e18 FLOPs without what `remat` repeats, five hours on one H100 at
40 % of its peak. The float32 parameters, gradients and moments take 100 GiB, over all devices.
Expected, by the paper's Table 2: on L-Eval's closed-ended tasks an average one point above YaRN's,
which is `--config.rope.resonance=False`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """The config of `rrope train`; what is None is the checkpoint's own."""
    config = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.init_from = "Llama-2-7b-chat-hf"  # a Hugging Face folder, or any other format
    config.checkpoint.every_steps = 10
    config.checkpoint.keep = 2

    config.model = ConfigDict()
    config.model.preset = "llama2_7b"  # what the checkpoint is; lets `rrope plan` do without it
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "full"
    config.model.attention = placeholder(str)

    config.rope = ConfigDict()
    config.rope.scaling = "yarn"
    config.rope.factor = 8.0
    config.rope.original_context = 4096
    config.rope.resonance = True
    config.rope.beta_fast = 32.0
    config.rope.beta_slow = 1.0

    config.data = ConfigDict()
    config.data.source = "tfds:pg19"
    config.data.data_dir = placeholder(str)
    config.data.text_key = placeholder(str)
    config.data.tokenizer = placeholder(str)
    config.data.bos = True
    config.data.eos = True
    config.data.packing = "documents"
    config.data.heldout = ()
    config.data.heldout_share = 0.0
    config.data.seed = 0
    config.data.cache_dir = placeholder(str)

    config.train = ConfigDict()
    config.train.steps = 50
    config.train.batch_size = 64
    config.train.accumulation = 16
    config.train.length = 32_768
    config.train.learning_rate = 2e-5
    config.train.schedule = "linear"
    config.train.warmup_fraction = 0.05
    config.train.weight_decay = 1e-2
    config.train.b1 = 0.9
    config.train.b2 = 0.95
    config.train.eps = 1e-8
    config.train.gradient_clip = placeholder(float)
    config.train.loss_chunk = 4096
    config.train.seed = 0
    config.train.positions = ConfigDict()
    config.train.positions.sampler = "contiguous"
    config.train.positions.target_length = placeholder(int)

    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.seq = 1
    config.mesh.tensor = 1
    config.mesh.num_slices = 1

    config.eval = ConfigDict()
    config.eval.every_steps = placeholder(int)
    return config
