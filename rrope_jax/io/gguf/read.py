"""Reads GGUF files of the `llama` architecture as llama.cpp does."""

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io.description import FOLDED_TEMPERATURE, Description
from rrope_jax.io.gguf import container as gguf_file
from rrope_jax.io.gguf import tokenizer as gguf_tokenizer
from rrope_jax.io.gguf import vocabulary as gguf_vocabulary
from rrope_jax.io.gguf.vocabulary import Vocabulary
from rrope_jax.io.source import Part, Source
from rrope_jax.io.tokenizer import end_of_text
from rrope_jax.io.weights import WEIGHTS, Array, Weight, check_weights
from rrope_jax.model import ModelConfig
from rrope_jax.rope import RopeSpec, frequencies, llama3_context

_log = logging.getLogger(__name__)

ARCHITECTURE = "llama"
FREQUENCY_FACTORS = "rope_freqs.weight"
ORIGINAL_CONTEXT = "rope.scaling.original_context_length"
RESONANCE = "rrope.resonance"
FOLDED = f"rrope.{FOLDED_TEMPERATURE}"
# Special tokens: GGUF's names and the corresponding keys of config.json.
TOKEN_IDS = {"bos": "bos_token_id", "padding": "pad_token_id"}
# Features that our decoder lacks, with the value that turns each off.
_REFUSED = {"expert_count": 0, "attention.sliding_window": 0, "attention.causal": True}


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that starts with GGUF's magic bytes."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(gguf_file.MAGIC)) == gguf_file.MAGIC


class GgufSource(Source):
    """The model in a GGUF file."""

    def __init__(self, path: Path) -> None:
        """Opens a file and reads its header; see `container.read_header`.

        Raises:
          ValueError: the file is damaged, or a part of the model is missing.
        """
        self.path: Path = path
        self._contents = gguf_file.read_header(path)

    def _describe(self) -> Description:
        return _describe(self.path, self._contents)

    def _check(self) -> None:
        for name, tensor in self._contents.tensors.items():
            gguf_file.check_kind(name, tensor)
        check_weights(
            {name: tensor.shape for name, tensor in self._contents.tensors.items()},
            _name,
            self.description.model,
            where=str(self.path),
            ignored={FREQUENCY_FACTORS},
        )

    def matrix(self, weight: Weight, layer: int, part: Part | None = None) -> Array:
        """Returns one weight or a part of it; see `Source.matrix`."""
        name = _name(weight, layer)
        matrix = gguf_file.read_tensor(name, self._contents.tensors[name], part)
        if weight.heads is None:
            return matrix
        return to_half_split(matrix, matrix.shape[0] // self.description.model.head_size)


def to_half_split(matrix: Array, heads: int) -> Array:
    """Reorders rows from llama.cpp's rotary pairs (2i, 2i + 1) to ours, (i, i + head_dim/2)."""
    pairs = matrix.reshape(heads, -1, 2, matrix.shape[1])
    return pairs.swapaxes(1, 2).reshape(matrix.shape)


def to_interleaved(matrix: Array, heads: int, rotary_dim: int) -> Array:
    """The inverse of `to_half_split` for the first `rotary_dim` dimensions of each head."""
    by_head = matrix.reshape(heads, -1, matrix.shape[1])
    rotated, rest = np.split(by_head, [rotary_dim], axis=1)
    halves = rotated.reshape(heads, 2, -1, matrix.shape[1])
    pairs = halves.swapaxes(1, 2).reshape(rotated.shape)
    return np.concatenate([pairs, rest], axis=1).reshape(matrix.shape)


def _name(weight: Weight, layer: int) -> str:
    return weight.gguf.format(layer=layer)


def _describe(path: Path, contents: gguf_file.Contents) -> Description:
    metadata = contents.metadata
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ValueError(
            f"{path}: general.architecture={architecture!r} is not implemented; "
            f"only {ARCHITECTURE!r} is"
        )
    keys = {
        key.removeprefix(f"{ARCHITECTURE}."): _shortest(_one_for_all_layers(value))
        for key, value in metadata.items()
        if key.startswith(f"{ARCHITECTURE}.")
    }
    for key, (kind, fits) in _TYPES.items():
        if key in keys and not fits(keys[key]):
            raise ValueError(f"{path}: {ARCHITECTURE}.{key}={str(keys[key])[:80]} must be {kind}")
    for key, absent in _REFUSED.items():
        if keys.get(key, absent) != absent:
            raise ValueError(
                f"{path}: {ARCHITECTURE}.{key}={keys[key]!r} is not implemented; only models "
                f"with {absent!r} are"
            )

    def required(key: str) -> Any:
        if key not in keys:
            raise ValueError(f"it has no {ARCHITECTURE}.{key}, which a model needs")
        return keys[key]

    temperature = metadata.get(FOLDED)
    if temperature is not None and not _NUMBER[1](temperature):
        raise ValueError(f"{path}: {FOLDED}={str(temperature)[:80]} must be {_NUMBER[0]}")
    embedding = contents.tensors.get(WEIGHTS[0].gguf)
    if embedding is None:
        raise ValueError(f"{path} has no weight {WEIGHTS[0].gguf!r}; it is not a whole model")
    try:
        model = ModelConfig(
            vocab_size=embedding.shape[0],
            d_model=required("embedding_length"),
            num_layers=required("block_count"),
            num_heads=required("attention.head_count"),
            num_kv_heads=keys.get("attention.head_count_kv"),
            head_dim=keys.get("attention.key_length"),
            d_ff=required("feed_forward_length"),
            rms_norm_eps=required("attention.layer_norm_rms_epsilon"),
            tie_embeddings=WEIGHTS[-1].gguf not in contents.tensors,
        )
        for key in ("attention.value_length", "rope.dimension_count"):
            if keys.get(key, model.head_size) != model.head_size:
                raise ValueError(
                    f"{ARCHITECTURE}.{key}={keys[key]} differs from the head size "
                    f"{model.head_size}, which is not implemented"
                )
        vocabulary = gguf_vocabulary.read(metadata)
        for note in () if vocabulary is None else vocabulary.notes:
            _log.warning("%s: %s", path, note)
        extras = _token_ids(metadata, vocabulary, model.vocab_size)
        spec, original = _rope(contents, keys, model.head_size), keys.get(ORIGINAL_CONTEXT)
        return Description(
            model=model,
            rope=spec,
            context=required("context_length"),
            original_context=None if original == spec.original_context else original,
            tokenizer=None if vocabulary is None else gguf_tokenizer.files_of(vocabulary),
            extras=extras if temperature is None else extras | {FOLDED_TEMPERATURE: temperature},
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_INTEGER = ("an integer", _is_int)
_NUMBER = (
    "a finite number",
    lambda value: _is_int(value) or (isinstance(value, float) and math.isfinite(value)),
)
# Types of the keys that are read.
_TYPES = {
    "rope.scaling.type": ("a string", lambda value: isinstance(value, str)),
    "attention.causal": ("a bool", lambda value: isinstance(value, bool)),
    **dict.fromkeys(
        (
            "block_count",
            "context_length",
            "embedding_length",
            "feed_forward_length",
            "attention.head_count",
            "attention.head_count_kv",
            "attention.key_length",
            "attention.value_length",
            "attention.sliding_window",
            "expert_count",
            "rope.dimension_count",
            "rope.scaling.original_context_length",
        ),
        _INTEGER,
    ),
    **dict.fromkeys(
        (
            "attention.layer_norm_rms_epsilon",
            "rope.freq_base",
            "rope.scale_linear",
            "rope.scaling.factor",
            "rope.scaling.attn_factor",
            "rope.scaling.yarn_beta_fast",
            "rope.scaling.yarn_beta_slow",
        ),
        _NUMBER,
    ),
}


def _one_for_all_layers(value: Any) -> Any:
    """Reduces a list of equal values, one per layer, to that value; returns others unchanged."""
    if isinstance(value, list) and value and all(each == value[0] for each in value):
        return value[0]
    return value


def _token_ids(
    metadata: Mapping[str, Any], vocabulary: Vocabulary | None, vocab_size: int
) -> dict[str, Any]:
    """The config.json entries for special tokens, without ids outside the model's vocabulary."""
    if vocabulary is None:
        ids = gguf_vocabulary.ids_alone(metadata)
        ends = list(dict.fromkeys(ids[name] for name in gguf_vocabulary.ENDS if name in ids))
    else:
        ids, ends = dict(vocabulary.ids), list(vocabulary.ends)
    keys: dict[str, Any] = {
        theirs: ids[name]
        for name, theirs in TOKEN_IDS.items()
        if name in ids and 0 <= ids[name] < vocab_size
    }
    ends = [index for index in ends if 0 <= index < vocab_size]
    if ends:
        keys[end_of_text.KEY] = ends if len(ends) > 1 else ends[0]
    return keys


def _shortest(value: Any) -> Any:
    """Rounds a float to the shortest decimal of its float32: 1e-05, not 9.99999974e-06."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _rope(contents: gguf_file.Contents, keys: Mapping[str, Any], head_dim: int) -> RopeSpec:
    """The rotary embedding that llama.cpp computes from the keys."""
    context = keys.get("context_length")
    scaling = keys.get("rope.scaling.type", "none")
    factor = keys.get("rope.scaling.factor", keys.get("rope.scale_linear", 1.0))
    if "rope.scaling.type" not in keys and factor != 1:
        scaling = "linear"
    temperature = keys.get("rope.scaling.attn_factor", 1.0)
    fields: dict[str, Any] = {
        "head_dim": head_dim,
        "theta": float(keys.get("rope.freq_base", 10000.0)),
    }
    if contents.metadata.get(RESONANCE):
        fields["resonance"] = True
    factors = contents.tensors.get(FREQUENCY_FACTORS)
    if factors is not None and scaling in ("none", "linear"):
        divisors = gguf_file.read_tensor(FREQUENCY_FACTORS, factors).astype(np.float64)
        values = factor * divisors.reshape(-1)
        fields |= {
            "scaling": "longrope",
            # With two equal lists, it does not affect the result.
            "original_context": llama3_context(values, theta=fields["theta"]) or context,
            "short_factor": tuple(values.tolist()),
            "long_factor": tuple(values.tolist()),
            "attention_factor": temperature,
        }
        return RopeSpec(**fields)
    if factors is not None or scaling not in ("none", "linear", "yarn"):
        also = f" beside {FREQUENCY_FACTORS}" if factors is not None else ""
        raise ValueError(
            f"{ARCHITECTURE}.rope.scaling.type={scaling!r}{also} is not implemented; "
            "only 'none', 'linear' and 'yarn' are"
        )
    fields["scaling"] = scaling
    if scaling != "none":
        fields["factor"] = factor
    if scaling == "yarn":
        original = keys.get(ORIGINAL_CONTEXT, context)
        fields["original_context"] = original
        for name in ("beta_fast", "beta_slow"):
            if (value := keys.get(f"rope.scaling.yarn_{name}")) is not None:
                fields[name] = value
    spec = RopeSpec(**fields)
    if temperature == 1:
        return spec
    # llama.cpp multiplies YaRN's own temperature by this one.
    fields["attention_factor"] = temperature * frequencies(spec).attention_factor
    return RopeSpec(**fields)
