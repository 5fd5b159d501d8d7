"""`rrope convert`: converts a checkpoint to another format, optionally with another RoPE."""

import dataclasses
import math
import sys
from collections.abc import Sequence

from absl import flags

from rrope_jax.cli import backend
from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import from_config, unset_group
from rrope_jax.io import conversion, pretrained
from rrope_jax.io.adapters.adapter import AdaptedSource
from rrope_jax.io.source import Source
from rrope_jax.io.weights import parameter_shapes
from rrope_jax.jobs.pretrained_model import define_adapter, open_checkpoint
from rrope_jax.jobs.rope_fields import extend
from rrope_jax.jobs.rope_groups import RopeFields

SUMMARY = (
    "Converts a checkpoint between our own format (orbax), Hugging Face folders (hf) and GGUF "
    "files (gguf), or writes the adapter of a run with LoRA apart (peft). "
    "--config.rope.scaling=yarn --config.rope.factor=4 and the like change its rotary embedding on "
    "the way, without training."
)
_GGUF_SUFFIX, _PEFT = ".gguf", "peft"


@dataclasses.dataclass(frozen=True)
class ConvertSetting:
    """The overrides of `rrope convert`: fields of RopeSpec."""

    rope: RopeFields


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    values = parse("convert", SUMMARY, argv, _define, config=unset_group(ConvertSetting))
    setting = from_config(ConvertSetting, values.config, "config")
    backend.silence_orbax()
    source, target = str(values["from"].value), str(values.to)
    try:
        opened = open_checkpoint(source, values.adapter)
        after = extend(opened.description, setting.rope)
        options = conversion.Options(
            dtype=values.dtype, portable=values.portable, shard_bytes=values.shard_bytes
        )
        if values.format == _PEFT:
            adapted = _adapted(opened, after)
            done = conversion.convert_adapter(
                adapted, target, options=options, overwrite=values.overwrite
            )
        else:
            done = conversion.convert(
                opened,
                target,
                values.format or _implied_format(source, target, values.adapter),
                description=after,
                options=options,
                overwrite=values.overwrite,
            )
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:  # a full disk, most likely
        print(f"rrope convert: nothing was written to {target}: {error}", file=sys.stderr)
        return 1
    print(f"wrote {target}: {_summary(done)}")
    return 0


def _adapted(opened: Source, after: pretrained.Description) -> AdaptedSource:
    """The model as a base with an adapter, for writing the latter.

    Raises:
      UsageError: It has no adapter apart from its weights, or would get another embedding.
    """
    if not isinstance(opened, AdaptedSource):
        raise UsageError(
            f"--format={_PEFT}: {opened.path} has no adapter apart from its weights; give the "
            "workdir of a run with config.lora as --from"
        )
    if after != opened.description:
        raise UsageError(
            f"--format={_PEFT}: an adapter goes with the embedding that it was trained with; leave "
            "out config.rope, or merge it into a base with --format=hf"
        )
    return opened


def _implied_format(source: str, target: str, adapter: str | None) -> str:
    if target.endswith(_GGUF_SUFFIX):
        return "gguf"
    if adapter is not None:
        return "hf"
    return "hf" if pretrained.format_of(source) in ("orbax", "lora") else "orbax"


def _summary(done: conversion.Conversion) -> str:
    description = done.description
    spec = description.rope
    parameters = sum(math.prod(shape) for shape in parameter_shapes(description.model).values())
    words = [
        f"format {done.format}",
        f"{parameters:,} parameters",
        f"context {description.context:,}",
        f"rope {spec.scaling}{' with resonance' if spec.resonance else ''}",
    ]
    folded = [f"{each:.4f}" for each in dict.fromkeys(done.temperatures.values()) if each != 1]
    if folded:
        words.append(f"temperature {' and '.join(folded)} folded into queries and keys")
    return ", ".join(words)


def _define(values: flags.FlagValues) -> None:
    flags.DEFINE_string(
        "from",
        None,
        "checkpoint: GGUF file, Hugging Face folder, model folder or training workdir",
        flag_values=values,
        required=True,
    )
    define_adapter(values)
    flags.DEFINE_string("to", None, "file or folder to write", flag_values=values, required=True)
    flags.DEFINE_enum(
        "format",
        None,
        [*conversion.WRITERS, _PEFT],
        "format of the result; by default gguf for a name that ends in .gguf, else orbax for a "
        "checkpoint of another format and hf for one of ours or with an adapter",
        flag_values=values,
    )
    flags.DEFINE_string(
        "dtype",
        "float32",
        "float32, bfloat16 or float16; orbax is always float32",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "portable",
        False,
        "write the rotary embedding as factor lists, with the temperature in the weights, even "
        "where the format has a name for it",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "shard_bytes",
        conversion.Options().shard_bytes,
        "largest file of weights in a Hugging Face folder",
        flag_values=values,
    )
    flags.DEFINE_bool("overwrite", False, "replace a checkpoint that exists", flag_values=values)
