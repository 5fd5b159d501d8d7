"""What `tests.benchmarks.smollm2` measures, as this package does it."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from rrope_jax.evaluation.generation import Generator
from rrope_jax.model import Decoder
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.loss import next_token_losses
from rrope_jax.train.step import Program
from tests.benchmarks.smollm2_setting import Setting

LOSS_CHUNK = TrainConfig.loss_chunk
"""Tokens whose logits exist at a time, in `score` and `train`: the default."""

Run = Callable[[], object]


def _random(setting: Setting) -> Decoder:
    """With parameters made one by one, in place, so that they peak nowhere."""
    abstract = nnx.eval_shape(lambda: Decoder(setting.model, setting.known.rope, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    random, device = np.random.default_rng(0), jax.devices()[0]

    def fill(parameter: jax.ShapeDtypeStruct) -> jax.Array:
        size, alignment = math.prod(parameter.shape), 64
        memory = np.empty(size + alignment, np.float32)
        start = -memory.ctypes.data % alignment // memory.itemsize
        values = memory[start : start + size]
        random.standard_normal(dtype=np.float32, out=values)
        values *= setting.model.initializer_range
        # JAX on the CPU takes over memory that is aligned
        return jax.device_put(jax.dlpack.from_dlpack(values.reshape(parameter.shape)), device)

    decoder: Decoder = nnx.merge(graph, jax.tree.map(fill, state))
    return decoder


class Ours:
    """A model with random parameters, of float32 in any case, unless a decoder is given."""

    def __init__(self, setting: Setting, decoder: Decoder | None = None) -> None:
        self._setting = setting
        self._decoder = _random(setting) if decoder is None else decoder

    def peak_gib(self) -> float | None:
        """Of an accelerator's memory, as JAX has allocated it; None where it does not say."""
        measured = jax.devices()[0].memory_stats() or {}
        peak = measured.get("peak_bytes_in_use")
        return None if peak is None or self._setting.platform == "cpu" else peak / 2**30

    def prefill(self, tokens: np.ndarray[Any, Any]) -> Run:
        """Reads a prompt into a cache."""
        generator = Generator(self._decoder)
        prompt = [*tokens.tolist(), 0]  # the last token is left out
        return lambda: generator.read([prompt], capacity=len(prompt))

    def decode(self, tokens: np.ndarray[Any, Any], new_tokens: int) -> Run:
        """Continues a prompt greedily."""
        generator = Generator(self._decoder, unstack=True)
        prompt = tokens.tolist()
        cache = generator.read([prompt], capacity=len(prompt) + new_tokens)
        return lambda: generator.generate(prompt[-1:], cache, max_tokens=new_tokens)

    def score(self, tokens: np.ndarray[Any, Any]) -> Run:
        """The loss of every token but the first."""
        graph, state = nnx.split(self._decoder)

        @jax.jit
        def losses(state: Any, tokens_BT: jax.Array) -> jax.Array:
            decoder = nnx.merge(graph, state)
            hidden_BTD = decoder.hidden(tokens_BT[:, :-1])
            return next_token_losses(decoder, hidden_BTD, tokens_BT[:, 1:], chunk=LOSS_CHUNK)

        return lambda: float(losses(state, tokens[None]).mean())

    def train(self, tokens: np.ndarray[Any, Any]) -> Run:
        """AdamW steps on one row."""
        length = len(tokens) - 1
        config = TrainConfig(steps=1000, batch_size=1, length=length, loss_chunk=LOSS_CHUNK)
        setting = self._setting
        program = Program(setting.model, setting.known.rope, config, segmented=False)
        state = program.state_from_params(nnx.to_pure_dict(nnx.state(self._decoder, nnx.Param)))
        del self._decoder  # the step uses the parameters up
        step = jax.jit(program.step, donate_argnums=0)
        batch = {
            "tokens": tokens[None, :-1],
            "targets": tokens[None, 1:],
            "segment_ids": np.zeros((1, length), np.int32),
            "positions": np.arange(length, dtype=np.int32)[None],
            "weights": np.ones((1, length), np.float32),
        }

        def run() -> float:
            nonlocal state
            state, measures = step(state, batch, jax.random.key(0))
            return float(measures.loss)

        return run
