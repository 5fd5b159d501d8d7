"""The functions of a PosGen program for all lanes of a round at once, laid over the mesh.

Arrays have a leading axis of lanes (S, side by side), split over the mesh axis `ablation`. A device
maps a function over its lanes by `vmap`, since one small model cannot fill an accelerator. With one
lane the function stays as it is, since XLA's batched products are slow on CPUs. Other letters: see
`training`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrope_jax.posgen.config import seed_keys
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.layout import AXIS, Round, default_lanes, rounds
from rrope_jax.posgen.training import PosgenProgram, PosgenState
from rrope_jax.rope import PhaseTable, phase_table

Array = jax.Array


class RoundInputs(NamedTuple):
    """What the lanes of a round start from, on the host.

    Attributes:
      data_key_S, init_key_S, train_key_S: random keys, see `seed_keys`.
      table_S: the tables of training.
      tables_SE: those of validation and test.
    """

    data_key_S: Array
    init_key_S: Array
    train_key_S: Array
    table_S: PhaseTable
    tables_SE: PhaseTable


def inputs(program: PosgenProgram, round_: Round) -> RoundInputs:
    """The inputs of a round. Idle lanes repeat a training, missing evaluations the last one."""
    trainings = [training or round_.trainings[0] for training in round_.lanes]
    # the lengths matter to the scalings that depend on the current one
    trained = max(program.task.train_length, program.positions.target_length or 0)
    tested = program.task.test_length
    keys_S = [seed_keys(training.seed) for training in trainings]
    data_key_S, init_key_S, train_key_S = map(jnp.stack, zip(*keys_S, strict=True))
    tables_SE = []
    for training in trainings:
        tables = [phase_table(evaluation.spec, tested) for evaluation in training.evaluations]
        tables += tables[-1:] * (round_.evaluations - len(tables))
        tables_SE.append(_stack(tables))
    return RoundInputs(
        data_key_S,
        init_key_S,
        train_key_S,
        _stack([phase_table(training.spec, trained) for training in trainings]),
        _stack(tables_SE),
    )


def _stack(tables: Sequence[PhaseTable]) -> PhaseTable:
    return PhaseTable(*map(np.stack, zip(*tables, strict=True)))


class RoundFunctions:
    """A program's functions, mapped over lanes and jitted; all arrays are split over the mesh.

    Attributes:
      data: task, data_key_S -> `Data`.
      init: init_key_S -> state.
      train: state (donated), active_S, train_SNT, table_S, train_key_S -> state, losses_SK. Active
        lanes take the program's K `call_steps`; the others keep their state and have losses of 0.
      evaluate: params, rows_SNT, tables_SE -> `PositionMeans`, whose arrays have S in front.
    """

    def __init__(self, program: PosgenProgram, mesh: Mesh):
        """Compiles nothing yet.

        Args:
          program: the setting.
          mesh: devices of this process, or of a topology that programs are only compiled for.
        """
        steps = program.train.call_steps

        def train(
            state: PosgenState, active: Array, train_NT: Array, table: PhaseTable, key: Array
        ) -> tuple[PosgenState, Array]:
            result: tuple[PosgenState, Array] = jax.lax.cond(
                active,
                lambda state: program.train_steps(state, train_NT, table, key, steps=steps),
                lambda state: (state, jnp.zeros(steps, jnp.float32)),
                state,
            )
            return result

        self._split = NamedSharding(mesh, PartitionSpec(AXIS))  # type: ignore[no-untyped-call]
        self.init = jax.jit(self._over_lanes(program.init))
        self.train = jax.jit(self._over_lanes(train), donate_argnums=0)
        self.evaluate = jax.jit(self._over_lanes(program.evaluate))
        self.data = jax.jit(
            lambda task, key_S: self._over_lanes(functools.partial(program.task.data, task))(key_S),
            static_argnums=0,
        )

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self._split.mesh.size

    def place(self, tree: Any) -> Any:
        """Lays host arrays with a leading axis of lanes over the mesh."""
        return jax.device_put(tree, self._split)

    def shapes(self, tree: Any) -> Any:
        """The shapes of arrays laid over the mesh, to lower with."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
                x.shape, x.dtype, sharding=self._split
            ),
            tree,
        )

    def _over_lanes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # compiled programs are named after it
        def of_device(*arguments: Any) -> Any:
            lanes = len(jax.tree.leaves(arguments)[0])
            return (_single if lanes == 1 else jax.vmap)(function)(*arguments)

        return jax.shard_map(
            of_device,
            mesh=self._split.mesh,
            in_specs=self._split.spec,
            out_specs=self._split.spec,
            check_vma=False,  # devices have nothing in common to check
        )


def _single(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like vmap over a leading axis of length 1, without a batch dimension in the program."""

    def mapped(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)

    return mapped


@dataclasses.dataclass(frozen=True)
class Phase:
    """One compiled program of an ablation, lowered.

    Attributes:
      name: `train`, `validate` or `test`.
      lowered: for the mesh; it communicates nothing.
      lanes: trainings of a device in one call.
      steps: optimizer steps of each of them in one call; 0 where it does not train.
      calls: number of calls in the whole ablation, one after another.
      flops: of a device in one call, in matrix products (`PosgenProgram.forward_flops`).
    """

    name: str
    lowered: jax.stages.Lowered
    lanes: int
    steps: int
    calls: int
    flops: float


def lower(
    program: PosgenProgram, trainings: Sequence[Training], mesh: Mesh, *, lanes: int = 0
) -> tuple[Phase, ...]:
    """What `ablation.run` calls in its loop, from shapes alone; `compile()` is the caller's.

    Args:
      program, trainings, lanes: as for `ablation.run`.
      mesh: of devices, which may be those of a topology that programs are only compiled for.
    """
    alike: dict[tuple[int, int], list[Round]] = {}
    for each in rounds(trainings, devices=mesh.size, lanes=lanes or default_lanes(mesh)):
        alike.setdefault((len(each.lanes), each.evaluations), []).append(each)
    return tuple(
        phase for group in alike.values() for phase in _phases(program, group[0], len(group), mesh)
    )


def _phases(program: PosgenProgram, example: Round, count: int, mesh: Mesh) -> Iterator[Phase]:
    """The programs of `count` rounds that are shaped like the example."""
    functions, task, config = RoundFunctions(program, mesh), program.task, program.train
    start = functions.shapes(inputs(program, example))
    rows = functools.partial(functions.data, example.trainings[0].task)
    data = functions.shapes(jax.eval_shape(rows, start.data_key_S))
    state = functions.shapes(jax.eval_shape(functions.init, start.init_key_S))
    lanes = len(example.lanes) // mesh.size

    active_S = functions.shapes(np.ones(len(example.lanes), bool))
    lowered = functions.train.lower(
        state, active_S, data.train_NT, start.table_S, start.train_key_S
    )
    calls = config.steps // config.call_steps
    row = 3 * program.forward_flops(task.train_length)  # the backward pass has twice as many
    flops = lanes * config.call_steps * config.batch_size * row
    yield Phase("train", lowered, lanes, config.call_steps, count * calls, flops)
    for name, rows_SNT, calls in (
        ("validate", data.validation_NT, config.steps // config.validate_every),
        ("test", data.test_NT, 1),
    ):
        lowered = functions.evaluate.lower(state.params, rows_SNT, start.tables_SE)
        row = example.evaluations * program.forward_flops(task.test_length)
        flops = lanes * rows_SNT.shape[1] * row
        yield Phase(name, lowered, lanes, 0, count * calls, flops)
