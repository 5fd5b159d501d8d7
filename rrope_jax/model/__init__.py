"""A LLaMA-style decoder in Flax NNX.

The transformer is in `decoder.py` and `layers.py`. They build on `attention` (the mask, and one
implementation per backend), `products` and `platform` (operations tuned to a processor), `cache`
(decoding), `dropout`, `config` and `presets`.

Array names end with their axes: q_BTNH is [batch, tokens, query heads, head_dim].

| letter | axis | letter | axis |
| --- | --- | --- | --- |
| B | batch | D | d_model |
| T | tokens, queries | F | d_ff |
| S | keys | V | vocabulary |
| N | query heads | L | layers |
| K | key/value heads | G | queries per key head, N / K |
| H | head_dim | M | B * T tokens of a matrix product |
| I | inputs of a matrix | O | outputs of a matrix |

A module that needs more letters lists them in its docstring, where I and L may be redefined.
"""

from rrope_jax.model.cache import KVCache as KVCache
from rrope_jax.model.cache import init_cache as init_cache
from rrope_jax.model.config import ModelConfig as ModelConfig
from rrope_jax.model.decoder import Decoder as Decoder
