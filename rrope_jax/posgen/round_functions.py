"""The functions of a PosGen program, mapped over all lanes of a round and sharded over the mesh.

Arrays have a leading lane axis S ("side by side"), which is split over the mesh axis `ablation`.
Each device uses `vmap` over its lanes, since a single small model cannot fill an accelerator. With
one lane there is no `vmap`, since XLA's batched matmuls are slow on CPUs. See `training` for the
other axis letters.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from rrope_jax.posgen.config import seed_keys
from rrope_jax.posgen.grid import Evaluation, Training
from rrope_jax.posgen.layout import AXIS, Round, default_lanes, rounds
from rrope_jax.posgen.training import PosgenProgram, PosgenState, Tables
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.learned import learned_spec

Array = jax.Array


class LearnedFrequenciesError(ValueError):
    """A rule of resonance has no periods for the frequencies that a training has learned."""


class RoundInputs(NamedTuple):
    """The inputs of a round, on the host.

    Attributes:
      data_key_S, init_key_S, train_key_S: Random keys from `seed_keys`.
      tables_S: Tables for training.
      tables_SE: Tables for validation and test, before what the trainings learn moves them.
    """

    data_key_S: Array
    init_key_S: Array
    train_key_S: Array
    tables_S: Tables
    tables_SE: Tables


def inputs(program: PosgenProgram, round_: Round) -> RoundInputs:
    """Makes a round's inputs; idle lanes and evaluations are padded by repeating others."""
    trainings = [training or round_.trainings[0] for training in round_.lanes]
    # Only scalings that depend on the current length use it.
    trained = max(program.task.train_length, program.positions.target_length or 0)
    keys_S = [seed_keys(training.seed) for training in trainings]
    data_key_S, init_key_S, train_key_S = map(jnp.stack, zip(*keys_S, strict=True))
    return RoundInputs(
        data_key_S,
        init_key_S,
        train_key_S,
        _stack([program.tables(training.spec, trained) for training in trainings]),
        tables_at_test(program, round_),
    )


def tables_at_test(
    program: PosgenProgram, round_: Round, log_ratios_S: Mapping[str, Any] | None = None
) -> Tables:
    """Makes the tables for validation and test, with the leading axes S and E, on the host.

    Args:
      program, round_: The trainings.
      log_ratios_S: What they have learned so far (`LearnedParams`); None for nothing.

    Raises:
      LearnedFrequenciesError: A method of the tests has no table for what was learned.
    """
    tables_SE = []
    for lane, training in enumerate(round_.lanes):
        log_ratios = None
        if log_ratios_S is not None:
            log_ratios = {name: np.asarray(ratio_S[lane]) for name, ratio_S in log_ratios_S.items()}
        tested = training or round_.trainings[0]
        tables = [
            program.tables(
                _spec_of_lane(program, tested, each, log_ratios), program.task.test_length
            )
            for each in tested.evaluations
        ]
        tables += tables[-1:] * (round_.evaluations - len(tables))
        tables_SE.append(_stack(tables))
    return _stack(tables_SE)


def spec_at_test(
    program: PosgenProgram, evaluation: Evaluation, log_ratios: Mapping[str, Any] | None
) -> RopeSpec:
    """Returns the embedding of an evaluation, with the frequencies that a training has learned."""
    if log_ratios is None:
        return evaluation.spec
    return learned_spec(evaluation.spec, log_ratios, program.task.train_length)


def _spec_of_lane(
    program: PosgenProgram,
    training: Training,
    evaluation: Evaluation,
    log_ratios: Mapping[str, Any] | None,
) -> RopeSpec:
    """`spec_at_test`, whose errors name the training."""
    try:
        return spec_at_test(program, evaluation, log_ratios)
    except ValueError as error:
        raise LearnedFrequenciesError(
            f"method {evaluation.method!r} has no table for the frequencies that {training.name} "
            f"has learned: {error}"
        ) from error


def programs(program: PosgenProgram) -> dict[bool, PosgenProgram]:
    """Returns the programs of an ablation: whether trainings learn their frequencies -> program."""
    return {learned: dataclasses.replace(program, learned=learned) for learned in (False, True)}


def _stack(tables: Sequence[Tables]) -> Tables:
    stacked: Tables = jax.tree.map(lambda *arrays: np.stack(arrays), *tables)
    return stacked


class RoundFunctions:
    """A program's functions, mapped over lanes and jitted; all arrays are split over the mesh.

    Attributes:
      data: (task, data_key_S) -> `Data`.
      init: init_key_S -> state.
      train: (state (donated), active_S, train_SNT, tables_S, train_key_S) -> (state, losses_SK).
        Active lanes take K = `call_steps` steps; inactive ones keep their state, with losses of 0.
      evaluate: (params, rows_SNT, tables_SE) -> `PositionMeans` with a leading axis S.
    """

    def __init__(self, program: PosgenProgram, mesh: Mesh):
        """Does not compile anything yet.

        Args:
          program: The setting.
          mesh: Devices of this process, or of a topology to compile for.
        """
        steps = program.train.call_steps

        def train(
            state: PosgenState, active: Array, train_NT: Array, tables: Tables, key: Array
        ) -> tuple[PosgenState, Array]:
            result: tuple[PosgenState, Array] = jax.lax.cond(
                active,
                lambda state: program.train_steps(state, train_NT, tables, key, steps=steps),
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
        """Number of devices of the mesh."""
        return self._split.mesh.size

    def place(self, tree: Any) -> Any:
        """Shards host arrays with a leading lane axis over the mesh."""
        return jax.device_put(tree, self._split)

    def shapes(self, tree: Any) -> Any:
        """Returns the sharded shapes of arrays, for lowering."""
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(  # type: ignore[no-untyped-call]
                x.shape, x.dtype, sharding=self._split
            ),
            tree,
        )

    def _over_lanes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)  # names the compiled program
        def of_device(*arguments: Any) -> Any:
            lanes = len(jax.tree.leaves(arguments)[0])
            return (_single if lanes == 1 else jax.vmap)(function)(*arguments)

        return jax.shard_map(
            of_device,
            mesh=self._split.mesh,
            in_specs=self._split.spec,
            out_specs=self._split.spec,
            check_vma=False,  # nothing is replicated between devices
        )


def _single(function: Callable[..., Any]) -> Callable[..., Any]:
    """Like `vmap` over a leading axis of length 1, without a batch dimension in the program."""

    def mapped(*arguments: Any) -> Any:
        result = function(*jax.tree.map(lambda x: x[0], arguments))
        return jax.tree.map(lambda x: x[None], result)

    return mapped


@dataclasses.dataclass(frozen=True)
class Phase:
    """A lowered program of an ablation.

    Attributes:
      name: `train`, `validate` or `test`.
      lowered: The program for the mesh, without communication.
      lanes: Trainings per device in one call.
      steps: Optimizer steps per training in one call; 0 for validation and test.
      calls: Number of consecutive calls in the whole ablation.
      length: Tokens of a row.
      flops: Matmul FLOPs per device in one call (`PosgenProgram.forward_flops`).
    """

    name: str
    lowered: jax.stages.Lowered
    lanes: int
    steps: int
    calls: int
    length: int
    flops: float


def lower(
    program: PosgenProgram, trainings: Sequence[Training], mesh: Mesh, *, lanes: int = 0
) -> tuple[Phase, ...]:
    """Lowers the programs that `ablation.run` calls, from shapes only; the caller compiles them.

    Args:
      program, trainings, lanes: As for `ablation.run`.
      mesh: The mesh; its devices may be those of a topology to compile for.
    """
    alike: dict[tuple[bool, int, int], list[Round]] = {}
    for each in rounds(trainings, devices=mesh.size, lanes=lanes or default_lanes(mesh)):
        alike.setdefault((each.learned, len(each.lanes), each.evaluations), []).append(each)
    kinds = programs(program)
    return tuple(
        phase
        for (learned, *_), group in alike.items()
        for phase in _phases(kinds[learned], group[0], len(group), mesh)
    )


def _phases(program: PosgenProgram, example: Round, count: int, mesh: Mesh) -> Iterator[Phase]:
    """Yields the programs of `count` rounds with the shapes of the example."""
    functions, task, config = RoundFunctions(program, mesh), program.task, program.train
    start = functions.shapes(inputs(program, example))
    rows = functools.partial(functions.data, example.trainings[0].task)
    train_data, *measured = functions.shapes(jax.eval_shape(rows, start.data_key_S))
    state = functions.shapes(jax.eval_shape(functions.init, start.init_key_S))
    lanes = len(example.lanes) // mesh.size

    active_S = functions.shapes(np.ones(len(example.lanes), bool))
    lowered = functions.train.lower(state, active_S, train_data, start.tables_S, start.train_key_S)
    calls = config.steps // config.call_steps
    row = 3 * program.forward_flops(task.train_length)  # a backward pass costs 2 forward passes
    flops = lanes * config.call_steps * config.batch_size * row
    length = task.train_length
    yield Phase("train", lowered, lanes, config.call_steps, count * calls, length, flops)
    validations = config.steps // config.validate_every
    for name, rows_SNT, calls in zip(("validate", "test"), measured, (validations, 1), strict=True):
        lowered = functions.evaluate.lower(state.params, rows_SNT, start.tables_SE)
        number, length = program.measured_rows(rows_SNT)
        flops = lanes * number * example.evaluations * program.forward_flops(length)
        yield Phase(name, lowered, lanes, 0, count * calls, length, flops)
