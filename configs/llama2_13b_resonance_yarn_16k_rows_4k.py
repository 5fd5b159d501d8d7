"""LLaMA 2 13B Chat to 16K by Resonance YaRN, trained on rows of 4,096 tokens only.

    rrope train --config=configs/llama2_13b_resonance_yarn_16k_rows_4k.py \
        --workdir=runs/llama2_13b_16k_rows_4k --config.checkpoint.init_from=Llama-2-13b-chat-hf \
        --config.data.data_dir=tensorflow_datasets

The twin of llama2_13b_resonance_yarn_16k.py, with as many tokens: 400 steps of 64 x 4,096. Cost,
computed and not run here: 8.7e18 FLOPs. Expected, by the paper's Table 2: a little above YaRN.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope train`."""
    long_rows = runpy.run_path(str(Path(__file__).with_name("llama2_13b_resonance_yarn_16k.py")))
    config: ConfigDict = long_rows["get_config"]()
    config.train.steps = 400
    config.train.length = 4096
    config.checkpoint.every_steps = 50
    return config
