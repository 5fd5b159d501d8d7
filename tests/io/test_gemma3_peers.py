"""Gemma 3 270M's real weights here, in transformers and in llama.cpp.

transformers reads the same GGUF file. llama.cpp reads it, too, and what `rrope convert` writes, in
float32, since it rounds the activations that meet quantised weights. All texts are longer than the
windows of 512 tokens.
"""

import gc
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.evaluation.generation import Generator
from rrope_jax.evaluation.perplexity import Losses
from rrope_jax.io import conversion, pretrained
from rrope_jax.io.tokenizer import probes
from rrope_jax.model import Decoder
from tests.io import llama_cpp

pytestmark = [pytest.mark.peers, pytest.mark.slow, pytest.mark.heavy]

TEXT = Path(__file__).parents[2] / "LICENSE"
LENGTH = 768
# of these, all logits are compared: the vocabulary makes them large
WITH_LOGITS = 512
# beyond the window; generation goes on from there
PROMPT, NEW_TOKENS = 560, 64
# llama.cpp is asked for one position at a time
LLAMA_CPP_POSITIONS = range(512, 640)


class Model(NamedTuple):
    """Gemma 3 270M here.

    Attributes:
      decoder, description: as read from the file.
      tokenizer: the file's.
      tokens_T: int32[LENGTH], real text after the token that begins one.
    """

    decoder: Decoder
    description: pretrained.Description
    tokenizer: Tokenizer
    tokens_T: np.ndarray


@pytest.fixture(scope="module")
def model(gemma3: Path) -> Model:
    decoder, description = pretrained.load(gemma3)
    assert description.tokenizer is not None
    tokenizer = load_tokenizer(description.tokenizer)
    tokens = [*tokenizer.beginning(True), *tokenizer.encode(TEXT.read_text())]
    return Model(decoder, description, tokenizer, np.array(tokens[:LENGTH], np.int32))


@pytest.fixture(scope="module")
def peer(gemma3: Path) -> Any:
    import torch
    from transformers import Gemma3ForCausalLM

    return Gemma3ForCausalLM.from_pretrained(
        gemma3.parent, gguf_file=gemma3.name, dtype=torch.float32
    ).eval()


def _logits(decoder: Decoder, tokens_T: np.ndarray) -> np.ndarray:
    graph, state = nnx.split(decoder)
    logits_TV = jax.jit(lambda state, tokens_BT: nnx.merge(graph, state)(tokens_BT)[0])(
        state, jnp.asarray(tokens_T)[None]
    )
    return np.asarray(logits_TV)


def test_what_the_file_says(model: Model) -> None:
    """The window, the two embeddings and the layers that no key of the file names."""
    config, spec = model.description.model, model.description.rope
    assert config.layer_types == ("sliding_attention",) * 5 + ("full_attention",)
    assert (config.num_layers, config.sliding_window) == (18, 512)
    assert (spec.theta, spec.of("sliding_attention").theta) == (1e6, 1e4)
    assert model.description.context == 32_768


def test_transformers(
    model: Model, peer: Any, record_property: Callable[[str, object], None]
) -> None:
    import torch

    tokens = torch.tensor(model.tokens_T, dtype=torch.long)[None]
    with torch.no_grad():
        theirs_TV = peer(tokens).logits[0]
    losses_T = Losses(model.decoder, logits_chunk=256)(model.tokens_T[None])[0]
    their_losses_T = torch.nn.functional.cross_entropy(
        theirs_TV[:-1], tokens[0, 1:], reduction="none"
    ).numpy()
    ours_TV = _logits(model.decoder, model.tokens_T[:WITH_LOGITS])
    theirs_TV = theirs_TV[:WITH_LOGITS].numpy()
    difference = float(np.abs(ours_TV - theirs_TV).max())
    agreement = float((ours_TV.argmax(-1) == theirs_TV.argmax(-1)).mean())
    record_property("max_difference", difference)
    record_property("largest_logit", float(np.abs(theirs_TV).max()))
    record_property("argmax_agreement", agreement)
    record_property("loss_difference", float(np.abs(losses_T - their_losses_T).max()))
    # 18 layers in float32 on logits of up to 50
    assert difference <= 2e-5 * np.abs(theirs_TV).max()
    assert agreement >= 0.999
    np.testing.assert_allclose(losses_T, their_losses_T, rtol=1e-4, atol=1e-3)
    # a model that is read wrongly is lost in this text
    assert losses_T.mean() < 3


@pytest.mark.long
def test_generation_beyond_the_window(model: Model, peer: Any) -> None:
    import torch

    prompt = model.tokens_T[:PROMPT].tolist()
    peer.generation_config.eos_token_id = None
    peer.generation_config.pad_token_id = 0
    ids = torch.tensor(prompt)[None]
    theirs = peer.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, do_sample=False
    )[0, PROMPT:].tolist()
    generator = Generator(model.decoder)
    cache = generator.read([prompt], capacity=PROMPT + NEW_TOKENS)
    (ours,) = generator.generate(prompt[-1:], cache, max_tokens=NEW_TOKENS)
    assert ours == theirs


@pytest.mark.long
def test_llama_cpp(
    model: Model,
    gemma3: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    pytest.importorskip("xllamacpp", reason="needs llama.cpp (the package xllamacpp)")
    file = tmp_path / "exported.gguf"
    conversion.convert(gemma3, file, "gguf")
    tokens_T = model.tokens_T[: LLAMA_CPP_POSITIONS.stop]
    ours_TV = _logits(model.decoder, tokens_T)
    ours = [int(ours_TV[position].argmax()) for position in LLAMA_CPP_POSITIONS]
    for name, path in (("exported", file), ("quantised", gemma3)):
        server = llama_cpp.serve(path, 2 * LLAMA_CPP_POSITIONS.stop)
        theirs = llama_cpp.choices(server, tokens_T.tolist(), LLAMA_CPP_POSITIONS)
        agreement = sum(map(int.__eq__, ours, theirs)) / len(ours)
        record_property(f"llama_cpp_agreement_{name}", agreement)
        # it rounds activations to 8 bits where the weights are quantised
        assert agreement >= (0.99 if name == "exported" else 0.9)
        del server
        gc.collect()


def test_tokenizer(model: Model, gemma3: Path) -> None:
    """llama.cpp's own ids on texts of every kind."""
    pytest.importorskip("xllamacpp", reason="needs llama.cpp (the package xllamacpp)")
    server = llama_cpp.serve(gemma3, 64)
    plain = [text for text in probes.PLAIN if "\x00" not in text]
    long = [text for text in plain if len(text) > 8]
    plain = [*long, *random.Random(0).sample(plain, 400), TEXT.read_text()]
    special = [
        "<start_of_turn>user\nHello<end_of_turn>\n<start_of_turn>model\n",
        "  two   three\n\n\n\n\n four\t\t\tfive" + " " * 40 + "x",
        "<0x41><unused3><b>bold</b> ▁▁ <eos>x<bos>",
    ]
    for text in [*plain, *special]:
        assert model.tokenizer.encode(text) == llama_cpp.tokenize(server, text), text[:60]
    for text in plain:
        # to this kind of tokenizer, a space and its mark are the same
        decoded = model.tokenizer.decode(model.tokenizer.encode(text))
        assert decoded == text.replace("\u2581", " ")
