"""A run of `rrope train`: opens its text, restores its state, and trains."""

import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax.nnx.traversals import flatten_mapping, unflatten_mapping

from rrope_jax.cli import backend
from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.data.mixture import MixedBatches, Mixture, SourceReading, open_text
from rrope_jax.data.pipeline import Text, TextBatches
from rrope_jax.io import pretrained
from rrope_jax.io.adapters import start
from rrope_jax.io.adapters import trained as adapters
from rrope_jax.io.adapters.adapter import Base
from rrope_jax.io.orbax import checksums, layout
from rrope_jax.io.orbax.checkpoint import SaveError
from rrope_jax.io.orbax.store_checkpoints import RunCheckpoints
from rrope_jax.io.paths import absolute
from rrope_jax.io.weights import parameter_shapes
from rrope_jax.jobs.train_setting import TrainSetting
from rrope_jax.reporting.table import table
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.learned import learned_spec
from rrope_jax.rope.methods import method_of
from rrope_jax.run.distributed import Peers
from rrope_jax.run.identity import difference
from rrope_jax.run.workdir import Workdir
from rrope_jax.train import loop
from rrope_jax.train.heldout import Heldout
from rrope_jax.train.metrics import MetricsLog, NoLog, Progress, log_of_run
from rrope_jax.train.sharded import (
    Placement,
    frozen_of,
    init_state,
    lower_step,
    rows_of_process,
    sharded_state_shapes,
    state_from_params,
)
from rrope_jax.train.step import Program, State

_LOG = logging.getLogger(__name__)

SOURCES_FILE = "sources.json"
"""The file, in the workdir, with what was read of each text if there are several."""

FREE_MODEL_FIELDS = ("model.remat", "model.attention")
"""Model fields that only change rounding, so they may differ from a checkpoint's."""

# Keys of a checkpoint's metadata, besides the description.
_DATA, _OWED, _CONTENT = "data", "owed", "content"
_BEFORE_LEARNING = "description_before_learning"
_TOKENIZER, _HELDOUT = "tokenizer", "heldout"
_CONTENT_OF = {
    _TOKENIZER: "config.data: the tokenizer",
    _HELDOUT: "config.data: the held-out text",
}


@dataclasses.dataclass(frozen=True)
class TrainingRun:
    """A run whose text is open but whose arrays are not on a device yet.

    Attributes:
      setting: The config.
      program: The training step.
      placement: Sharding of the arrays.
      description: The model, as its checkpoints will describe it.
      batches: The training text.
      heldout: Measures the loss on held-out text; None to skip it.
      content: Fingerprints of the tokenizer and the held-out text.
    """

    setting: TrainSetting
    program: Program
    placement: Placement
    description: pretrained.Description
    batches: TextBatches
    heldout: Heldout | None
    content: Mapping[str, str | None]

    @classmethod
    def open(
        cls,
        setting: TrainSetting,
        program: Program,
        placement: Placement,
        description: pretrained.Description,
    ) -> "TrainingRun":
        """Opens the tokenizer and the text; raises UsageError if one of them is wrong."""
        tokenizer = setting.open_tokenizer(description)
        train = program.train
        with refusing("config.data"):
            text = open_text(setting.data, tokenizer)
            heldout = None
            if setting.eval.every_steps is not None:
                heldout = Heldout(program, placement, setting.eval, _heldout(text))
            batches = text.batches(
                batch_size=train.batch_size,
                length=train.length,
                rows=rows_of_process(placement.mesh, jax.process_index(), train.batch_size),
                steps=train.steps,
            )
        content = {
            _TOKENIZER: tokenizer.fingerprint,
            _HELDOUT: None if heldout is None else heldout.fingerprint,
        }
        return cls(setting, program, placement, description, batches, heldout, content)

    def train(
        self,
        workdir: Workdir,
        store: RunCheckpoints,
        window: loop.Window | None,
        stopping: Callable[[], bool],
        peers: Peers,
    ) -> bool:
        """Restores or initializes the state, then trains; returns whether all steps are done."""
        program, description = self.program, self.description
        _LOG.info("%s", backend.describe())
        init_key, step_key = _keys(program.train.seed, self.placement)
        restored = self._restore(store, peers)
        state, saved = restored or (self._begin(init_key), {})
        owed, adapter = saved.get(_OWED), self._adapter(state, saved)
        if peers.first and description.tokenizer is not None:
            description.tokenizer.write(workdir.path / layout.TOKENIZER)
        first, steps = int(state.step), program.train.steps
        learned = ", frequencies learned" if state.log_ratios is not None else ""
        _LOG.info("%s, %s%s", _sizes(state), _method(description.rope), learned)
        if first == steps and owed is None:
            _LOG.info("all %d steps are done", steps)
            self._report_sources(workdir, peers)
            return True
        step = self._compile()
        peers.barrier("compiled")  # compilation may take longer than devices wait for each other
        logged = first if owed is None else first - 1
        records = log_of_run(workdir.path, after=logged) if peers.first else NoLog()
        with records as log, store:
            progress = Progress(first=logged, steps=steps)
            hooks = self._hooks(store, log, progress, window, stopping, adapter)
            done = loop.run(
                step,
                state,
                self.batches,
                step_key,
                steps=steps,
                put=self.placement.put,
                hooks=hooks,
                owed=owed,
            )
        self._report_sources(workdir, peers)
        return done

    def _report_sources(self, workdir: Workdir, peers: Peers) -> None:
        """Writes what was read of each text, if there are several."""
        if not isinstance(self.batches, MixedBatches) or not peers.first:
            return
        readings = self.batches.read()
        _LOG.info("read of each text:\n%s", _sources_table(readings))
        workdir.write_json(SOURCES_FILE, [reading._asdict() for reading in readings])

    def _hooks(
        self,
        store: RunCheckpoints,
        log: MetricsLog | NoLog,
        progress: Progress,
        window: loop.Window | None,
        stopping: Callable[[], bool],
        adapter: Mapping[str, Any] | None,
    ) -> loop.Hooks:
        def save(state: State, data_state: loop.DataState, owed: loop.Record | None = None) -> None:
            log.sync()
            metadata = {
                _DATA: data_state,
                _OWED: owed,
                _CONTENT: self.content,
                layout.DESCRIPTION: layout.description_to_json(self._learned(state)),
            }
            if state.log_ratios is not None:
                metadata[_BEFORE_LEARNING] = layout.description_to_json(self.description)
            if adapter is not None:
                metadata[layout.ADAPTER] = adapter
            store.save(int(state.step), _saved(state), metadata)

        def report(record: Mapping[str, Any]) -> None:
            log.write(record)
            progress.report(record)

        def evaluate(state: State) -> Mapping[str, float]:
            if self.heldout is None:
                return {}
            tables = None
            if state.log_ratios is not None:
                tables = self.program.tables(self._learned(state).rope, self.heldout.length)
            return self.heldout(self.program.decoder_params(state), stopping, tables)

        return loop.Hooks(
            log=report,
            save=save,
            save_every=self.setting.checkpoint.every_steps,
            evaluate=evaluate,
            evaluate_every=self.setting.eval.every_steps,
            stopping=lambda number: stopping(),
            profile=window,
        )

    def _learned(self, state: State) -> pretrained.Description:
        """Describes the model with the frequencies that it has learned, if it learns any.

        Raises:
          SaveError: The rule of resonance has no periods for them.
        """
        if state.log_ratios is None:
            return self.description
        log_ratios = {name: np.asarray(ratio_F) for name, ratio_F in state.log_ratios.items()}
        description = self.description
        try:
            rope = learned_spec(description.rope, log_ratios, description.context)
        except ValueError as error:
            raise SaveError(
                f"the frequencies that step {state.step} has learned: {error}", own=True
            ) from error
        return dataclasses.replace(description, rope=rope)

    def _restore(
        self, store: RunCheckpoints, peers: Peers
    ) -> tuple[State, Mapping[str, Any]] | None:
        """Restores the newest checkpoint, including the position in the text.

        Returns:
          The state and the checkpoint's metadata, or None if the workdir has no checkpoint.
        """
        if peers.gather("newest checkpoint", store.newest)[0] is None:
            return None
        like = sharded_state_shapes(self.program, self.placement)
        restored = store.restore(
            _saved(like),
            gather=lambda value: peers.gather("restored", value),
        )
        if restored is None:
            raise UsageError(
                "--workdir has checkpoints, but none that can be read (see above); restore one, or "
                "give another --workdir to begin anew"
            )
        tree, metadata = restored
        self._check_content(metadata)
        with refusing("config.data"):
            self.batches.restore(metadata[_DATA])
        _LOG.info("going on from step %d", tree["step"])
        frozen = None
        if self.program.lora.rank:
            frozen = frozen_of(self.program, self.placement, self._initial_params())
        sound = jax.device_put(np.ones((), bool), self.placement.whole)
        return State(**tree, sound=sound, frozen=frozen), metadata

    def _check_content(self, metadata: Mapping[str, Any]) -> None:
        """Checks that the files named by the config are those that the checkpoint was made with.

        Raises:
          UsageError: A file or the model has changed; the message says which.
        """
        saved_content = metadata.get(_CONTENT, {})  # checkpoints of earlier releases have none
        for name, what in _CONTENT_OF.items():
            if name in saved_content and saved_content[name] != self.content[name]:
                raise UsageError(
                    f"{what} is another one than when this run was saved; bring the old one back, "
                    "or give another --workdir to begin anew"
                )
        with refusing("--workdir: the model of the newest checkpoint"):
            described = metadata.get(_BEFORE_LEARNING, metadata[layout.DESCRIPTION])
            saved = layout.description_from_json(described)
        if saved.family is None:  # older runs do not say which it is
            saved = dataclasses.replace(saved, family=self.description.family)
        there, here = map(layout.description_to_json, (saved, self.description))
        changed = difference(there, here, FREE_MODEL_FIELDS)
        if changed is not None:
            key, old, new = changed
            raise UsageError(
                f"the model is another one than when this run was saved: {key} is {old} there and "
                f"{new} here; bring what config.checkpoint.init_from named back as it was, or give "
                "another --workdir to begin anew"
            )

    def _begin(self, key: jax.Array) -> State:
        """Returns the state before the first step."""
        if self.setting.source is None:
            return init_state(self.program, self.placement, key)
        params, adapted = self._initial_params(), self.setting.adapted
        _LOG.info("continuing %s", self.setting.checkpoint.init_from)
        factors = None
        if adapted is not None:
            factors = start.factors(adapted.adapter, self.program.lora, self.program.model)
            _LOG.info("with the adapter of %s", self.setting.checkpoint.adapter_from)
        return state_from_params(self.program, self.placement, params, key, factors)

    def _initial_params(self) -> dict[str, Any]:
        """Loads the parameters of the checkpoint that the config continues.

        What is trained beside adapters is that of the adapter to go on with, if there is one.
        """
        source, config, shardings = self.setting.source, self.program.lora, self.placement.params
        assert source is not None
        dtype = config.base_dtype if config.rank else "float32"
        with refusing("config.checkpoint.init_from"):
            params = pretrained.load_params(source, shardings, weight_dtype=dtype)
            flat, flat_shardings = map(flatten_mapping, (params, shardings))
            for weight in parameter_shapes(self.program.model):
                if weight.path in config.trained_in_full:  # not rounded, like all that is trained
                    path = tuple(weight.path.split("."))
                    exact = self.setting.adapted or source
                    flat[path] = exact.parameter(weight, flat_shardings[path])
        whole: dict[str, Any] = unflatten_mapping(flat)
        return whole

    def _adapter(self, state: State, saved: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """Describes the adapter and its base, for checkpoints; None without LoRA.

        Args:
          state: the state, whose frozen parameters are those of the base.
          saved: the metadata of the checkpoint that it is from; empty for none.

        Raises:
          UsageError: the base is another one than when the checkpoint was saved.
        """
        if state.frozen is None:
            return None
        config, path = self.program.lora, self.setting.checkpoint.init_from
        assert path is not None
        base = Base(str(absolute(path)), config.base_dtype, checksums.of_tree(state.frozen))
        adapted = self.setting.adapted
        started = None if adapted is None else adapted.adapter.base
        if not saved and started is not None and started.checksums != base.checksums:
            raise UsageError(
                f"config.checkpoint.init_from = {path!r} is another model than the one that "
                f"config.checkpoint.adapter_from was trained on, which was at {started.path}; "
                "name that one"
            )
        described = saved.get(layout.ADAPTER)
        if described is not None and described["base"]["checksums"] != base.checksums:
            raise UsageError(
                f"config.checkpoint.init_from = {path!r} is another model than the one that this "
                f"run adapts, which was at {described['base']['path']}; bring that back, or give "
                "another --workdir to begin anew"
            )
        return adapters.to_json(config, base)

    def _compile(self) -> loop.Step:
        """Compiles the step ahead of time, so that a stop request need not wait for it later."""
        began = time.monotonic()
        compiled = lower_step(self.program, self.placement).compile()
        _LOG.info("compiled the step in %.0f s%s", time.monotonic() - began, _memory(compiled))
        step: loop.Step = compiled
        return step


def _heldout(text: Text | Mixture) -> list[np.ndarray] | dict[str, list[np.ndarray]]:
    """Returns the tokens of the held-out documents, by text if there are several."""
    if isinstance(text, Text):
        return [tokens for _, tokens in text.heldout]
    return {
        name: [tokens for _, tokens in documents]
        for name, documents in text.heldout_by_source.items()
    }


def _sources_table(readings: Sequence[SourceReading]) -> str:
    lines = [
        (
            each.name,
            f"{each.rows:,}",
            f"{each.targets:,}",
            f"{each.share:.2%}",
            f"{each.epochs:.3g}",
        )
        for each in readings
    ]
    return table(("text", "rows", "targets", "share", "epochs"), lines)


def _saved(state: State) -> dict[str, Any]:
    """Returns the parts of a state that checkpoints have."""
    # `sound` is not saved: a run with a non-finite gradient resumes from before it
    parts = state._asdict().items()
    unsaved = ("sound", "frozen")  # what is frozen is in the checkpoint that the run continues
    return {name: leaf for name, leaf in parts if name not in unsaved and leaf is not None}


def _sizes(state: State) -> str:
    """Says how many parameters are trained, and how many are not."""
    trained, frozen = (
        sum(leaf.size for leaf in jax.tree.leaves(tree)) / 1e6
        for tree in (state.params, state.frozen)
    )
    beside = f" beside {frozen:.1f} M frozen ones" if frozen else ""
    return f"{trained:.1f} M parameters{beside}"


def _keys(seed: int, placement: Placement) -> tuple[jax.Array, jax.Array]:
    """Returns the random keys of the parameters and of the steps, on all devices."""

    def split() -> tuple[jax.Array, jax.Array]:
        init_key, step_key = jax.random.split(jax.random.key(seed))
        return init_key, step_key

    keys: tuple[jax.Array, jax.Array] = jax.jit(split, out_shardings=placement.whole)()
    return keys


def _memory(compiled: Any) -> str:
    """Describes the memory that a program needs per device, if the backend reports it."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return ""
    # The state is donated, so outputs reuse its memory.
    needed = analysis.argument_size_in_bytes + analysis.temp_size_in_bytes
    return f"; it needs {needed / 2**30:.1f} GiB"


def _method(rope: RopeSpec) -> str:
    factor = f" by {rope.extension:g}" if rope.scaling != "none" else ""
    return f"RoPE method {method_of(rope)}{factor}"
