"""A config of `rrope train` as its program, for whoever runs it or plans to."""

import dataclasses
import os
from typing import Any

from ml_collections import ConfigDict

from rrope_jax.cli.configuration import UsageError, from_config
from rrope_jax.data.pipeline import DataConfig
from rrope_jax.data.tokenizers import BYTES, load_tokenizer, read_files
from rrope_jax.io import pretrained
from rrope_jax.io.tokenizer.files import TokenizerFiles
from rrope_jax.jobs.rope_config import extend
from rrope_jax.model import ModelConfig
from rrope_jax.model.presets import PRESETS, Preset
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import MeshConfig
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.heldout import HeldoutConfig
from rrope_jax.train.step import Program

_GROUPS = ("model", "rope", "data", "train", "mesh", "checkpoint", "eval")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """The fields of `config.checkpoint`.

    Attributes:
      init_from: a checkpoint of any format to continue; None trains a new model.
      every_steps: steps between checkpoints. The last step, and one at which the run is told to
        stop, have one in any case.
      keep: how many of the newest stay.
      keep_every_steps: those at multiples of so many steps stay, too; None for no others.

    Raises:
      ValueError: a number is not positive.
    """

    init_from: str | None = None
    every_steps: int = 100
    keep: int = 2
    keep_every_steps: int | None = None

    def __post_init__(self) -> None:
        for name in ("every_steps", "keep", "keep_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


def plan_program(
    config: ConfigDict, *, elsewhere: bool = False
) -> tuple[Program, pretrained.Description, CheckpointConfig]:
    """Turns a training config into its program; reads no text and no weights.

    Args:
      config: of `rrope train`.
      elsewhere: whether it is to run on another machine, which has the files that it names: where
        `config.model.preset` says what the model is, neither checkpoint nor tokenizer need be here.

    Raises:
      UsageError: the config or the checkpoint is wrong; the message names the key.
    """
    check_groups(config)
    checkpoint = from_config(CheckpointConfig, group_of(config, "checkpoint"), "config.checkpoint")
    train = from_config(TrainConfig, group_of(config, "train"), "config.train")
    data = from_config(DataConfig, group_of(config, "data"), "config.data")
    preset, path = _preset(config), checkpoint.init_from
    heldout_config(config)
    if elsewhere and preset is not None and not is_here(path or data.tokenizer):
        if path is not None:
            _check_overridable(config)
        description = _model_of_preset(config, preset)
    elif path is None:
        description = _new_model(config, train, data, preset)
    else:
        description = _continued_model(config, data, path, preset)
    segmented = data.packing != "one_document_per_row"
    try:
        program = Program(description.model, description.rope, train, segmented)
    except ValueError as error:
        raise UsageError(f"config: {error}") from error
    return program, description, checkpoint


def is_here(name: str | None) -> bool:
    """Whether this machine has a file that a config names; no name, and bytes, need none."""
    return name in (None, BYTES) or os.path.exists(name)


def heldout_config(config: ConfigDict) -> HeldoutConfig:
    """The `eval` group of a training config.

    Raises:
      UsageError: it is wrong, or asks for a loss on held-out text where no text is held out.
    """
    found = from_config(HeldoutConfig, group_of(config, "eval"), "config.eval")
    data = from_config(DataConfig, group_of(config, "data"), "config.data")
    if found.every_steps is not None and not data.heldout and not data.heldout_share:
        raise UsageError(
            f"config.eval.every_steps={found.every_steps}, but no text is held out: name documents "
            "in config.data.heldout, or set config.data.heldout_share"
        )
    return found


def mesh_config(config: ConfigDict) -> MeshConfig:
    """The `mesh` group of a training config.

    Raises:
      UsageError: it is wrong.
    """
    return from_config(MeshConfig, group_of(config, "mesh"), "config.mesh")


def check_groups(config: ConfigDict) -> None:
    """Raises UsageError where a config has something that is no group of a training config."""
    for name in config:
        if name not in _GROUPS:
            raise UsageError(f"config.{name}: there is no such group; the groups are {_GROUPS}")
        group_of(config, name)


def group_of(config: ConfigDict, name: str) -> ConfigDict:
    """A group of the config, empty where it is left out.

    Raises:
      UsageError: it is no group.
    """
    found = config.get(name, ConfigDict())
    if not isinstance(found, ConfigDict):
        raise UsageError(f"config.{name} is {found!r}; it has to be a group of fields")
    return found


def _preset(config: ConfigDict) -> Preset | None:
    name = group_of(config, "model").get("preset")
    if name is not None and name not in PRESETS:
        raise UsageError(f"config.model.preset = {name!r} is unknown; choose from {_KNOWN_PRESETS}")
    return None if name is None else PRESETS[name]


_KNOWN_PRESETS = ", ".join(PRESETS)


def _model_group(config: ConfigDict) -> ConfigDict:
    """The fields of ModelConfig that the config gives."""
    fields = group_of(config, "model").items()
    return ConfigDict({key: value for key, value in fields if key != "preset"})


def _model_of_preset(config: ConfigDict, preset: Preset) -> pretrained.Description:
    """A preset with the config's changes, without a tokenizer."""
    given = {key: value for key, value in _model_group(config).items() if value is not None}
    shape = ConfigDict(dataclasses.asdict(preset.model) | given)
    model = from_config(ModelConfig, shape, "config.model")
    own = pretrained.Description(model, preset.rope, preset.context)
    return extend(own, group_of(config, "rope"))


def _new_model(
    config: ConfigDict, train: TrainConfig, data: DataConfig, preset: Preset | None
) -> pretrained.Description:
    if data.tokenizer is None:
        raise UsageError(
            "config.data.tokenizer has no value and there is no checkpoint to take one from: name "
            f"a tokenizer.json, a folder with one, or {BYTES!r}"
        )
    files = _tokenizer_files(data.tokenizer)
    try:
        tokenizer = load_tokenizer(files or data.tokenizer)
    except (ValueError, OSError) as error:
        raise UsageError(f"config.data.tokenizer: {error}") from error
    ids = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    if preset is not None:
        own = _model_of_preset(config, preset)
        return dataclasses.replace(own, tokenizer=files, extras=ids)
    fields = _model_group(config)
    unset = fields.get("vocab_size") is None
    vocabulary = {"vocab_size": tokenizer.vocab_size} if unset else {}
    model = from_config(ModelConfig, fields, "config.model", **vocabulary)
    rope = from_config(RopeSpec, group_of(config, "rope"), "config.rope", head_dim=model.head_size)
    context = train.reach
    if rope.original_context is not None:
        context = max(context, round(rope.original_context * rope.extension))
    return pretrained.Description(model, rope, context, files, ids)


# What `config.model.preset` says of a checkpoint.
_SIZES = ("vocab_size", "d_model", "num_layers", "num_heads", "kv_heads", "head_size", "d_ff")


def _tokenizer_files(name: str) -> TokenizerFiles | None:
    """What travels with a model; bytes need nothing."""
    if name == BYTES:
        return None
    try:
        return read_files(name)
    except (ValueError, OSError) as error:
        raise UsageError(f"config.data.tokenizer: {error}") from error


def _continued_model(
    config: ConfigDict, data: DataConfig, path: str, preset: Preset | None
) -> pretrained.Description:
    try:
        source = pretrained.open_source(path)
        source.check()
        description = source.description
    except (ValueError, OSError) as error:
        raise UsageError(f"config.checkpoint.init_from: {error}") from error
    if preset is not None:
        _check_sizes(description.model, preset, path)
    if data.tokenizer is not None:
        files = _tokenizer_files(data.tokenizer)
        description = dataclasses.replace(description, tokenizer=files)
    given = _check_overridable(config)
    shape = ConfigDict(dataclasses.asdict(description.model) | given)
    model = from_config(ModelConfig, shape, "config.model")
    return extend(dataclasses.replace(description, model=model), group_of(config, "rope"))


def _check_overridable(config: ConfigDict) -> dict[str, Any]:
    """The fields that a config sets of a model that is continued."""
    given = {key: value for key, value in _model_group(config).items() if value is not None}
    if fixed := sorted(given.keys() - set(pretrained.OVERRIDABLE)):
        raise UsageError(
            f"config.model.{fixed[0]} = {given[fixed[0]]!r}: a checkpoint that is continued has "
            f"its own; only {', '.join(pretrained.OVERRIDABLE)} can be set"
        )
    return given


def _check_sizes(model: ModelConfig, preset: Preset, path: str) -> None:
    for name in _SIZES:
        found, meant = getattr(model, name), getattr(preset.model, name)
        if found != meant:
            raise UsageError(
                f"config.checkpoint.init_from = {path!r} is not config.model.preset: its {name} is "
                f"{found}, not {meant}; name another checkpoint, or leave the preset out"
            )
