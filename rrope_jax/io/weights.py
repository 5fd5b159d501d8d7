"""Layouts and usual names of the parameters of a `Decoder` in other formats.

Other formats store every kernel as a matrix [out, in]. Ours are [in..., out...], with heads as a
separate axis, stacked over the layers. `WEIGHTS` has one row for each kind of parameter, with the
names that LLaMA has for it; a family with other names says so (see `rrope_jax.io.families`). A
checkpoint with any other weight is rejected.
"""

import dataclasses
import math
from typing import Any

from numpy.typing import NDArray

from rrope_jax.model import ModelConfig
from rrope_jax.model.decoder import parameter_layout

Array = NDArray[Any]
Part = tuple[range, ...]
"""A part of an array, given as one range for each axis."""


@dataclasses.dataclass(frozen=True)
class Weight:
    """One kind of parameter.

    Attributes:
      path: the dotted path of the parameter in `nnx.state(decoder)`.
      huggingface, gguf: LLaMA's names of the weight in these formats, with `{layer}` if it is per
        layer.
      inputs: number of input axes of the kernel, 0 for a bias; None for weights that are stored
        unchanged.
      rotated: whether it makes (or scales) something that is rotated, head by head.
    """

    path: str
    huggingface: str
    gguf: str
    inputs: int | None = 1
    rotated: bool = False

    @property
    def stacked(self) -> bool:
        """Whether each layer has this weight."""
        return "{layer}" in self.huggingface

    @property
    def is_norm(self) -> bool:
        """Whether this is the scale of a norm."""
        return self.path.endswith("norm.scale")

    @property
    def is_kernel(self) -> bool:
        """Whether this is a matrix of a layer."""
        return self.stacked and bool(self.inputs)

    @property
    def is_embedding(self) -> bool:
        """Whether this is the embedding or the output matrix."""
        return self in (EMBEDDING, OUTPUT)

    def layers(self, config: ModelConfig) -> range:
        """The layers that have this weight; only 0 if it is not stacked."""
        return range(config.num_layers if self.stacked else 1)

    def axes(self, num_axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the kernel axes that form the rows of the matrix, and those of its columns."""
        if self.inputs is None:
            return (0,), tuple(range(1, num_axes))
        return tuple(range(self.inputs, num_axes)), tuple(range(self.inputs))

    def to_matrix(self, kernel: Array) -> Array:
        """Returns one layer's kernel as other formats store it, as a view if possible."""
        if self.inputs is None:
            return kernel
        if self.inputs == 0:
            return kernel.reshape(-1)
        return kernel.reshape(math.prod(kernel.shape[: self.inputs]), -1).T


def _layer_weight(path: str, huggingface: str, gguf: str, **fields: Any) -> Weight:
    """Creates a `Weight` that every layer has."""
    return Weight(
        f"blocks.{path}",
        f"model.layers.{{layer}}.{huggingface}",
        f"blk.{{layer}}.{gguf}",
        **fields,
    )


def _projection(path: str, huggingface: str, gguf: str, **fields: Any) -> Weight:
    return _layer_weight(path, f"{huggingface}.weight", f"{gguf}.weight", **fields)


def _bias(path: str, huggingface: str, gguf: str, **fields: Any) -> Weight:
    return _layer_weight(path, f"{huggingface}.bias", f"{gguf}.bias", inputs=0, **fields)


def _norm(path: str, huggingface: str, gguf: str, **fields: Any) -> Weight:
    return _layer_weight(
        f"{path}.scale", f"{huggingface}.weight", f"{gguf}.weight", **{"inputs": None} | fields
    )


# In this order the parts of a fused matrix follow one another.
WEIGHTS = (
    Weight("embedding", "model.embed_tokens.weight", "token_embd.weight", inputs=None),
    _norm("attention_norm", "input_layernorm", "attn_norm"),
    _projection("attention.query", "self_attn.q_proj", "attn_q", rotated=True),
    _projection("attention.key", "self_attn.k_proj", "attn_k", rotated=True),
    _projection("attention.value", "self_attn.v_proj", "attn_v"),
    _bias("attention.query_bias", "self_attn.q_proj", "attn_q", rotated=True),
    _bias("attention.key_bias", "self_attn.k_proj", "attn_k", rotated=True),
    _bias("attention.value_bias", "self_attn.v_proj", "attn_v"),
    # [H] or, over all heads together, [N, H]: both are stored as a vector
    _norm("attention.query_norm", "self_attn.q_norm", "attn_q_norm", inputs=0, rotated=True),
    _norm("attention.key_norm", "self_attn.k_norm", "attn_k_norm", inputs=0, rotated=True),
    _projection("attention.out", "self_attn.o_proj", "attn_output", inputs=2),
    _norm("attention_post_norm", "post_attention_layernorm", "post_attention_norm"),
    # LLaMA calls it by the place that it has after attention
    _norm("feed_forward_norm", "post_attention_layernorm", "ffn_norm"),
    _projection("feed_forward.gate", "mlp.gate_proj", "ffn_gate"),
    _projection("feed_forward.up", "mlp.up_proj", "ffn_up"),
    _projection("feed_forward.down", "mlp.down_proj", "ffn_down"),
    _norm("feed_forward_post_norm", "post_feedforward_layernorm", "post_ffw_norm"),
    Weight("final_norm.scale", "model.norm.weight", "output_norm.weight", inputs=None),
    Weight("output", "lm_head.weight", "output.weight"),
)
EMBEDDING, OUTPUT = WEIGHTS[0], WEIGHTS[-1]


def parameter_shapes(config: ModelConfig) -> dict[Weight, tuple[int, ...]]:
    """The shape of each parameter of a decoder."""
    shapes = {".".join(path): shape for path, (shape, _) in parameter_layout(config).items()}
    return {weight: shapes[weight.path] for weight in WEIGHTS if weight.path in shapes}


def matrix_shapes(config: ModelConfig) -> dict[tuple[Weight, int], tuple[int, ...]]:
    """The shape of each (weight, layer) in other formats."""
    shapes: dict[tuple[Weight, int], tuple[int, ...]] = {}
    for weight, shape in parameter_shapes(config).items():
        kernel = shape[1:] if weight.stacked else shape
        matrix = tuple(
            math.prod(kernel[axis] for axis in group) for group in weight.axes(len(kernel)) if group
        )
        shapes |= {(weight, layer): matrix for layer in weight.layers(config)}
    return shapes
