"""Units in batches: as many forward passes less, and the results of one at a time."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.evaluation.closed_ended import ClosedEnded, ClosedEndedSetting
from rrope_jax.evaluation.longppl import LongPerplexity, LongPerplexitySetting
from rrope_jax.evaluation.passkey import Passkey, PasskeySetting
from rrope_jax.evaluation.perplexity import Perplexity, PerplexitySetting
from rrope_jax.evaluation.ruler.benchmark import Ruler
from rrope_jax.evaluation.ruler.setting import RulerSetting
from rrope_jax.evaluation.units import Benchmark, run_units
from rrope_jax.model import Decoder
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close, without_seconds
from tests.evaluation.tiny import Memory, random_tokens, tiny_decoder

# Its frequencies follow the capacity of the cache, which must be that of a prompt alone.
DYNAMIC = RopeSpec(head_dim=8, scaling="dynamic_ntk", factor=4.0, original_context=16)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


def perplexity(decoder: Decoder, batch_size: int, **fields: Any) -> Perplexity:
    documents = [(str(seed), random_tokens(seed, 40 + seed)) for seed in range(3)]
    return Perplexity(PerplexitySetting(**fields), decoder, documents, batch_size=batch_size)


def fragments(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    return perplexity(decoder, batch_size, contexts=(8, 30))


def ends(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    return perplexity(decoder, batch_size, contexts=(8, 30), last_tokens=5)


def chunked(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    return perplexity(decoder, batch_size, contexts=(30,), chunk=16)


def sliding(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    return perplexity(decoder, batch_size, contexts=(16,), protocol="sliding", stride=5)


def longppl(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    setting = LongPerplexitySetting(contexts=(30,), short_context=8, window=5, alpha=0.4, beta=-6.0)
    documents = [(str(seed), random_tokens(seed, 33)) for seed in range(3)]
    return LongPerplexity(setting, decoder, documents, batch_size=batch_size)


def passkey(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    """Four prompts."""
    setting = PasskeySetting(
        contexts=(64,),
        depths=(0.0, 1.0),
        trials=2,
        introduction="Find it.\n",
        filler="Grass.\n",
        hidden="Key {key}.\n",
        question="Key?",
        chunk=16,
    )
    return Passkey(setting, decoder, load_tokenizer("bytes"), bos=False)


def closed_ended(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    """One document fills the context up to its own question, which is shorter than others'."""
    lines = [
        ("Once upon a time there was a cat.", ["Who?", "When was it, and where?"]),
        ("So long. " * 20, ["Why?"]),
        ("The end.", ["Is this the end of it?", "No?", "Are you sure?"]),
    ]
    file = folder / "task.jsonl"
    file.write_text(
        "".join(
            json.dumps({"input": text, "instructions": asked, "outputs": ["A"] * len(asked)}) + "\n"
            for text, asked in lines
        )
    )
    setting = ClosedEndedSetting(files=(str(file),), context=96, max_tokens=6, chunk=16)
    return ClosedEnded(setting, decoder, load_tokenizer("bytes"), bos=False)


def ruler(decoder: Decoder, batch_size: int, folder: Path) -> Benchmark[Any]:
    """Words, so that right answers have different numbers of tokens."""
    setting = RulerSetting(tasks=("fwe",), contexts=(640,), samples=3, chunk=256)
    return Ruler(setting, decoder, load_tokenizer("bytes"), bos=False, stop_ids=(257,))


Make = Callable[[Decoder, int, Path], Benchmark[Any]]


def run(make: Make, decoder: Decoder, batch_size: int, folder: Path) -> tuple[Memory, list[int]]:
    """What is stored, and how many units were in each batch."""
    task, sizes = make(decoder, batch_size, folder), []

    def counted(compute: Callable[..., Any]) -> Callable[..., Any]:
        def call(inputs: Sequence[Any]) -> Any:
            sizes.append(len(inputs))
            return compute(inputs)

        return call

    wrapped = {unit.compute: counted(unit.compute) for unit in task.units}
    units = [dataclasses.replace(unit, compute=wrapped[unit.compute]) for unit in task.units]
    memory = Memory()
    run_units(units, memory, batch_size=batch_size)
    return memory, sizes


def assert_alike(one: Any, other: Any) -> None:
    """The same but for rounding."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_alike(one[key], other[key])
    elif isinstance(one, float) or (isinstance(one, list) and one and isinstance(one[0], float)):
        assert_close(one, other)
    else:
        assert one == other


@pytest.mark.parametrize(
    ("make", "batches", "model"),
    [
        (fragments, [3, 3], "dynamic"),
        pytest.param(ends, [3], "full", marks=pytest.mark.long),
        (chunked, [3], "dynamic"),
        pytest.param(sliding, [1, 1, 1], "full", marks=pytest.mark.long),
        (longppl, [3], "full"),
        (passkey, [3, 1], "dynamic"),
        pytest.param(closed_ended, [3], "window", marks=pytest.mark.long),
        (ruler, [3], "full"),
    ],
)
def test_results_are_those_of_one_at_a_time(
    make: Make, batches: list[int], model: str, tmp_path: Path
) -> None:
    decoder = tiny_decoder(
        DYNAMIC if model == "dynamic" else None,
        vocab_size=258,
        sliding_window=5 if model == "window" else None,
    )
    alone, one_by_one = run(make, decoder, 1, tmp_path)
    together, sizes = run(make, decoder, 3, tmp_path)
    assert (set(one_by_one), sizes) == ({1}, batches)
    assert alone.kept.keys() == together.kept.keys()
    for name, result in alone.kept.items():
        assert_alike(without_seconds(result), without_seconds(together.kept[name]))
