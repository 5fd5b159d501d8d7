"""The PosGen training step of this package beside the same one in PyTorch."""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from tests.benchmarks.timing import interleaved_medians

OURS = "rrope_jax"
PEERS = {"PyTorch eager": False, "torch.compile": True}
"""Name of a peer -> whether it is compiled."""


def flops(program: PosgenProgram) -> float:
    """Floating point operations in the matrix products of one step.

    The backward pass has two products for each one of the forward pass.
    """
    return 3 * program.train.batch_size * program.forward_flops(program.task.train_length)


def times(
    program: PosgenProgram,
    training: Training,
    *,
    peers: Collection[str],
    steps: int,
    repeats: int,
    device: str = "cpu",
) -> tuple[dict[str, float], dict[str, str]]:
    """Median seconds per step of `OURS` and of peers, `steps` of them timed as one.

    `OURS` is on JAX's first device, peers are on the one that PyTorch calls `device`.

    Returns:
      The times by name, and the reasons for those that could not be measured.
    """
    train, initial, rows_NT = _ours(program, training, steps)
    runs: dict[str, Callable[[], object]] = {OURS: train}
    left_out = {}
    if peers:
        from tests.benchmarks.torch_posgen import Trainer

        params = nnx.to_pure_dict(initial.params)
        for name in peers:
            peer = Trainer(
                program, training.spec, params, rows_NT, compiled=PEERS[name], device=device
            )
            try:
                peer.run(1)
            except RuntimeError as error:  # torch.compile without a C++ compiler, for instance
                left_out[name] = str(error).strip().split("\n")[0]
            else:
                runs[name] = functools.partial(peer.run, steps)
    medians = interleaved_medians(runs, repeats)
    return {name: seconds / steps for name, seconds in medians.items()}, left_out


def largest_difference(
    program: PosgenProgram, training: Training, steps: int = 3, *, device: str = "cpu"
) -> float:
    """Between our losses and PyTorch's in the first steps from the same weights, relative.

    Without dropout, and on 8 rows that are all in every batch, so that their order has no effect.
    """
    from tests.benchmarks.torch_posgen import Trainer

    program = dataclasses.replace(
        program,
        task=dataclasses.replace(program.task, train_sequences=8),
        model=dataclasses.replace(program.model, dropout=0.0),
        train=dataclasses.replace(program.train, batch_size=8),
    )
    train, initial, rows_NT = _ours(program, training, steps)
    params = nnx.to_pure_dict(initial.params)
    peer = Trainer(program, training.spec, params, rows_NT, compiled=False, device=device)
    ours_S, theirs_S = np.array(train()), np.array(peer.run(steps))
    return float(np.max(np.abs(ours_S - theirs_S) / theirs_S))


def _ours(
    program: PosgenProgram, training: Training, steps: int
) -> tuple[Callable[[], list[float]], PosgenState, np.ndarray[Any, Any]]:
    """What trains on for `steps` steps, the state that it starts from, and the training rows."""
    data_key, init_key, train_key = jax.random.split(jax.random.key(training.seed), 3)
    rows_NT = jax.jit(lambda key: program.task.data(training.task, key).train_NT)(data_key)
    initial: PosgenState = jax.jit(program.init)(init_key)
    table = program.tables(training.spec, program.task.train_length)
    # as rrope_jax.posgen.ablation does
    jitted = jax.jit(functools.partial(program.train_steps, steps=steps), donate_argnums=0)
    state = jax.tree.map(jnp.copy, initial)

    def train() -> list[float]:
        nonlocal state
        state, losses_S = jitted(state, rows_NT, table, train_key)
        losses: list[float] = losses_S.tolist()
        return losses

    return train, initial, np.asarray(rows_NT)
