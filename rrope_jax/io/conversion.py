"""Converts checkpoints between formats."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from rrope_jax.io.adapters import peft_write
from rrope_jax.io.adapters.adapter import AdaptedSource
from rrope_jax.io.adapters.peft_read import is_peft
from rrope_jax.io.description import Description
from rrope_jax.io.dtypes import DTYPES
from rrope_jax.io.gguf import write as gguf_export
from rrope_jax.io.huggingface import write as huggingface_export
from rrope_jax.io.orbax import write as orbax_export
from rrope_jax.io.orbax.checkpoint import TREE
from rrope_jax.io.orbax.layout import CHECKPOINTS
from rrope_jax.io.paths import check_local, check_orbax
from rrope_jax.io.portable import NO_TEMPERATURES, FoldedSource, Temperatures
from rrope_jax.io.pretrained import FORMATS, open_source
from rrope_jax.io.source import Source
from rrope_jax.io.target import restore_target, whole_or_nothing


@dataclasses.dataclass(frozen=True)
class Options:
    """How a checkpoint is written.

    Attributes:
      dtype: a key of `DTYPES`; our own format is always float32.
      portable: whether to write the rotary embedding as a list of factors, which all runtimes
        understand, even if the format has a name for its scaling.
      shard_bytes: maximum size of a weight file in a Hugging Face folder.
    """

    dtype: str = "float32"
    portable: bool = False
    shard_bytes: int = huggingface_export.DEFAULT_SHARD_BYTES

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype={self.dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
        if self.shard_bytes < 1:
            raise ValueError(f"shard_bytes={self.shard_bytes} must be at least 1")


@dataclasses.dataclass(frozen=True)
class Conversion:
    """The result of a conversion.

    Attributes:
      format: a key of `WRITERS`, or `peft`.
      description: the model as written, including its rotary embedding.
      temperatures: the factors that were folded into the weights of queries and keys, by layer
        type; 1 where none was.
    """

    format: str
    description: Description
    temperatures: Temperatures


@dataclasses.dataclass(frozen=True)
class _Writer:
    """How to write one format.

    Attributes:
      express: returns the description with its embedding in a form that the format supports, and
        the temperatures to fold into the weights; raises ValueError if no form fits.
      write: takes the source, the new path and the options.
    """

    express: Callable[[Description, Options], tuple[Description, Temperatures]]
    write: Callable[[Source, Path, Options], None]


def _express_gguf(description: Description, options: Options) -> tuple[Description, Temperatures]:
    return gguf_export.express(description, options.portable)


def _express_hf(description: Description, options: Options) -> tuple[Description, Temperatures]:
    return huggingface_export.express(description, options.portable)


def _express_orbax(description: Description, options: Options) -> tuple[Description, Temperatures]:
    for name in ("portable", "dtype"):
        value = getattr(options, name)
        if value != getattr(Options(), name):
            raise ValueError(f"{name}={value!r} has no effect on our own format; leave it out")
    return description, NO_TEMPERATURES


def _write_gguf(source: Source, path: Path, options: Options) -> None:
    gguf_export.write(source, path, DTYPES[options.dtype])


def _write_hf(source: Source, path: Path, options: Options) -> None:
    path.mkdir()
    huggingface_export.write(source, path, DTYPES[options.dtype], shard_bytes=options.shard_bytes)


def _write_orbax(source: Source, path: Path, options: Options) -> None:
    path.mkdir()
    orbax_export.write(source, path)


WRITERS = {
    "orbax": _Writer(_express_orbax, _write_orbax),
    "hf": _Writer(_express_hf, _write_hf),
    "gguf": _Writer(_express_gguf, _write_gguf),
}


def convert(
    source: str | os.PathLike[str] | Source,
    target: str | os.PathLike[str],
    target_format: str,
    *,
    description: Description | None = None,
    options: Options | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Writes a checkpoint in another format, one weight at a time.

    Args:
      source: a path as for `pretrained.open_source`, or an opened source.
      target: a new file (`gguf`) or folder, which appears only when it is complete.
      target_format: a key of `WRITERS`.
      description: the source's description with another embedding or context length; None to keep
        the source's.
      options: how to write the checkpoint; defaults to `Options()`.
      overwrite: whether to replace an existing converted checkpoint at the target.

    Raises:
      ValueError: the source is damaged or of an unsupported model; the target exists, overlaps the
        source or is in an object store; or the format cannot express the embedding.
    """
    options = options or Options()
    opened = source if isinstance(source, Source) else open_source(source)
    goal = _goal(opened, target, overwrite)
    writer = WRITERS[target_format]
    if target_format == "orbax":
        check_orbax(goal, writing=True)
    expressed, temperatures = writer.express(description or opened.description, options)
    opened.check()
    with whole_or_nothing(goal, overwrite=overwrite) as new:
        writer.write(FoldedSource(opened, expressed, temperatures), new, options)
    return Conversion(target_format, expressed, temperatures)


def convert_adapter(
    source: AdaptedSource,
    target: str | os.PathLike[str],
    *,
    options: Options | None = None,
    overwrite: bool = False,
) -> Conversion:
    """Writes an adapter as a PEFT folder, apart from its base.

    Args:
      source: the base with the adapter.
      target: a new folder, which appears only when it is complete.
      options: dtype of the adapter, and `portable` as for its base in a Hugging Face folder.
      overwrite: whether to replace an existing converted checkpoint at the target.

    Raises:
      ValueError: as for `convert`, or PEFT cannot express the adapter.
    """
    options = options or Options()
    goal = _goal(source, target, overwrite)
    expressed, temperatures = _express_hf(source.description, options)
    source.check()
    with whole_or_nothing(goal, overwrite=overwrite) as new:
        new.mkdir()
        peft_write.write(source, expressed, temperatures, new, DTYPES[options.dtype])
    return Conversion("peft", expressed, temperatures)


def _goal(source: Source, target: str | os.PathLike[str], overwrite: bool) -> Path:
    """The absolute path of a target, which can be written."""
    check_local(target)
    goal = Path(os.path.abspath(target))
    paths = [source.path, source.base.path if isinstance(source, AdaptedSource) else None]
    for path in filter(None, paths):
        _check_apart(path, goal)
    restore_target(goal)
    _check_target(goal, overwrite)
    return goal


def _check_apart(source: Path, target: Path) -> None:
    real_source, real_target = source.resolve(), target.resolve()
    if real_source.is_relative_to(real_target) or real_target.is_relative_to(real_source):
        raise ValueError(f"{target} and {source} contain each other; give another target")


def _check_target(target: Path, overwrite: bool) -> None:
    if not os.path.lexists(target):
        return
    if not overwrite:
        raise ValueError(f"{target} exists; give another path, or --overwrite to replace it")
    empty = target.is_dir() and not any(target.iterdir())
    trained = any((target / name).is_dir() for name in (CHECKPOINTS, TREE))
    converted = is_peft(target) or any(row.recognises(target) for row in FORMATS.values())
    if trained or not (empty or converted):
        raise ValueError(
            f"{target} is not a converted checkpoint, and only such are overwritten; remove it "
            "yourself, or give another path"
        )
