"""LLaMA 2 13B Chat from 4K to 16K by Resonance YaRN, as in section 6.2 of arXiv 2403.00071.

    rrope train --config=configs/llama2_13b_resonance_yarn_16k.py --workdir=runs/llama2_13b_16k \
        --config.checkpoint.init_from=Llama-2-13b-chat-hf --config.data.data_dir=tensorflow_datasets

As llama2_7b_resonance_yarn_32k.py, which says what comes from where, with factor 4 and 100 steps of
64 x 16,384 tokens. llama2_13b_resonance_yarn_16k_rows_4k.py is the paper's other setting.

Cost, computed and not run here: 1.0e19 FLOPs without what `remat` repeats, seven hours on one H100
at 40 % of its peak. The float32 parameters, gradients and moments take 194 GiB, over all devices.
Expected, by the paper's Table 2: on L-Eval's closed-ended tasks an average a little above YaRN's.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope train`."""
    smaller = runpy.run_path(str(Path(__file__).with_name("llama2_7b_resonance_yarn_32k.py")))
    config: ConfigDict = smaller["get_config"]()
    config.checkpoint.init_from = "Llama-2-13b-chat-hf"
    config.model.preset = "llama2_13b"
    config.rope.factor = 4.0
    config.train.steps = 100
    config.train.length = 16_384
    return config
