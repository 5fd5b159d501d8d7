"""SmolLM2's real weights under ten embeddings, in stock transformers and llama.cpp.

Exported by `rrope convert`'s library call and loaded by runtimes that know nothing of it; measured
against the decoder here, which keeps the embedding as a spec. Figures: docs/convert.md.
"""

import dataclasses
import gc
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax import rope
from rrope_jax.io import conversion, pretrained
from rrope_jax.model import init_cache
from rrope_jax.model.decoder import abstract_decoder
from rrope_jax.rope import RopeSpec
from tests.io import llama_cpp

pytestmark = [pytest.mark.peers, pytest.mark.slow]

TEXT = Path(__file__).parents[2] / "LICENSE"
LENGTH = 512
PROMPT, NEW_TOKENS = 48, 64
# llama.cpp is asked for one position at a time: for these, the later ones
LLAMA_CPP_POSITIONS = range(LENGTH // 2, LENGTH)

_CONTEXT = {"factor": 4.0, "original_context": 8192}
_SCALINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"factor": 4.0},
    "ntk": {"factor": 4.0},
    "yarn": _CONTEXT,
    "llama3": _CONTEXT,
}
SPECS = {
    f"{'resonance ' if resonance else ''}{scaling}": RopeSpec(
        head_dim=64, theta=1e5, scaling=scaling, resonance=resonance, **fields
    )
    for scaling, fields in _SCALINGS.items()
    for resonance in (False, True)
}


class Model(NamedTuple):
    """SmolLM2 here, with one program for all embeddings.

    Attributes:
      source: the GGUF file.
      description: as it is there.
      state: parameters.
      tokens_T: int32[LENGTH], real text.
      forward: (cos, sin) -> float32[LENGTH, V].
    """

    source: Path
    description: pretrained.Description
    state: Any
    tokens_T: np.ndarray
    forward: Callable[[tuple[jax.Array, jax.Array]], np.ndarray]


@pytest.fixture(scope="module")
def model(smollm2: Path) -> Model:
    from tokenizers import Tokenizer

    decoder, description = pretrained.load(smollm2)
    graph, state = nnx.split(decoder)
    tokenizer = Tokenizer.from_buffer(description.tokenizer.files["tokenizer.json"])
    tokens_T = np.array(tokenizer.encode(TEXT.read_text()).ids[:LENGTH], np.int32)

    @jax.jit
    def forward(state: Any, rotation: tuple[jax.Array, jax.Array]) -> jax.Array:
        return nnx.merge(graph, state)(jnp.asarray(tokens_T)[None], rotation=rotation)[0]

    return Model(
        smollm2, description, state, tokens_T, lambda rotation: np.asarray(forward(state, rotation))
    )


def _described(model: Model, spec: RopeSpec) -> pretrained.Description:
    factor = spec.factor if spec.scaling != "none" else 1
    return dataclasses.replace(model.description, rope=spec, context=round(8192 * factor))


def _our_logits(model: Model, spec: RopeSpec) -> np.ndarray:
    return model.forward(rope.cos_sin(spec, jnp.arange(LENGTH)))


def _our_generation(model: Model, spec: RopeSpec, prompt_T: np.ndarray) -> list[int]:
    """Greedy tokens with a KV cache."""
    graph = nnx.graphdef(abstract_decoder(model.description.model, spec))

    @jax.jit
    def step(state: Any, tokens_BT: jax.Array, cache: Any) -> tuple[jax.Array, Any]:
        logits_BTV, cache = nnx.merge(graph, state).decode(tokens_BT, cache)
        return jnp.argmax(logits_BTV[:, -1:], axis=-1).astype(jnp.int32), cache

    tokens_BT = jnp.asarray(prompt_T)[None]
    cache = init_cache(model.description.model, 1, PROMPT + NEW_TOKENS)
    found = []
    for _ in range(NEW_TOKENS):
        tokens_BT, cache = step(model.state, tokens_BT, cache)
        found.append(int(tokens_BT[0, 0]))
    return found


# In every run of the peers tests, the plainest and the one with most to it; the others are `long`.
USUAL = ("none", "resonance yarn")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(name, marks=() if name in USUAL else pytest.mark.long, id=name)
        for name in SPECS
    ],
)
def case(request: pytest.FixtureRequest, model: Model) -> Iterator[tuple[RopeSpec, np.ndarray]]:
    """A spec and our logits with it; computed once for both runtimes."""
    spec = SPECS[request.param]
    yield spec, _our_logits(model, spec)
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def peer(case: tuple[RopeSpec, np.ndarray], model: Model, tmp_path: Path) -> Any:
    """The exported folder in stock transformers."""
    from transformers import LlamaForCausalLM

    folder = tmp_path / "exported"
    description = _described(model, case[0])
    conversion.convert(model.source, folder, "hf", description=description)
    return LlamaForCausalLM.from_pretrained(folder, attn_implementation="sdpa").eval()


def test_transformers(
    case: tuple[RopeSpec, np.ndarray],
    model: Model,
    peer: Any,
    record_property: Callable[[str, object], None],
) -> None:
    import torch

    spec, ours_TV = case
    with torch.no_grad():
        theirs_TV = peer(torch.tensor(model.tokens_T, dtype=torch.long)[None]).logits[0].numpy()
    difference = float(np.abs(ours_TV - theirs_TV).max())
    agreement = float((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).mean())
    inv_freq = peer.model.rotary_emb.inv_freq.numpy().astype(np.float64)
    error = float(np.abs(inv_freq / rope.frequencies(spec).inv_freq - 1).max())
    record_property("max_difference", difference)
    record_property("argmax_agreement", agreement)
    record_property("frequency_error", error)
    assert difference <= 2e-3
    assert agreement >= 0.999
    assert error <= 1e-6

    prompt_T = model.tokens_T[:PROMPT]
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    prompt = torch.tensor(prompt_T, dtype=torch.long)[None]
    generated = peer.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        use_cache=True,
    )
    assert generated[0, PROMPT:].tolist() == _our_generation(model, spec, prompt_T)


def test_llama_cpp(
    case: tuple[RopeSpec, np.ndarray],
    model: Model,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp (the package xllamacpp)")
    spec, ours_TV = case
    file = tmp_path / "exported.gguf"
    conversion.convert(model.source, file, "gguf", description=_described(model, spec))
    server = llama_cpp.serve(file, 2 * LENGTH)
    theirs = llama_cpp.choices(server, model.tokens_T.tolist(), LLAMA_CPP_POSITIONS)
    ours = [int(ours_TV[position].argmax()) for position in LLAMA_CPP_POSITIONS]
    agreement = sum(map(int.__eq__, ours, theirs)) / len(ours)
    record_property("llama_cpp_agreement", agreement)
    assert agreement >= 0.99


SAMPLES = (
    "in 2024, 12345 tokens\n\n\tDON'T we'll  x =  3;",
    "naïve 漢字 🙂 élan",
    "<|im_start|>user\nHello<|im_end|> there",
    TEXT.read_text(),
)


def test_tokenizer(model: Model, tmp_path: Path) -> None:
    """The tokenizer.json made of a GGUF file gives llama.cpp's ids, and transformers loads it.

    (What transformers itself makes of this file joins digits that llama.cpp keeps apart.)
    """
    pytest.importorskip("xllamacpp", reason="needs llama.cpp (the package xllamacpp)")
    from transformers import AutoTokenizer

    conversion.convert(model.source, tmp_path / "hf", "hf")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    conversion.convert(tmp_path / "hf", tmp_path / "a.gguf", "gguf")
    server = llama_cpp.serve(tmp_path / "a.gguf", 2 * LENGTH)
    for text in SAMPLES:
        ids = llama_cpp.tokenize(server, text)
        assert theirs(text).input_ids == ids
        assert theirs.decode(ids) == text
    assert (theirs.bos_token, theirs.eos_token) == ("<|im_start|>", "<|im_end|>")
    chat = [{"role": "user", "content": "Hello"}]
    written = theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert written.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


def test_cases_differ(model: Model) -> None:
    """Else the tests above could not tell one embedding from another."""
    logits = {name: _our_logits(model, spec) for name, spec in SPECS.items()}
    names = list(logits)
    smallest = min(
        float(np.abs(logits[one] - logits[other]).max())
        for index, one in enumerate(names)
        for other in names[:index]
    )
    assert math.isfinite(smallest)
    assert smallest > 0.02
