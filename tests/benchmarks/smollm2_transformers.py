"""What `tests.benchmarks.smollm2` measures, as a user of transformers does it."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from transformers import Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig, LlamaForCausalLM

from rrope_jax import rope
from tests.benchmarks import platforms
from tests.benchmarks.smollm2_setting import Setting

Run = Callable[[], object]


def _sizes(setting: Setting) -> dict[str, Any]:
    model = setting.model
    return {
        "vocab_size": model.vocab_size,
        "hidden_size": model.d_model,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.d_ff,
        "rms_norm_eps": model.rms_norm_eps,
        "tie_word_embeddings": model.tie_embeddings,
        "max_position_embeddings": setting.known.context,
    }


def llama(setting: Setting) -> Any:
    """A LLaMA with random parameters."""
    keys = rope.to_hf(setting.known.rope)
    embedding = {k: v for k, v in keys.items() if k in ("rope_parameters", "rope_theta")}
    return LlamaForCausalLM(LlamaConfig(**_sizes(setting), **embedding))


def gemma3(setting: Setting) -> Any:
    """A Gemma 3 with random parameters."""
    model, spec = setting.model, setting.known.rope
    config = Gemma3TextConfig(
        **_sizes(setting),
        layer_types=list(model.layer_types_of_all),
        sliding_window=model.sliding_window,
        query_pre_attn_scalar=round(model.scale**-2),
        rope_parameters={
            name: {"rope_type": "default", "rope_theta": spec.of(name).theta}
            for name in ("full_attention", "sliding_attention")
        },
    )
    return Gemma3ForCausalLM(config)


class Transformers:
    """A model with random parameters and the default attention (SDPA: flash attention on GPUs).

    In bfloat16, inference has parameters of bfloat16, and training has float32 ones under autocast.
    """

    def __init__(self, setting: Setting) -> None:
        self._device = platforms.torch_device(setting.platform)
        self._dtype = getattr(torch, setting.dtype)
        model = gemma3 if setting.preset.startswith("gemma3") else llama
        self.model: Any = model(setting).to(self._device)
        assert self.model.config._attn_implementation == "sdpa"

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
        windowed = any(filled.is_sliding)

        @torch.inference_mode()
        def run() -> list[int]:
            last_11, written = ids_1T[:, -1:], []
            # what has left a window cannot come back; the copy is small beside the rest
            cache = copy.deepcopy(filled) if windowed else filled
            for _ in range(new_tokens):
                out = self.model(last_11, past_key_values=cache, use_cache=True)
                last_11 = out.logits[:, -1:].argmax(-1)
                written.append(last_11)
            if not windowed:
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
