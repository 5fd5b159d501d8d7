"""The parameters of a `Decoder` by their names and layouts in other formats.

Other formats keep every kernel as a matrix [out, in]; ours are [in..., out...] with the heads as
axes of their own, stacked over the layers. Each kind of parameter is one row of `WEIGHTS`, and
whatever is not in it is refused.
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
      path: of the parameter in `nnx.state(decoder)`, joined by dots.
      huggingface, gguf: its names there, with `{layer}` where there is one per layer.
      inputs: how many axes of the kernel are inputs; None for what is stored as it is.
      heads: for what the rotation acts on, the `ModelConfig` property that counts its heads.
    """

    path: str
    huggingface: str
    gguf: str
    inputs: int | None = 1
    heads: str | None = None

    @property
    def stacked(self) -> bool:
        """Whether there is one per layer."""
        return "{layer}" in self.huggingface

    def layers(self, config: ModelConfig) -> range:
        """The layers it occurs in; just 0 where it is not stacked."""
        return range(config.num_layers if self.stacked else 1)

    def axes(self, num_axes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The axes of one layer's kernel that are the rows and the columns of its matrix."""
        if self.inputs is None:
            return (0,), tuple(range(1, num_axes))
        return tuple(range(self.inputs, num_axes)), tuple(range(self.inputs))

    def to_matrix(self, kernel: Array) -> Array:
        """A view of one layer's kernel as other formats store it."""
        if self.inputs is None:
            return kernel
        return kernel.reshape(math.prod(kernel.shape[: self.inputs]), -1).T


def _layer_weight(path: str, huggingface: str, gguf: str, **fields: Any) -> Weight:
    """A kind of weight that every layer has."""
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
    """The shape of each parameter that a decoder has."""
    shapes = {".".join(path): shape for path, (shape, _) in parameter_layout(config).items()}
    return {weight: shapes[weight.path] for weight in WEIGHTS if weight.path in shapes}


def matrix_shapes(config: ModelConfig) -> dict[tuple[Weight, int], tuple[int, ...]]:
    """The shape of each (weight, layer) as other formats store it."""
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
    """Checks that a checkpoint has the weights of its model, no others, and in the right shapes.

    Args:
      stored: the shapes in the checkpoint by name.
      name_of: what the format calls a weight.
      config: the model's.
      where: names the checkpoint in messages.
      ignored: names in the checkpoint that are not read.

    Raises:
      ValueError: they differ; the message names the weights.
    """
    if config.num_layers > len(stored):  # a damaged number must not become an endless loop
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
