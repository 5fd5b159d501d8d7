"""A LLaMA-style decoder in Flax NNX.

Read `decoder.py` and `layers.py` for the transformer. The rest is what they stand on: `attention`
(the mask, and an implementation per backend), `products` and `platform` (the form of an operation
that a processor wants), `cache` (decoding), `dropout`, `config` and `presets`.

Array names end in their axes: q_BTNH is [batch, tokens, query heads, head_dim].

| letter | axis | letter | axis |
| --- | --- | --- | --- |
| B | batch | D | d_model |
| T | tokens, queries | F | d_ff |
| S | keys | V | vocabulary |
| N | query heads | L | layers |
| K | key/value heads | G | queries per key head, N / K |
| H | head_dim | M | B * T tokens of a matrix product |
| I | inputs of a matrix | O | outputs of a matrix |

Modules that need more letters begin with them; there, I and L may stand for other axes.
"""

from rrope_jax.model.cache import KVCache as KVCache
from rrope_jax.model.cache import init_cache as init_cache
from rrope_jax.model.config import ModelConfig as ModelConfig
from rrope_jax.model.decoder import Decoder as Decoder
