"""Any model of `rrope_jax.model.presets` under Resonance YaRN, evaluated up to a longer context.

    rrope plan --config=configs/evaluate_pretrained.py:llama2_13b,32k --topology=h100:1x1x1 \
        --config.model.attention=chunked --workdir=runs/plan_llama2_13b
    rrope evaluate --config=configs/evaluate_pretrained.py:llama2_13b,32k \
        --checkpoint=Llama-2-13b-hf --config.data.source='texts/*.txt' --workdir=runs/llama2_13b

After the colon come a preset (docs/model.md has the table) and the longest context, as for
configs/pretrained.py: perplexity and passkeys from 4K up to it. Weights and products are bfloat16;
`--config.model.weight_dtype=int8` halves the weights again. The preset counts only for `rrope
plan`, where it takes the place of the checkpoint; docs/plan.md says what fits one GPU.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config(argument: str = "llama2_13b,32k") -> ConfigDict:
    """The config of `rrope evaluate`; what it leaves out is the checkpoint's own, or a default."""
    file = Path(__file__).with_name("pretrained.py")
    training = runpy.run_path(str(file))["get_config"](argument)
    length: int = training.train.length
    contexts = tuple(4096 * 2**i for i in range(length.bit_length()) if 4096 * 2**i <= length)
    config = ConfigDict()

    config.model = ConfigDict()
    config.model.preset = training.model.preset
    config.model.compute_dtype = "bfloat16"
    config.model.weight_dtype = "bfloat16"

    config.rope = training.rope

    config.data = ConfigDict()
    config.data.source = "texts/*.txt"
    config.data.heldout = ("*",)

    config.eval = ConfigDict()
    config.eval.perplexity = ConfigDict()
    config.eval.perplexity.enabled = True
    config.eval.perplexity.contexts = contexts
    config.eval.passkey = ConfigDict()
    config.eval.passkey.enabled = True
    config.eval.passkey.contexts = contexts
    return config
