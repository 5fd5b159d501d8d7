"""Perplexity over context lengths."""

import math

import jax
import numpy as np
import pytest
from flax import nnx

from rrope_jax.evaluation.perplexity import (
    Losses,
    Perplexity,
    PerplexitySetting,
    _over_documents,
    document_losses,
    length_groups,
)
from rrope_jax.evaluation.units import run_units
from rrope_jax.model import Decoder
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close
from tests.evaluation.tiny import Memory, log_probabilities, random_tokens, tiny_decoder

DYNAMIC = RopeSpec(head_dim=8, scaling="dynamic_ntk", factor=2.0, original_context=16)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return tiny_decoder()


def reference_losses(decoder: Decoder, tokens_T: np.ndarray) -> np.ndarray:
    """Negative log likelihoods straight from the definition."""
    return -log_probabilities(decoder, tokens_T)[np.arange(tokens_T.size - 1), tokens_T[1:]]


def counting_losses(tokens_BT: np.ndarray) -> np.ndarray:
    """In place of `Losses`: how many tokens of context each prediction has."""
    return np.broadcast_to(np.arange(1, tokens_BT.shape[1]), (1, tokens_BT.shape[1] - 1))


def test_losses_are_those_of_the_definition(decoder: Decoder) -> None:
    tokens_T = random_tokens(0, 40)
    found = Losses(decoder, logits_chunk=16)(tokens_T[None])
    assert found.shape == (1, 39)
    assert_close(found[0], reference_losses(decoder, tokens_T))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (4, [1, 2, 3]),
        (10, [1, 2, 3, 1, 2, 3, 1, 2, 3]),
        (9, [1, 2, 3, 1, 2, 3, 2, 3]),  # the last window moves by less than a stride
    ],
)
def test_every_token_is_predicted_once(size: int, expected: list[int]) -> None:
    found = document_losses(counting_losses, random_tokens(0, size), window=4, stride=3)  # type: ignore[arg-type]
    assert found.tolist() == expected


def test_windows_slide_over_the_document(decoder: Decoder) -> None:
    tokens_N = random_tokens(1, 24)
    found = document_losses(Losses(decoder), tokens_N, window=16, stride=4)
    expected = [
        reference_losses(decoder, tokens_N[:16]),
        reference_losses(decoder, tokens_N[4:20])[-4:],
        reference_losses(decoder, tokens_N[8:])[-4:],
    ]
    assert_close(found, np.concatenate(expected))


def test_a_short_document_is_refused(decoder: Decoder) -> None:
    with pytest.raises(ValueError, match="has 3 tokens; a window of 4"):
        document_losses(Losses(decoder), random_tokens(0, 3), window=4, stride=1)


@pytest.mark.parametrize("scaling", ["none", "linear", "ntk", "yarn", "llama3"])
def test_one_forward_serves_all_lengths(scaling: str) -> None:
    fields = {} if scaling == "none" else {"factor": 4.0}
    if scaling in ("yarn", "llama3"):
        fields |= {"original_context": 16}
    spec = RopeSpec(head_dim=8, scaling=scaling, resonance=True, **fields)  # type: ignore[arg-type]
    assert length_groups(spec, [32, 8, 16]) == [[8, 16, 32]]


def test_scalings_that_follow_the_length_need_a_forward_each() -> None:
    assert length_groups(DYNAMIC, [64, 8, 16, 32]) == [[8, 16], [32], [64]]
    longrope = RopeSpec(
        head_dim=4,
        scaling="longrope",
        factor=4.0,
        original_context=16,
        short_factor=(1.0, 1.0),
        long_factor=(2.0, 3.0),
    )
    assert length_groups(longrope, [8, 16, 32, 64]) == [[8, 16], [32, 64]]
    jet_long = RopeSpec(head_dim=8, far_positions="jet_long", far_window=4, far_context=16)
    assert length_groups(jet_long, [8, 16, 24, 32, 64]) == [[8, 16], [24, 32], [64]]
    local = RopeSpec(head_dim=8, sliding_attention=DYNAMIC)
    assert length_groups(local, [64, 8, 16, 32]) == [[8, 16], [32], [64]]


@pytest.mark.parametrize("rope", [None, DYNAMIC])
def test_fragments(rope: RopeSpec | None) -> None:
    """Every figure is that of a forward pass over the fragment alone."""
    decoder = tiny_decoder(rope)
    documents = [(name, random_tokens(seed, 50)) for seed, name in enumerate(["a", "b"])]
    setting = PerplexitySetting(contexts=(32, 8), logits_chunk=16)
    task, memory = Perplexity(setting, decoder, documents), Memory()
    run_units(task.units, memory)
    results = task.results(memory)
    for entry in results["perplexity_by_document"]:
        tokens = dict(documents)[entry["document"]][: entry["context"]]
        expected = reference_losses(decoder, tokens).mean()
        assert_close(entry["loss"], expected)
        assert entry["perplexity"] == pytest.approx(math.exp(expected), rel=1e-5)
        assert entry["tokens"] == entry["context"] - 1
    assert [entry["context"] for entry in results["perplexity"]] == [8, 32]
    longest = results["perplexity"][1]
    a, b = (e for e in results["perplexity_by_document"] if e["context"] == 32)
    assert longest["loss"] == pytest.approx((a["loss"] + b["loss"]) / 2)
    assert longest["loss_std"] == pytest.approx(abs(a["loss"] - b["loss"]) / math.sqrt(2))
    assert (longest["tokens"], longest["documents"]) == (62, 2)
    assert longest["lowest"] == min(a["perplexity"], b["perplexity"])


def test_fragments_from_several_places() -> None:
    tokens = random_tokens(0, 50)
    setting = PerplexitySetting(contexts=(20,), fragments_per_document=3)
    task, memory = Perplexity(setting, tiny_decoder(), [("a", tokens)]), Memory()
    run_units(task.units, memory)
    entries = task.results(memory)["perplexity_by_document"]
    assert [entry["start"] for entry in entries] == [0, 15, 30]
    expected = reference_losses(tiny_decoder(), tokens[15:35]).mean()
    assert_close(entries[1]["loss"], expected)


def test_sliding_protocol(decoder: Decoder) -> None:
    tokens = random_tokens(0, 50)
    setting = PerplexitySetting(protocol="sliding", contexts=(8, 16), stride=6, sliding_tokens=40)
    task, memory = Perplexity(setting, decoder, [("a", tokens)]), Memory()
    run_units(task.units, memory)
    for entry in task.results(memory)["perplexity"]:
        losses = document_losses(Losses(decoder), tokens[:40], window=entry["context"], stride=6)
        assert_close(entry["loss"], losses.mean())
        assert entry["tokens"] == 39


def test_loss_by_position_sums_up_to_the_loss(decoder: Decoder) -> None:
    setting = PerplexitySetting(contexts=(33,))
    task, memory = Perplexity(setting, decoder, [("a", random_tokens(0, 40))]), Memory()
    run_units(task.units, memory)
    results = task.results(memory)
    (curve,) = results["loss_by_position"]
    assert curve["end"] == list(range(1, 33))
    assert np.mean(curve["loss"]) == pytest.approx(results["perplexity"][0]["loss"])
    buckets = results["perplexity_by_position"]
    assert [(each["begin"], each["end"]) for each in buckets] == [
        (first, first + 3) for first in range(1, 33, 4)
    ]
    losses_T = reference_losses(decoder, random_tokens(0, 40))
    for each in buckets:
        expected = losses_T[each["begin"] - 1 : each["end"]].mean()
        assert each["loss"] == pytest.approx(expected, rel=1e-5)
        assert each["perplexity"] == pytest.approx(math.exp(each["loss"]))


@pytest.mark.parametrize("last_tokens", [1, 6, 100])
def test_the_ends_of_contexts_alone(decoder: Decoder, last_tokens: int) -> None:
    """Their losses are those that predicting every token gives."""
    contexts, documents = (8, 12, 30), [("a", random_tokens(3, 33))]
    store = Memory()
    ends = Perplexity(
        PerplexitySetting(contexts=contexts, last_tokens=last_tokens), decoder, documents
    )
    run_units(ends.units, store)
    found = ends.results(store)
    losses_T = reference_losses(decoder, documents[0][1])
    for entry, context in zip(found["perplexity"], contexts, strict=True):
        expected = losses_T[max(0, context - 1 - last_tokens) : context - 1]
        assert entry["tokens"] == expected.size
        assert entry["loss"] == pytest.approx(expected.mean(), rel=1e-5)
    (curve,) = found["loss_by_position"]
    assert curve["end"] == list(contexts)
    assert curve["loss"] == [entry["loss"] for entry in found["perplexity"]]
    assert found["perplexity_by_position"] == []
    every = Perplexity(PerplexitySetting(contexts=contexts), decoder, documents)
    assert every.units[0].name != ends.units[0].name  # else one would be taken for the other


def test_units_are_run_once_and_belong_to_their_content(decoder: Decoder) -> None:
    def plan(seed: int, contexts: tuple[int, ...]) -> Perplexity:
        documents = [("a", random_tokens(seed, 40))]
        return Perplexity(PerplexitySetting(contexts=contexts), decoder, documents)

    memory = Memory()  # refuses a second result under a name
    run_units(plan(0, (8, 32)).units, memory)
    run_units(plan(0, (8, 32)).units, memory)
    run_units(plan(0, (16, 32)).units, memory)  # the same forward has the answer
    assert len(memory.kept) == 1
    assert plan(1, (8, 32)).results(memory)["perplexity"] == []  # another text, same name
    assert [e["context"] for e in plan(0, (16, 32)).results(memory)["perplexity"]] == [16, 32]


def test_documents_that_are_too_short_are_named(decoder: Decoder) -> None:
    documents = [("short", random_tokens(0, 10)), ("long", random_tokens(1, 40))]
    task = Perplexity(PerplexitySetting(contexts=(8, 32)), decoder, documents)
    assert task.results(Memory())["too_short"] == [{"document": "short", "tokens": 10}]
    with pytest.raises(ValueError, match="none of 1 documents has 32 tokens, the longest has 10"):
        Perplexity(PerplexitySetting(contexts=(8, 32)), decoder, documents[:1])


def test_a_loss_that_is_not_finite_stops(decoder: Decoder) -> None:
    broken = nnx.clone(tiny_decoder())
    nnx.update(broken, jax.tree.map(lambda x: x * np.nan, nnx.state(broken, nnx.Param)))
    task = Perplexity(PerplexitySetting(contexts=(8,)), broken, [("a", random_tokens(0, 8))])
    with pytest.raises(FloatingPointError, match="the loss of token 1 is nan"):
        run_units(task.units, Memory())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"contexts": ()}, "must name at least one"),
        ({"contexts": (1, 4)}, "at least 2 each"),
        ({"contexts": (8, 8)}, "none twice"),
        ({"stride": 0}, "stride=0 must be at least 1"),
        ({"last_tokens": 0}, "last_tokens=0 must be at least 1"),
        ({"protocol": "sliding", "last_tokens": 8}, "goes with protocol='fragments' only"),
        ({"protocol": "sliding", "contexts": (8,), "stride": 8}, "leave tokens out"),
        ({"contexts": (8,), "sliding_tokens": 7}, "sliding_tokens=7 must be at least the longest"),
    ],
)
def test_wrong_settings(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PerplexitySetting(**fields)  # type: ignore[arg-type]


def test_perplexity_beyond_all_floats_is_infinite() -> None:
    entry = {"document": "a", "loss": 800.0, "tokens": 3, "perplexity": math.inf}
    assert _over_documents(16, [entry])["perplexity"] == math.inf
