"""LongPPL: perplexity of the tokens whose prediction needs a long context (arXiv 2410.23771).

Key tokens are those that an evaluator predicts much better from a long context than from a short
one, and well. The names and thresholds are those of the paper and of its package `longppl` (github
PKU-ML/LongPPL).
"""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from rrope_jax.evaluation.perplexity import Losses
from rrope_jax.evaluation.units import (
    SECONDS,
    Benchmark,
    Unit,
    UnitStore,
    seconds_of,
    unit_name,
)
from rrope_jax.model import Decoder
from rrope_jax.model.flops import causal_flops


@dataclasses.dataclass(frozen=True, kw_only=True)
class LongPerplexitySetting:
    """The fields of `config.eval.longppl`.

    Attributes:
      enabled: whether to measure it.
      contexts: lengths in tokens, from the beginning of each document.
      short_context: tokens of the short context, at least (`trunc_len` in the package).
      window: number of successive tokens that share the beginning of their short context
        (`sliding_window`).
      alpha: a key token's loss from the short context exceeds that from the long one by more than
        this, in nats (LSD).
      beta: the log probability of a key token from the long context is above this, in nats (LCL).
      evaluator: checkpoint of the model that tells key tokens, with the same tokenizer; None for
        the model itself.
      documents: use only this many of the documents that are long enough; None for all.
      logits_chunk: tokens whose logits exist at a time.
    """

    enabled: bool = True
    contexts: tuple[int, ...] = (8192, 16384, 32768)
    short_context: int = 4096
    window: int = 1024
    alpha: float = 2.0
    beta: float = -2.0
    evaluator: str | None = None
    documents: int | None = None
    logits_chunk: int = 2048

    def __post_init__(self) -> None:
        if not self.contexts or len(set(self.contexts)) < len(self.contexts):
            raise ValueError(f"contexts={self.contexts!r} must name at least one, and none twice")
        for name in ("short_context", "window", "documents", "logits_chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        if min(self.contexts) <= self.short_context:
            raise ValueError(
                f"contexts={self.contexts!r} must all be longer than short_context="
                f"{self.short_context}; without more context there is nothing to gain"
            )


class LongFragment(NamedTuple):
    """The beginning of a document, as long as a context."""

    document: str
    tokens_N: np.ndarray


class LongPerplexity(Benchmark[LongFragment]):
    """LongPPL by context length; a unit is a document at one length."""

    def __init__(
        self,
        setting: LongPerplexitySetting,
        decoder: Decoder,
        documents: Sequence[tuple[str, np.ndarray]],
        *,
        evaluator: Decoder | None = None,
        evaluator_id: str = "",
        batch_size: int = 1,
    ):
        """Plans the units; computes nothing.

        Args:
          setting: what to measure.
          decoder: the model.
          documents: (name, tokens int32[N]) of each document.
          evaluator: the model that tells key tokens; None for `decoder`.
          evaluator_id: identifies the evaluator's weights and rotary embedding, if there is one.
          batch_size: short contexts of a document per forward pass.

        Raises:
          ValueError: no document is long enough.
        """
        self._setting, self._batch_size = setting, batch_size
        self._model = decoder.config
        self._losses = Losses(decoder, logits_chunk=setting.logits_chunk)
        self._evaluator_id = evaluator_id
        self._evaluator_losses = None
        if evaluator is not None:
            self._evaluator_losses = Losses(evaluator, logits_chunk=setting.logits_chunk)
        longest = max(setting.contexts)
        long = [(name, tokens) for name, tokens in documents if tokens.size >= longest]
        if not long:
            raise ValueError(
                f"contexts={setting.contexts!r}: none of {len(documents)} documents has {longest} "
                "tokens; use shorter contexts or longer documents"
            )
        self.units = [
            self._unit(LongFragment(name, np.asarray(tokens[:context], np.int32)))
            for context in sorted(setting.contexts)
            for name, tokens in long[: setting.documents]
        ]

    def _unit(self, part: LongFragment) -> Unit[LongFragment]:
        setting, N = self._setting, part.tokens_N.size
        spans = _spans(N, setting.short_context, setting.window)
        flops = causal_flops(self._model, 0, N, logits=True) * (1 if self._alone else 2) + sum(
            causal_flops(self._model, 0, end - start, logits=False) for start, end in spans
        )
        tokens = np.ascontiguousarray(part.tokens_N, "<i4").tobytes().hex()
        depends_on = [tokens, setting.short_context, setting.window, self._evaluator_id]
        return Unit(
            unit_name("longppl", [part.document, N], depends_on),
            flops,
            self._run,
            part,
            part,
            shape=N,
        )

    @property
    def _alone(self) -> bool:
        """Whether the model itself tells key tokens."""
        return self._evaluator_losses is None

    def _run(self, parts: Sequence[LongFragment]) -> list[dict[str, Any]]:
        """The losses of fragments of one length."""
        setting, tokens_BN = self._setting, np.stack([part.tokens_N for part in parts])
        losses_BN = self._losses(tokens_BN)
        evaluator = self._evaluator_losses or self._losses
        later = np.arange(setting.short_context, tokens_BN.shape[1])
        long_BN = losses_BN[:, later - 1] if self._alone else evaluator(tokens_BN, later)
        results = []
        for part, losses, long in zip(parts, losses_BN, long_BN, strict=True):
            short = short_context_losses(
                evaluator,
                part.tokens_N,
                short_context=setting.short_context,
                window=setting.window,
                batch_size=self._batch_size,
            )
            result = {"losses": losses, "long": long, "short": short}
            for values in result.values():
                if not np.isfinite(values).all():
                    raise FloatingPointError(f"a loss of {part.document} is not finite")
            results.append(
                {name: [round(float(v), 6) for v in values] for name, values in result.items()}
            )
        return results

    def results(self, store: UnitStore) -> dict[str, Any]:
        """The entries of results.json, from the finished units in the store.

        `longppl` has one entry per context, over the key tokens of all documents: `longppl` is exp
        of their mean `loss` in nats; both are None if there are none. `perplexity` is that of all
        tokens, `seconds` those of all documents. `longppl_by_document` has the same for single
        documents.
        """
        by_document = []
        pooled: dict[int, list[tuple[np.ndarray, np.ndarray]]] = {}
        for part, result in self.finished(store):
            losses = np.array(result["losses"])
            is_key = key_tokens(
                np.array(result["long"]),
                np.array(result["short"]),
                alpha=self._setting.alpha,
                beta=self._setting.beta,
            )
            key_losses = losses[self._setting.short_context - 1 :][is_key]
            context = part.tokens_N.size
            pooled.setdefault(context, []).append((losses, key_losses))
            by_document.append(
                {"context": context, "document": part.document}
                | _entry(losses, key_losses)
                | {SECONDS: result.get(SECONDS)}
            )
        return {
            "longppl": [
                {"context": context, "documents": len(parts)}
                | _entry(*(np.concatenate(each) for each in zip(*parts, strict=True)))
                | {SECONDS: seconds_of(e for e in by_document if e["context"] == context)}
                for context, parts in pooled.items()
            ],
            "longppl_by_document": by_document,
        }


def key_tokens(
    long_N: np.ndarray, short_N: np.ndarray, *, alpha: float = 2.0, beta: float = -2.0
) -> np.ndarray:
    """Which tokens are key tokens, bool[N] (equation 6 of the paper).

    A loss of 3.5 nats from the short context and 1.0 from the long one is one: the gain 2.5 exceeds
    alpha, and the log probability -1.0 exceeds beta.

    Args:
      long_N: losses from the long context, nats.
      short_N: losses from the short context, nats.
      alpha: least gain in nats (LSD), excluded.
      beta: least log probability in nats (LCL), excluded.
    """
    is_key: np.ndarray = (short_N - long_N > alpha) & (-long_N > beta)
    return is_key


def short_context_losses(
    losses: Losses,
    tokens_N: np.ndarray,
    *,
    short_context: int,
    window: int,
    batch_size: int = 1,
) -> np.ndarray:
    """Losses of all tokens but the first `short_context`, each from a short context.

    Tokens share the beginning of their context by windows: the first of a window sees
    `short_context` tokens, the last `window - 1` more.

    Args:
      losses: of the evaluator.
      tokens_N: int32[N].
      short_context: tokens before the first of a window.
      window: tokens of a window.
      batch_size: short contexts per forward pass.

    Returns:
      float32[N - short_context], nats.
    """
    parts = []
    spans = _spans(tokens_N.size, short_context, window)
    for size, of_size in itertools.groupby(spans, lambda span: span[1] - span[0]):
        rows = [tokens_N[start:end] for start, end in of_size]
        for first in range(0, len(rows), batch_size):
            batch = np.stack(rows[first : first + batch_size])
            parts.append(losses(batch, np.arange(short_context, size)).reshape(-1))
    return np.concatenate(parts)


def _spans(tokens: int, short_context: int, window: int) -> list[tuple[int, int]]:
    """Begin and end of each short context with the window after it."""
    return [
        (start, min(start + short_context + window, tokens))
        for start in range(0, tokens - short_context, window)
    ]


def _entry(losses: np.ndarray, key_losses: np.ndarray) -> dict[str, Any]:
    loss = float(key_losses.mean()) if key_losses.size else None
    return {
        "longppl": None if loss is None else math.exp(loss),
        "loss": loss,
        "key_tokens": key_losses.size,
        "perplexity": float(np.exp(losses.mean())),
        "tokens": losses.size,
    }
