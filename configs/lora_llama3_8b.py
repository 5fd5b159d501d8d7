"""Llama 3 8B from 8K to 32K by Resonance YaRN and LoRA, on one H100.

    rrope train --config=configs/lora_llama3_8b.py --workdir=runs/llama3_8b_lora \
        --config.checkpoint.init_from=Meta-Llama-3-8B --config.data.source='texts/*.txt'

The base is frozen in bfloat16; adapters of the attention matrices, the norms and the embedding are
trained, as in LongLoRA (arXiv 2309.12307), whose rank, rate, batch and betas these are. That paper
trains 1,000 steps with shifted sparse attention; here are 100 with all of it.

Cost, by `rrope plan --topology=h100:1x1x1` and not run here: 35.5 GiB of memory, 21.5 s a step,
36 minutes in all (docs/results/plans/llama3_8b_lora_32k_h100). What it gives is not known;
docs/extension.md has what full fine-tuning gave SmolLM2.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope train`; what it leaves out is the checkpoint's own, or a default."""
    config = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.init_from = "Meta-Llama-3-8B"  # its folder
    config.checkpoint.every_steps = 10
    config.checkpoint.keep = 2

    config.model = ConfigDict()
    config.model.preset = "llama3_8b"
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "full"

    config.rope = ConfigDict()
    config.rope.scaling = "yarn"
    config.rope.factor = 4.0
    config.rope.original_context = 8192
    config.rope.resonance = True

    config.lora = ConfigDict()
    config.lora.rank = 8
    config.lora.alpha = 16.0
    config.lora.targets = ("q_proj", "k_proj", "v_proj", "o_proj")
    config.lora.train_also = ("norm", "embed")
    config.lora.base_dtype = "bfloat16"

    config.data = ConfigDict()
    config.data.source = "texts/*.txt"
    config.data.packing = "documents"
    config.data.seed = 0

    config.train = ConfigDict()
    config.train.steps = 100
    config.train.batch_size = 8
    config.train.accumulation = 8
    config.train.length = 32_768
    config.train.learning_rate = 2e-5
    config.train.schedule = "constant"
    config.train.warmup_fraction = 0.1
    config.train.weight_decay = 0.0
    config.train.b1 = 0.9
    config.train.b2 = 0.95
    config.train.loss_chunk = 4096
    config.train.seed = 0

    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.seq = 1
    config.mesh.tensor = 1
    return config
