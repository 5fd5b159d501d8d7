"""Evaluations over meshes of 8 simulated devices; prints what is stored, as JSON, by mesh.

python -m tests.evaluation.meshes BENCHMARK...
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from rrope_jax.evaluation.devices import every_nth
from rrope_jax.evaluation.generation import Generator, Sampling
from rrope_jax.evaluation.units import run_units
from rrope_jax.model import Decoder
from rrope_jax.sharding import AXES, MeshConfig, make_mesh
from rrope_jax.train.sharded import parameter_shardings
from tests.evaluation import test_batches
from tests.evaluation.tiny import Memory, random_tokens, tiny_decoder

MESHES = ((2, 2, 1, 2), (1, 1, 4, 2))
SOME = ("sampled", "ends")
OTHERS = ("fragments", "chunked", "sliding", "longppl", "passkey", "closed_ended")


def decoder_for(name: str) -> Decoder:
    """A model whose layers have windows, with frequencies that follow the length if it can."""
    rope = test_batches.DYNAMIC if name in ("ends", "passkey") else None
    return tiny_decoder(rope, vocab_size=258, sliding_window=5)


def results(name: str, decoder: Decoder, folder: Path) -> dict[str, Any]:
    """The results of a benchmark of `test_batches` by unit, or continuations that are drawn."""
    if name == "sampled":
        return _sampled(decoder)
    memory = Memory()
    task = getattr(test_batches, name)(decoder, 2, folder)
    run_units(task.units, memory, batch_size=2)
    return memory.kept


def _sampled(decoder: Decoder) -> dict[str, Any]:
    prompts = [random_tokens(size, size).tolist() for size in (4, 21, 11)]
    generator = Generator(decoder, chunk=16)
    cache = generator.read(prompts, capacity=32)
    # each device has its part of the cache
    rows, heads = cache.key_LBKSH.shape[1:3]
    (shape,) = {shard.data.shape for shard in cache.key_LBKSH.addressable_shards}
    assert rows * heads == shape[1] * shape[2] * len(cache.key_LBKSH.sharding.device_set)
    last_tokens = [prompt[-1] for prompt in prompts]
    sampling = Sampling(temperature=1.5)
    written = generator.generate(last_tokens, cache, max_tokens=5, sampling=sampling, seed=3)
    return {"rows": written}


def _on_mesh(decoder: Decoder, sizes: tuple[int, ...]) -> Decoder:
    """The decoder with its parameters over a mesh."""
    mesh = make_mesh(MeshConfig(**dict(zip(AXES, sizes, strict=True))))
    graph, state = nnx.split(decoder)
    shardings = parameter_shardings(decoder.config, mesh)
    params = jax.device_put(nnx.to_pure_dict(state), shardings)
    for leaf in jax.tree.leaves(params):
        np.testing.assert_array_equal(every_nth(leaf, 7), np.asarray(leaf).reshape(-1)[::7])
    nnx.replace_by_pure_dict(state, params)
    return nnx.merge(graph, state)


def _main(names: list[str]) -> None:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            found[name] = {
                "x".join(map(str, sizes)): results(
                    name, _on_mesh(decoder_for(name), sizes), Path(folder)
                )
                for sizes in MESHES
            }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    _main(sys.argv[1:])
