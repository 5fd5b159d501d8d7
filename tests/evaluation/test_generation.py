"""Cached generation, scoring and sampling."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.evaluation.generation import Generator, Sampling, choose
from rrope_jax.model import Decoder
from tests.closeness import assert_close
from tests.evaluation.tiny import log_probabilities, logits, random_tokens, tiny_decoder


@pytest.fixture(scope="module", params=[None, 5], ids=["full", "sliding"])
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return tiny_decoder(sliding_window=request.param)


@pytest.fixture(scope="module")
def generator(decoder: Decoder) -> Generator:
    return Generator(decoder, chunk=32)


def greedy(decoder: Decoder, prompt: list[int], count: int) -> list[int]:
    """Without a cache: the whole sequence again for every token."""
    padded = np.zeros((40,), np.int32)
    padded[: len(prompt)] = prompt
    end = len(prompt) + count
    for index in range(len(prompt), end):
        padded[index] = logits(decoder, padded)[index - 1].argmax()
    return padded[len(prompt) : end].tolist()


# less than a quarter of a chunk, a quarter and the last token, quarters and some padding, a chunk
# and a token, a chunk and no room for padding, a single token
@pytest.mark.parametrize("size", [6, 9, 21, 34, 39, 1])
def test_greedy_generation_is_that_without_a_cache(
    decoder: Decoder, generator: Generator, size: int
) -> None:
    prompt = random_tokens(size, size).tolist()
    cache = generator.read([prompt], capacity=40)
    count = min(6, 40 - size)
    assert generator.generate(prompt[-1:], cache, max_tokens=count) == [
        greedy(decoder, prompt, count)
    ]


def test_rows_of_different_lengths(decoder: Decoder, generator: Generator) -> None:
    prompts = [random_tokens(size, size).tolist() for size in (4, 20, 11)]
    cache = generator.read(prompts, capacity=32)
    found = generator.generate([prompt[-1] for prompt in prompts], cache, max_tokens=5)
    assert found == [greedy(decoder, prompt, 5) for prompt in prompts]


def test_a_stop_token_ends_its_row_only(decoder: Decoder, generator: Generator) -> None:
    prompts = [random_tokens(size, size).tolist() for size in (4, 20)]
    expected = [greedy(decoder, prompt, 6) for prompt in prompts]
    stop = next(token for token in expected[0][1:] if token not in expected[1])
    cache = generator.read(prompts, capacity=32)
    found = generator.generate(
        [prompt[-1] for prompt in prompts], cache, max_tokens=6, stop_ids=[stop]
    )
    assert found == [expected[0][: expected[0].index(stop)], expected[1]]


def test_a_cache_serves_several_continuations(decoder: Decoder, generator: Generator) -> None:
    document = random_tokens(0, 13).tolist()
    shared = generator.read([document], capacity=40)
    for seed in (1, 2):
        question = random_tokens(seed, 7).tolist()
        cache = generator.read_on(shared, document[-1], question)
        found = generator.generate(question[-1:], cache, max_tokens=4)
        assert found == [greedy(decoder, document + question, 4)]


def test_score_is_the_log_probability(decoder: Decoder, generator: Generator) -> None:
    prompt, continuation = random_tokens(0, 13).tolist(), random_tokens(1, 5).tolist()
    tokens_T = np.array(prompt + continuation)
    log_probability_TV = log_probabilities(decoder, tokens_T)[12:17]
    expected = log_probability_TV[np.arange(5), np.array(continuation)]
    cache = generator.read([prompt], capacity=32)
    found, best = generator.score(prompt[-1], cache, continuation)
    assert_close(found, expected)
    assert best.tolist() == (log_probability_TV.argmax(-1) == tokens_T[13:]).tolist()
    # what greedy generation writes is each time the most probable token
    written = greedy(decoder, prompt, 5)
    assert generator.score(prompt[-1], cache, written)[1].all()


def test_in_place_leaves_the_cache_as_it_was() -> None:
    """In rings of sliding layers, too, which the scored continuation overwrites."""
    decoder = tiny_decoder(sliding_window=6)
    generator = Generator(decoder)
    prompt, continuation = random_tokens(0, 13).tolist(), random_tokens(1, 9).tolist()
    cache = generator.read([prompt], capacity=32)
    expected = generator.score_rows(prompt[-1:], cache, [continuation])
    written = generator.generate(prompt[-1:], cache, max_tokens=4)
    for _ in range(2):
        ((found, best),), cache = generator.score_in_place(prompt[-1:], cache, [continuation])
        np.testing.assert_array_equal(found, expected[0][0])
        np.testing.assert_array_equal(best, expected[0][1])
    assert generator.generate(prompt[-1:], cache, max_tokens=4, in_place=True) == written


def test_seeds_differ_and_repeat(generator: Generator) -> None:
    prompt = random_tokens(0, 9).tolist()
    cache = generator.read([prompt], capacity=32)
    sampling = Sampling(temperature=1.5)
    rows = [
        generator.generate(prompt[-1:], cache, max_tokens=8, sampling=sampling, seed=seed)
        for seed in (0, 1, 0)
    ]
    assert rows[0] == rows[2] != rows[1]


def draws(logits: list[float], sampling: Sampling, count: int = 4000) -> dict[int, float]:
    """Shares of the tokens among many draws."""
    keys = jax.random.split(jax.random.key(0), count)
    row = jnp.asarray([logits])
    found = jax.jit(jax.vmap(lambda key: choose(row, sampling, key)[0]))(keys)
    return {token: n / count for token, n in collections.Counter(found.tolist()).items()}


PROBABILITIES = [0.1, 0.4, 0.3, 0.2]
LOGITS = np.log(PROBABILITIES).tolist()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1.0), dict(enumerate(PROBABILITIES))),
        (Sampling(temperature=0.0), {1: 1.0}),
        (Sampling(temperature=1.0, top_k=2), {1: 4 / 7, 2: 3 / 7}),
        (Sampling(temperature=1.0, top_k=9), dict(enumerate(PROBABILITIES))),
        # 0.4 and 0.3 reach 0.7, and with 0.71 the third is needed
        (Sampling(temperature=1.0, top_p=0.69), {1: 4 / 7, 2: 3 / 7}),
        (Sampling(temperature=1.0, top_p=0.71), {1: 4 / 9, 2: 3 / 9, 3: 2 / 9}),
        (Sampling(temperature=1.0, top_p=0.01), {1: 1.0}),
        (Sampling(temperature=0.5), dict(enumerate(np.square(PROBABILITIES) / 0.3))),
        (Sampling(temperature=1.0, top_k=3, top_p=0.5), {1: 4 / 7, 2: 3 / 7}),
    ],
)
def test_draws_follow_the_probabilities(sampling: Sampling, expected: dict[int, float]) -> None:
    found = draws(LOGITS, sampling)
    assert found.keys() == expected.keys()
    for token, share in expected.items():
        assert found[token] == pytest.approx(share, abs=0.03)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"temperature": -1.0}, "temperature=-1.0 must be finite and at least 0"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0 and at most 1"),
        ({"top_p": 1.1}, "top_p=1.1 must be above 0 and at most 1"),
    ],
)
def test_wrong_sampling(fields: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Sampling(**fields)  # type: ignore[arg-type]


def test_prompts_that_do_not_fit(generator: Generator) -> None:
    with pytest.raises(ValueError, match="a prompt has no tokens"):
        generator.read([[1], []], capacity=8)
    with pytest.raises(ValueError, match="a prompt of 9 tokens does not fit a cache of 8"):
        generator.read([[1] * 9], capacity=8)
    cache = generator.read([[1] * 8], capacity=8)
    with pytest.raises(ValueError, match="9 tokens do not fit a cache of 8"):
        generator.read_on(cache, 1, [2])
    with pytest.raises(ValueError, match="max_tokens=2: 9 tokens do not fit a cache of 8"):
        generator.generate([1], cache, max_tokens=2)


def test_a_prompt_that_fills_the_cache(decoder: Decoder, generator: Generator) -> None:
    """Its pieces cannot be padded, and the last one may not run over the end."""
    for size in (7, 8, 12):
        prompt = random_tokens(size, size).tolist()
        cache = generator.read([prompt], capacity=size)
        assert generator.generate(prompt[-1:], cache, max_tokens=1) == [greedy(decoder, prompt, 1)]


@pytest.mark.parametrize("unstack", [True, False])
def test_layers_one_by_one_write_the_same(decoder: Decoder, unstack: bool) -> None:
    prompt = random_tokens(0, 4).tolist()
    generator = Generator(decoder, unstack=unstack)
    cache = generator.read([prompt], capacity=16)
    assert generator.generate(prompt[-1:], cache, max_tokens=8) == [greedy(decoder, prompt, 8)]
