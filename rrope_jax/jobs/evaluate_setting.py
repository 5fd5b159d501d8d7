"""The setting that a config of `rrope evaluate` describes."""

import dataclasses
from typing import Annotated, Any

from rrope_jax.cli.errors import UsageError
from rrope_jax.cli.settings import Fields, SomeOf
from rrope_jax.data.config import DataConfig, MixtureConfig
from rrope_jax.evaluation.closed_ended import ClosedEndedSetting
from rrope_jax.evaluation.longppl import LongPerplexitySetting
from rrope_jax.evaluation.passkey import PasskeySetting
from rrope_jax.evaluation.perplexity import PerplexitySetting
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.jobs.rope_groups import RopeFields
from rrope_jax.jobs.train_setting import PresetName
from rrope_jax.model import ModelConfig
from rrope_jax.sharding import MeshConfig

_SECTIONS = ("perplexity", "longppl", "passkey", "closed_ended", "ruler")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sections:
    """The group `config.eval`.

    Attributes:
      perplexity, longppl, passkey, closed_ended, ruler: What to evaluate; None or `enabled=False`
        skips it.
      batch_size: Prompts or documents of one length to compute at once.
      every_steps, length, max_rows: Fields of `rrope train`, not read here.

    Raises:
      ValueError: `batch_size` is not positive.
    """

    perplexity: PerplexitySetting | None = None
    longppl: LongPerplexitySetting | None = None
    passkey: PasskeySetting | None = None
    closed_ended: ClosedEndedSetting | None = None
    ruler: RulerSetting | None = None
    batch_size: int = 1
    every_steps: Any = None
    length: Any = None
    max_rows: Any = None

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size} must be at least 1")

    def enabled(self) -> dict[str, Any]:
        """Returns the settings of the enabled sections by name."""
        sections = {name: getattr(self, name) for name in _SECTIONS}
        return {name: each for name, each in sections.items() if each and each.enabled}


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateSetting:
    """A config of `rrope evaluate`, which may also be one of `rrope train`.

    Attributes:
      eval: What to measure.
      rope, model: Fields that replace the checkpoint's.
      data: Fields of DataConfig or MixtureConfig; only perplexity and longppl need a source.
      mesh: Fields of MeshConfig; without any, one device computes.
      train, checkpoint: Groups of `rrope train`, not read here.

    Raises:
      UsageError: No section of `eval` is enabled.
    """

    eval: Sections = dataclasses.field(default_factory=Sections)
    rope: RopeFields = dataclasses.field(default_factory=dict)
    model: Annotated[Fields, SomeOf(ModelConfig, PresetName)] = dataclasses.field(
        default_factory=dict
    )
    data: Annotated[Fields, SomeOf(DataConfig, MixtureConfig)] = dataclasses.field(
        default_factory=dict
    )
    mesh: Annotated[Fields, SomeOf(MeshConfig)] = dataclasses.field(default_factory=dict)
    train: Any = None
    checkpoint: Any = None

    def __post_init__(self) -> None:
        if not self.eval.enabled():
            raise UsageError(
                "config.eval: nothing to evaluate; give it a group with enabled = True, of "
                f"{', '.join(_SECTIONS)}"
            )

    @property
    def row_lengths(self) -> tuple[int, ...]:
        """The lengths of the rows that go through the model as a whole."""
        enabled, lengths = self.eval.enabled(), set[int]()
        if "perplexity" in enabled and enabled["perplexity"].chunk is None:
            lengths |= set(enabled["perplexity"].contexts)
        if "longppl" in enabled:
            lengths |= set(enabled["longppl"].contexts)
        return tuple(sorted(lengths))

    @property
    def bos(self) -> bool:
        """Whether documents begin with the tokenizer's BOS token."""
        return bool(self.data.get("bos"))
