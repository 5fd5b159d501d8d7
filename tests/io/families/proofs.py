"""What is measured of each case, against stock transformers and llama.cpp.

`PROOFS` has one row for each; the tests hold cases to their limits, and `table` makes the table of
docs/models.md of them.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from safetensors.numpy import load_file

from rrope_jax.io import conversion, pretrained
from rrope_jax.model import init_cache
from rrope_jax.rope import RopeSpec
from tests.io.families.case import LENGTH, Case
from tests.io.vocabularies import files, sentencepiece_json

PROMPT = 40
TOKENS = np.random.default_rng(7).integers(3, 131, (1, LENGTH), dtype=np.int32)
# llama.cpp is asked for one position at a time: for these, the later ones
LLAMA_CPP_POSITIONS = range(LENGTH - 64, LENGTH)


class Model(NamedTuple):
    """A case as it is saved by transformers.

    Attributes:
      case: what it is of.
      folder: where it is.
      logits: of `TOKENS`, float32[LENGTH, V], as transformers computes them.
    """

    case: Case
    folder: Path
    logits: np.ndarray


def save(case: Case, folder: Path) -> Model:
    """Saves a random model of a case with transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(case.family, **case.config)
    peer = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    generator = torch.Generator().manual_seed(5)
    for name, parameter in peer.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 2:  # the logits of attention and of tokens are then about 1
            parameter.data = noise * parameter.shape[1] ** -0.5
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        else:  # a norm: around its neutral value, 1 or 0
            parameter.data = parameter.data.round() + 0.3 * noise
    with torch.no_grad():
        for matrix in (peer.get_input_embeddings().weight, peer.get_output_embeddings().weight):
            # llama.cpp shows no token that ends the text, nor one that is a part of a character
            matrix[: TOKENS.min()] = matrix[TOKENS.max() + 1 :] = 0
    peer.save_pretrained(folder)
    return Model(case, folder, _logits_of_transformers(folder))


def _logits_of_transformers(folder: Path) -> np.ndarray:
    from transformers import AutoModelForCausalLM

    peer = AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    )
    with torch.no_grad():
        logits: np.ndarray = peer.eval()(torch.tensor(TOKENS.astype(np.int64))).logits[0].numpy()
    return logits


def _our_logits(decoder: Any) -> np.ndarray:
    graph, state = nnx.split(decoder)
    forward = jax.jit(lambda state: nnx.merge(graph, state)(jnp.asarray(TOKENS)))
    return np.asarray(forward(state)[0])


def _difference(ours: np.ndarray, theirs: np.ndarray) -> float:
    """The largest, relative to the largest logit."""
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())


def logits(model: Model, _: Path) -> float:
    """The largest difference of our logits from those of transformers, relative to the largest."""
    return _difference(_our_logits(pretrained.load(model.folder)[0]), model.logits)


def cached(model: Model, _: Path) -> float:
    """The same of logits that are computed with a cache: a prompt, then token by token."""
    decoder, description = pretrained.load(model.folder)
    graph, state = nnx.split(decoder)

    @jax.jit
    def step(tokens_BT: jax.Array, cache: Any) -> Any:
        return nnx.merge(graph, state).decode(tokens_BT, cache)

    pieces = []
    cache = init_cache(description.model, 1, LENGTH)
    ends = [PROMPT, *range(PROMPT + 1, LENGTH + 1)]
    for start, end in zip([0, *ends], ends, strict=False):
        logits_BTV, cache = step(jnp.asarray(TOKENS[:, start:end]), cache)
        pieces.append(np.asarray(logits_BTV[0]))
    return _difference(np.concatenate(pieces), model.logits)


def round_trip(model: Model, folder: Path) -> int:
    """The number of weights that are other ones after Hugging Face -> Orbax -> Hugging Face."""
    conversion.convert(model.folder, folder / "orbax", "orbax")
    conversion.convert(folder / "orbax", folder / "hf", "hf")
    before, after = (
        load_file(path / "model.safetensors") for path in (model.folder, folder / "hf")
    )
    names = before.keys() | after.keys()
    same = [
        name in before and name in after and np.array_equal(before[name], after[name])
        for name in names
    ]
    np.testing.assert_array_equal(_logits_of_transformers(folder / "hf"), model.logits)
    assert pretrained.describe(folder / "hf").family == model.case.family
    return len(names) - sum(same)


def _extended(description: pretrained.Description) -> pretrained.Description:
    """With a temperature and frequencies that no format has a name for."""
    spec = description.rope
    resonance_yarn = RopeSpec(
        head_dim=spec.head_dim,
        theta=spec.theta,
        partial_rotary_factor=spec.partial_rotary_factor,
        scaling="yarn",
        factor=4.0,
        original_context=32,
        resonance=True,
        sliding_attention=spec.sliding_attention,
    )
    return dataclasses.replace(description, rope=resonance_yarn, context=128)


def folded(model: Model, folder: Path) -> float:
    """Of resonance YaRN, exported with its temperature in the weights: as for `logits`."""
    description = _extended(pretrained.describe(model.folder))
    conversion.convert(model.folder, folder / "hf", "hf", description=description)
    ours = _our_logits(pretrained.load(model.folder, rope=description.rope)[0])
    assert _difference(ours, model.logits) > 1e-3  # the embedding matters
    assert _difference(_our_logits(pretrained.load(folder / "hf")[0]), ours) <= 2e-5
    return _difference(_logits_of_transformers(folder / "hf"), ours)


@functools.cache
def _tokenizer() -> Any:
    return files(sentencepiece_json())


def llama_cpp(model: Model, folder: Path) -> float:
    """The share of positions at which llama.cpp finds the same token most likely."""
    description = pretrained.describe(model.folder)
    # llama.cpp takes no sequence beyond the context
    context = max(description.context, LENGTH + 1)
    description = dataclasses.replace(description, tokenizer=_tokenizer(), context=context)
    conversion.convert(model.folder, folder / "a.gguf", "gguf", description=description)
    back = _our_logits(pretrained.load(folder / "a.gguf")[0])
    assert _difference(back, model.logits) <= 2e-5
    return _agreement(folder / "a.gguf", model.logits)


def llama_cpp_extended(model: Model, folder: Path) -> float:
    """The same of resonance YaRN, where llama.cpp reads a list of frequencies."""
    description = _extended(pretrained.describe(model.folder))
    described = dataclasses.replace(description, tokenizer=_tokenizer())
    done = conversion.convert(model.folder, folder / "a.gguf", "gguf", description=described)
    assert done.description.family == model.case.exported
    ours = _our_logits(pretrained.load(model.folder, rope=description.rope)[0])
    assert _difference(_our_logits(pretrained.load(folder / "a.gguf")[0]), ours) <= 2e-5
    return _agreement(folder / "a.gguf", ours)


def _agreement(file: Path, logits_TV: np.ndarray) -> float:
    theirs = _choices_of_llama_cpp(file, TOKENS[0].tolist())
    ours = [int(logits_TV[position].argmax()) for position in LLAMA_CPP_POSITIONS]
    return sum(map(int.__eq__, ours, theirs)) / len(ours)


def _choices_of_llama_cpp(file: Path, tokens: Sequence[int]) -> list[int]:
    """The most likely token after each prefix, as llama.cpp computes it in float32."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(file)
    parameters.n_ctx = 2 * LENGTH
    parameters.n_parallel = 1
    parameters.warmup = False
    parameters.verbosity = 0
    # with it, values are rounded to 16 bits on the way
    parameters.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    # its threads wait for one another, which takes long where others work as well
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(parameters)
    choices = []
    for position in LLAMA_CPP_POSITIONS:
        request = {
            "prompt": tokens[: position + 1],
            "n_predict": 1,
            "n_probs": 1,
            "temperature": 0.0,
            "cache_prompt": True,
        }
        answer = server.handle_completions(request)
        best = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]
        choices.append(int(best["id"]))
    return choices


def _has_llama_cpp(case: Case) -> bool:
    return case.llama_cpp is True


class Proof(NamedTuple):
    """One measurement.

    Attributes:
      measure: takes a model and a new folder, and returns the figure.
      limit: what the figure may be at most, or at least if `least`.
      least: see `limit`.
      applies: whether a case has it.
      needs: a package that it needs besides PyTorch and transformers.
    """

    measure: Callable[[Model, Path], float]
    limit: float
    least: bool = False
    applies: Callable[[Case], bool] = lambda _: True
    needs: str | None = None

    def holds(self, figure: float) -> bool:
        """Whether a figure is within the limit."""
        return figure >= self.limit if self.least else figure <= self.limit


# Of float32 logits relative to the largest: some 300 roundings of 2**-24.
TOLERANCE = 2e-5
PROOFS = {
    "logits": Proof(logits, TOLERANCE),
    "cached": Proof(cached, TOLERANCE),
    "round_trip": Proof(round_trip, 0),
    "folded": Proof(folded, TOLERANCE),
    "llama_cpp": Proof(llama_cpp, 0.99, least=True, applies=_has_llama_cpp, needs="xllamacpp"),
    "llama_cpp_extended": Proof(
        llama_cpp_extended,
        0.99,
        least=True,
        applies=lambda case: case.exported is not None,
        needs="xllamacpp",
    ),
}
