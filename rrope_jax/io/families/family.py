"""`Family`: how one model family is described and stored in other formats.

To add a family that the decoder can express:

1. Write `NAME.py` beside this file with one `Family`, and add it to the list in `table.py`. What
   it does not say is as in LLaMA.
2. Fields of `ModelConfig` that are not sizes (`qk_norm`, `layer_types`, ...) come from `read`,
   which gets the keys of config.json over `defaults`, and go back by `write`. A family can express
   a model if what `write` returns is read as that model again, so these two functions are all that
   decides which models are exported as which family, and what a refusal says.
3. `refused` names keys that would change the model and that the decoder has no part for.
4. Weights with other names than LLaMA's are in `huggingface` and `Gguf.names`, by `Weight.path`.
   Weights that are fused into one matrix have the same name; their rows follow in the order of
   `WEIGHTS`.
5. `Gguf` says how llama.cpp has it. Look there (src/models and convert_hf_to_gguf.py): whether the
   rotated pairs are adjacent, which keys and tensors the graph reads. Leave it out if llama.cpp has
   no such architecture.
6. Add `tests/io/families/NAME.py` with a tiny model: all proofs follow from it.

Only what a rotary embedding's keys mean is elsewhere: `rrope_jax.rope.huggingface`.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from rrope_jax.io.weights import WEIGHTS
from rrope_jax.model import ModelConfig

Keys = Mapping[str, Any]
Refused = dict[str, tuple[Any, ...]]
# What several families share.
SILU: Refused = {"hidden_act": (None, "silu", "swish")}
ONE_LIST = ("rope_freqs.weight",)
NO_BIASES: Refused = {"attention_bias": (None, False), "mlp_bias": (None, False)}


def _no_fields(*_: Any) -> dict[str, Any]:
    return {}


@dataclasses.dataclass(frozen=True)
class Gguf:
    """How llama.cpp has a family.

    Attributes:
      architecture: `general.architecture`, and the prefix of the keys.
      adjacent_pairs: whether the rotated pairs are (2i, 2i + 1) and not (i, i + head_dim / 2), so
        that what makes queries and keys is stored in another order.
      frequency_factors: the tensors of factors of all frequencies that it reads: none, one, or two,
        for rows up to the original context and beyond it. Without any, only the scalings that
        llama.cpp has a name for can be written.
      partial_rotary: whether it can rotate a part of each head, `rope.dimension_count`.
      position_temperature: whether it reads `attention.temperature_scale`, and the temperature of
        DeepSeek's form of YaRN.
      sliding_rope: the embedding of layers with a sliding window: the `same` as that of others;
        `plain`, their base without scaling; or `own base`, `rope.freq_base_swa` without scaling.
      norm_offset: whether it stores 1 + scale for norms that multiply by that.
      names: names of weights that differ from LLaMA's, by `Weight.path`.
      refused: keys, without their prefix, of features that are not implemented, with the value that
        turns each off.
      read: from the keys without their prefix, and the names of all tensors, to fields of
        `ModelConfig` that are not sizes. Raises ValueError for a model that is not implemented.
      write: the inverse, to keys without their prefix.
    """

    architecture: str
    adjacent_pairs: bool = False
    frequency_factors: tuple[str, ...] = ()
    partial_rotary: bool = False
    position_temperature: bool = False
    sliding_rope: str = "same"
    norm_offset: bool = False
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)
    refused: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    read: Callable[[Keys, Collection[str]], dict[str, Any]] = _no_fields
    write: Callable[[ModelConfig], dict[str, Any]] = _no_fields

    @property
    def all_names(self) -> dict[str, str]:
        """The name of each weight by its path."""
        return {weight.path: weight.gguf for weight in WEIGHTS} | dict(self.names)


@dataclasses.dataclass(frozen=True)
class Family:
    """One model family.

    Attributes:
      name: its `model_type` in config.json, and `Description.family`.
      architecture: its class in transformers.
      defaults: what keys of config.json mean where they are missing.
      refused: keys of config.json that only some values are implemented of, with these; the last
        one is named in the error.
      mends: what to do about a refused key, to follow the error.
      read: from the keys of config.json, defaults included, to fields of `ModelConfig` that are
        not sizes. Raises ValueError for a model that is not implemented.
      write: the inverse, to keys of config.json.
      huggingface: names of weights that differ from LLaMA's, by `Weight.path`.
      gguf: how llama.cpp has it; None if it does not.
    """

    name: str
    architecture: str
    defaults: Keys
    refused: Refused
    mends: Mapping[str, str] = dataclasses.field(default_factory=dict)
    read: Callable[[Keys], dict[str, Any]] = _no_fields
    write: Callable[[ModelConfig], dict[str, Any]] = _no_fields
    huggingface: Mapping[str, str] = dataclasses.field(default_factory=dict)
    gguf: Gguf | None = None

    @property
    def huggingface_names(self) -> dict[str, str]:
        """The name of each weight by its path."""
        return {weight.path: weight.huggingface for weight in WEIGHTS} | dict(self.huggingface)


# What training and computing add to a model; no format but our own stores it.
_UNSTORED = (
    "compute_dtype",
    "remat",
    "attention",
    "dropout",
    "initialization",
    "initializer_range",
)


def check_head_dim(model: ModelConfig) -> None:
    """Raises ValueError for heads that architectures without `attention.key_length` cannot have."""
    if model.head_size * model.num_heads != model.d_model:
        raise ValueError(
            f"head_dim={model.head_size} is not d_model / num_heads, as llama.cpp has it there"
        )


def difference(model: ModelConfig, read_back: ModelConfig, runtime: str) -> str | None:
    """Says what a format loses of a model; None if it is the same model.

    Args:
      model: a model.
      read_back: what the format's keys for it describe.
      runtime: what reads the format, for the message.
    """
    if model.scale == read_back.scale:  # None and the value that it stands for
        model = dataclasses.replace(model, attention_scale=read_back.attention_scale)
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(model, field.name), getattr(read_back, field.name)
        if (
            isinstance(ours, float)
            and isinstance(theirs, float)
            and math.isclose(ours, theirs, rel_tol=1e-6)
        ):  # GGUF has them in float32
            continue
        if field.name not in _UNSTORED and ours != theirs:
            return (
                f"{field.name}={ours!r} is not what {runtime} do; only {theirs!r} can be exported"
            )
    return None
