"""The decoder against LlamaForCausalLM of transformers, with the same weights, in float32."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax import rope
from rrope_jax.model import Decoder, ModelConfig, init_cache
from rrope_jax.rope import RopeSpec

pytestmark = pytest.mark.peers

# Weights large enough that attention is far from uniform and a wrong phase shows in the logits.
MODEL = ModelConfig(
    vocab_size=48,
    d_model=32,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    d_ff=40,
    initializer_range=0.15,
)
CONTEXT = 32
TOLERANCE = 2e-5

_FACTORS: dict[str, Any] = {
    "short_factor": [1.0 + 0.5 * index for index in range(8)],
    "long_factor": [2.0 + 0.75 * index for index in range(8)],
}


def _config(rope_type: str, maximum: int = 4 * CONTEXT, **parameters: Any) -> dict[str, Any]:
    """Keys of a config.json as a user finds them, in the dialect of transformers 5."""
    parameters = {"rope_type": rope_type, "rope_theta": 10000.0, **parameters}
    return {"head_dim": 16, "max_position_embeddings": maximum, "rope_parameters": parameters}


_OF_CONTEXT: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": CONTEXT}
_CONFIGS = {
    "default": _config("default"),
    "default, other base": _config("default", rope_theta=500.0),
    "linear": _config("linear", factor=4.0),
    "dynamic": _config("dynamic", CONTEXT, factor=2.0),
    "yarn": _config("yarn", beta_fast=4.0, **_OF_CONTEXT),
    "yarn of DeepSeek": _config(
        "yarn", mscale=0.8, mscale_all_dim=0.5, truncate=False, **_OF_CONTEXT
    ),
    "llama3": _config("llama3", low_freq_factor=1.0, high_freq_factor=4.0, **_OF_CONTEXT),
    "longrope": _config("longrope", **_OF_CONTEXT, **_FACTORS),
}

# Our own specs, which transformers computes from what `to_hf` writes.
_EXTENDED: dict[str, Any] = {"head_dim": 16, "factor": 4.0, "original_context": CONTEXT}
_SPECS = {
    "ntk": RopeSpec(head_dim=16, scaling="ntk", factor=4.0),
    "ntk_by_parts": RopeSpec(scaling="ntk_by_parts", beta_fast=8.0, **_EXTENDED),
    "resonance": RopeSpec(head_dim=16, resonance=True),
    "resonance yarn": RopeSpec(scaling="yarn", resonance=True, **_EXTENDED),
    "resonance longrope": RopeSpec(scaling="longrope", resonance=True, **_FACTORS, **_EXTENDED),
}

_CASES = {name: (rope.from_hf(keys), keys) for name, keys in _CONFIGS.items()} | {
    name: (spec, rope.to_hf(spec)) for name, spec in _SPECS.items()
}

# Almost all the time of these tests is compilation, and most of that LLVM's optimization.
_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@functools.cache
def _decoder(spec: RopeSpec, tied: bool) -> Decoder:
    """A random model whose norms are not all ones."""
    model = dataclasses.replace(MODEL, tie_embeddings=tied)
    decoder = Decoder(model, spec, rngs=nnx.Rngs(3))
    norms = (decoder.blocks.attention_norm, decoder.blocks.feed_forward_norm, decoder.final_norm)
    for seed, norm in enumerate(norms):
        shape = norm.scale[...].shape
        norm.scale[...] = 1 + 0.3 * jax.random.normal(jax.random.key(seed), shape)
    return decoder


def _transformers_weights(decoder: Decoder) -> dict[str, np.ndarray]:
    """The decoder's parameters under the names and in the layouts of LlamaForCausalLM."""
    blocks = decoder.blocks
    attention, feed_forward = blocks.attention, blocks.feed_forward
    # ours are [layer, in..., out...], where an axis of heads stands apart; theirs [out, in]
    stacked = {
        "input_layernorm": blocks.attention_norm.scale,
        "post_attention_layernorm": blocks.feed_forward_norm.scale,
        "self_attn.q_proj": attention.query,
        "self_attn.k_proj": attention.key,
        "self_attn.v_proj": attention.value,
        "self_attn.o_proj": attention.out,
        "mlp.gate_proj": feed_forward.gate,
        "mlp.up_proj": feed_forward.up,
        "mlp.down_proj": feed_forward.down,
    }
    weights = {
        "model.embed_tokens.weight": np.asarray(decoder.embedding[...]),
        "model.norm.weight": np.asarray(decoder.final_norm.scale[...]),
    }
    if decoder.output is not None:
        weights["lm_head.weight"] = np.asarray(decoder.output[...]).T
    for name, parameter in stacked.items():
        for layer, kernel in enumerate(np.asarray(parameter[...])):
            rows = MODEL.num_heads * MODEL.head_size if name.endswith("o_proj") else len(kernel)
            matrix = kernel if kernel.ndim == 1 else kernel.reshape(rows, -1).T
            weights[f"model.layers.{layer}.{name}.weight"] = matrix
    return weights


def _peer(decoder: Decoder, keys: dict[str, Any]) -> Any:
    """LlamaForCausalLM with the decoder's weights and the given RoPE keys."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=MODEL.vocab_size,
        hidden_size=MODEL.d_model,
        num_hidden_layers=MODEL.num_layers,
        num_attention_heads=MODEL.num_heads,
        num_key_value_heads=MODEL.kv_heads,
        intermediate_size=MODEL.d_ff,
        rms_norm_eps=MODEL.rms_norm_eps,
        tie_word_embeddings=decoder.config.tie_embeddings,
        attn_implementation="eager",
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
        **keys,
    )
    peer = LlamaForCausalLM(config).eval()
    weights = {
        name: torch.tensor(weight) for name, weight in _transformers_weights(decoder).items()
    }
    missing, unexpected = peer.load_state_dict(weights, strict=False)
    assert missing == (["lm_head.weight"] if decoder.config.tie_embeddings else [])
    assert unexpected == []
    return peer


def _logits(peer: Any, tokens_BT: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return np.asarray(peer(torch.tensor(tokens_BT, dtype=torch.long)).logits)


def _tokens(length: int) -> np.ndarray:
    return np.random.default_rng(length).integers(0, MODEL.vocab_size, (2, length), dtype=np.int32)


@functools.cache
def _forward(spec: RopeSpec, length: int, tied: bool = False) -> np.ndarray:
    graph, params = nnx.split(_decoder(spec, tied))
    forward = _jit(lambda params, tokens_BT: nnx.merge(graph, params)(tokens_BT))
    return np.asarray(forward(params, _tokens(length)))


# Up to the original context and beyond it: the short and the long factors of longrope, the base
# as it is and stretched for dynamic.
@pytest.mark.parametrize("length", [CONTEXT, 3 * CONTEXT])
@pytest.mark.parametrize("name", _CASES)
def test_logits(name: str, length: int) -> None:
    spec, keys = _CASES[name]
    expected = _logits(_peer(_decoder(spec, False), keys), _tokens(length))
    assert np.abs(_forward(spec, length) - expected).max() <= TOLERANCE


def test_logits_with_tied_embeddings() -> None:
    spec, keys = _CASES["yarn"]
    expected = _logits(_peer(_decoder(spec, True), keys), _tokens(CONTEXT))
    assert np.abs(_forward(spec, CONTEXT, True) - expected).max() <= TOLERANCE


def test_every_method_gives_other_logits() -> None:
    """Else the tests above could not tell one method from another."""
    logits = {name: _forward(spec, 3 * CONTEXT) for name, (spec, _) in _CASES.items()}
    for one, other in itertools.combinations(logits, 2):
        assert np.abs(logits[one] - logits[other]).max() > 100 * TOLERANCE, (one, other)


# Where frequencies follow the length, transformers keeps cached keys as they were rotated before
# it grew, and cached generation is not what uncached is: there, only within one side of CONTEXT.
@pytest.mark.parametrize(
    ("name", "prompt"),
    [
        ("default", 3 * CONTEXT),
        ("yarn", 3 * CONTEXT),
        ("resonance yarn", 3 * CONTEXT),
        ("dynamic", CONTEXT - 8),
        ("longrope", CONTEXT - 8),
        ("longrope", CONTEXT + 1),
    ],
)
def test_cached_generation(name: str, prompt: int) -> None:
    """Greedy generation from a prompt: the same tokens, and the same logits on the way."""
    import torch

    new_tokens = 8
    spec, keys = _CASES[name]
    decoder = _decoder(spec, False)
    prompt_BT = torch.tensor(_tokens(prompt), dtype=torch.long)
    generated = _peer(decoder, keys).generate(
        prompt_BT,
        attention_mask=torch.ones_like(prompt_BT),
        max_new_tokens=new_tokens,
        do_sample=False,
        use_cache=True,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert len(generated.logits) == new_tokens
    graph, params = nnx.split(decoder)
    decode = _jit(lambda params, *arguments: nnx.merge(graph, params).decode(*arguments))
    cache = init_cache(decoder.config, len(prompt_BT), prompt + new_tokens)
    new_BT = jnp.asarray(_tokens(prompt))
    for step, expected_BV in enumerate(generated.logits):
        logits_BTV, cache = decode(params, new_BT, cache)
        assert np.abs(logits_BTV[:, -1] - np.asarray(expected_BV)).max() <= TOLERANCE
        new_BT = jnp.argmax(logits_BTV[:, -1:], axis=-1).astype(jnp.int32)
        assert new_BT[:, 0].tolist() == generated.sequences[:, prompt + step].tolist()
