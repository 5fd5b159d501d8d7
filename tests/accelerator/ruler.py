"""RULER as `rrope evaluate` asks it, by length and batch, beside what `rrope plan` says."""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rrope_jax.data.tokenizers import BYTES, load_tokenizer
from rrope_jax.evaluation.generation import Generator
from rrope_jax.evaluation.ruler.benchmark import Ruler
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.ruler.tasks import TASKS
from rrope_jax.evaluation.units import run_units
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.decoder import parameter_bytes
from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.chips import CHIPS
from rrope_jax.planning.evaluation import ModelEvaluation, PromptShape
from rrope_jax.rope import RopeSpec
from tests.accelerator.call import Call
from tests.accelerator.planned import SMALL_SHAPES, chip_of, roofline
from tests.evaluation.tiny import Memory

TASK = "niah_single_2"  # a needle in text; its answers are the longest of RULER's
PRESET_NAMES = ("llama3_8b", "llama3.2_1b", "smollm2_135m")
_SHARE = 1 / 3  # of the memory, at most, that the weights may take: caches need theirs
_BATCHES = 2
_SECONDS = 60.0


class Sizes(NamedTuple):
    """Tokens of a prompt with its answer, and prompts at once."""

    context: int
    batch_size: int


SIZES = (
    *(Sizes(4096, 1), Sizes(4096, 8), Sizes(16_384, 1), Sizes(16_384, 4)),
    *(Sizes(32_768, 1), Sizes(32_768, 2)),
)
SMALL_SIZES = Sizes(512, 1), Sizes(512, 2), Sizes(1024, 2)


class Model(NamedTuple):
    """A decoder to draw at random.

    Attributes:
      name: a key of `PRESETS`, or `tiny`.
      config, rope: its fields.
    """

    name: str
    config: ModelConfig
    rope: RopeSpec


def run(call: Call) -> None:
    """A measurement for each length and batch size, with one model."""
    model = tiny() if call.small else largest(jax.devices()[0].memory_stats() or {})
    chunk = 128 if call.small else 2048

    @functools.cache
    def decoder() -> Decoder:
        # under jit, so that the weights never exist as a whole in float32
        return nnx.jit(lambda: Decoder(model.config, model.rope, rngs=nnx.Rngs(0)))()

    for sizes in SMALL_SIZES if call.small else SIZES:
        call.measure(
            f"{sizes.context}_x_{sizes.batch_size}",
            _SECONDS,
            lambda sizes=sizes: {
                "model": model.name,
                **_measure(decoder(), sizes, chunk),
                "planned": _planned(model, sizes, chunk),
            },
        )


def tiny() -> Model:
    """The model for a CPU."""
    config = _in_bfloat16(SMALL_SHAPES["tiny"].model)
    return Model("tiny", config, RopeSpec(head_dim=config.head_size))


def largest(memory: Mapping[str, int]) -> Model:
    """The largest preset whose weights leave room for caches, of a device's memory statistics.

    Where they say nothing, it is the smallest.
    """
    for name in PRESET_NAMES:
        config = _in_bfloat16(PRESETS[name].model)
        if parameter_bytes(config) <= _SHARE * memory.get("bytes_limit", 0):
            break
    return Model(name, config, PRESETS[name].rope)


def _in_bfloat16(config: ModelConfig) -> ModelConfig:
    return dataclasses.replace(config, weight_dtype="bfloat16", compute_dtype="bfloat16")


def _measure(decoder: Decoder, sizes: Sizes, chunk: int) -> dict[str, Any]:
    """Units of RULER in batches, from words to scored answers; and of these the prompts alone.

    A token is a byte. No token ends an answer, so that all are as long as RULER allows.
    """
    context, B = sizes
    setting = RulerSetting(tasks=(TASK,), contexts=(context,), samples=_BATCHES * B, chunk=chunk)
    ruler = Ruler(setting, decoder, load_tokenizer(BYTES), bos=False, stop_ids=())
    for _ in range(2):  # the first time compiles
        stored = Memory()
        began = time.perf_counter()
        run_units(ruler.units, stored, batch_size=B)
        seconds = (time.perf_counter() - began) / _BATCHES
    tokens = int(np.mean([result["tokens"] for result in stored.kept.values()]))
    return {
        **sizes._asdict(),
        "tokens": tokens,
        "written": TASKS[TASK].max_tokens,
        "prompt_tokens_per_second": B * tokens / _reading_seconds(decoder, sizes, tokens, chunk),
        "answers_per_minute": 60 * B / seconds,
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
    }


def _reading_seconds(decoder: Decoder, sizes: Sizes, tokens: int, chunk: int) -> float:
    """The seconds in which a batch of prompts is read, after one that compiles."""
    generator = Generator(decoder, chunk=chunk)
    draws = np.random.default_rng(0)
    prompts = draws.integers(0, decoder.config.vocab_size, (sizes.batch_size, tokens)).tolist()
    for _ in range(2):
        began = time.perf_counter()
        jax.block_until_ready(generator.read(prompts, capacity=sizes.context))
        seconds = time.perf_counter() - began
    return seconds


def _planned(model: Model, sizes: Sizes, chunk: int) -> dict[str, float] | None:
    """The same by `rrope plan`, which leaves out the scoring of right answers."""
    chip = CHIPS.get(chip_of(jax.devices()[0].device_kind) or "")
    if chip is None:
        return None
    shape = PromptShape(sizes.context, chunk, TASKS[TASK].max_tokens)
    job = ModelEvaluation(model.config, model.rope, None, shape, sizes.batch_size)
    devices = jax.devices()[:1]
    seconds = {}
    for program in job.workloads(devices):
        demands = program.demands(program.make_mesh(devices))
        seconds[program.phase] = demands.calls * roofline(demands, chip).step
    return {
        "prompt_tokens_per_second": sizes.batch_size * sizes.context / seconds["prompt"],
        "answers_per_minute": 60 * sizes.batch_size / sum(seconds.values()),
    }
