"""The group `config.data` as frozen dataclasses: one text, or a mixture of several."""

import dataclasses
import math
import re
from collections.abc import Mapping

from rrope_jax.data.packing import PACKINGS
from rrope_jax.data.text import TextConfig

# Names of sources are config keys and parts of metric names.
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceConfig(TextConfig):
    """One text, and how to make rows of it.

    Attributes:
      packing: a key of `packing.PACKINGS`.
      min_tokens, max_tokens: the sizes of the documents to use, inclusive, in tokens with `bos` and
        `eos`; None for no bound. Others are neither trained on nor held out.
      max_epochs: how often training may read the text; None for as often as it takes.

    Raises:
      ValueError: a field is out of range.
    """

    packing: str = "documents"
    min_tokens: int | None = None
    max_tokens: int | None = None
    max_epochs: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.packing not in PACKINGS:
            raise ValueError(
                f"packing={self.packing!r} is unknown; choose one of {', '.join(PACKINGS)}"
            )
        for name in ("min_tokens", "max_tokens", "max_epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        largest = math.inf if self.max_tokens is None else self.max_tokens
        if self.min_tokens is not None and self.min_tokens > largest:
            raise ValueError(
                f"min_tokens={self.min_tokens} is above max_tokens={self.max_tokens}, so no "
                "document fits; exchange them"
            )

    @property
    def holds_out(self) -> bool:
        """Whether documents may be held out."""
        return bool(self.heldout or self.heldout_share)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadingConfig:
    """How text is read, whether it is one or several.

    Attributes:
      tokenizer: a source as for `load_tokenizer`; None for the model's own tokenizer.
      bos, eos: whether to add the tokenizer's `bos` token before each document, and `eos` after.
      seed: seed for the order of documents and rows.
      prefetch: number of batches to prepare in advance.
      cache_dir: folder to cache token ids in; None keeps them in memory.

    Raises:
      ValueError: a field is out of range.
    """

    tokenizer: str | None = None
    bos: bool = False
    eos: bool = False
    seed: int = 0
    prefetch: int = 2
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed={self.seed} must be from 0 to 2^32 - 1")
        if self.prefetch < 1:
            raise ValueError(f"prefetch={self.prefetch} must be at least 1")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(ReadingConfig, SourceConfig):
    """The fields of `config.data` for one text."""

    def __post_init__(self) -> None:
        SourceConfig.__post_init__(self)
        ReadingConfig.__post_init__(self)

    @property
    def segmented(self) -> bool:
        """Whether rows may hold several documents."""
        return self.packing != "one_document_per_row"


@dataclasses.dataclass(frozen=True, kw_only=True)
class WeightedSource(SourceConfig):
    """One text of a mixture.

    Attributes:
      weight: the text's share of the tokens that training reads, relative to the other weights.

    Raises:
      ValueError: a field is out of range.
    """

    weight: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ValueError(
                f"weight={self.weight} must be a number above 0; leave a source out to not read it"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class MixtureConfig(ReadingConfig):
    """The fields of `config.data` for several texts.

    Attributes:
      sources: the texts by name.

    Raises:
      ValueError: there is no source, or a name or a field is not allowed.
    """

    sources: Mapping[str, WeightedSource]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sources:
            raise ValueError("sources is empty; give a group of fields for each text")
        for name in self.sources:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f"sources: {name!r} is no name of a source; use letters, digits and _, and a "
                    "letter first"
                )
            self.text(name)  # raises if a field that all texts share is out of range

    @property
    def holds_out(self) -> bool:
        """Whether documents of any text may be held out."""
        return any(source.holds_out for source in self.sources.values())

    @property
    def segmented(self) -> bool:
        """Whether rows may hold several documents."""
        return any(source.packing != "one_document_per_row" for source in self.sources.values())

    def text(self, name: str) -> DataConfig:
        """One of the texts, as if it were the only one."""
        source, reading = self.sources[name], dataclasses.fields(ReadingConfig)
        return DataConfig(
            **{
                field.name: getattr(source, field.name)
                for field in dataclasses.fields(SourceConfig)
            },
            **{field.name: getattr(self, field.name) for field in reading},
        )
