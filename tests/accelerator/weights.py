"""Weights in float32, bfloat16 and int8: tokens per second of prompts and answers, and losses."""

import dataclasses
import time
from typing import Any

import jax
import numpy as np
from flax import nnx

from rrope_jax.evaluation.generation import Generator
from rrope_jax.evaluation.perplexity import Losses
from rrope_jax.model import Decoder
from rrope_jax.model.config import WEIGHT_DTYPES
from rrope_jax.model.decoder import parameter_bytes
from rrope_jax.rope import RopeSpec
from tests.accelerator.call import Call
from tests.accelerator.planned import SHAPES, SMALL_SHAPES, Shape

_SECONDS = 60.0


def run(call: Call) -> None:
    """A measurement for each dtype."""
    shape = SMALL_SHAPES["tiny"] if call.small else SHAPES["1B"]
    written = 16 if call.small else 128
    for dtype in WEIGHT_DTYPES:
        call.measure(dtype, _SECONDS, lambda dtype=dtype: _measure(shape, dtype, written))


def _measure(shape: Shape, weight_dtype: str, written: int) -> dict[str, Any]:
    """The same random weights in each dtype, and bfloat16 products; one row."""
    config = dataclasses.replace(shape.model, weight_dtype=weight_dtype)
    spec = RopeSpec(head_dim=config.head_size, resonance=True)
    # under jit, so that what is rounded never exists as a whole in float32
    decoder = nnx.jit(lambda: Decoder(config, spec, rngs=nnx.Rngs(0)))()
    tokens_T = np.random.default_rng(0).integers(0, config.vocab_size, shape.length)
    prompt = tokens_T.tolist()
    generator = Generator(decoder, chunk=max(shape.length // 2, 1))
    seconds = {}
    for _ in range(2):  # the first time compiles
        began = time.perf_counter()
        cache = jax.block_until_ready(generator.read([prompt], capacity=shape.length + written))
        seconds["prompt"] = time.perf_counter() - began
        began = time.perf_counter()
        generator.generate(prompt[-1:], cache, max_tokens=written, in_place=True)
        seconds["answer"] = time.perf_counter() - began
    return {
        "parameter_bytes": parameter_bytes(config),
        "prompt_tokens_per_second": shape.length / seconds["prompt"],
        "answer_tokens_per_second": written / seconds["answer"],
        "losses": [round(float(loss), 6) for loss in Losses(decoder)(tokens_T[None])[0]],
    }
