"""`ModelConfig`: the shape and numerics of a decoder, frozen and hashable."""

import dataclasses
import types
import typing
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from rrope_jax.model.attention.choice import IMPLEMENTATIONS
from rrope_jax.model.attention.chunked import RESULT
from rrope_jax.model.layer_types import LAYER_TYPES, repeat, shortest_pattern
from rrope_jax.rope.fields import is_int, is_number


class Activation(NamedTuple):
    """The nonlinearity of a feed-forward layer.

    Attributes:
      function: elementwise, applied to the gate if there is one, otherwise to the hidden layer.
      gated: whether the result multiplies a second hidden layer.
    """

    function: Callable[[jax.Array], jax.Array]
    gated: bool


ACTIVATIONS = {
    "swiglu": Activation(jax.nn.silu, gated=True),  # arXiv 2002.05202
    # GELU in its tanh form, which is that of jax.nn
    "geglu": Activation(jax.nn.gelu, gated=True),  # arXiv 2002.05202
    "relu": Activation(jax.nn.relu, gated=False),  # T5 v1.0
}


def _products_and_attention(primitive: Any, *_: Any, **parameters: Any) -> bool:
    """Whether to save an operation's result: only if recomputing it costs more than reading it."""
    named = primitive.name == "name" and parameters["name"] == RESULT
    return named or primitive.name in ("dot_general", "dot_product_attention_fwd")


# What a block in a loop over layers saves for the backward pass.
REMAT_POLICIES: dict[str, Callable[..., Any]] = {
    "none": _products_and_attention,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
# Far beyond any model, except for num_layers, which is checked against a checkpoint's weights.
_LARGEST = {
    "vocab_size": 2**24,
    "d_model": 2**20,
    "num_layers": 2**31 - 1,
    "num_heads": 2**16,
    "d_ff": 2**24,
    "num_kv_heads": 2**16,
    "head_dim": 2**14,
    "sliding_window": 2**31 - 1,
}


class WeightDtype(NamedTuple):
    """The dtypes of parameters in memory; norms and biases always are float32.

    Attributes:
      kernels: of the matrices of layers; `int8` ones have a scale (`rrope_jax.model.int8`).
      embeddings: of the embedding and the output matrix.
    """

    kernels: str
    embeddings: str


WEIGHT_DTYPES = {
    "float32": WeightDtype("float32", "float32"),
    "bfloat16": WeightDtype("bfloat16", "bfloat16"),
    "int8": WeightDtype("int8", "bfloat16"),
}
_POSITIVE = (
    "attention_scale",
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "initializer_range",
    "rms_norm_eps",
)
# Fields that descriptions of models, as in checkpoints, did not have in the beginning.
_LATER = frozenset(
    {
        "layer_types",
        "sliding_window",
        "qkv_bias",
        "qk_norm",
        "norm_placement",
        "norm_offset",
        "embedding_scale",
        "residual_scale",
        "weight_dtype",
    }
)
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
_CHOICES: dict[str, Collection[str]] = {
    "activation": ACTIVATIONS,
    "qk_norm": ("none", "head", "all_heads"),
    "norm_placement": ("before", "after", "both"),
    "initialization": ("normal", "t5"),
    "compute_dtype": ("float32", "bfloat16"),
    "weight_dtype": WEIGHT_DTYPES,
    "remat": REMAT_POLICIES,
    "attention": ("auto", *IMPLEMENTATIONS),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A LLaMA-style decoder: blocks of causal attention and a feed-forward layer with RMSNorm.

    The fields after the sizes also cover the layers of T5-Small, which the paper's PosGen model
    uses, and of the families in `rrope_jax.io.families`.

    Attributes:
      vocab_size: rows of the embedding.
      d_model: width of the residual stream.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key/value heads, a divisor of num_heads; None means num_heads.
      head_dim: dimensions of a head; None means d_model / num_heads.
      d_ff: hidden width of the feed-forward layer.
      layer_types: names in `LAYER_TYPES`, as a pattern that repeats over the layers or a list of
        all; kept as the shortest pattern. `full_attention` layers see the whole row,
        `sliding_attention` layers a window, `nope` layers the whole row without rotation.
      sliding_window: keys that a query of a sliding layer sees, itself included; None without such
        layers.
      activation: `swiglu` or `geglu` (gated), or `relu` (two matrices, no gate).
      qkv_bias: whether queries, keys and values have a bias, as in Qwen2.
      qk_norm: RMSNorm of queries and keys before the rotation: `none`, `head` (over each head, as
        in Qwen3) or `all_heads` (over all of them together, as in OLMo 2).
      norm_placement: RMSNorm `before` each sublayer, `after` it (OLMo 2) or `both` (Gemma 3).
      norm_offset: whether norms multiply by 1 + scale instead of scale, as in Gemma.
      embedding_scale: factor on the embedded tokens. Gemma uses d_model ** 0.5.
      residual_scale: factor on the output of a sublayer before it is added. Granite sets it.
      attention_scale: factor on the logits q.k; None means head_dim ** -0.5. T5 uses 1.
      logit_scale: factor on the final hidden state before the output matrix. T5 uses
        d_model ** -0.5 with tied embeddings.
      tie_embeddings: whether the output matrix is the embedding.
      dropout: rate on the embedding, the attention weights, the feed-forward hidden layer, every
        sublayer's output and the final norm's output; used only with a dropout key.
      initialization: `normal` (standard deviation `initializer_range` everywhere) or `t5`
        (scaled by fan-in, queries also by head_dim; 1 for the embedding).
      initializer_range: the standard deviation of `normal`.
      rms_norm_eps: added to the mean square in RMSNorm.
      compute_dtype: dtype of activations and matrix products; norms, softmax and logits are
        float32.
      weight_dtype: dtype of parameters in memory, a key of `WEIGHT_DTYPES`; they are cast to
        compute_dtype on use. Only float32 parameters are trained or saved.
      remat: what the backward pass recomputes: `none` (nothing, or in models of many layers only
        cheap elementwise operations, which is faster than saving them), `dots` (attention too) or
        `full` (whole blocks).
      attention: a key of `attention.choice.IMPLEMENTATIONS`; `auto` chooses by backend and shape.

    Raises:
      ValueError: a field has the wrong type or is out of range, or two fields conflict.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    layer_types: tuple[str, ...] = ("full_attention",)
    sliding_window: int | None = None
    activation: str = "swiglu"
    qkv_bias: bool = False
    qk_norm: str = "none"
    norm_placement: str = "before"
    norm_offset: bool = False
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    attention_scale: float | None = None
    logit_scale: float = 1.0
    tie_embeddings: bool = False
    dropout: float = 0.0
    initialization: str = "normal"
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    compute_dtype: str = "float32"
    remat: str = "none"
    attention: str = "auto"
    weight_dtype: str = "float32"

    def __post_init__(self) -> None:
        layer_types: Any = self.layer_types
        if isinstance(layer_types, list):
            object.__setattr__(self, "layer_types", tuple(layer_types))  # hashable
        _check_types(self)
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}"
                )
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if value is not None and value < 1 and name != "head_dim":
                raise ValueError(f"{name}={value} must be at least 1")
            if value is not None and value > largest:
                raise ValueError(f"{name}={value} must be at most {largest}; no model is larger")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value <= _LARGEST_FLOAT:
                raise ValueError(
                    f"{name}={value} must be greater than 0 and at most {_LARGEST_FLOAT:.3g}, the "
                    "largest float32"
                )
            if value is not None:  # JAX rejects ints beyond int32
                object.__setattr__(self, name, float(value))
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1); use 0 for none")
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )
        if self.head_dim is None:
            if self.d_model % self.num_heads:
                raise ValueError(
                    f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}; "
                    "set head_dim explicitly or change one of them"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        if self.head_size < 2 or self.head_size % 2 or self.head_size > _LARGEST["head_dim"]:
            raise ValueError(
                f"head_dim={self.head_dim} must be even and at least 2, at most "
                f"{_LARGEST['head_dim']}: RoPE rotates pairs; unset, it is d_model / num_heads"
            )
        self._check_layer_types()

    def _check_layer_types(self) -> None:
        if not 1 <= len(self.layer_types) <= self.num_layers:
            raise ValueError(
                f"layer_types has {len(self.layer_types)} entries but num_layers="
                f"{self.num_layers}; give a pattern to repeat, or one name for each layer"
            )
        for name in self.layer_types:
            if name not in LAYER_TYPES:
                raise ValueError(
                    f"layer_types has the unknown name {name!r}; choose from "
                    f"{', '.join(LAYER_TYPES)}"
                )
        pattern = shortest_pattern(self.layer_types, self.num_layers)
        object.__setattr__(self, "layer_types", pattern)
        if "sliding_attention" in pattern and self.sliding_window is None:
            raise ValueError(
                "sliding_window is not set, but layer_types has sliding_attention; set it to the "
                "number of tokens that these layers see"
            )
        if "sliding_attention" not in pattern and self.sliding_window is not None:
            raise ValueError(
                f"sliding_window={self.sliding_window} has no effect without sliding_attention in "
                "layer_types; remove it, or name the layers that have it"
            )

    def fields(self) -> dict[str, Any]:
        """All fields as JSON-ready values, without those in `_LATER` that have their default.

        So the description of a model is what it was before there were these fields.
        `ModelConfig(**config.fields())` equals `config`.
        """
        fields = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.name in _LATER and fields[field.name] == field.default:
                del fields[field.name]
        return fields

    def changed(self, fields: Mapping[str, Any]) -> "ModelConfig":
        """Returns a config with other values of some fields.

        `sliding_window` goes with the last sliding layer.

        Raises:
          ValueError: see the class.
        """
        if "sliding_attention" not in fields.get("layer_types", self.layer_types):
            fields = {"sliding_window": None, **fields}
        return dataclasses.replace(self, **fields)

    def check_trainable(self) -> None:
        """Raises ValueError if the parameters are rounded, since updates would be lost."""
        if self.weight_dtype != "float32":
            raise ValueError(
                f"model.weight_dtype={self.weight_dtype!r} is for evaluation and generation; "
                "parameters are trained in float32, so leave it out"
            )

    @property
    def layer_types_of_all(self) -> tuple[str, ...]:
        """The type of each of the `num_layers` layers."""
        return repeat(self.layer_types, self.num_layers)

    def window_of(self, layer_type: str) -> int | None:
        """`sliding_window` for layers of a type that has one, otherwise None."""
        return self.sliding_window if LAYER_TYPES[layer_type].windowed else None

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads` with its default resolved."""
        return typing.cast(int, self.num_kv_heads)

    @property
    def head_size(self) -> int:
        """`head_dim` with its default resolved."""
        return typing.cast(int, self.head_dim)

    @property
    def scale(self) -> float:
        """`attention_scale` with its default resolved."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale


_TYPES: dict[Any, tuple[Callable[[object], bool], str]] = {
    int: (is_int, "an integer"),
    float: (is_number, "a finite number"),
    str: (lambda value: isinstance(value, str), "a string"),
    tuple[str, ...]: (
        lambda value: isinstance(value, tuple) and all(isinstance(each, str) for each in value),
        "a list of strings",
    ),
    bool: (lambda value: isinstance(value, bool), "True or False"),
    types.NoneType: (lambda value: value is None, "None"),
}


def _check_types(config: ModelConfig) -> None:
    for name, hint in typing.get_type_hints(ModelConfig).items():
        value = getattr(config, name)
        options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        checks = [_TYPES[option] for option in options]
        if not any(fits(value) for fits, _ in checks):
            allowed = " or ".join(description for _, description in checks)
            raise ValueError(f"{name}={value!r} must be {allowed}")
