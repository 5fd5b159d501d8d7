"""Text generation: a prompt is read into the cache once, then tokens follow one by one.

Letters: B rows, T tokens of a prompt, M generated tokens, V vocabulary.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrope_jax.evaluation.devices import Devices
from rrope_jax.evaluation.units import wait
from rrope_jax.model import Decoder, KVCache, init_cache
from rrope_jax.model.cache import constrain_cache
from rrope_jax.sharding import constrain


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sampling:
    """How a token is sampled; the filters apply in this order.

    Attributes:
      temperature: divides the logits; 0 always takes the most probable token.
      top_k: samples only from the k most probable tokens; 0 for all.
      top_p: samples only from the smallest set of most probable tokens that reaches this total
        probability (arXiv 1904.09751); 1 for all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(
                f"temperature={self.temperature} must be finite and at least 0; 0 takes the most "
                "probable token"
            )
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0; 0 is no limit")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1; 1 is no limit")


def choose(logits_BV: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """Samples a token for every row, int32[B].

    Args:
      logits_BV: float32[B, V].
      sampling: the sampling method; static under jit.
      key: a PRNG key.
    """
    if sampling.temperature == 0:
        return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / sampling.temperature
    if 0 < sampling.top_k < logits_BV.shape[-1]:
        lowest_B1 = jax.lax.top_k(logits_BV, sampling.top_k)[0][:, -1:]
        logits_BV = jnp.where(logits_BV >= lowest_B1, logits_BV, -jnp.inf)
    if sampling.top_p < 1:
        sorted_BV = -jnp.sort(-logits_BV, axis=-1)
        share_BV = jax.nn.softmax(sorted_BV, axis=-1)
        before_BV = jnp.cumsum(share_BV, axis=-1) - share_BV  # of the tokens more probable
        lowest_B1 = jnp.min(
            jnp.where(before_BV < sampling.top_p, sorted_BV, jnp.inf), axis=-1, keepdims=True
        )
        logits_BV = jnp.where(logits_BV >= lowest_B1, logits_BV, -jnp.inf)
    return jax.random.categorical(key, logits_BV, axis=-1).astype(jnp.int32)


# Unstacked layers save a third of the time per token on CPUs but take much longer to compile: 16 s
# instead of 1 s for SmolLM2, which pays off after about 450 tokens.
_UNSTACKED_FROM = 512


class Generator:
    """Reads prompts into a cache, then generates or scores continuations.

    A prompt's last token always stays out of the cache. It is the first token that `generate` and
    `score` feed, since its output is the first that they need. So the logits of the prompt are
    never computed.

    Frequencies and positions that depend on the length (`dynamic_ntk`, `dynamic_yarn`, `longrope`,
    `jet_long`) are always those at the cache's capacity.

    On a mesh, a cache has as many rows as the mesh divides; rows beyond those of the prompts
    are padding, of which nothing is returned.
    """

    def __init__(self, decoder: Decoder, *, chunk: int = 2048, unstack: bool | None = None):
        """Compiles nothing yet.

        Args:
          decoder: the model.
          chunk: tokens of a prompt that go through the model at a time; a remainder is processed in
            quarter chunks.
          unstack: whether `generate` uses `Decoder.layers_for_loop`; None to use it if its longer
            compilation pays off within a single call.
        """
        if chunk < 1:
            raise ValueError(f"chunk={chunk} must be at least 1")
        graph, state = nnx.split(decoder)
        self._devices, self._state = Devices.of(decoder).without_seq(state)
        self._decoder, self._unstack = decoder, unstack
        self._config = decoder.config
        self._chunk = chunk

        def empty(batch_size: int, capacity: int) -> KVCache:
            return init_cache(decoder.config, batch_size, capacity, decoder.rope)

        def read(state: Any, tokens_BT: jax.Array, count_B: jax.Array, cache: KVCache) -> KVCache:
            grown: KVCache = nnx.merge(graph, state).decode(tokens_BT, cache, count_B=count_B)[1]
            return grown

        def score(
            state: Any,
            tokens_BT: jax.Array,
            targets_BT: jax.Array,
            count_B: jax.Array | None,
            cache: KVCache,
        ) -> tuple[jax.Array, jax.Array, KVCache]:
            logits_BTV, grown = nnx.merge(graph, state).decode(tokens_BT, cache, count_B=count_B)
            log_probability_BTV = jax.nn.log_softmax(logits_BTV, axis=-1)
            chosen_BT1 = jnp.take_along_axis(log_probability_BTV, targets_BT[..., None], axis=-1)
            best_BT = jnp.argmax(logits_BTV, axis=-1) == targets_BT
            scores = chosen_BT1[..., 0], best_BT
            log_probability_BT, best_BT = (constrain(x_BT, (None, None)) for x_BT in scores)
            return log_probability_BT, best_BT, constrain_cache(grown.cut_back(cache))

        def extend(
            state: Any,
            layers: Sequence[Any] | None,
            last_B: jax.Array,
            cache: KVCache,
            stop_S: jax.Array,
            key: jax.Array,
            rows: int,
            max_tokens: int,
            sampling: Sampling,
        ) -> tuple[jax.Array, KVCache]:
            decoder = nnx.merge(graph, state)
            B = last_B.shape[0]

            def unfinished(carry: tuple[Any, ...]) -> Any:
                index, _, _, _, stopped_B = carry
                return (index < max_tokens) & ~jnp.all(stopped_B)

            def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
                index, cache, last_B, written_BM, stopped_B = carry
                logits_BTV, cache = decoder.decode(last_B[:, None], cache, layers=layers)
                next_B = choose(logits_BTV[:, 0], sampling, jax.random.fold_in(key, index))
                stopped_B |= jnp.isin(next_B, stop_S)
                written_BM = written_BM.at[:, index].set(jnp.where(stopped_B, -1, next_B))
                return index + 1, cache, next_B, written_BM, stopped_B

            carry = (
                jnp.int32(0),
                cache,
                last_B,
                jnp.full((B, max_tokens), -1, jnp.int32),
                jnp.arange(B) >= rows,
            )
            _, grown, _, written_BM, _ = jax.lax.while_loop(unfinished, step, carry)
            return constrain(written_BM, (None, None)), constrain_cache(grown.cut_back(cache))

        self._empty = jax.jit(empty, static_argnames=("batch_size", "capacity"))
        # a second cache in memory would be too much where the first is as large as the weights
        self._read = jax.jit(read, donate_argnames="cache")
        self._score = jax.jit(score, donate_argnames="cache")
        self._extend = jax.jit(
            extend, static_argnames=("rows", "max_tokens", "sampling"), donate_argnames="cache"
        )
        self._copy = jax.jit(lambda cache: jax.tree.map(jnp.copy, cache))
        self._whole = jax.jit(lambda length_B: constrain(length_B, (None,)))
        self._key = jax.jit(lambda seed: jax.random.key(seed))

    @functools.cached_property
    def _layers(self) -> Sequence[Any] | None:
        return self._decoder.layers_for_loop()

    def read(self, prompts: Sequence[Sequence[int]], *, capacity: int) -> KVCache:
        """Reads prompts into a new cache, except for the last token of each.

        Args:
          prompts: token ids of every row, at least one per row.
          capacity: tokens per row that the cache can hold, including those generated later.

        Raises:
          ValueError: a prompt is empty or too long for the capacity.
        """
        lengths = [len(prompt) for prompt in prompts]
        if min(lengths) < 1:
            raise ValueError("a prompt has no tokens; give it at least one, such as the first id")
        if max(lengths) > capacity:
            raise ValueError(
                f"a prompt of {max(lengths)} tokens does not fit a cache of {capacity}; raise the "
                "capacity or cut the prompt"
            )
        B = self._devices.rows(len(prompts))
        with self._devices.current():
            cache = self._empty(batch_size=B, capacity=capacity)
            fed = [prompt[:-1] for prompt in prompts]
            return self._fill(cache, np.zeros((B,), np.int32), fed)

    def read_on(self, cache: KVCache, last: int, tokens: Sequence[int]) -> KVCache:
        """Returns a copy of a one-row cache extended by tokens; see `read_on_rows`."""
        return self.read_on_rows(cache, [last], [tokens])

    def read_on_rows(
        self, cache: KVCache, last_tokens: Sequence[int], tokens: Sequence[Sequence[int]]
    ) -> KVCache:
        """Returns a copy of a cache with every row extended by tokens, except for the last of them.

        Args:
          cache: a cache; it is not modified.
          last_tokens: the token of every row that was left out of the cache.
          tokens: token ids that follow it, at least one per row.

        Raises:
          ValueError: the tokens do not fit the cache.
        """
        with self._devices.current():
            length_B = self._lengths(cache)
            needed = max(
                int(length) + 1 + len(row) for length, row in zip(length_B, tokens, strict=False)
            )
            if needed > cache.capacity:
                raise ValueError(
                    f"{needed} tokens do not fit a cache of {cache.capacity}; raise the capacity"
                )
            rows = [[last, *row[:-1]] for last, row in zip(last_tokens, tokens, strict=True)]
            return self._fill(self._copy(cache), length_B, rows)

    def _lengths(self, cache: KVCache) -> np.ndarray:
        """The number of tokens of each row, int32[B]."""
        whole_B = cache.length_B if self._devices.mesh is None else self._whole(cache.length_B)
        return np.asarray(whole_B)

    def _fill(self, cache: KVCache, length_B: np.ndarray, rows: Sequence[Sequence[int]]) -> KVCache:
        """Appends tokens to rows, of which there are so many; the cache is donated."""
        tokens_BT = _padded(rows, B=length_B.size)
        T = tokens_BT.shape[1]
        counts_B = np.zeros_like(length_B)
        counts_B[: len(rows)] = [len(row) for row in rows]
        pieces = _pieces(T, self._chunk, cache.capacity - int(length_B.max()))
        end = max((offset + size for offset, size in pieces), default=T)
        tokens_BT = np.pad(tokens_BT, [(0, 0), (0, end - T)])
        for offset, size in pieces:
            piece_BT = tokens_BT[:, offset : offset + size]
            count_B = np.clip(counts_B - offset, 0, size).astype(np.int32)
            cache = self._read(self._state, piece_BT, count_B, cache)
            wait(cache)
        return cache

    def generate(
        self,
        last_tokens: Sequence[int],
        cache: KVCache,
        *,
        max_tokens: int,
        sampling: Sampling = Sampling(),
        stop_ids: Sequence[int] = (),
        seed: int = 0,
        in_place: bool = False,
    ) -> list[list[int]]:
        """Continues every row until a stop token, for at most `max_tokens` tokens.

        Args:
          last_tokens: the last token of every prompt.
          cache: from `read`; it is not modified, unless `in_place`.
          max_tokens: maximum number of new tokens per row.
          sampling: how tokens are sampled.
          stop_ids: tokens that end a row; they are not part of the result.
          seed: seed of the sampling.
          in_place: whether to write into the memory of the cache, which cannot be used afterwards;
            otherwise into a copy.

        Raises:
          ValueError: the cache has no room for `max_tokens` tokens.
        """
        many = max_tokens >= _UNSTACKED_FROM if self._unstack is None else self._unstack
        with self._devices.current():
            length_B = self._lengths(cache)
            longest = int(length_B.max()) + max_tokens
            if longest > cache.capacity:
                raise ValueError(
                    f"max_tokens={max_tokens}: {longest} tokens do not fit a cache of "
                    f"{cache.capacity}; raise the capacity"
                )
            written_BM, _ = self._extend(
                self._state,
                self._layers if many else None,
                np.resize(np.array(last_tokens, np.int32), length_B.size),
                cache if in_place else self._copy(cache),
                np.array(stop_ids, np.int32),
                self._key(np.uint32(seed % 2**32)),
                rows=len(last_tokens),
                max_tokens=max_tokens,
                sampling=sampling,
            )
        wait(written_BM)
        rows_M = np.asarray(written_BM)[: len(last_tokens)].tolist()
        return [[token for token in row_M if token >= 0] for row_M in rows_M]

    def score(
        self, last: int, cache: KVCache, continuation: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """The log probability of a continuation of the prompt of one row; see `score_rows`."""
        (scores,) = self.score_rows([last], cache, [continuation])
        return scores

    def score_rows(
        self,
        last_tokens: Sequence[int],
        cache: KVCache,
        continuations: Sequence[Sequence[int]],
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """The log probabilities of continuations of the prompts, token by token.

        Args:
          last_tokens: the last token of every prompt.
          cache: from `read`; it is not modified.
          continuations: token ids of every row.

        Returns:
          For every row, log probabilities in nats, float32[len(continuation)], and whether each
          token is the most probable one, bool[len(continuation)].
        """
        with self._devices.current():
            copied = self._copy(cache)
        return self.score_in_place(last_tokens, copied, continuations)[0]

    def score_in_place(
        self,
        last_tokens: Sequence[int],
        cache: KVCache,
        continuations: Sequence[Sequence[int]],
    ) -> tuple[list[tuple[np.ndarray, np.ndarray]], KVCache]:
        """Like `score_rows`, without a copy of the cache.

        Returns:
          The scores, and the cache as it was before; the argument cannot be used afterwards.
        """
        fed = [[last, *row[:-1]] for last, row in zip(last_tokens, continuations, strict=True)]
        lengths = [len(row) for row in continuations]
        B = self._devices.rows(len(continuations))
        count_B = None  # without padding, as if there were one row
        if len(set(lengths)) > 1:
            count_B = np.resize(np.array(lengths, np.int32), B)
        tokens_BT, targets_BT = _padded(fed, B=B), _padded(continuations, B=B)
        with self._devices.current():
            *scores, cache = self._score(self._state, tokens_BT, targets_BT, count_B, cache)
        wait(scores)
        log_probability_BT, best_BT = map(np.asarray, scores)
        of_rows = [
            (log_probability_T[:length], best_T[:length])
            for log_probability_T, best_T, length in zip(
                log_probability_BT, best_BT, lengths, strict=False
            )
        ]
        return of_rows, cache

    def lower_reading(self, state: Any, B: int, capacity: int) -> jax.stages.Lowered:
        """Lowers the program that reads a whole chunk of prompts, for planning.

        Args:
          state: the shapes and shardings of the decoder's state.
          B: number of prompts.
          capacity: tokens per row that the cache can hold.
        """
        tokens_BT = jax.ShapeDtypeStruct((B, min(self._chunk, capacity)), jnp.int32)
        count_B = jax.ShapeDtypeStruct((B,), jnp.int32)
        return self._read.lower(state, tokens_BT, count_B, self._abstract_cache(B, capacity))

    def lower_writing(
        self, state: Any, B: int, capacity: int, *, max_tokens: int
    ) -> jax.stages.Lowered:
        """Lowers the program that writes so many tokens; see `lower_reading`."""
        last_B = jax.ShapeDtypeStruct((B,), jnp.int32)
        stop_S = jax.ShapeDtypeStruct((1,), jnp.int32)
        key = jax.eval_shape(lambda: jax.random.key(0))
        cache = self._abstract_cache(B, capacity)
        sizes = {"rows": B, "max_tokens": max_tokens, "sampling": Sampling()}
        return self._extend.lower(state, None, last_B, cache, stop_S, key, **sizes)

    def _abstract_cache(self, B: int, capacity: int) -> KVCache:
        cache: KVCache = jax.eval_shape(
            lambda: init_cache(self._config, B, capacity, self._decoder.rope)
        )
        return cache


def _padded(rows: Sequence[Sequence[int]], *, B: int) -> np.ndarray:
    """Rows of tokens as one array, int32[B, T], with zeros after them."""
    tokens_BT = np.zeros((B, max(map(len, rows))), np.int32)
    for padded_T, row in zip(tokens_BT, rows, strict=False):
        padded_T[: len(row)] = row
    return tokens_BT


def _pieces(tokens: int, chunk: int, room: int) -> list[tuple[int, int]]:
    """Offsets and sizes of pieces that cover a number of tokens.

    Every size needs its own compiled program, so there are few sizes. Whole chunks come first, then
    quarter chunks. The rest is padded to a quarter chunk, or if there are no more tokens than that,
    to a power of two; without room for the padding it is split into powers of two. No piece reaches
    back: layers with a sliding window have forgotten what came before.
    """
    quarter = max(chunk // 4, 1)
    pieces = [(offset, chunk) for offset in range(0, tokens - chunk + 1, chunk)]
    done = len(pieces) * chunk
    pieces += [(offset, quarter) for offset in range(done, tokens - quarter + 1, quarter)]
    done = pieces[-1][0] + pieces[-1][1] if pieces else 0
    rest = tokens - done
    padded = quarter if pieces else 1 << (rest - 1).bit_length() if rest else 0
    if rest and padded <= room - done:
        return [*pieces, (done, padded)]
    sizes = [1 << bit for bit in reversed(range(rest.bit_length())) if rest >> bit & 1]
    return pieces + list(zip(itertools.accumulate(sizes, initial=done), sizes, strict=False))
