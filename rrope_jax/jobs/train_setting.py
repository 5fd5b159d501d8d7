"""The setting, model and program that a config of `rrope train` describes."""

import dataclasses
import functools
import os
from typing import Annotated, Any

from ml_collections import ConfigDict

from rrope_jax.cli import config_file
from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.cli.settings import Fields, SomeOf, build, unset_group
from rrope_jax.data.config import DataConfig, MixtureConfig, WeightedSource
from rrope_jax.data.tokenizers import BYTES, Tokenizer, load_tokenizer, read_files
from rrope_jax.io import pretrained
from rrope_jax.io.adapters.adapter import AdaptedSource
from rrope_jax.io.adapters.config import LoraConfig
from rrope_jax.io.adapters.start import check_trainable
from rrope_jax.io.source import Source
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.jobs.rope_fields import extend, new_spec
from rrope_jax.jobs.rope_groups import RopeFields
from rrope_jax.model import ModelConfig
from rrope_jax.model.presets import PRESETS, Preset
from rrope_jax.sharding import MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.step import Program

# Fields of the model that must agree if a config names both a preset and a checkpoint.
_SIZES = (
    *("vocab_size", "d_model", "num_layers", "num_heads", "kv_heads", "head_size", "d_ff"),
    *("activation", "qkv_bias", "qk_norm", "norm_placement"),
)


# What a run may change of a checkpoint's model; weights of fewer bits are not trained.
_SETTABLE = tuple(name for name in pretrained.OVERRIDABLE if name != "weight_dtype")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Where a run starts, and which checkpoints it keeps.

    Attributes:
      init_from: Checkpoint of any format to continue; None trains a new model.
      adapter_from: With LoRA, the adapter of `init_from` to go on with: a PEFT folder, or the
        workdir of a run with LoRA; None trains a new one.
      every_steps: Steps between checkpoints. The last step and the step at which a run stops early
        are always saved.
      keep: Number of most recent checkpoints to keep.
      keep_every_steps: Also keep checkpoints at multiples of this many steps; None for no others.

    Raises:
      ValueError: A number is not positive.
    """

    init_from: str | None = None
    adapter_from: str | None = None
    every_steps: int = 100
    keep: int = 2
    keep_every_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


@dataclasses.dataclass(frozen=True)
class PresetName:
    """The key of `config.model` that is not a field of ModelConfig.

    Attributes:
      preset: A key of `PRESETS`.
    """

    preset: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainSetting:
    """A config of `rrope train`.

    Attributes:
      model: `preset`, and fields of ModelConfig, which a preset or a checkpoint may complete.
      rope: Fields of RopeSpec, which a preset or a checkpoint may complete.
      data, train, lora, mesh, checkpoint, eval: The groups of these names; see their dataclasses.

    Raises:
      UsageError: Groups contradict each other, or the preset is unknown.
    """

    model: Annotated[Fields, SomeOf(ModelConfig, PresetName)] = dataclasses.field(
        default_factory=dict
    )
    rope: RopeFields = dataclasses.field(default_factory=dict)
    data: MixtureConfig | DataConfig
    train: TrainConfig
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    eval: HeldoutConfig = dataclasses.field(default_factory=HeldoutConfig)

    def __post_init__(self) -> None:
        name = self.model.get("preset")
        if name is not None and name not in PRESETS:
            raise UsageError(
                f"config.model.preset = {name!r} is unknown; choose from {', '.join(PRESETS)}"
            )
        if self.lora.rank and self.checkpoint.init_from is None:
            raise UsageError(
                f"config.lora.rank={self.lora.rank}, but there is no model to adapt: name its "
                "checkpoint in config.checkpoint.init_from"
            )
        if self.checkpoint.adapter_from is not None and not self.lora.rank:
            raise UsageError(
                f"config.checkpoint.adapter_from = {self.checkpoint.adapter_from!r}, but "
                "config.lora.rank=0 trains no adapter; give config.lora the adapter's rank, alpha "
                "and targets, or merge it (rrope convert --adapter) and name that in init_from"
            )
        if self.eval.every_steps is not None and not self.data.holds_out:
            raise UsageError(
                f"config.eval.every_steps={self.eval.every_steps}, but no text is held out: name "
                "documents in config.data.heldout, or set config.data.heldout_share"
            )

    @functools.cached_property
    def source(self) -> Source | None:
        """The checkpoint to continue, opened and checked once; None for a new model.

        Raises:
          UsageError: The checkpoint cannot be read.
        """
        if self.checkpoint.init_from is None:
            return None
        with refusing("config.checkpoint.init_from"):
            source = pretrained.open_source(self.checkpoint.init_from)
            source.check()
            return source

    @functools.cached_property
    def adapted(self) -> AdaptedSource | None:
        """`source` with the adapter to go on with, opened and checked once; None without one.

        Raises:
          UsageError: The adapter cannot be read, or is not of `source` or not that of `lora`.
        """
        source, folder = self.source, self.checkpoint.adapter_from
        if folder is None:
            return None
        assert source is not None
        with refusing("config.checkpoint.adapter_from"):
            adapted = pretrained.open_adapted(source, folder)
            adapted.check()
            check_trainable(adapted.adapter, self.lora, source.description.model)
            return adapted

    @property
    def preset(self) -> Preset | None:
        """The preset that the config names, or None."""
        return PRESETS[self.model["preset"]] if "preset" in self.model else None

    @property
    def model_fields(self) -> dict[str, Any]:
        """The fields of ModelConfig that the config sets."""
        return {name: value for name, value in self.model.items() if name != "preset"}

    def describe(self, *, elsewhere: bool = False) -> pretrained.Description:
        """Describes the model; reads the tokenizer and the checkpoint's metadata, but no weights.

        Args:
          elsewhere: Whether the run is planned for another machine. If so, files that the config
            names may be missing here; a preset, if there is one, takes their place.

        Raises:
          UsageError: The config or the checkpoint is wrong; the message names the key.
        """
        path = self.checkpoint.init_from
        if elsewhere and self.preset and not is_here(path or self.data.tokenizer):
            if path is not None:
                self._check_overridable()
            return self._of_preset(self.preset)
        return self._new_model() if path is None else self._continued_model(path)

    def program(self, description: pretrained.Description) -> Program:
        """Returns the training step of the model.

        Raises:
          UsageError: The groups contradict each other.
        """
        with refusing("config"):
            return Program(
                description.model, description.rope, self.train, self.data.segmented, self.lora
            )

    def open_tokenizer(self, description: pretrained.Description) -> Tokenizer:
        """Opens the tokenizer of the run; raises UsageError if it does not fit the model."""
        source = self.data.tokenizer or description.tokenizer
        if source is None:
            raise UsageError(
                "config.checkpoint.init_from comes without a tokenizer: name one in "
                f"config.data.tokenizer, such as a tokenizer.json or {BYTES!r}"
            )
        with refusing("config.data.tokenizer"):
            tokenizer = load_tokenizer(source)
        try:
            return tokenizer.for_model(description.model.vocab_size)
        except ValueError as error:
            raise UsageError(f"config.data.tokenizer {error}") from error

    def _of_preset(self, preset: Preset) -> pretrained.Description:
        """Describes a preset with the config's changes, without a tokenizer."""
        description = pretrained.Description(preset.model, preset.rope, preset.context)
        return self._changed(description)

    def _changed(self, description: pretrained.Description) -> pretrained.Description:
        with refusing("config.model"):
            model = description.model.changed(self.model_fields)
        return extend(dataclasses.replace(description, model=model), self.rope)

    def _new_model(self) -> pretrained.Description:
        if self.data.tokenizer is None:
            raise UsageError(
                "config.data.tokenizer has no value and there is no checkpoint to take one from: "
                f"name a tokenizer.json, a folder with one, or {BYTES!r}"
            )
        files = _tokenizer_files(self.data.tokenizer)
        with refusing("config.data.tokenizer"):
            tokenizer = load_tokenizer(files or self.data.tokenizer)
        ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
        if self.preset is not None:
            return dataclasses.replace(self._of_preset(self.preset), tokenizer=files, extras=ids)
        fields = {"vocab_size": tokenizer.vocab_size} | self.model_fields
        model = build(ModelConfig, fields, "config.model")
        rope = new_spec(self.rope, model)
        context = self.train.reach
        if rope.original_context is not None:
            context = max(context, round(rope.original_context * rope.extension))
        return pretrained.Description(model, rope, context, files, ids)

    def _continued_model(self, path: str) -> pretrained.Description:
        assert self.source is not None
        with refusing("config.checkpoint.init_from"):
            description = (self.adapted or self.source).description
        if self.preset is not None:
            _check_sizes(description.model, self.preset, path)
        if self.data.tokenizer is not None:
            files = _tokenizer_files(self.data.tokenizer)
            description = dataclasses.replace(description, tokenizer=files)
        self._check_overridable()
        return self._changed(description)

    def _check_overridable(self) -> None:
        """Raises UsageError for fields that cannot change when continuing from a checkpoint."""
        if fixed := sorted(self.model_fields.keys() - set(pretrained.OVERRIDABLE)):
            raise UsageError(
                f"config.model.{fixed[0]} = {self.model[fixed[0]]!r}: a checkpoint that is "
                f"continued has its own; only {', '.join(_SETTABLE)} can be set"
            )


def known_fields(config: ConfigDict) -> ConfigDict:
    """All fields of a config of `rrope train`, unset; see `command_line.parse`."""
    known = unset_group(TrainSetting)
    sources = config_file.value_of(config, "data.sources")
    if isinstance(sources, ConfigDict):
        known.data.sources = ConfigDict({name: unset_group(WeightedSource) for name in sources})
    return known


def is_here(name: str | None) -> bool:
    """Whether this machine has a file that a config names; None and `BYTES` need no file."""
    return name in (None, BYTES) or os.path.exists(name)


def _tokenizer_files(name: str) -> TokenizerFiles | None:
    """Reads the tokenizer files to save with a model; `BYTES` has none."""
    if name == BYTES:
        return None
    with refusing("config.data.tokenizer"):
        return read_files(name)


def _check_sizes(model: ModelConfig, preset: Preset, path: str) -> None:
    for name in _SIZES:
        size, expected = getattr(model, name), getattr(preset.model, name)
        if size != expected:
            raise UsageError(
                f"config.checkpoint.init_from = {path!r} is not config.model.preset: its {name} is "
                f"{size}, not {expected}; name another checkpoint, or leave the preset out"
            )
