"""Any model of `rrope_jax.model.presets`, continued to a longer context by Resonance YaRN.

    rrope train --config=configs/pretrained.py:qwen3_8b,128k --workdir=runs/qwen3_8b_128k \
        --config.checkpoint.init_from=Qwen3-8B-Base --config.data.source='texts/*.txt'

After the colon come a preset (docs/model.md has the table) and the length to reach (`16k` to
`1024k`, more than the model has). In a model whose sliding layers have an embedding of their own,
such as Gemma 3 and OLMo 3, only the layers that see everything are scaled;
`--config.rope.sliding_attention.scaling=yarn` and so on scale the others too, and
`--config.model.layer_types=...` gives the model another plan (docs/howto/layer_plans.md).

A step has 2,097,152 tokens in rows of the whole length, 32k of them on a chip: rows x `seq` are 64
chips. Tokens, rate and decay are those of configs/llama.py, which are the paper's for LLaMA 2; of
other models nothing is known. `rrope plan` says what it takes, without the checkpoint.
"""

from ml_collections import ConfigDict

from rrope_jax.model.presets import PRESETS

LENGTHS = {f"{k}k": k * 1024 for k in (16, 32, 64, 128, 256, 512, 1024)}
STEPS = 50
TOKENS_PER_CHIP = 32_768
TOKENS_PER_STEP = 64 * TOKENS_PER_CHIP


def parse(argument: str) -> tuple[str, int]:
    """The name of the preset, and the length to reach."""
    name, _, length = argument.partition(",")
    if name not in PRESETS or length not in LENGTHS:
        raise ValueError(
            f"{argument!r} is not PRESET,LENGTH, such as qwen3_8b,128k; presets are "
            f"{', '.join(PRESETS)} and lengths {', '.join(LENGTHS)}"
        )
    if LENGTHS[length] <= PRESETS[name].context:
        raise ValueError(f"{argument!r}: {name} has a context of {PRESETS[name].context} already")
    return name, LENGTHS[length]


def get_config(argument: str = "qwen3_8b,128k") -> ConfigDict:
    """The config of `rrope train`; what it leaves out is the checkpoint's own, or a default."""
    name, length = parse(argument)
    preset = PRESETS[name]
    original = preset.rope.original_context or round(preset.context / preset.rope.extension)
    config = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.init_from = name  # its folder
    config.checkpoint.every_steps = 10
    config.checkpoint.keep = 2

    config.model = ConfigDict()
    config.model.preset = name
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "full"

    config.rope = ConfigDict()
    config.rope.scaling = "yarn"
    config.rope.factor = length / original
    config.rope.original_context = original
    config.rope.resonance = True

    config.data = ConfigDict()
    config.data.source = "texts/*.txt"
    config.data.packing = "documents"
    config.data.seed = 0

    config.train = ConfigDict()
    config.train.steps = STEPS
    config.train.batch_size = TOKENS_PER_STEP // length
    config.train.length = length
    config.train.learning_rate = 2e-5
    config.train.schedule = "linear"
    config.train.warmup_fraction = 0.05
    config.train.weight_decay = 1e-2
    config.train.loss_chunk = 4096
    config.train.seed = 0

    config.mesh = ConfigDict()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.seq = max(1, length // TOKENS_PER_CHIP)
    config.mesh.tensor = 1
    return config
