"""`rrope train`: trains a decoder on text, from scratch or from a checkpoint."""

import contextlib
import dataclasses
import logging
import re
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError, refusing, refusing_layouts
from rrope_jax.cli.settings import from_config
from rrope_jax.io.orbax import layout
from rrope_jax.io.orbax.checkpoint import DISK_FULL, SaveError
from rrope_jax.io.orbax.store_checkpoints import RunCheckpoints, checkpoints_of_run
from rrope_jax.io.paths import absolute, check_orbax
from rrope_jax.io.stores import StorePath, sent_to
from rrope_jax.jobs.train_setting import TrainSetting, known_fields
from rrope_jax.jobs.training_run import SOURCES_FILE, TrainingRun
from rrope_jax.run import distributed
from rrope_jax.run.distributed import JobError, Peers
from rrope_jax.run.peers import RETRYABLE
from rrope_jax.run.stopping import stopping
from rrope_jax.run.workdir import Workdir
from rrope_jax.sharding import MeshConfig
from rrope_jax.train import loop
from rrope_jax.train.layout import lay_out
from rrope_jax.train.metrics import FILE
from rrope_jax.train.step import Program

SUMMARY = "Trains a decoder on text, from scratch or continuing any checkpoint that convert reads."

# Fields that may differ in a rerun, so that a run can resume with less memory or on another disk.
_FREE = (
    # where and when the run is saved, and how its text is read: no effect on results
    *(f"checkpoint.{name}" for name in ("every_steps", "keep", "keep_every_steps")),
    "data.prefetch",
    "data.cache_dir",
    # paths of the text and the initial model, whose contents are compared instead
    "data.source",
    "data.data_dir",
    # a bound that only refuses
    "data.max_epochs",
    "checkpoint.init_from",
    # placement, chunk sizes and rematerialization, which only change rounding
    *(f"mesh.{field.name}" for field in dataclasses.fields(MeshConfig)),
    "model.remat",
    "train.loss_chunk",
    "eval.batch_size",
)
# The same of every text of a mixture, and a bound that only refuses
_FREE_OF_SOURCES = ("source", "data_dir", "max_epochs")
# These also change the dropout masks.
_FREE_WITHOUT_DROPOUT = ("model.attention", "train.accumulation")


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse("train", SUMMARY, argv, _define, known=known_fields)
    setting = from_config(TrainSetting, values.config, "config")
    steps = _steps_to_trace(values.profile, setting.train.steps)
    with refusing("--workdir"):
        if isinstance(folder := absolute(values.workdir), Path):
            check_orbax(folder, writing=True)
    return distributed.run(
        "train", lambda peers: _run(values, setting, steps, peers), preemption=True
    )


def _run(
    values: flags.FlagValues, setting: TrainSetting, steps: tuple[int, int] | None, peers: Peers
) -> int:
    """Runs the training in every process; a process that lacks a file ends all of them."""
    backend.configure_logging(logging.INFO if peers.first else logging.ERROR)
    backend.silence_orbax()
    config = values.config.to_dict()
    peers.check_same({"config": _shared(config), "--profile": values.profile})
    description = setting.describe()
    program = setting.program(description)
    with refusing_layouts():
        placement = lay_out(program, setting.mesh, setting.eval)
    run = TrainingRun.open(setting, program, placement, description)
    peers.check_same({"config.data: the text": [run.batches.state(), run.content]})
    identity, free = _identity(config, program)
    with peers.claim(values.workdir, identity, free=free) as workdir, run.batches:
        store = checkpoints_of_run(
            workdir.path / layout.CHECKPOINTS,
            keep=setting.checkpoint.keep,
            keep_every=setting.checkpoint.keep_every_steps,
        )
        with _window(steps, workdir) as window:
            done = _train(run, workdir, store, window, peers)
        if not done:
            if peers.first:
                print(
                    f"rrope train: told to stop; step {store.newest} is saved, the same command "
                    "goes on from it",
                    file=sys.stderr,
                )
            return RETRYABLE
        paths = (workdir.path / name for name in (FILE, SOURCES_FILE, layout.CHECKPOINTS))
        print("\n".join(f"wrote {path}" for path in paths if path.exists()))
    return 0


def _train(
    run: TrainingRun,
    workdir: Workdir,
    store: RunCheckpoints,
    window: loop.Window | None,
    peers: Peers,
) -> bool:
    """Trains; returns whether all steps are done.

    Raises:
      JobError: The run diverged, or a checkpoint could not be saved.
    """
    try:
        with stopping(peers) as told_to_stop:
            return run.train(workdir, store, window, told_to_stop, peers)
    except (loop.DivergedError, SaveError) as error:
        raise _failure(str(error), store) from error
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        reason = f"{error.filename or workdir.path}: {error.strerror}"
        raise _failure(reason, store) from error


def _shared(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a config that must be the same in all processes."""
    data = {name: value for name, value in config["data"].items() if name != "cache_dir"}
    return {**config, "data": data}


def _identity(
    config: Mapping[str, Any], program: Program
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Returns the workdir's identity, and the names of the fields that may differ."""
    drops = program.model.dropout or program.lora.dropout
    free = _FREE if drops else (*_FREE, *_FREE_WITHOUT_DROPOUT)
    sources: Mapping[str, Any] = config["data"].get("sources") or {}
    for place in _FREE_OF_SOURCES:
        free += tuple(f"data.sources.{name}.{place}" for name in sources)
    identity = {}
    for group, group_fields in config.items():
        fields = group_fields or {}
        bound = _without(free, fields, group)
        if bound or (not fields and not any(name.startswith(f"{group}.") for name in free)):
            identity[group] = bound
    return identity, free


def _without(free: Collection[str], fields: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Returns nested fields without those whose path is in `free`."""
    return {
        name: _without(free, value, f"{path}.{name}") if isinstance(value, Mapping) else value
        for name, value in fields.items()
        if f"{path}.{name}" not in free
    }


def _failure(reason: str, store: RunCheckpoints) -> JobError:
    newest = store.newest
    saved = "no checkpoint was made yet" if newest is None else f"step {newest} is kept"
    return JobError(f"{reason}; {saved}")


def _steps_to_trace(text: str | None, steps: int) -> tuple[int, int] | None:
    """Parses the steps of `--profile`, such as `10:12`."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]) <= steps:
        raise UsageError(
            f"--profile={text}: give the first and the last step to trace, such as 10:12, from 1 "
            f"to {steps}"
        )
    return int(match[1]), int(match[2])


@contextlib.contextmanager
def _window(steps: tuple[int, int] | None, workdir: Workdir) -> Iterator[loop.Window | None]:
    """Yields the steps to trace and where to; JAX traces to disks only."""
    folder = workdir.path / "profile"
    if steps is None:
        yield None
    elif isinstance(folder, StorePath):
        with sent_to(folder) as local:
            yield loop.Window(*steps, str(local))
    else:
        yield loop.Window(*steps, str(folder))


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "workdir",
        None,
        "folder of the metrics and checkpoints",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string(
        "profile",
        None,
        "steps to trace into WORKDIR/profile, such as 10:12",
        flag_values=values,
    )
