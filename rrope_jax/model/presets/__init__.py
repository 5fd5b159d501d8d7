"""Frozen configs of known models; tests check their parameter counts.

The comments name the repositories on Hugging Face whose config.json a preset follows.
"""

from rrope_jax.model.presets.gemma import GEMMA
from rrope_jax.model.presets.llama import LLAMA
from rrope_jax.model.presets.others import OTHERS
from rrope_jax.model.presets.preset import Preset as Preset
from rrope_jax.model.presets.qwen import QWEN
from rrope_jax.model.presets.small import SMALL

PRESETS: dict[str, Preset] = {**SMALL, **LLAMA, **QWEN, **GEMMA, **OTHERS}
