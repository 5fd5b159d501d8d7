"""The PosGen model and its training step in PyTorch, for comparison with `rrope_jax.posgen`.

Written as its users would: linear layers, scaled_dot_product_attention, the fused AdamW. Covers
what the PosGen configs use: ReLU feed-forward layers, as many key/value heads as query heads.
Letters: see `rrope_jax.model`.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch import Tensor, nn
from torch.nn import functional

from rrope_jax.model import ModelConfig
from rrope_jax.posgen.training import PosgenProgram
from rrope_jax.rope import RopeSpec, cos_sin


def _rotate(x_BTNH: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
    first, second = x_BTNH.chunk(2, dim=-1)
    rotated = (first * cos_T1h - second * sin_T1h, second * cos_T1h + first * sin_T1h)
    return torch.cat(rotated, dim=-1)


class Block(nn.Module):
    """A pre-norm block."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        D, F, inner = config.d_model, config.d_ff, config.num_heads * config.head_size
        self.config = config
        self.attention_norm = nn.RMSNorm(D, config.rms_norm_eps)
        self.query = nn.Linear(D, inner, bias=False)
        self.key = nn.Linear(D, inner, bias=False)
        self.value = nn.Linear(D, inner, bias=False)
        self.out = nn.Linear(inner, D, bias=False)
        self.feed_forward_norm = nn.RMSNorm(D, config.rms_norm_eps)
        self.up = nn.Linear(D, F, bias=False)
        self.down = nn.Linear(F, D, bias=False)

    def forward(self, x_BTD: Tensor, cos_T1h: Tensor, sin_T1h: Tensor) -> Tensor:
        B, T, _ = x_BTD.shape
        rate, heads = self.config.dropout, (B, T, self.config.num_heads, self.config.head_size)
        normed_BTD = self.attention_norm(x_BTD)
        q_BTNH = _rotate(self.query(normed_BTD).view(heads), cos_T1h, sin_T1h)
        k_BTNH = _rotate(self.key(normed_BTD).view(heads), cos_T1h, sin_T1h)
        v_BTNH = self.value(normed_BTD).view(heads)
        mixed_BNTH = functional.scaled_dot_product_attention(
            q_BTNH.transpose(1, 2),
            k_BTNH.transpose(1, 2),
            v_BTNH.transpose(1, 2),
            dropout_p=rate,
            is_causal=True,
            scale=self.config.scale,
        )
        mixed_BTD = self.out(mixed_BNTH.transpose(1, 2).reshape(B, T, -1))
        x_BTD = x_BTD + functional.dropout(mixed_BTD, rate)
        hidden_BTF = functional.relu(self.up(self.feed_forward_norm(x_BTD)))
        hidden_BTD = self.down(functional.dropout(hidden_BTF, rate))
        return x_BTD + functional.dropout(hidden_BTD, rate)


class Model(nn.Module):
    """The decoder with the loss of PosGen."""

    def __init__(self, program: PosgenProgram, spec: RopeSpec):
        super().__init__()
        config = program.model
        if config.activation != "relu" or config.kv_heads != config.num_heads:
            raise ValueError(
                f"activation={config.activation!r} and num_kv_heads={config.kv_heads} are not what "
                "PosGen models have; the PyTorch peer knows relu and num_heads only"
            )
        self.config, self.task = config, program.task
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_norm = nn.RMSNorm(config.d_model, config.rms_norm_eps)
        self.output = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.output.weight = self.embedding.weight
        for name, table in zip(
            ("cos_T1h", "sin_T1h"), cos_sin(spec, np.arange(program.task.train_length)), strict=True
        ):
            self.register_buffer(name, torch.tensor(np.asarray(table))[:, None])

    def forward(self, rows_BT: Tensor) -> Tensor:
        """The mean loss over the generated tokens of int64[B, T]."""
        start_B1 = torch.full_like(rows_BT[:, :1], self.task.start_token)
        inputs_BT = torch.cat([start_B1, rows_BT[:, :-1]], dim=1)
        x_BTD = functional.dropout(self.embedding(inputs_BT), self.config.dropout)
        for block in self.blocks:
            x_BTD = block(x_BTD, self.cos_T1h, self.sin_T1h)
        x_BTD = functional.dropout(self.final_norm(x_BTD), self.config.dropout)
        given = self.task.seed_length
        logits_BTV = self.output(x_BTD[:, given:] * self.config.logit_scale)
        return functional.cross_entropy(logits_BTV.flatten(0, 1), rows_BT[:, given:].flatten())

    def load(self, params: Mapping[str, Any]) -> None:
        """Copies the parameters of a `rrope_jax.model.Decoder`, a nested dict of arrays."""
        blocks = params["blocks"]
        D = self.config.d_model
        weights = {
            "embedding.weight": params["embedding"],
            "final_norm.weight": params["final_norm"]["scale"],
            "output.weight": params["embedding"]
            if self.config.tie_embeddings
            else params["output"].T,
        }
        for layer in range(self.config.num_layers):
            attention = {name: x[layer] for name, x in blocks["attention"].items()}
            feed_forward = {name: x[layer] for name, x in blocks["feed_forward"].items()}
            own = {
                "attention_norm": blocks["attention_norm"]["scale"][layer],
                "query": attention["query"].reshape(D, -1).T,
                "key": attention["key"].reshape(D, -1).T,
                "value": attention["value"].reshape(D, -1).T,
                "out": attention["out"].reshape(-1, D).T,
                "feed_forward_norm": blocks["feed_forward_norm"]["scale"][layer],
                "up": feed_forward["up"].T,
                "down": feed_forward["down"].T,
            }
            weights |= {f"blocks.{layer}.{name}.weight": x for name, x in own.items()}
        tensors = {name: torch.tensor(np.asarray(x)) for name, x in weights.items()}
        self.load_state_dict(self.state_dict() | tensors)


class Trainer:
    """A model, AdamW on the program's schedule, and its training rows."""

    def __init__(
        self,
        program: PosgenProgram,
        spec: RopeSpec,
        params: Mapping[str, Any],
        rows_NT: np.ndarray,
        *,
        compiled: bool,
        device: str = "cpu",
    ):
        """Starts from the parameters of a `rrope_jax.model.Decoder`.

        Args:
          program: the setting.
          spec: the rotary embedding.
          params: see `Model.load`.
          rows_NT: int[N, L], training rows.
          compiled: whether the loss and its gradient go through `torch.compile`.
          device: PyTorch's name of where to train.
        """
        train = program.train
        self._model = Model(program, spec)
        self._model.load(params)
        self._model.to(device)
        self._loss: Callable[[Tensor], Tensor] = (
            torch.compile(self._model) if compiled else self._model
        )
        self._clip = train.gradient_clip
        self._optimizer = torch.optim.AdamW(
            self._model.parameters(),
            betas=(train.b1, train.b2),
            weight_decay=train.weight_decay,
            fused=True,
        )
        schedule = optax.cosine_onecycle_schedule(
            train.steps, train.learning_rate, pct_start=train.warmup_fraction
        )
        self._rates: list[float] = jax.vmap(schedule)(jnp.arange(train.steps)).tolist()
        self._rows_NT = torch.tensor(rows_NT, dtype=torch.long, device=device)
        self._batches = _batches(len(rows_NT), train.batch_size, device)
        self._step = 0

    def run(self, steps: int) -> list[float]:
        """Trains, up to the end of the schedule; returns the losses."""
        losses = []
        for rows_B in itertools.islice(self._batches, steps):
            self._optimizer.param_groups[0]["lr"] = self._rates[self._step]
            self._optimizer.zero_grad()
            loss = self._loss(self._rows_NT[rows_B])
            loss.backward()
            if self._clip is not None:
                nn.utils.clip_grad_norm_(self._model.parameters(), self._clip)
            self._optimizer.step()
            losses.append(loss.detach())
            self._step += 1
        return [float(loss) for loss in losses]


def _batches(rows: int, batch: int, device: str) -> Iterator[Tensor]:
    """Row numbers of batch after batch, every epoch a new permutation."""
    while True:
        order = torch.randperm(rows, device=device)
        yield from order[: rows // batch * batch].view(-1, batch)
