"""`rrope train`: trains a decoder on text, from scratch or on from a checkpoint."""

import dataclasses
import itertools
import json
import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from rrope_jax.cli import backend
from rrope_jax.cli.configuration import UsageError, from_config, parse, refusing_layouts
from rrope_jax.data.pipeline import DataConfig, Text, TextBatches
from rrope_jax.data.tokenizers import BYTES, Tokenizer, load_tokenizer
from rrope_jax.io import pretrained
from rrope_jax.io.orbax import layout
from rrope_jax.io.orbax.checkpoint import DISK_FULL, BackgroundCheckpoints, SaveError
from rrope_jax.io.paths import check_orbax
from rrope_jax.jobs.train_config import (
    CheckpointConfig,
    group_of,
    heldout_config,
    mesh_config,
    plan_program,
)
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.methods import method_of
from rrope_jax.run import distributed
from rrope_jax.run.distributed import JobError, Peers
from rrope_jax.run.peers import RETRYABLE
from rrope_jax.run.workdir import Workdir, difference
from rrope_jax.sharding import MeshConfig
from rrope_jax.train import loop
from rrope_jax.train.heldout import Heldout
from rrope_jax.train.layout import lay_out
from rrope_jax.train.metrics import FILE, MetricsLog, NoLog, Progress
from rrope_jax.train.sharded import (
    Placement,
    begin,
    initialize,
    lower,
    restore_like,
    rows_of_process,
)
from rrope_jax.train.step import Params, Program, State

SUMMARY = "Trains a decoder on text, from scratch or continuing any checkpoint that convert reads."

_LOG = logging.getLogger(__name__)
# Fields that may differ on a rerun, so that a run goes on in less memory or on another disk.
_FREE = (
    # when and where it is saved and read, which is in no number
    *(f"checkpoint.{name}" for name in ("every_steps", "keep", "keep_every_steps")),
    "data.prefetch",
    "data.cache_dir",
    # where the text and the model it began from are: what they are is compared (`_check_content`)
    "data.source",
    "data.data_dir",
    "checkpoint.init_from",
    # what is computed at a time, where, and what is computed twice: only rounding changes
    *(f"mesh.{field.name}" for field in dataclasses.fields(MeshConfig)),
    "model.remat",
    "train.loss_chunk",
    "eval.batch_size",
)
# These also change which elements dropout drops.
_FREE_WITHOUT_DROPOUT = ("model.attention", "train.accumulation")

# What the metadata of a checkpoint hold beside the description.
_DATA, _OWED, _CONTENT = "data", "owed", "content"
_TOKENIZER, _HELDOUT = "tokenizer", "heldout"
_CONTENT_OF = {
    _TOKENIZER: "config.data: the tokenizer",
    _HELDOUT: "config.data: the held-out text",
}


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run, with its text opened but without arrays on a device.

    Attributes:
      program: the training step.
      placement: where its arrays lie.
      description: the model, as its checkpoints will describe it.
      checkpoint: see there.
      batches: the text to train on.
      heldout: the loss on held-out text, where it is wanted.
      heldout_every: steps between two of those.
      content: fingerprints of files that the config names, besides the text to train on.
    """

    program: Program
    placement: Placement
    description: pretrained.Description
    checkpoint: CheckpointConfig
    batches: TextBatches
    heldout: Heldout | None
    heldout_every: int | None
    content: Mapping[str, str | None]


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse("train", SUMMARY, argv, _define)
    return distributed.run("train", lambda peers: _run(values, peers), preemption=True)


def _run(values: flags.FlagValues, peers: Peers) -> int:
    backend.configure_logging(logging.INFO if peers.first else logging.ERROR)
    backend.silence_orbax()
    peers.check_same({"config": _shared(values.config), "--profile": values.profile})
    try:
        check_orbax(Path(os.path.abspath(values.workdir)), writing=True)
    except ValueError as error:
        raise UsageError(f"--workdir: {error}") from error
    program, description, checkpoint = plan_program(values.config)
    window = _window(values.profile, program.train.steps, values.workdir)
    with refusing_layouts():
        placement = lay_out(program, mesh_config(values.config), heldout_config(values.config))
    plan = _open_text(values.config, program, placement, description, checkpoint)
    peers.check_same({"config.data: the text": [plan.batches.state(), plan.content]})
    identity, free = _identity(values.config, program)
    with peers.claim(values.workdir, identity, free=free) as workdir, plan.batches:
        store = BackgroundCheckpoints(
            workdir.path / layout.CHECKPOINTS,
            keep=checkpoint.keep,
            keep_every=checkpoint.keep_every_steps,
        )
        try:
            with _stopping(peers) as stopping:
                done = _train(plan, workdir, store, window, stopping, peers)
        except (loop.DivergedError, SaveError) as error:
            raise _failure(str(error), store) from error
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            reason = f"{error.filename or workdir.path}: {error.strerror}"
            raise _failure(reason, store) from error
        if not done:
            if peers.first:
                print(
                    f"rrope train: told to stop; step {store.newest} is saved, the same command "
                    "goes on from it",
                    file=sys.stderr,
                )
            return RETRYABLE
        made = (workdir.path / name for name in (FILE, layout.CHECKPOINTS))
        print("\n".join(f"wrote {path}" for path in made if path.exists()))
    return 0


def _open_text(
    config: ConfigDict,
    program: Program,
    placement: Placement,
    description: pretrained.Description,
    checkpoint: CheckpointConfig,
) -> Plan:
    data = from_config(DataConfig, group_of(config, "data"), "config.data")
    evaluation = heldout_config(config)
    tokenizer = open_tokenizer(data, description)
    train = program.train
    try:
        text = Text(data, tokenizer)
        heldout = None
        if evaluation.every_steps is not None:
            documents = [tokens for _, tokens in text.heldout]
            heldout = Heldout(program, placement, evaluation, documents)
        batches = text.batches(
            batch_size=train.batch_size,
            length=train.length,
            rows=rows_of_process(placement.mesh, jax.process_index(), train.batch_size),
        )
    except (ValueError, OSError) as error:
        raise UsageError(f"config.data: {error}") from error
    content = {
        _TOKENIZER: tokenizer.fingerprint,
        _HELDOUT: None if heldout is None else heldout.fingerprint,
    }
    return Plan(
        program,
        placement,
        description,
        checkpoint,
        batches,
        heldout,
        evaluation.every_steps,
        content,
    )


def open_tokenizer(data: DataConfig, description: pretrained.Description) -> Tokenizer:
    """The tokenizer of a training; raises UsageError where it does not go with the model."""
    source = data.tokenizer or description.tokenizer
    if source is None:
        raise UsageError(
            "config.checkpoint.init_from comes without a tokenizer: name one in "
            f"config.data.tokenizer, such as a tokenizer.json or {BYTES!r}"
        )
    try:
        tokenizer = load_tokenizer(source)
    except (ValueError, OSError) as error:
        raise UsageError(f"config.data.tokenizer: {error}") from error
    try:
        return tokenizer.for_model(description.model.vocab_size)
    except ValueError as error:
        raise UsageError(f"config.data.tokenizer {error}") from error


def _shared(config: ConfigDict) -> dict[str, Any]:
    """What has to be the same for all processes."""
    shared: dict[str, Any] = config.to_dict()
    shared.get("data", {}).pop("cache_dir", None)
    return shared


def _identity(config: ConfigDict, program: Program) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What a workdir belongs to, and the keys that are no part of it."""
    free = _FREE if program.model.dropout else (*_FREE, *_FREE_WITHOUT_DROPOUT)
    identity: dict[str, Any] = config.to_dict()
    for group, name in (key.split(".") for key in free):
        fields = identity.get(group, {})
        fields.pop(name, None)
        if not fields:  # as where the config does without the group
            identity.pop(group, None)
    return identity, free


def _train(
    plan: Plan,
    workdir: Workdir,
    store: BackgroundCheckpoints,
    window: loop.Window | None,
    stopping: Callable[[], bool],
    peers: Peers,
) -> bool:
    """Restores or begins, compiles, and runs the loop; whether all steps are taken."""
    program, description = plan.program, plan.description
    _LOG.info("%s", backend.describe())
    init_key, step_key = _keys(program.train.seed, plan.placement)
    restored = _restore(plan, store, peers)
    state, owed = restored or (_begin(plan, init_key), None)
    if peers.first and description.tokenizer is not None:
        description.tokenizer.write(workdir.path / layout.TOKENIZER)
    first, steps = int(state.step), program.train.steps
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    _LOG.info("%.1f M parameters, %s", parameters / 1e6, _method(description.rope))
    if first == steps and owed is None:
        _LOG.info("all %d steps are done", steps)
        return True
    step = _compile(plan)
    peers.barrier("compiled")  # devices do not wait for each other as long as compilers take
    described = layout.description_to_json(description)

    def save(state: State, place: loop.Place, owed: loop.Record | None = None) -> None:
        log.sync()
        # a run that found a gradient that is not finite goes on from before it
        tree = {name: leaf for name, leaf in state._asdict().items() if name != "sound"}
        metadata = {
            _DATA: place,
            _OWED: owed,
            _CONTENT: plan.content,
            layout.DESCRIPTION: described,
        }
        store.save(int(state.step), tree, metadata)

    logged = first if owed is None else first - 1
    records = MetricsLog(workdir.path, after=logged) if peers.first else NoLog()
    with records as log, store:
        progress = Progress(first=logged, steps=steps)

        def report(record: Mapping[str, Any]) -> None:
            log.write(record)
            progress.report(record)

        def evaluate(params: Params) -> Mapping[str, float]:
            return {} if plan.heldout is None else plan.heldout(params, stopping)

        return loop.run(
            step,
            state,
            plan.batches,
            step_key,
            steps=steps,
            put=plan.placement.put,
            hooks=loop.Hooks(
                log=report,
                save=save,
                save_every=plan.checkpoint.every_steps,
                evaluate=evaluate,
                evaluate_every=plan.heldout_every,
                stopping=lambda number: stopping(),
                profile=window,
            ),
            owed=owed,
        )


def _keys(seed: int, placement: Placement) -> tuple[jax.Array, jax.Array]:
    """For the parameters and for the steps, on all devices."""

    def keys() -> tuple[jax.Array, jax.Array]:
        init_key, step_key = jax.random.split(jax.random.key(seed))
        return init_key, step_key

    made: tuple[jax.Array, jax.Array] = jax.jit(keys, out_shardings=placement.whole)()
    return made


def _restore(
    plan: Plan, store: BackgroundCheckpoints, peers: Peers
) -> tuple[State, loop.Record | None] | None:
    """The newest state in the workdir, with the text at its place, and what it owes to the log."""
    if peers.gather("newest checkpoint", store.newest)[0] is None:
        return None
    like = restore_like(plan.program, plan.placement)
    found = store.restore(
        {n: leaf for n, leaf in like._asdict().items() if n != "sound"},
        gather=lambda value: peers.gather("restored", value),
    )
    if found is None:
        raise UsageError(
            "--workdir has checkpoints, but none that can be read (see above); restore one, or "
            "give another --workdir to begin anew"
        )
    tree, metadata = found
    _check_content(plan, metadata)
    try:
        plan.batches.restore(metadata[_DATA])
    except ValueError as error:
        raise UsageError(f"config.data: {error}") from error
    _LOG.info("going on from step %d", tree["step"])
    state = State(**tree, sound=jax.device_put(np.ones((), bool), plan.placement.whole))
    return state, metadata.get(_OWED)


def _check_content(plan: Plan, metadata: Mapping[str, Any]) -> None:
    """Refuses to go on where a file that the config names is no longer what it was.

    Raises:
      UsageError: the message says which.
    """
    before = metadata.get(_CONTENT, {})  # checkpoints of earlier releases have none
    for name, what in _CONTENT_OF.items():
        if name in before and before[name] != plan.content[name]:
            raise UsageError(
                f"{what} is another one than when this run was saved; bring the old one back, or "
                "give another --workdir to begin anew"
            )
    try:
        saved = layout.description_from_json(metadata[layout.DESCRIPTION])
    except ValueError as error:
        raise UsageError(f"--workdir: the model of the newest checkpoint: {error}") from error
    there, here = map(layout.description_to_json, (saved, plan.description))
    free = [key for key in (*_FREE, *_FREE_WITHOUT_DROPOUT) if key.startswith("model.")]
    if (found := difference(there, json.loads(json.dumps(here)), free)) is not None:
        key, old, new = found
        raise UsageError(
            f"the model is another one than when this run was saved: {key} is {old} there and "
            f"{new} here; bring what config.checkpoint.init_from named back as it was, or give "
            "another --workdir to begin anew"
        )


def _begin(plan: Plan, key: jax.Array) -> State:
    """The state before the first step."""
    path = plan.checkpoint.init_from
    if path is None:
        return initialize(plan.program, plan.placement, key)
    try:
        params = pretrained.load_params(pretrained.open_source(path), plan.placement.params)
    except (ValueError, OSError) as error:
        raise UsageError(f"config.checkpoint.init_from: {error}") from error
    _LOG.info("continuing %s", path)
    return begin(plan.program, plan.placement, params)


def _compile(plan: Plan) -> loop.Step:
    """The step as a program of the devices, before any signal has to wait for it."""
    began = time.monotonic()
    compiled = lower(plan.program, plan.placement).compile()
    _LOG.info("compiled the step in %.0f s%s", time.monotonic() - began, _memory(compiled))
    step: loop.Step = compiled
    return step


def _memory(compiled: Any) -> str:
    """What a program needs on each device, where the backend tells."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return ""
    # the state is donated: outputs take its place
    needed = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return f"; it needs {needed / 2**30:.1f} GiB"


def _method(rope: RopeSpec) -> str:
    factor = f" by {rope.extension:g}" if rope.scaling != "none" else ""
    return f"RoPE method {method_of(rope)}{factor}"


@contextmanager
def _stopping(peers: Peers) -> Iterator[Callable[[], bool]]:
    """Lets a step end and be saved before SIGINT or SIGTERM has its effect.

    Gives what tells whether to stop now; of several processes, all have to ask equally often. Of
    one alone, a signal has its usual effect afterwards, and a second one of the same kind at once.
    Of several, all stop at the same question: JAX takes SIGTERM and agrees on it.
    """
    if peers.count > 1:

        def tell(number: int, frame: FrameType | None) -> None:
            del number, frame
            signal.raise_signal(signal.SIGTERM)

        with _handlers({signal.SIGINT: tell}):
            asked = itertools.count(1)
            yield lambda: multihost_utils.reached_preemption_sync_point(next(asked))
        return
    noted: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        noted.append(number)
        signal.signal(number, signal.SIG_DFL)

    with _handlers(dict.fromkeys((signal.SIGINT, signal.SIGTERM), note)):
        yield lambda: bool(noted)
    if noted:
        signal.raise_signal(noted[0])


@contextmanager
def _handlers(
    handlers: Mapping[signal.Signals, Callable[[int, FrameType | None], None]],
) -> Iterator[None]:
    previous = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _failure(reason: str, store: BackgroundCheckpoints) -> JobError:
    newest = store.newest
    kept = "no checkpoint was made yet" if newest is None else f"step {newest} is kept"
    return JobError(f"{reason}; {kept}")


def _window(text: str | None, steps: int, workdir: str) -> loop.Window | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]) <= steps:
        raise UsageError(
            f"--profile={text}: give the first and the last step to trace, such as 10:12, from 1 "
            f"to {steps}"
        )
    folder = os.path.join(os.path.abspath(workdir), "profile")
    return loop.Window(int(found[1]), int(found[2]), folder)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir", None, "folder of the metrics and checkpoints", flag_values=values
    )
    flags.mark_flag_as_required("workdir", flag_values=values)
    flags.DEFINE_string(
        "profile",
        None,
        "steps to trace into WORKDIR/profile, such as 10:12",
        flag_values=values,
    )
