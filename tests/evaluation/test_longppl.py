"""LongPPL against a reference in NumPy, and against its package where a checkout is named."""

import dataclasses
import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.evaluation.longppl import (
    LongPerplexity,
    LongPerplexitySetting,
    key_tokens,
    short_context_losses,
)
from rrope_jax.evaluation.units import run_units
from rrope_jax.io.conversion import convert
from rrope_jax.model import Decoder
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close
from tests.evaluation.tiny import (
    Memory,
    byte_decoder,
    log_probabilities,
    random_tokens,
    tiny_decoder,
)
from tests.jobs.tiny_checkpoint import write_checkpoint

# Thresholds that some of a random model's tokens pass.
SETTING = LongPerplexitySetting(contexts=(30,), short_context=8, window=5, alpha=0.4, beta=-6.0)
CHECKOUT = os.environ.get("RROPE_LONGPPL")


def documents() -> list[tuple[str, np.ndarray]]:
    """Two that are long enough; the second repeats itself, so that context helps."""
    return [
        ("random", random_tokens(0, 34)),
        ("repeated", np.tile(random_tokens(1, 10), 4)),
        ("short", random_tokens(2, 29)),
    ]


def losses_of(decoder: Decoder, tokens_T: np.ndarray) -> np.ndarray:
    T = tokens_T.size
    return -log_probabilities(decoder, tokens_T)[np.arange(T - 1), tokens_T[1:]]


def reference(
    decoder: Decoder, evaluator: Decoder, tokens_N: np.ndarray, setting: LongPerplexitySetting
) -> np.ndarray:
    """Losses of the key tokens, one token at a time as the paper defines them."""
    long, found = losses_of(evaluator, tokens_N), losses_of(decoder, tokens_N)
    keys = []
    for i in range(setting.short_context, tokens_N.size):
        begin = (i - setting.short_context) // setting.window * setting.window
        # what follows the predicted token does not count; zeros make all windows as long
        shown = np.zeros(setting.short_context + setting.window, np.int32)
        shown[: i + 1 - begin] = tokens_N[begin : i + 1]
        short = losses_of(evaluator, shown)[i - 1 - begin]
        if short - long[i - 1] > setting.alpha and -long[i - 1] > setting.beta:
            keys.append(found[i - 1])
    return np.array(keys)


def run(task: LongPerplexity) -> dict[str, Any]:
    memory = Memory()
    run_units(task.units, memory)
    return task.results(memory)


def test_key_tokens_gain_and_are_likely() -> None:
    long = np.array([1.0, 1.0, 2.5, 0.1, 2.0])
    short = np.array([3.5, 3.0, 9.0, 2.0, 4.5])
    # gain 2.5; no more than 2; unlikely; gain below 2; log probability no more than -2
    assert key_tokens(long, short).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize("evaluator", [None, RopeSpec(head_dim=8, theta=50.0)])
def test_it_is_the_perplexity_of_key_tokens(evaluator: RopeSpec | None) -> None:
    decoder = tiny_decoder()
    judge = None if evaluator is None else tiny_decoder(evaluator)
    task = LongPerplexity(SETTING, decoder, documents(), evaluator=judge, evaluator_id="judge")
    memory = Memory()
    run_units(task.units, memory)
    found = task.results(memory)
    expected = [
        reference(decoder, judge or decoder, tokens[:30], SETTING)
        for name, tokens in documents()
        if name != "short"
    ]
    assert 0 < expected[1].size < 22
    assert [e["document"] for e in found["longppl_by_document"]] == ["random", "repeated"]
    for entry, losses in zip(found["longppl_by_document"], expected, strict=True):
        assert entry["key_tokens"] == losses.size
        if losses.size:
            assert_close(entry["longppl"], math.exp(losses.mean()))
    (entry,) = found["longppl"]
    everything = np.concatenate(expected)
    assert (entry["context"], entry["documents"], entry["tokens"]) == (30, 2, 58)
    assert entry["key_tokens"] == everything.size
    assert_close(entry["longppl"], math.exp(everything.mean()))
    all_losses = [losses_of(decoder, tokens[:30]) for _, tokens in documents()[:2]]
    assert_close(entry["perplexity"], math.exp(np.mean(all_losses)))
    # no token gains so much; what is stored serves other thresholds
    none = dataclasses.replace(SETTING, alpha=99.0)
    task = LongPerplexity(none, decoder, documents(), evaluator=judge, evaluator_id="judge")
    (entry,) = task.results(memory)["longppl"]
    assert (entry["key_tokens"], entry["longppl"], entry["loss"]) == (0, None, None)


def test_thresholds_need_no_new_units_and_evaluators_do() -> None:
    def names(evaluator_id: str = "", **changes: Any) -> list[str]:
        setting = dataclasses.replace(SETTING, **changes)
        task = LongPerplexity(setting, tiny_decoder(), documents(), evaluator_id=evaluator_id)
        return [unit.name for unit in task.units]

    assert names() == names(alpha=1.0, beta=-1.0)
    assert set(names()).isdisjoint(names("another"))
    assert set(names()).isdisjoint(names(window=6))


def test_the_last_window_ends_with_the_document() -> None:
    """Windows of 5 after 8 tokens of 20: tokens 8 to 12, 13 to 17, 18 and 19."""
    spans = []

    def spying(tokens_BT: np.ndarray, at_S: np.ndarray) -> np.ndarray:
        spans.append((int(tokens_BT[0, 0]), tokens_BT.shape[1]))
        return tokens_BT[:, at_S].astype(np.float32)

    found = short_context_losses(spying, np.arange(20), short_context=8, window=5)  # type: ignore[arg-type]
    assert found.tolist() == list(range(8, 20))
    assert spans == [(0, 13), (5, 13), (10, 10)]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"contexts": ()}, "must name at least one"),
        ({"contexts": (4096, 8192)}, "must all be longer than short_context=4096"),
        ({"window": 0}, "window=0 must be at least 1"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LongPerplexitySetting(**fields)


def test_documents_that_are_too_short() -> None:
    with pytest.raises(ValueError, match="none of 1 documents has 30 tokens"):
        LongPerplexity(SETTING, tiny_decoder(), documents()[2:])


class ByteTokenizer:
    """What the package asks of a transformers tokenizer: a token for each byte, and its place."""

    def __call__(self, text: str, **kwargs: Any) -> dict[str, Any]:
        import torch

        ids = torch.tensor([list(text.encode())])
        places = torch.tensor([[[i, i + 1] for i in range(ids.shape[1])]])
        return {"input_ids": ids, "offset_mapping": places}


@pytest.mark.peers
@pytest.mark.long
@pytest.mark.skipif(CHECKOUT is None, reason="RROPE_LONGPPL names no checkout of PKU-ML/LongPPL")
@pytest.mark.parametrize(("alpha", "beta"), [(0.4, -6.0), (0.1, -20.0), (-0.5, -9.0)])
def test_beside_the_package(
    alpha: float, beta: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `compute_longppl` on the exported model in transformers, which tells its own keys."""
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.syspath_prepend(str(CHECKOUT))
    monkeypatch.delitem(sys.modules, "longppl", raising=False)
    from longppl.longppl import compute_longppl  # type: ignore[import-not-found]

    convert(write_checkpoint(tmp_path / "model"), tmp_path / "hf", "hf")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32)
    text = "The old mill ran. " * 3 + "The cart stood, and the old mill ran."
    setting = dataclasses.replace(
        SETTING, contexts=(len(text),), short_context=20, window=16, alpha=alpha, beta=beta
    )
    expected = compute_longppl(
        text,
        theirs,
        theirs,
        ByteTokenizer(),
        ByteTokenizer(),
        trunc_len=setting.short_context,
        sliding_window=setting.window,
        alpha=alpha,
        beta=beta,
    )
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    (entry,) = run(LongPerplexity(setting, byte_decoder(), [("text", tokens)]))["longppl"]
    assert entry["key_tokens"] == expected["n_key_token"] > 0
    # a log probability is a sum over few layers in float32; the packages add in another order
    assert entry["longppl"] == pytest.approx(float(expected["longppl"]), rel=1e-4)
    assert entry["perplexity"] == pytest.approx(float(expected["ppl"]), rel=1e-4)
