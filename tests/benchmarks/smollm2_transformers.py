"""What `tests.benchmarks.smollm2` measures, as a user of transformers does it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rrope_jax import rope
from rrope_jax.model.presets import PRESETS

PRESET = PRESETS["smollm2_135m"]

Run = Callable[[], object]


class Transformers:
    """SmolLM2-135M in float32 with random parameters and the default attention (SDPA)."""

    def __init__(self) -> None:
        model = PRESET.model
        config = LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.d_model,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            intermediate_size=model.d_ff,
            rms_norm_eps=model.rms_norm_eps,
            tie_word_embeddings=model.tie_embeddings,
            max_position_embeddings=PRESET.context,
            **{
                key: value
                for key, value in rope.to_hf(PRESET.rope).items()
                if key in ("rope_parameters", "rope_theta")
            },
        )
        self.model: Any = LlamaForCausalLM(config)
        assert config._attn_implementation == "sdpa"

    def prefill(self, tokens: np.ndarray[Any, Any]) -> Run:
        """Reads a prompt into a cache, with the logits of its last token as `generate` does."""
        ids_1T = torch.from_numpy(tokens[None]).long()
        self.model.eval()

        @torch.inference_mode()
        def run() -> None:
            self.model(ids_1T, use_cache=True, logits_to_keep=1)

        return run

    def decode(self, tokens: np.ndarray[Any, Any], new_tokens: int) -> Run:
        """Continues a prompt greedily, without what `generate` adds to the model's own time."""
        ids_1T = torch.from_numpy(tokens[None]).long()
        self.model.eval()
        with torch.inference_mode():
            filled = self.model(ids_1T[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

        @torch.inference_mode()
        def run() -> list[int]:
            last_11, written = ids_1T[:, -1:], []
            for _ in range(new_tokens):
                out = self.model(last_11, past_key_values=filled, use_cache=True)
                last_11 = out.logits[:, -1:].argmax(-1)
                written.append(int(last_11))
            filled.crop(-new_tokens)
            return written

        return run

    def score(self, tokens: np.ndarray[Any, Any]) -> Run:
        """The mean loss of every token but the first."""
        ids_1T = torch.from_numpy(tokens[None]).long()
        self.model.eval()

        @torch.inference_mode()
        def run() -> float:
            return float(self.model(ids_1T, labels=ids_1T, use_cache=False).loss)

        return run

    def train(self, tokens: np.ndarray[Any, Any]) -> Run:
        """AdamW steps on one row."""
        ids_1T = torch.from_numpy(tokens[None]).long()
        self.model.train()
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )

        def run() -> float:
            loss = self.model(ids_1T, labels=ids_1T, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(loss.detach())

        return run
