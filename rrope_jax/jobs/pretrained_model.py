"""Loads the model of `--checkpoint` with config overrides, and its tokenizer."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from rrope_jax.cli.errors import UsageError, refusing
from rrope_jax.cli.settings import Fields, unset_group
from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.io import pretrained
from rrope_jax.io.source import Source
from rrope_jax.io.tokenizer.end_of_text import end_ids
from rrope_jax.jobs.model_mesh import lay_out
from rrope_jax.jobs.rope_fields import extend, original_context
from rrope_jax.model import Decoder, ModelConfig
from rrope_jax.model.config import WEIGHT_DTYPES
from rrope_jax.model.decoder import parameter_bytes
from rrope_jax.reporting.quantities import gib
from rrope_jax.sharding import MeshConfig


@dataclasses.dataclass(frozen=True)
class PretrainedModel:
    """A model that is ready to run, on one device or over a mesh.

    Attributes:
      decoder: The model.
      description: Its description, with the overrides applied.
      original_context: Context length in tokens that the model was trained at before any extension.
      tokenizer: The checkpoint's own tokenizer, or the one given instead.
      mesh: Sizes of the mesh; None for one device.
    """

    decoder: Decoder
    description: pretrained.Description
    original_context: int
    tokenizer: Tokenizer
    mesh: MeshConfig | None = None

    def prompt(self, text: str, *, bos: bool | None = None) -> list[int]:
        """Tokenizes a text to continue.

        Args:
          text: A nonempty text.
          bos: Whether to prepend the BOS token; None to follow the tokenizer's files.

        Returns:
          The token ids.

        Raises:
          UsageError: The tokenizer has no BOS token, or the model has no embedding for a token.
        """
        with refusing("--prompt"):
            ids = self.tokenizer.encode(text)
        if not (self.tokenizer.adds_bos if bos is None else bos):
            return ids
        if self.tokenizer.bos_id is None:
            raise UsageError("--bos: the tokenizer has no token that begins a text")
        return [self.tokenizer.bos_id, *ids]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Ids of all tokens that end a text, according to the checkpoint or the tokenizer."""
        return tuple(sorted(end_ids(self.description, self.tokenizer.eos_id)))


def load_model(
    checkpoint: str | os.PathLike[str],
    *,
    rope: Fields,
    model: Fields,
    tokenizer: str | None = None,
    adapter: str | None = None,
    mesh: MeshConfig | None = None,
    row_lengths: Sequence[int] = (),
) -> PretrainedModel:
    """Loads a checkpoint; on a mesh, every device has only its part of the parameters.

    Args:
      checkpoint: Anything that `io.pretrained.load` reads.
      rope: Fields of RopeSpec that replace the checkpoint's.
      model: Fields of ModelConfig. Only those in `pretrained.OVERRIDABLE`, which fit any weights,
        replace the checkpoint's; the others are ignored.
      tokenizer: As for `load_tokenizer`; None for the checkpoint's own.
      adapter: As for `pretrained.open_adapted`; None for none.
      mesh: Sizes of the mesh; None for one device.
      row_lengths: Lengths of rows that will go through the model as a whole, for checks.

    Raises:
      UsageError: The checkpoint or the tokenizer cannot be read, an override is wrong, or the
        devices or the model do not fit the mesh.
    """
    overrides = {name: model[name] for name in pretrained.OVERRIDABLE if name in model}
    with refusing(f"--checkpoint={checkpoint}"):
        opened = open_checkpoint(checkpoint, adapter)
        original = opened.description
        with refusing("config.model"):
            model_changed = original.model.changed(overrides)
        changed = extend(dataclasses.replace(original, model=model_changed), rope)
        source = tokenizer or changed.tokenizer
        if source is None:
            raise UsageError(
                f"--checkpoint={checkpoint} comes without a tokenizer; name one, such as the path "
                "of a tokenizer.json"
            )
        loaded_tokenizer = load_tokenizer(source)
        layout = None if mesh is None else lay_out(changed, mesh, row_lengths)
        check_memory(model_changed, 1 if layout is None else layout.shares)
        with advising_on_memory(model_changed):
            decoder, description = pretrained.load(
                opened,
                rope=changed.rope,
                model=overrides,
                shardings=None if layout is None else layout.params,
            )
    description = dataclasses.replace(description, context=changed.context)
    try:
        fitting = loaded_tokenizer.for_model(description.model.vocab_size)
    except ValueError as error:
        raise UsageError(f"the tokenizer {error}") from error
    context = original_context(original) or original.context
    return PretrainedModel(decoder, description, context, fitting, mesh)


def check_memory(model: ModelConfig, shares: int = 1) -> None:
    """Raises UsageError if the parameters alone take more than the device's memory.

    Devices that do not tell their memory, such as CPUs, are not checked.

    Args:
      model: The model.
      shares: Number of devices among which the parameters are divided.
    """
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    needed = parameter_bytes(model) // shares
    if limit is not None and needed > limit:
        raise UsageError(
            f"config.model.weight_dtype={model.weight_dtype!r}: the parameters take "
            f"{gib(needed)}, the device has {gib(limit)}; {_less_memory(model)}"
        )


@contextmanager
def advising_on_memory(model: ModelConfig) -> Iterator[None]:
    """Turns the runtime's error for exhausted memory into a UsageError that says what helps."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UsageError(
            f"the device's memory is exhausted ({str(error).splitlines()[0]}); the parameters take "
            f"{gib(parameter_bytes(model))}: {_less_memory(model)}"
        ) from error


def _less_memory(model: ModelConfig) -> str:
    """What takes less memory, as the end of an error."""
    used = parameter_bytes(model)
    sizes = {
        dtype: parameter_bytes(dataclasses.replace(model, weight_dtype=dtype))
        for dtype in WEIGHT_DTYPES
    }
    smaller = [
        f"config.model.weight_dtype={dtype} takes {gib(size)}"
        for dtype, size in sizes.items()
        if size < used
    ]
    if model.compute_dtype == "float32":
        smaller.append("config.model.compute_dtype=bfloat16 halves the rest")
    return ", ".join([*smaller, "shorter contexts and smaller chunks take less, too"])


def settable(setting: type[Any]) -> ConfigDict:
    """Returns the fields that flags can set in a command that runs a checkpoint, without values.

    Of the model, these are the ones in `pretrained.OVERRIDABLE`.

    Args:
      setting: The command's setting, with a group `model`.
    """
    fields = unset_group(setting)
    for name in set(fields.model) - set(pretrained.OVERRIDABLE):
        del fields.model[name]
    return fields


def open_checkpoint(checkpoint: str | os.PathLike[str], adapter: str | None) -> Source:
    """Opens a checkpoint, with an adapter merged if one is named.

    Raises:
      UsageError: The adapter cannot be read, or is not of this checkpoint.
      ValueError: See `pretrained.open_source`.
    """
    if adapter is None:
        return pretrained.open_source(checkpoint)
    with refusing(f"--adapter={adapter}"):
        return pretrained.open_adapted(checkpoint, adapter)


def define_adapter(values: flags.FlagValues) -> None:
    """Defines the flag `--adapter`, for `open_checkpoint`."""
    flags.DEFINE_string(
        "adapter",
        None,
        "an adapter to merge into the model: a PEFT folder, or the workdir of a run with LoRA",
        flag_values=values,
    )


def define_checkpoint(values: flags.FlagValues) -> None:
    """Defines the required flag `--checkpoint` and the flag `--adapter`, for `load_model`."""
    define_adapter(values)
    flags.DEFINE_string(
        "checkpoint",
        None,
        "the model: a GGUF file, a Hugging Face folder, a model folder or a training workdir",
        flag_values=values,
        required=True,
    )
