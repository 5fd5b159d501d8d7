"""What `tests.benchmarks.smollm2` measures, as a user of transformers does it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rrope_jax import rope
from tests.benchmarks import platforms
from tests.benchmarks.smollm2_setting import Setting

Run = Callable[[], object]


class Transformers:
    """SmolLM2 with random parameters and the default attention (SDPA: flash attention on GPUs).

    In bfloat16, inference has parameters of bfloat16, and training has float32 ones under autocast.
    """

    def __init__(self, setting: Setting) -> None:
        self._device = platforms.torch_device(setting.platform)
        self._dtype = getattr(torch, setting.dtype)
        model = setting.model
        config = LlamaConfig(
            vocab_size=model.vocab_size,
            hidden_size=model.d_model,
            num_hidden_layers=model.num_layers,
            num_attention_heads=model.num_heads,
            num_key_value_heads=model.num_kv_heads,
            intermediate_size=model.d_ff,
            rms_norm_eps=model.rms_norm_eps,
            tie_word_embeddings=model.tie_embeddings,
            max_position_embeddings=setting.known.context,
            **{
                key: value
                for key, value in rope.to_hf(setting.known.rope).items()
                if key in ("rope_parameters", "rope_theta")
            },
        )
        self.model: Any = LlamaForCausalLM(config).to(self._device)
        assert config._attn_implementation == "sdpa"

    def peak_gib(self) -> float | None:
        """Of the GPU's memory, as PyTorch has allocated it; None on a CPU."""
        if self._device == "cpu":
            return None
        return torch.cuda.max_memory_allocated() / 2**30

    def prefill(self, tokens: np.ndarray[Any, Any]) -> Run:
        """Reads a prompt into a cache, with the logits of its last token as `generate` does."""
        ids_1T = self._for_inference(tokens)

        @torch.inference_mode()
        def run() -> int:
            # the number is there when the device is done
            return int(self.model(ids_1T, use_cache=True, logits_to_keep=1).logits[0, -1].argmax())

        return run

    def decode(self, tokens: np.ndarray[Any, Any], new_tokens: int) -> Run:
        """Continues a prompt greedily, without what `generate` adds to the model's own time."""
        ids_1T = self._for_inference(tokens)
        with torch.inference_mode():
            filled = self.model(ids_1T[:, :-1], use_cache=True, logits_to_keep=1).past_key_values

        @torch.inference_mode()
        def run() -> list[int]:
            last_11, written = ids_1T[:, -1:], []
            for _ in range(new_tokens):
                out = self.model(last_11, past_key_values=filled, use_cache=True)
                last_11 = out.logits[:, -1:].argmax(-1)
                written.append(last_11)
            filled.crop(-new_tokens)
            return [int(token_11) for token_11 in written]

        return run

    def score(self, tokens: np.ndarray[Any, Any]) -> Run:
        """The mean loss of every token but the first."""
        ids_1T = self._for_inference(tokens)

        @torch.inference_mode()
        def run() -> float:
            return float(self.model(ids_1T, labels=ids_1T, use_cache=False).loss)

        return run

    def train(self, tokens: np.ndarray[Any, Any]) -> Run:
        """AdamW steps on one row."""
        ids_1T = self._ids(tokens)
        self.model.train()
        optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.01, fused=True
        )

        def run() -> float:
            with torch.autocast(
                self._device, dtype=torch.bfloat16, enabled=self._dtype == torch.bfloat16
            ):
                loss = self.model(ids_1T, labels=ids_1T, use_cache=False).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return float(loss.detach())

        return run

    def _for_inference(self, tokens: np.ndarray[Any, Any]) -> Any:
        self.model.eval().to(self._dtype)
        return self._ids(tokens)

    def _ids(self, tokens: np.ndarray[Any, Any]) -> Any:
        return torch.from_numpy(tokens[None]).long().to(self._device)


class Compiled(Transformers):
    """The same through `torch.compile`.

    It does not decode: the cache grows with every token, and a program is of one size.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.model.compile()
