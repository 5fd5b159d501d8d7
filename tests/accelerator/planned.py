"""Steps of `rrope train` on one device: what `rrope plan` says they take, and what they take."""

import dataclasses
import statistics
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from rrope_jax.io.adapters.config import LoraConfig
from rrope_jax.model import ModelConfig
from rrope_jax.model.presets import PRESETS
from rrope_jax.planning.chips import CHIPS, Chip
from rrope_jax.planning.roofline.step_time import Roofline
from rrope_jax.planning.roofline.traffic import traffic_of_call
from rrope_jax.planning.workload import Demands, TextTraining
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import MeshConfig
from rrope_jax.train import sharded
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.step import Program
from tests.accelerator.call import Call, SkippedError

_SECONDS = 60.0


class Shape(NamedTuple):
    """A decoder of LLaMA's layers, and a batch.

    Attributes:
      model: its sizes.
      rows, length: of the batch.
      lora: which parameters are trained; by default all of them.
    """

    model: ModelConfig
    rows: int
    length: int
    lora: LoraConfig = LoraConfig()


def llama(d_model: int, num_layers: int, d_ff: int, **fields: Any) -> ModelConfig:
    """A decoder of LLaMA's layers with bfloat16 products."""
    shape: dict[str, Any] = {
        "vocab_size": 32_000,
        "d_model": d_model,
        "num_layers": num_layers,
        "num_heads": d_model // 128,
        "d_ff": d_ff,
        "compute_dtype": "bfloat16",
    }
    return ModelConfig(**shape | fields)


# as in configs/lora_llama3_8b.py
_LORA = LoraConfig(rank=8, train_also=("norm", "embed"), base_dtype="bfloat16")
_LLAMA3_8B = dataclasses.replace(
    PRESETS["llama3_8b"].model, num_layers=8, compute_dtype="bfloat16", remat="full"
)
SHAPES = {
    "1B": Shape(llama(2048, 16, 5632), rows=8, length=2048),
    "1B, remat full": Shape(llama(2048, 16, 5632, remat="full"), rows=8, length=2048),
    "7B, 4 of 32 layers": Shape(llama(4096, 4, 11_008), rows=4, length=4096),
    "1B, 32K tokens": Shape(llama(2048, 16, 5632, remat="full"), rows=1, length=32_768),
    "8B by LoRA, 8 of 32 layers": Shape(_LLAMA3_8B, rows=1, length=32_768, lora=_LORA),
}
_TINY = llama(256, 2, 512, vocab_size=512, num_heads=4)
SMALL_SHAPES = {
    "tiny": Shape(_TINY, rows=2, length=128),
    "tiny, chunked": Shape(_TINY, rows=1, length=1024),
    "tiny by LoRA": Shape(_TINY, rows=2, length=128, lora=_LORA),
}

_CHIPS = {
    # what JAX calls a device of the chip, the longest name first
    "TPU v5 lite": "v5e",
    "TPU v5p": "v5p",
    "TPU v6 lite": "v6e",
    "TPU v5": "v5p",
    "TPU v4": "v4",
    "TPU7x": "tpu7x",
    "A100": "a100",
    "H100": "h100",
    "H200": "h200",
    "cpu": "cpu",
}


def chip_of(device_kind: str) -> str | None:
    """The name in `--topology` of a device, or None where the planner does not know it."""
    return next((chip for name, chip in _CHIPS.items() if name in device_kind), None)


def roofline(demands: Demands, chip: Chip) -> Roofline:
    """What `rrope plan` says of a call on one device."""
    return Roofline(
        compute=demands.executed_flops / chip.peak[demands.dtype],
        memory=sum(traffic_of_call(demands).values()) / chip.memory_bandwidth,
        network={},
    )


def run(call: Call) -> None:
    """A measurement for each shape."""
    shapes = SMALL_SHAPES if call.small else SHAPES
    for name, shape in shapes.items():
        file = name.replace(",", "").replace(" ", "_")
        call.measure(file, _SECONDS, lambda name=name, shape=shape: _measure(name, shape))


def _measure(name: str, shape: Shape) -> dict[str, Any]:
    chip = CHIPS.get(chip_of(jax.devices()[0].device_kind) or "")
    if chip is None:
        raise SkippedError(f"rrope plan does not know {jax.devices()[0].device_kind}")
    program = Program(
        shape.model,
        RopeSpec(head_dim=shape.model.head_size, resonance=True),
        TrainConfig(steps=100, batch_size=shape.rows, length=shape.length),
        segmented=False,
        lora=shape.lora,
    )
    training = TextTraining(program, MeshConfig())
    mesh = training.make_mesh(jax.devices()[:1])
    demands = training.demands(mesh)
    planned = roofline(demands, chip)
    began = time.perf_counter()
    placement = sharded.make_placement(program, mesh)
    step = sharded.lower_step(program, placement).compile()
    compiled = time.perf_counter() - began
    seconds = _median_seconds(program, placement, step)
    return {
        "name": name,
        "chip": chip.title,
        "rows": shape.rows,
        "length": shape.length,
        **demands.details,
        "planned_seconds": planned.step,
        "bound_by": planned.bound_by,
        "seconds": seconds,
        "mfu": demands.model_flops / seconds / chip.peak[demands.dtype],
        "planned_peak_bytes": _peak(step),
        "peak_bytes": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "compile_seconds": compiled,
    }


def _peak(step: Any) -> int:
    """As `rrope plan` counts on GPUs: all that the program is given, gives, and works with."""
    found = step.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    total: int = found.argument_size_in_bytes + new + found.temp_size_in_bytes
    return total


def _median_seconds(
    program: Program, placement: sharded.Placement, step: Any, repeats: int = 7
) -> float:
    """Of steps one after another, each waited for; the first two do not count."""
    batch = random_batch(program, placement)
    key = jax.device_put(jax.random.key(0), placement.whole)
    state = sharded.init_state(program, placement, key)
    seconds = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        state, measures = step(state, batch, key)
        jax.block_until_ready(measures)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[2:])


def random_batch(program: Program, placement: sharded.Placement) -> dict[str, jax.Array]:
    """A batch of whole rows of random tokens, on the devices."""
    B, T = program.train.batch_size, program.train.length
    tokens_BT = np.random.default_rng(0).integers(0, program.model.vocab_size, (B, T + 1))
    rows = {
        "tokens": tokens_BT[:, :-1],
        "targets": tokens_BT[:, 1:],
        "segment_ids": np.zeros((B, T)),
        "positions": np.broadcast_to(np.arange(T), (B, T)),
        "weights": np.ones((B, T)),
    }
    return {
        name: jax.device_put(rows[name].astype(dtype), placement.rows)
        for name, dtype in sharded.BATCH_DTYPES.items()
    }
