"""Hugging Face folders: config.json, safetensors in one file or several, a tokenizer's files."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rrope_jax.io import pretrained
from rrope_jax.io.source import read_parameter
from rrope_jax.io.weights import matrix_shapes, parameter_shapes
from rrope_jax.model import ModelConfig
from tests.fuzz import tokenizer_files
from tests.fuzz.judging import Target

MODEL = ModelConfig(
    vocab_size=10, d_model=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4, d_ff=6
)
_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 10,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "rms_norm_eps": 1e-5,
    "initializer_range": 0.02,
    "hidden_act": "silu",
    "attention_bias": False,
    "max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 32},
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": [2, 0],
    "pad_token_id": -1,
    "torch_dtype": "float32",
}
_SIZES = {"F32": 4, "F16": 2, "BF16": 2}


def _safetensors(shapes: dict[str, tuple[int, ...]], dtype: str) -> dict[str, Any]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, shape in shapes.items():
        size = int(np.prod(shape)) * _SIZES[dtype]
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + size],
        }
        data += bytes(size)  # zeros are numbers in every type
    return {"header": header, "data": data}


def seeds() -> Sequence[dict[str, Any]]:
    """Folders of one file and of two."""
    shapes = {
        weight.huggingface.format(layer=layer): shape
        for (weight, layer), shape in matrix_shapes(MODEL).items()
    }
    first = dict(list(shapes.items())[:7])
    rest = {name: shape for name, shape in shapes.items() if name not in first}
    names = [f"model-0000{part}-of-00002.safetensors" for part in (1, 2)]
    weight_map = dict.fromkeys(first, names[0]) | dict.fromkeys(rest, names[1])
    byte_level, sentencepiece, _ = tokenizer_files.folders()
    plain = _CONFIG | {"rope_scaling": None, "model_type": "mistral", "sliding_window": None}
    tied = _CONFIG | {"tie_word_embeddings": True}
    untied = {name: shape for name, shape in shapes.items() if name != "lm_head.weight"}
    return [
        {"config.json": _CONFIG, "model.safetensors": _safetensors(shapes, "F32")} | sentencepiece,
        {"config.json": tied, "model.safetensors": _safetensors(untied, "BF16")},
        {
            "config.json": plain,
            names[0]: _safetensors(first, "F16"),
            names[1]: _safetensors(rest, "F16"),
            "model.safetensors.index.json": {
                "metadata": {"total_size": 2000},
                "weight_map": weight_map,
            },
        }
        | byte_level,
    ]


def read(path: Path) -> None:
    """Describes a checkpoint, checks it, and reads its weights and its tokenizer."""
    pretrained.describe(path)
    source = pretrained.open_source(path)
    source.check()
    for weight in parameter_shapes(source.description.model):
        read_parameter(source, weight)
    if source.description.tokenizer is not None:
        tokenizer_files.use(source.description.tokenizer)


TARGET = Target("folders", seeds, read)
