"""The functions of a PosGen program for all trainings of a round at once, laid over the mesh.

Arrays have a leading axis of slots (S), split over the mesh axis `ablation`. A device maps a
function over its slots by `vmap`, since one small model cannot fill an accelerator; where it has
one slot, the function stays as it is, since XLA's batched products are slow on CPUs. Other letters:
see `training`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.layout import AXIS, Round, rounds, trainings_in
from rrope_jax.posgen.training import Program, State
from rrope_jax.rope import PhaseTable, phase_table

Array = jax.Array


class Inputs(NamedTuple):
    """What the slots of a round are made from, on the host.

    Attributes:
      data_key_S, init_key_S, train_key_S: random keys. They depend on the seed alone, so data,
        initial parameters and batches of methods are paired.
      table_S: those of training.
      tables_SE: those of validation and test.
    """

    data_key_S: Array
    init_key_S: Array
    train_key_S: Array
    table_S: PhaseTable
    tables_SE: PhaseTable


def inputs(program: Program, slots: Round) -> Inputs:
    """The inputs of a round. Slots without a training, or with fewer tables, repeat another one."""
    present = trainings_in(slots)
    filled = [training or present[0] for training in slots]
    most = _most_evaluations(slots)
    # the lengths matter to the scalings that depend on the current one
    trained = max(program.task.train_length, program.positions.target_length or 0)
    tested = program.task.test_length
    keys_S3 = [jax.random.split(jax.random.key(training.seed), 3) for training in filled]
    data_key_S, init_key_S, train_key_S = jnp.stack(keys_S3, axis=1)
    evaluations_SE = [
        [training.evaluations[min(index, len(training.evaluations) - 1)] for index in range(most)]
        for training in filled
    ]
    return Inputs(
        data_key_S,
        init_key_S,
        train_key_S,
        _stack([phase_table(training.spec, trained) for training in filled]),
        _stack([_stack([phase_table(e.spec, tested) for e in row]) for row in evaluations_SE]),
    )


def _most_evaluations(slots: Round) -> int:
    return max(len(training.evaluations) for training in trainings_in(slots))


def _stack(tables: Sequence[PhaseTable]) -> PhaseTable:
    return PhaseTable(*map(np.stack, zip(*tables, strict=True)))


class Lanes:
    """A program's functions, mapped over slots and jitted; all arrays are split over the mesh.

    Attributes:
      data: task, data_key_S -> `Data`.
      init: init_key_S -> state.
      train: state (which it takes over), active_S, train_SNT, table_S, train_key_S -> state,
        losses_SK. It does the K `call_steps` of the program in the slots that are active; the
        others keep their state, and their losses are 0.
      evaluate: params, rows_SNT, tables_SE -> `Measures`, whose arrays have S in front.
    """

    def __init__(self, program: Program, mesh: Mesh):
        """Nothing is compiled yet.

        Args:
          program: the setting.
          mesh: devices of this process, or of a topology that programs are only compiled for.
        """
        steps = program.train.call_steps

        def train(
            state: State, active: Array, train_NT: Array, table: PhaseTable, key: Array
        ) -> tuple[State, Array]:
            result: tuple[State, Array] = jax.lax.cond(
                active,
                lambda state: program.train_steps(state, train_NT, table, key, steps=steps),
                lambda state: (state, jnp.zeros(steps, jnp.float32)),
                state,
            )
            return result

        self._split = NamedSharding(mesh, PartitionSpec(AXIS))  # type: ignore[no-untyped-call]
        self.init = jax.jit(self._over_slots(program.init))
        self.train = jax.jit(self._over_slots(train), donate_argnums=0)
        self.evaluate = jax.jit(self._over_slots(program.evaluate))
        self.data = jax.jit(
            lambda task, key_S: self._over_slots(functools.partial(program.data, task))(key_S),
            static_argnums=0,
        )

    @property
    def devices(self) -> int:
        """Devices of the mesh."""
        return self._split.mesh.size

    def place(self, tree: Any) -> Any:
        """Lays host arrays with a leading axis of slots over the mesh."""
        return jax.device_put(tree, self._split)

    def shapes(self, tree: Any) -> Any:
        """The same without the arrays, to lower with."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
                x.shape, x.dtype, sharding=self._split
            ),
            tree,
        )

    def _over_slots(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # its name is the program's
        def of_device(*arguments: Any) -> Any:
            slots = len(jax.tree.leaves(arguments)[0])
            return (_single if slots == 1 else jax.vmap)(function)(*arguments)

        return jax.shard_map(
            of_device,
            mesh=self._split.mesh,
            in_specs=self._split.spec,
            out_specs=self._split.spec,
            check_vma=False,  # of what devices have in common, which is nothing here
        )


def _single(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like vmap over a leading axis of length 1, without a batch dimension in the program."""

    def mapped(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)

    return mapped


@dataclasses.dataclass(frozen=True)
class Phase:
    """A program of a run of a whole ablation, lowered.

    Attributes:
      name: `train`, `validate` or `test`.
      lowered: of the mesh; nothing in it is communicated.
      slots: trainings of a device in one call.
      steps: optimizer steps of each of them in one call; 0 where it does not train.
      calls: how often a run calls it, one call after another.
      flops: of a device in one call, in matrix products (`Program.forward_flops`).
    """

    name: str
    lowered: jax.stages.Lowered
    slots: int
    steps: int
    calls: int
    flops: float


def lower(
    program: Program, trainings: Sequence[Training], mesh: Mesh, *, lanes: int = 0
) -> tuple[Phase, ...]:
    """What `ablation.run` calls in its loop, from shapes alone; `compile()` is the caller's.

    Args:
      program, trainings, lanes: as for `ablation.run`.
      mesh: of devices, which may be those of a topology that programs are only compiled for.
    """
    alike: dict[tuple[int, int], list[Round]] = {}
    for slots in rounds(trainings, devices=mesh.size, lanes=lanes or default_lanes(mesh)):
        alike.setdefault((len(slots), _most_evaluations(slots)), []).append(slots)
    return tuple(phase for made in alike.values() for phase in _phases(program, made, mesh))


def _phases(program: Program, made: list[Round], mesh: Mesh) -> Iterator[Phase]:
    """Of rounds that are the same programs."""
    functions, task, config = Lanes(program, mesh), program.task, program.train
    given = functions.shapes(inputs(program, made[0]))
    rows = functools.partial(functions.data, trainings_in(made[0])[0].task)
    data = functions.shapes(jax.eval_shape(rows, given.data_key_S))
    state = functions.shapes(jax.eval_shape(functions.init, given.init_key_S))
    slots = len(made[0]) // mesh.size

    active_S = functions.shapes(np.ones(len(made[0]), bool))
    lowered = functions.train.lower(
        state, active_S, data.train_NT, given.table_S, given.train_key_S
    )
    calls = config.steps // config.call_steps
    row = 3 * program.forward_flops(task.train_length)  # the backward pass has twice as many
    flops = slots * config.call_steps * config.batch_size * row
    yield Phase("train", lowered, slots, config.call_steps, len(made) * calls, flops)
    for name, rows_SNT, calls in (
        ("validate", data.validation_NT, config.steps // config.validate_every),
        ("test", data.test_NT, 1),
    ):
        lowered = functions.evaluate.lower(state.params, rows_SNT, given.tables_SE)
        row = _most_evaluations(made[0]) * program.forward_flops(task.test_length)
        flops = slots * rows_SNT.shape[1] * row
        yield Phase(name, lowered, slots, 0, len(made) * calls, flops)


def default_lanes(mesh: Mesh) -> int:
    """For `rounds`: one training at a time on CPUs, a device's share of a task on accelerators."""
    return 1 if mesh.devices.flat[0].platform == "cpu" else 0
