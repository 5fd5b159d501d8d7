"""Llama 3 8B from 8K to 128K by Resonance YaRN: what the paper does to LLaMA 2, for a newer model.

    rrope train --config=configs/llama3_8b_resonance_yarn_128k.py --workdir=runs/llama3_8b_128k \
        --config.checkpoint.init_from=Meta-Llama-3-8B --config.data.data_dir=tensorflow_datasets

As llama2_7b_resonance_yarn_32k.py, which says what comes from where, with factor 16 and 50 steps of
16 rows of 131,072 tokens, the same 105 million. Rows are split over `seq` = 4 chips, so it runs on
any multiple of four chips, up to 64 without another mesh.

Cost, computed and not run here: 1.6e19 FLOPs without what `remat` repeats. docs/plan.md has its
plan for 64 chips of TPU v5p. Not an experiment of the paper, so nothing is known of its result.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope train`."""
    older = runpy.run_path(str(Path(__file__).with_name("llama2_7b_resonance_yarn_32k.py")))
    config: ConfigDict = older["get_config"]()
    config.checkpoint.init_from = "Meta-Llama-3-8B"
    config.model.preset = "llama3_8b"
    config.rope.factor = 16.0
    config.rope.original_context = 8192
    config.train.batch_size = 16
    config.train.accumulation = 1
    config.train.length = 131_072
    config.mesh.seq = 4
    return config
