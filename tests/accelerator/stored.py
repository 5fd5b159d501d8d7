"""A training state to an object store and back: as `rrope train` writes and reads checkpoints."""

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from rrope_jax.io.orbax.store_checkpoints import StoreCheckpoints
from rrope_jax.io.stores import StorePath
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import MeshConfig, make_mesh
from rrope_jax.train import sharded
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.step import Program, State
from tests.accelerator.call import STORE, Call, python
from tests.accelerator.planned import SMALL_SHAPES, Shape, llama, random_batch

_SECONDS = 90.0
# 370M parameters: 4.5 GB with the moments of Adam
_LARGE = Shape(llama(1024, 24, 2816), rows=4, length=1024)
# A process of its own, as the threads of a server would share an interpreter with what is timed.
_SERVER = """
import json, sys
from tests.stores.object_server import ObjectServer
print(json.dumps(ObjectServer("bucket").environment()), flush=True)
sys.stdin.read()
"""


def run(call: Call) -> None:
    """A measurement for the user's bucket, or for each protocol on loopback."""
    shape = SMALL_SHAPES["tiny"] if call.small else _LARGE
    if url := os.environ.get(STORE):
        call.measure("bucket", _SECONDS, lambda: _measure(shape, url))
        return
    for scheme in ("gs", "s3"):
        call.measure(f"loopback_{scheme}", _SECONDS, lambda scheme=scheme: _loopback(shape, scheme))


def _loopback(shape: Shape, scheme: str) -> dict[str, Any]:
    with _server():
        return _measure(shape, f"{scheme}://bucket")


@contextlib.contextmanager
def _server() -> Iterator[None]:
    """Points this process to a server on loopback, which keeps objects in memory."""
    with subprocess.Popen(
        python("-c", _SERVER), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        os.environ.update(json.loads(server.stdout.readline()))
        try:
            yield
        finally:
            server.stdin.close()


def _measure(shape: Shape, url: str) -> dict[str, Any]:
    """Writes the state after a step, reads it, and trains on from both."""
    folder = StorePath.of(url) / "rrope_accelerator"
    program = Program(
        shape.model,
        RopeSpec(head_dim=shape.model.head_size, resonance=True),
        TrainConfig(steps=100, batch_size=shape.rows, length=shape.length),
        segmented=False,
    )
    placement = sharded.make_placement(program, make_mesh(MeshConfig(), jax.devices()[:1]))
    step = sharded.lower_step(program, placement).compile()
    batch = random_batch(program, placement)
    key = jax.device_put(jax.random.key(0), placement.whole)
    state, _ = step(sharded.init_state(program, placement, key), batch, key)
    jax.block_until_ready(state)
    saved = _saved(state)
    try:
        began = time.perf_counter()
        with StoreCheckpoints(folder) as store:
            store.save(1, saved, {})
            held = time.perf_counter() - began
        written = time.perf_counter() - began
        began = time.perf_counter()
        restored = StoreCheckpoints(folder).restore(saved)
        if restored is None:
            raise ValueError(f"{folder} has no checkpoint that can be read")
        tree = jax.block_until_ready(restored[0])
        read = time.perf_counter() - began
    finally:
        folder.rmtree()
    same = jax.tree.map(lambda one, other: bool((one == other).all()), saved, tree)
    if not all(jax.tree.leaves(same)):
        raise ValueError(f"{folder}: what was read is not what was written")
    sound = jax.device_put(np.ones((), bool), placement.whole)  # a step donates its state
    resumed = State(**tree, sound=sound)
    losses = [float(step(each, batch, key)[1].loss) for each in (resumed, state)]
    if losses[0] != losses[1]:
        raise ValueError(f"{folder}: a resumed step has another loss: {losses}")
    return {
        "store": url,
        "bytes": sum(leaf.nbytes for leaf in jax.tree.leaves(saved)),
        "arrays": len(jax.tree.leaves(saved)),
        "held_seconds": held,
        "write_seconds": written,
        "read_seconds": read,
        "loss": losses[0],
    }


def _saved(state: State) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {"params": state.params, "opt_state": state.opt_state, "step": state.step}
