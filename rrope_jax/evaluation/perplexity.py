"""Perplexity of long documents as a function of the context length.

Two protocols. `fragments` (arXiv 2403.00071, section 6.2): the first c tokens of every document,
for every context length c. `sliding` (the repository of YaRN, arXiv 2309.00071, and Press et al.,
arXiv 2108.12409): a window of c tokens moves over the document, and every token is predicted once,
from the longest context that a window offers.

A causal model predicts a token only from the tokens before it, so one pass over the longest
fragment yields the losses of all shorter ones, unless the frequencies depend on the length.
"""

import dataclasses
import itertools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rrope_jax.evaluation.chunked_losses import ChunkedLosses
from rrope_jax.evaluation.devices import Devices
from rrope_jax.evaluation.units import (
    SECONDS,
    Benchmark,
    Unit,
    UnitStore,
    seconds_of,
    unit_name,
    wait,
)
from rrope_jax.model import Decoder
from rrope_jax.model.attention.context_parallel import arrange, restore
from rrope_jax.model.decoder import rotations
from rrope_jax.model.flops import causal_flops
from rrope_jax.rope import RopeSpec, frequencies
from rrope_jax.rope.far_positions import far_positions_of
from rrope_jax.sharding import constrain, parts
from rrope_jax.train.loss import next_token_losses


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerplexitySetting:
    """The fields of `config.eval.perplexity`.

    Attributes:
      enabled: whether to measure perplexity.
      contexts: context lengths in tokens.
      protocol: `fragments` or `sliding`.
      documents: use only this many of the documents that are long enough, from the start; None for
        all.
      fragments_per_document: for `fragments`, number of fragments per document, spread evenly from
        its beginning to its end.
      stride: for `sliding`, tokens by which the window advances.
      sliding_tokens: for `sliding`, tokens of a document that the windows cover; None for the whole
        document.
      last_tokens: for `fragments`, predict only so many tokens at the end of every context, which
        is what its length is for; the logits of all others are never computed. None for all.
      logits_chunk: tokens whose logits exist at a time.
      chunk: tokens of a row that go through the model at a time, with a cache of keys and values;
        None for whole rows.
    """

    enabled: bool = True
    contexts: tuple[int, ...] = (2048, 4096, 8192, 16384, 32768)
    protocol: Literal["fragments", "sliding"] = "fragments"
    documents: int | None = None
    fragments_per_document: int = 1
    stride: int = 256
    sliding_tokens: int | None = None
    last_tokens: int | None = None
    logits_chunk: int = 2048
    chunk: int | None = None

    def __post_init__(self) -> None:
        if not self.contexts or len(set(self.contexts)) < len(self.contexts):
            raise ValueError(f"contexts={self.contexts!r} must name at least one, and none twice")
        if min(self.contexts) < 2:
            raise ValueError(
                f"contexts={self.contexts!r} must be at least 2 each; one token predicts nothing"
            )
        for name in (
            "documents",
            "fragments_per_document",
            "stride",
            "last_tokens",
            "logits_chunk",
            "chunk",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if self.sliding_tokens is not None and self.sliding_tokens < max(self.contexts):
            raise ValueError(
                f"sliding_tokens={self.sliding_tokens} must be at least the longest of contexts "
                f"({max(self.contexts)}); None takes whole documents"
            )
        if self.last_tokens is not None and self.protocol != "fragments":
            raise ValueError(
                f"last_tokens={self.last_tokens} goes with protocol='fragments' only; the stride "
                "of a sliding window says which tokens it predicts"
            )
        if self.protocol == "sliding" and self.stride >= min(self.contexts):
            raise ValueError(
                f"stride={self.stride} must be below the shortest of contexts "
                f"({min(self.contexts)}); windows that do not overlap leave tokens out"
            )


class Losses:
    """The losses of a decoder on token sequences of any length, computing logits in chunks."""

    def __init__(self, decoder: Decoder, *, logits_chunk: int = 2048):
        """Compiles nothing yet.

        Args:
          decoder: the model.
          logits_chunk: tokens whose logits exist at a time.
        """
        graph, self._state = nnx.split(decoder)
        self._devices = Devices.of(decoder)

        def run(
            state: Any, tokens_BT: jax.Array, at_S: jax.Array | None, seq_len: int
        ) -> jax.Array:
            model, T = nnx.merge(graph, state), tokens_BT.shape[1]
            split = parts("length") > 1
            rotation = None
            if seq_len < T:  # what depends on the length must not count the padding
                positions_BT = arrange(jnp.arange(T, dtype=jnp.int32)[None])
                rotation = rotations(model.config, model.rope, positions_BT, seq_len=seq_len)
            targets_BT = jnp.roll(tokens_BT, -1, axis=1)
            hidden_BTD = model.hidden(arrange(tokens_BT), rotation=rotation, arranged=split)
            if at_S is None:
                losses_BT = next_token_losses(
                    model, hidden_BTD, arrange(targets_BT), chunk=logits_chunk
                )
                return constrain(restore(losses_BT)[:, : seq_len - 1], (None, None))
            hidden_BSD, targets_BS = restore(hidden_BTD)[:, at_S - 1], targets_BT[:, at_S - 1]
            losses_BS = next_token_losses(model, hidden_BSD, targets_BS, chunk=logits_chunk)
            return constrain(losses_BS, (None, None))

        self._run = jax.jit(run, static_argnames="seq_len")

    def lower(self, state: Any, B: int, T: int) -> jax.stages.Lowered:
        """Lowers the program for the losses of all tokens, for planning.

        Args:
          state: the shapes and shardings of the decoder's state.
          B, T: rows, and tokens per row.
        """
        return self._run.lower(state, jax.ShapeDtypeStruct((B, T), jnp.int32), None, seq_len=T)

    def __call__(self, tokens_BT: np.ndarray, at_S: np.ndarray | None = None) -> np.ndarray:
        """Negative log likelihood of every token but the first, in nats.

        Args:
          tokens_BT: int32[B, T].
          at_S: int[S], indices in [1, T) of the only tokens to predict.

        Returns:
          float32[B, T - 1], or float32[B, S] with `at_S`.
        """
        B, T = tokens_BT.shape
        devices = self._devices
        more_rows, more_tokens = devices.rows(B) - B, devices.length(T) - T
        padded_BT = np.pad(tokens_BT.astype(np.int32), [(0, more_rows), (0, more_tokens)])
        padded_S = None
        if at_S is not None:
            more = devices.length(at_S.size) - at_S.size
            padded_S = np.pad(at_S.astype(np.int32), (0, more), "edge")
        with devices.current():
            losses = self._run(self._state, padded_BT, padded_S, seq_len=T)
        wait(losses)
        return np.asarray(losses)[:B, : T - 1 if at_S is None else at_S.size]


def losses_of(decoder: Decoder, setting: PerplexitySetting) -> Losses | ChunkedLosses:
    """The losses of a decoder in whole rows or in chunks, as the setting says."""
    if setting.chunk is None:
        return Losses(decoder, logits_chunk=setting.logits_chunk)
    return ChunkedLosses(decoder, chunk=setting.chunk, logits_chunk=setting.logits_chunk)


def document_losses(
    losses: Losses | ChunkedLosses,
    tokens_N: np.ndarray,
    *,
    window: int,
    stride: int,
    batch_size: int = 1,
) -> np.ndarray:
    """Losses of a document's tokens, each predicted from the preceding tokens of a sliding window.

    The first window predicts all its tokens. Each later window starts `stride` tokens further on
    and predicts only the new tokens. The last window ends with the document and may start less than
    a stride later, so that all windows have the same length (YaRN's code shortens the last one
    instead).

    Args:
      losses: the decoder's losses.
      tokens_N: int32[N], at least one window long.
      window: tokens that the model sees at a time.
      stride: tokens by which the window advances, less than `window`.
      batch_size: windows per forward pass.

    Returns:
      float32[N - 1], nats.

    Raises:
      ValueError: the document is shorter than a window.
    """
    N = tokens_N.size
    if window > N:
        raise ValueError(f"the document has {N} tokens; a window of {window} needs as many")
    parts: list[np.ndarray] = []
    scored = 0
    ends = [*range(window, N, stride), N]
    for first in range(0, len(ends), batch_size):
        batch = ends[first : first + batch_size]
        losses_BT = losses(np.stack([tokens_N[end - window : end] for end in batch]))
        for end, losses_T in zip(batch, losses_BT, strict=True):
            new = end - scored if parts else losses_T.size
            parts.append(losses_T[losses_T.size - new :])
            scored = end
    return np.concatenate(parts)


_EMBEDDINGS = ("full_attention", "sliding_attention")


def length_groups(spec: RopeSpec, lengths: Sequence[int]) -> list[list[int]]:
    """Groups lengths at which a spec is the same embedding, ascending: one pass per group.

    Frequencies and the positions of far pairs count, those of sliding layers, too.

    All lengths form one group, unless the scaling or the far positions depend on the length
    (`dynamic_ntk`, `dynamic_yarn`, `longrope`, `jet_long`).
    """
    groups: dict[tuple[Any, ...], list[int]] = {}
    for length in sorted(lengths):
        specs = [spec.of(name) for name in _EMBEDDINGS]
        tables = [frequencies(each, length) for each in specs]
        same = (
            *((table.inv_freq.tobytes(), table.attention_factor) for table in tables),
            *(far_positions_of(each, length) for each in specs),
        )
        groups.setdefault(same, []).append(length)
    return list(groups.values())


@dataclasses.dataclass(frozen=True)
class Windows:
    """Windows of one length over part of a document, and the contexts that they measure.

    `at_S` are the indices of the tokens that are predicted, ascending; None for all but the first.
    """

    document: str
    start: int
    tokens_N: np.ndarray
    window: int
    contexts: tuple[int, ...]
    at_S: np.ndarray | None = None


class Perplexity(Benchmark[Windows]):
    """Perplexity of documents as a function of the context length."""

    def __init__(
        self,
        setting: PerplexitySetting,
        decoder: Decoder,
        documents: Sequence[tuple[str, np.ndarray]],
        *,
        batch_size: int = 1,
    ):
        """Plans the units; computes nothing.

        Args:
          setting: what to measure.
          decoder: the model.
          documents: (name, tokens int32[N]) of each document.
          batch_size: windows of a document per forward pass, where it has several.

        Raises:
          ValueError: no document is long enough.
        """
        self._setting, self._batch_size = setting, batch_size
        self._model = decoder.config
        self._losses = losses_of(decoder, setting)
        longest = max(setting.contexts)
        sized = [(name, tokens.size, tokens) for name, tokens in documents]
        long = [(name, tokens) for name, size, tokens in sized if size >= longest]
        self.too_short = [(name, size) for name, size, _ in sized if size < longest]
        if not long:
            raise ValueError(
                f"contexts={setting.contexts!r}: none of {len(documents)} documents has {longest} "
                f"tokens, the longest has {max((n for _, n, _ in sized), default=0)}; use "
                "shorter contexts or longer documents"
            )
        plan = {"fragments": self._fragments, "sliding": self._sliding}[setting.protocol]
        self.units = [
            self._unit(windows)
            for name, tokens in long[: setting.documents]
            for windows in plan(name, np.asarray(tokens, np.int32), decoder.rope)
        ]

    def _fragments(self, name: str, tokens_N: np.ndarray, spec: RopeSpec) -> list[Windows]:
        longest, count = max(self._setting.contexts), self._setting.fragments_per_document
        starts = [i * (tokens_N.size - longest) // max(1, count - 1) for i in range(count)]
        return [
            Windows(
                name,
                start,
                tokens_N[start : start + group[-1]],
                group[-1],
                tuple(group),
                self._last_tokens(group),
            )
            for start in dict.fromkeys(starts)
            for group in length_groups(spec, self._setting.contexts)
        ]

    def _last_tokens(self, contexts: Sequence[int]) -> np.ndarray | None:
        """Indices of the tokens at the ends of contexts, ascending; None for all."""
        count = self._setting.last_tokens
        if count is None:
            return None
        return np.unique(np.concatenate([np.arange(max(1, c - count), c) for c in contexts]))

    def _sliding(self, name: str, tokens_N: np.ndarray, spec: RopeSpec) -> list[Windows]:
        del spec  # every context has its own window length
        tokens_N = tokens_N[: self._setting.sliding_tokens]
        return [Windows(name, 0, tokens_N, c, (c,)) for c in self._setting.contexts]

    def _unit(self, part: Windows) -> Unit[Windows]:
        tokens_N, window = part.tokens_N, part.window
        stride = self._setting.stride if window < tokens_N.size else window
        forwards = 1 + math.ceil((tokens_N.size - window) / stride)
        depends_on: list[Any] = [_bytes(tokens_N).hex(), window, stride]
        if part.at_S is not None:
            depends_on.append(part.at_S.tolist())
        if self._setting.chunk is not None:  # other rounding
            depends_on.append({"chunk": self._setting.chunk})
        return Unit(
            unit_name("perplexity", [part.document, part.start, tokens_N.size, window], depends_on),
            forwards * causal_flops(self._model, 0, window, logits=part.at_S is None),
            self._run_window if forwards == 1 else self._run_windows,
            part,
            part,
            # all fragments of one length predict the same tokens
            shape=window if forwards == 1 else None,
        )

    def _run_window(self, parts: Sequence[Windows]) -> list[dict[str, Any]]:
        """The losses of several windows of one length, which are one forward pass."""
        at_S = parts[0].at_S
        losses_BS = self._losses(np.stack([part.tokens_N for part in parts]), at_S)
        return [_result(losses_S, at_S) for losses_S in losses_BS]

    def _run_windows(self, parts: Sequence[Windows]) -> list[dict[str, Any]]:
        """The losses of documents over which a window moves."""
        return [
            _result(
                document_losses(
                    self._losses,
                    part.tokens_N,
                    window=part.window,
                    stride=self._setting.stride,
                    batch_size=self._batch_size,
                )
            )
            for part in parts
        ]

    def results(self, store: UnitStore) -> dict[str, Any]:
        """The entries of results.json, from the finished units in the store.

        `perplexity` has one entry per context, over all documents; `perplexity_by_document` has one
        per context and fragment, whose `crc32` of token ids identifies it in comparisons; `seconds`
        are those of a pass at its longest context, and 0 at shorter ones that it covers;
        `loss_by_position` holds the mean losses along the longest windows, at the ends of the
        contexts where only those are predicted; `perplexity_by_position` pools all
        fragments in at most eight buckets, where all tokens are predicted.
        """
        by_document: list[dict[str, Any]] = []
        by_position: list[dict[str, Any]] = []
        for part, result in self.finished(store):
            losses_N = np.array(result["losses"])
            by_document += [
                self._of_document(part, c, losses_N) | {SECONDS: _seconds_at(part, c, result)}
                for c in part.contexts
            ]
            if max(part.contexts) == max(self._setting.contexts):
                by_position.append(
                    {"document": part.document, "start": part.start}
                    | self._by_position(part, losses_N)
                )
        return {
            "perplexity": [
                _over_documents(context, [e for e in by_document if e["context"] == context])
                for context in sorted({entry["context"] for entry in by_document})
            ],
            "perplexity_by_document": by_document,
            "loss_by_position": by_position,
            "perplexity_by_position": [] if self._setting.last_tokens else _buckets(by_position),
            "too_short": [{"document": name, "tokens": n} for name, n in self.too_short],
        }

    def _of_context(self, part: Windows, context: int, losses_N: np.ndarray) -> np.ndarray:
        """The losses of a fragment's predicted tokens that belong to a context."""
        if part.at_S is None or self._setting.last_tokens is None:
            return losses_N[: context - 1]
        first = context - self._setting.last_tokens
        return losses_N[(part.at_S >= first) & (part.at_S < context)]

    def _by_position(self, part: Windows, losses_N: np.ndarray) -> dict[str, Any]:
        """Mean losses along a window, and the ends of the parts that they are means of."""
        if part.at_S is None:
            return _binned(losses_N[: part.window - 1])
        ends = sorted(part.contexts)
        means = [float(self._of_context(part, end, losses_N).mean()) for end in ends]
        return {"end": ends, "loss": means}

    def _of_document(self, part: Windows, context: int, losses_N: np.ndarray) -> dict[str, Any]:
        """An entry of `perplexity_by_document`."""
        tokens_N = part.tokens_N
        if self._setting.protocol == "fragments":
            losses_N, tokens_N = self._of_context(part, context, losses_N), tokens_N[:context]
        loss = float(losses_N.mean())
        return {
            "context": context,
            "document": part.document,
            "start": part.start,
            "perplexity": _perplexity(loss),
            "loss": loss,
            "tokens": losses_N.size,
            "crc32": zlib.crc32(_bytes(tokens_N)),
        }


def _result(losses_S: np.ndarray, at_S: np.ndarray | None = None) -> dict[str, Any]:
    """The result of a unit; refuses losses that are not finite."""
    if not np.isfinite(losses_S).all():
        index = int(np.argmin(np.isfinite(losses_S)))
        token = index + 1 if at_S is None else at_S[index]
        raise FloatingPointError(f"the loss of token {token} is {losses_S[index]}")
    return {"losses": [round(float(loss), 6) for loss in losses_S]}


def _seconds_at(part: Windows, context: int, result: Mapping[str, Any]) -> float | None:
    """The seconds of a unit at its longest context; shorter ones cost nothing more."""
    seconds: float | None = result.get(SECONDS)
    return seconds if seconds is None or context == max(part.contexts) else 0.0


def _bytes(tokens_N: np.ndarray) -> bytes:
    """Token ids as bytes, the same on every machine."""
    return np.ascontiguousarray(tokens_N, "<i4").tobytes()


_BINS = 32


def _binned(losses_N: np.ndarray) -> dict[str, Any]:
    """Mean losses, in nats, of equal parts of a window, and the ends of the parts, in tokens."""
    edges = np.unique(np.linspace(0, losses_N.size, _BINS + 1).astype(int))
    means = [float(losses_N[a:b].mean()) for a, b in itertools.pairwise(edges)]
    return {"end": edges[1:].tolist(), "loss": means}


_BUCKETS = 8


def _buckets(curves: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Perplexity over all fragments, by position; neighboring parts of the curves are pooled.

    `begin` and `end` are the positions of the first and last predicted token, from 0.
    """
    if not curves:
        return []
    ends = np.array(curves[0]["end"])
    begins = np.concatenate([[0], ends[:-1]])
    losses = np.mean([curve["loss"] for curve in curves], axis=0)
    return [
        {
            "begin": int(begins[part[0]]) + 1,
            "end": int(ends[part[-1]]),
            "loss": (loss := float(np.average(losses[part], weights=(ends - begins)[part]))),
            "perplexity": _perplexity(loss),
        }
        for part in np.array_split(np.arange(ends.size), min(_BUCKETS, ends.size))
    ]


def _perplexity(loss: float) -> float:
    """The exponential of a loss; infinite on overflow, as for a model broken by a scaling."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _over_documents(context: int, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Perplexity over all tokens, and its spread over documents.

    `loss_std` is the sample standard deviation of the documents' mean losses; None for one
    document.
    """
    losses = np.array([entry["loss"] for entry in entries])
    tokens = np.array([entry["tokens"] for entry in entries])
    loss = float(np.average(losses, weights=tokens))
    return {
        "context": context,
        "perplexity": _perplexity(loss),
        "tokens": int(tokens.sum()),
        "loss": loss,
        "loss_std": float(losses.std(ddof=1)) if losses.size > 1 else None,
        "lowest": min(entry["perplexity"] for entry in entries),
        "highest": max(entry["perplexity"] for entry in entries),
        "fragments": len(entries),
        "documents": len({entry["document"] for entry in entries}),
        SECONDS: seconds_of(entries),
    }
