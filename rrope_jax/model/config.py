"""`ModelConfig`: the shape and numerics of a decoder, frozen and hashable."""

import dataclasses
import math

ACTIVATIONS = ("swiglu", "relu")
ATTENTIONS = ("auto", "xla", "cudnn", "splash")
DTYPES = ("float32", "bfloat16")
INITIALIZATIONS = ("normal", "t5")
REMATS = ("none", "full", "dots")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A LLaMA-style decoder: pre-RMSNorm blocks of causal attention and a feed-forward layer.

    The fields below the line of sizes make the layers of T5-Small, which the paper's PosGen model
    uses, a configuration of the same code.

    Attributes:
      vocab_size: rows of the embedding.
      d_model: width of the residual stream.
      num_layers: number of blocks.
      num_heads: query heads.
      num_kv_heads: key/value heads, a divisor of num_heads; None means num_heads.
      head_dim: dimensions of a head; None means d_model / num_heads.
      d_ff: hidden width of the feed-forward layer.
      activation: `swiglu` (gated) or `relu` (two matrices, no gate).
      attention_scale: factor on q.k; None means head_dim ** -0.5. T5 uses 1.
      logit_scale: factor on the final hidden state before the output matrix. T5 uses
        d_model ** -0.5 with tied embeddings.
      tie_embeddings: the output matrix is the embedding.
      dropout: rate on the embedding, the attention weights, the feed-forward hidden layer and
        every sublayer's output; only where a dropout key is given.
      initialization: `normal` (standard deviation `initializer_range` everywhere) or `t5`
        (by fan-in; queries also by head_dim, embedding 1).
      initializer_range: the standard deviation of `normal`.
      rms_norm_eps: added to the mean square.
      compute_dtype: of activations and matrix products; parameters, softmax and logits are
        float32.
      remat: what the backward pass recomputes: `none`, `full` (every block) or `dots` (all but
        the matrix products).
      attention: implementation; `auto` chooses by backend.

    Raises:
      ValueError: a field is out of range or two do not fit together.
    """

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    activation: str = "swiglu"
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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "d_model", "num_layers", "num_heads", "d_ff"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1")
        if self.num_kv_heads is None:
            object.__setattr__(self, "num_kv_heads", self.num_heads)
        if self.head_dim is None:
            if self.d_model % self.num_heads:
                raise ValueError(
                    f"d_model={self.d_model} is not divisible by num_heads={self.num_heads}; "
                    "set head_dim explicitly or change one of them"
                )
            object.__setattr__(self, "head_dim", self.d_model // self.num_heads)
        if self.kv_heads < 1 or self.num_heads % self.kv_heads:
            raise ValueError(
                f"num_kv_heads={self.num_kv_heads} must divide num_heads={self.num_heads}"
            )
        if self.head_size < 2 or self.head_size % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even and at least 2")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout={self.dropout} must be in [0, 1); use 0 for none")
        for name in ("initializer_range", "rms_norm_eps", "logit_scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name}={value} must be a finite number > 0")
        if self.attention_scale is not None and not (
            math.isfinite(self.attention_scale) and self.attention_scale > 0
        ):
            raise ValueError(
                f"attention_scale={self.attention_scale} must be a finite number > 0; leave it "
                "None for head_dim ** -0.5"
            )
        for name, allowed in (
            ("activation", ACTIVATIONS),
            ("initialization", INITIALIZATIONS),
            ("compute_dtype", DTYPES),
            ("remat", REMATS),
            ("attention", ATTENTIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is unknown; choose one of {', '.join(allowed)}"
                )

    @property
    def kv_heads(self) -> int:
        """`num_kv_heads` with its default resolved."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_size(self) -> int:
        """`head_dim` with its default resolved."""
        return self.d_model // self.num_heads if self.head_dim is None else self.head_dim

    @property
    def scale(self) -> float:
        """The factor on q.k with its default resolved."""
        return self.head_size**-0.5 if self.attention_scale is None else self.attention_scale
