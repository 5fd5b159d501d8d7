"""GGUF files: header, weights of several types, both kinds of tokenizers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io.weights import matrix_shapes
from tests.fuzz import model_folders
from tests.fuzz.judging import Target

NAME = "model.gguf"
_U32, _F32, _BOOL, _STRING, _ARRAY, _I32 = 4, 6, 7, 8, 9, 5
_TYPE_OF = {bool: _BOOL, int: _U32, float: _F32, str: _STRING}
_MODEL = model_folders.MODEL
_SIZES = {
    "block_count": _MODEL.num_layers,
    "context_length": 64,
    "embedding_length": _MODEL.d_model,
    "feed_forward_length": _MODEL.d_ff,
    "attention.head_count": _MODEL.num_heads,
    "attention.head_count_kv": _MODEL.kv_heads,
    "attention.key_length": _MODEL.head_size,
    "attention.value_length": _MODEL.head_size,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "rope.dimension_count": _MODEL.head_size,
    "rope.freq_base": 10000.0,
}
_YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 4.0,
    "rope.scaling.original_context_length": 16,
    "rope.scaling.attn_factor": 1.1,
    "rope.scaling.yarn_beta_fast": 32.0,
}
_BYTE_LEVEL = {
    "model": "gpt2",
    "pre": "smollm",
    "tokens": ["<s>", "a", "b", "\u0120", "ab", "\u0120a", "1", "2", "\u010a", "</s>"],
    "token_type": [3, 1, 1, 1, 1, 1, 1, 1, 1, 3],
    "merges": ["a b", "\u0120 a"],
    "bos_token_id": 0,
    "eos_token_id": 9,
    "add_bos_token": True,
}
_SENTENCEPIECE = {
    "model": "llama",
    "tokens": ["<unk>", "<s>", "</s>", "<0x0A>", "<0xC3>", "<0xA9>", "\u2581", "a", "b", "ab"],
    "scores": [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -4.0],
    "token_type": [2, 3, 3, 6, 6, 6, 1, 1, 1, 1],
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
    "padding_token_id": 2,
    "add_space_prefix": True,
}


def _row(key: str, value: Any) -> list[Any]:
    if isinstance(value, list):
        kind = _I32 if key.endswith("token_type") else _TYPE_OF[type(value[0])]
        return [key, _ARRAY, [kind, *value]]
    return [key, _TYPE_OF[type(value)], value]


def file(
    keys: dict[str, Any], tokenizer: dict[str, Any], *, kind: int = 0, factors: bool = False
) -> dict[str, Any]:
    """A file of `_MODEL`.

    Args:
      keys: of the architecture, beside its sizes.
      tokenizer: keys below `tokenizer.ggml`.
      kind: type of the matrices: 0 for float32, 1 for float16.
      factors: whether the rotation has a list of factors.
    """
    metadata = {
        "general.architecture": "llama",
        **{f"llama.{key}": value for key, value in (_SIZES | keys).items()},
        **{f"tokenizer.ggml.{key}": value for key, value in tokenizer.items()},
    }
    shapes = {w.gguf.format(layer=layer): s for (w, layer), s in matrix_shapes(_MODEL).items()}
    if factors:
        shapes["rope_freqs.weight"] = (_MODEL.head_size // 2,)
    tensors: list[Any] = []
    data = b""
    for name, shape in shapes.items():
        own = kind if len(shape) > 1 else 0
        tensors.append([name, list(shape)[::-1], own, len(data)])
        values = np.ones(shape, np.float16 if own else np.float32).tobytes()
        data += values + b"\0" * (-len(values) % 32)
    rows = [_row(key, value) for key, value in metadata.items()]
    return {"version": 3, "metadata": rows, "tensors": tensors, "data": data}


def seeds() -> Sequence[dict[str, Any]]:
    """Files of each kind of tokenizer, embedding and type."""
    return [
        {NAME: file(_YARN, _SENTENCEPIECE)},
        {NAME: file({"rope.scale_linear": 2.0}, _BYTE_LEVEL, kind=1)},
        {NAME: file({}, {"model": "no_vocab"}, factors=True)},
        {NAME: file({}, _BYTE_LEVEL | {"pre": "llama-bpe"}, factors=True)},
    ]


def _run(folder: Path) -> None:
    model_folders.read(folder / NAME)


TARGET = Target("gguf", seeds, _run)
