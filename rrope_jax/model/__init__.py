"""A LLaMA-style decoder in Flax NNX."""

from rrope_jax.model.cache import KVCache as KVCache
from rrope_jax.model.cache import init_cache as init_cache
from rrope_jax.model.config import ModelConfig as ModelConfig
from rrope_jax.model.decoder import Decoder as Decoder
