"""Names and layouts of the parameters of a `Decoder` in other formats.

Other formats store every kernel as a matrix [out, in]. Ours are [in..., out...], with heads as a
separate axis, stacked over the layers. `WEIGHTS` has one row for each kind of parameter; a
checkpoint with any other weight is rejected.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from rrope_jax.model import ModelConfig
from rrope_jax.model.decoder import parameter_layout

Array = NDArray[Any]


@dataclasses.dataclass(frozen=True)
class Weight:
    """One kind of parameter.

    Attributes:
      path: the dotted path of the parameter in `nnx.state(decoder)`.
      huggingface, gguf: the weight's names in these formats, with `{layer}` if it is per layer.
      inputs: number of input axes of the kernel; None for weights that are stored unchanged.
      heads: for weights whose output is rotated, the `ModelConfig` property that has the number of
        heads; None for others.
    """

    path: str
    huggingface: str
    gguf: str
    inputs: int | None = 1
    heads: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether each layer has this weight."""
        return "{layer}" in self.huggingface

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
        return kernel.reshape(math.prod(kernel.shape[: self.inputs]), -1).T


def _layer_weight(path: str, huggingface: str, gguf: str, **fields: Any) -> Weight:
    """Creates a `Weight` that every layer has."""
    return Weight(
        f"blocks.{path}",
        f"model.layers.{{layer}}.{huggingface}.weight",
        f"blk.{{layer}}.{gguf}.weight",
        **fields,
    )


WEIGHTS = (
    Weight("embedding", "model.embed_tokens.weight", "token_embd.weight", inputs=None),
    _layer_weight("attention_norm.scale", "input_layernorm", "attn_norm", inputs=None),
    _layer_weight("attention.query", "self_attn.q_proj", "attn_q", heads="num_heads"),
    _layer_weight("attention.key", "self_attn.k_proj", "attn_k", heads="kv_heads"),
    _layer_weight("attention.value", "self_attn.v_proj", "attn_v"),
    _layer_weight("attention.out", "self_attn.o_proj", "attn_output", inputs=2),
    _layer_weight("feed_forward_norm.scale", "post_attention_layernorm", "ffn_norm", inputs=None),
    _layer_weight("feed_forward.gate", "mlp.gate_proj", "ffn_gate"),
    _layer_weight("feed_forward.up", "mlp.up_proj", "ffn_up"),
    _layer_weight("feed_forward.down", "mlp.down_proj", "ffn_down"),
    Weight("final_norm.scale", "model.norm.weight", "output_norm.weight", inputs=None),
    Weight("output", "lm_head.weight", "output.weight"),
)


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


def check_weights(
    stored: Mapping[str, tuple[int, ...]],
    name_of: Callable[[Weight, int], str],
    config: ModelConfig,
    *,
    where: str,
    ignored: Collection[str] = (),
) -> None:
    """Checks that a checkpoint has exactly the weights of its model, in the right shapes.

    Args:
      stored: shapes in the checkpoint by name.
      name_of: returns the format's name of a (weight, layer).
      config: the model's config.
      where: the checkpoint's name, for error messages.
      ignored: names in the checkpoint that are not read.

    Raises:
      ValueError: weights are missing, unknown or misshaped; the message names them.
    """
    if config.num_layers > len(stored):  # a damaged number must not cause a near-endless loop
        raise ValueError(
            f"{where} has {len(stored)} weights, but by its config {config.num_layers} layers"
        )
    shapes = {name_of(*key): shape for key, shape in matrix_shapes(config).items()}
    if missing := sorted(shapes.keys() - stored.keys()):
        raise ValueError(f"{where} has no weight {_some(missing)}; the model's config needs it")
    if unknown := sorted(stored.keys() - shapes.keys() - set(ignored)):
        raise ValueError(
            f"{where} has the unknown weight {_some(unknown)}: this is not a plain LLaMA model "
            "(no biases, no normalised queries and keys, no experts), and dropping it would "
            "change the model"
        )
    for name, shape in shapes.items():
        if stored[name] != shape:
            raise ValueError(
                f"{where}: {name} has shape {list(stored[name])}, but the model's config makes it "
                f"{list(shape)}; one of the two is wrong"
            )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(repr(name) for name in names[:3]) + more
