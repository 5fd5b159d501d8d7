"""A LLaMA model continued to a longer context by Resonance YaRN, as in arXiv 2403.00071.

    rrope train --config=configs/llama.py:7b,32k --workdir=runs/llama2_7b_32k \
        --config.checkpoint.init_from=Llama-2-7b-chat-hf --config.data.data_dir=tensorflow_datasets

After the colon come a model (`7b` and `13b` are LLaMA 2 Chat, `llama3_8b` is Llama 3), the length
to reach (`8k` to `128k`, more than the model has), and `rows_4k` to train on rows of 4,096 tokens
instead of rows of the whole length. Every setting sees 105 million tokens of PG19, which
docs/data.md says how to prepare.

Cost, computed and not run here, without what `remat` repeats; memory is that of the float32
parameters, gradients and moments over all devices; an H100 is taken to reach 40 % of its peak:

    argument              FLOPs      on one H100    memory
    7b,32k                6.9e18     5 h            100 GiB
    7b,32k,rows_4k        4.5e18     3 h            100 GiB
    13b,16k               1.0e19     7 h            194 GiB
    13b,16k,rows_4k       8.6e18     6 h            194 GiB
    llama3_8b,128k        1.6e19     11 h           120 GiB

Expected, by the paper's Table 2, for the four settings of LLaMA 2 above, which are those of its
section 6.2: on L-Eval's closed-ended tasks an average one point (13B: a little) above YaRN's, which
is `--config.rope.resonance=False`. Other settings are no experiments of the paper, so nothing is
known of their results; docs/plan.md has the plan of `llama3_8b,128k` for 64 chips of TPU v5p.

Rows, steps, learning rate, decay and warm-up are the paper's; batch (64 rows, on 4 GPUs one at a
time), betas, linear decay and the absence of clipping are those of the authors' code. On a pod,
give every microbatch as many rows as `data` x `fsdp`, for 64 chips --config.train.accumulation=1;
docs/plan.md says what it then needs. Rows of more than 32k are split over `seq` = 4 chips, so they
need a multiple of four.
"""

from typing import NamedTuple

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


class Model(NamedTuple):
    """A checkpoint to continue.

    Attributes:
      checkpoint: its Hugging Face folder.
      preset: the same as a preset, which lets `rrope plan` do without the checkpoint.
      context: tokens that it was trained with.
    """

    checkpoint: str
    preset: str
    context: int


MODELS = {
    "7b": Model("Llama-2-7b-chat-hf", "llama2_7b", 4096),
    "13b": Model("Llama-2-13b-chat-hf", "llama2_13b", 4096),
    "llama3_8b": Model("Meta-Llama-3-8B", "llama3_8b", 8192),
}
LENGTHS = {f"{k}k": k * 1024 for k in (8, 16, 32, 64, 128)}
TOKENS = 50 * 64 * 32_768
LARGEST_STEP = 64 * 32_768


def parse(argument: str) -> tuple[Model, int, bool]:
    """The model, the length to reach, and whether rows have 4,096 tokens only."""
    model, _, rest = argument.partition(",")
    length, *rows = rest.split(",")
    if model not in MODELS or length not in LENGTHS or rows not in ([], ["rows_4k"]):
        raise ValueError(
            f"{argument!r} is not MODEL,LENGTH or MODEL,LENGTH,rows_4k, such as 7b,32k; models are "
            f"{', '.join(MODELS)} and lengths {', '.join(LENGTHS)}"
        )
    if LENGTHS[length] <= MODELS[model].context:
        raise ValueError(
            f"{argument!r}: {model} has a context of {MODELS[model].context // 1024}k already"
        )
    return MODELS[model], LENGTHS[length], bool(rows)


def get_config(argument: str = "7b,32k") -> ConfigDict:
    """The config of `rrope train`; what is None is the checkpoint's own."""
    model, target, short_rows = parse(argument)
    length = 4096 if short_rows else target
    batch_size = min(64, LARGEST_STEP // length)
    split_rows = length > 32_768
    config = ConfigDict()

    config.checkpoint = ConfigDict()
    config.checkpoint.init_from = model.checkpoint  # or any other format
    config.checkpoint.every_steps = 50 if short_rows else 10
    config.checkpoint.keep = 2

    config.model = ConfigDict()
    config.model.preset = model.preset
    config.model.compute_dtype = "bfloat16"
    config.model.remat = "full"
    config.model.attention = placeholder(str)

    config.rope = ConfigDict()
    config.rope.scaling = "yarn"
    config.rope.factor = target / model.context
    config.rope.original_context = model.context
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
    config.train.steps = TOKENS // (batch_size * length)
    config.train.batch_size = batch_size
    config.train.accumulation = 1 if split_rows else 16
    config.train.length = length
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
    config.mesh.seq = 4 if split_rows else 1
    config.mesh.tensor = 1
    config.mesh.num_slices = 1

    config.eval = ConfigDict()
    config.eval.every_steps = placeholder(int)
    return config
