"""Batches of several texts with weights; each text has its own packing, order and epochs."""

import dataclasses
import hashlib
import itertools
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import NamedTuple

import grain
import numpy as np

from rrope_jax.data.config import DataConfig, MixtureConfig
from rrope_jax.data.corpus import Corpus
from rrope_jax.data.interleaving import Interleaving, quotas
from rrope_jax.data.packing import Row, Rows, Summary
from rrope_jax.data.pipeline import PackedText, Text, TextBatches, check_epochs, check_rows
from rrope_jax.data.text import TextConfig
from rrope_jax.data.tokenizers import Tokenizer

_LOG = logging.getLogger(__name__)


class SourceReading(NamedTuple):
    """What training has read of one text of a mixture.

    Attributes:
      name: the text's name.
      rows: the number of rows.
      targets: the number of targets in them.
      share: the text's share of all targets so far; 0 before the first row.
      epochs: how often the text was read; fractional.
    """

    name: str
    rows: int
    targets: int
    share: float
    epochs: float


class MixedRows:
    """The rows of all texts in the order of a run; which is which depends on their number alone."""

    def __init__(self, texts: Mapping[str, PackedText], weights: Mapping[str, float], seed: int):
        """Turns the weights, which are shares of targets, into shares of rows.

        Args:
          texts: the texts by name.
          weights: the share of each in the targets, relative to the others.
          seed: seed of the order of rows in each text.

        Raises:
          ValueError: a weight is too small; the message names the text.
        """
        self._texts, self._seed = texts, seed
        self._rows = [text.shuffled for text in texts.values()]
        # a source whose rows have fewer targets needs more of them
        shares = {
            name: Fraction(weights[name]) * len(text.rows) / text.rows.summary.targets
            for name, text in texts.items()
        }
        self.interleaving = Interleaving(quotas(shares))

    def __len__(self) -> int:
        return min(sys.maxsize, *map(len, self._rows))

    def __getitem__(self, index: int) -> Row:
        source, number = self.interleaving.place(index)
        row: Row = self._rows[source][number]
        return row

    def read(self, rows: int) -> list[SourceReading]:
        """What the first `rows` rows have of each text; exact, at the cost of one epoch's order."""
        counts = self.interleaving.counts(rows)
        targets = [
            self._targets(text.rows, count)
            for text, count in zip(self._texts.values(), counts, strict=True)
        ]
        total = max(1, sum(targets))
        return [
            SourceReading(name, count, number, number / total, count / len(text.rows))
            for (name, text), count, number in zip(
                self._texts.items(), counts, targets, strict=True
            )
        ]

    def _targets(self, rows: Rows, count: int) -> int:
        """The number of targets in the first rows that are read of a text."""
        epochs, rest = divmod(count, len(rows))
        order = grain.MapDataset.range(len(rows)).shuffle(seed=self._seed).repeat()
        last = [order[index] for index in range(count - rest, count)]
        return epochs * rows.summary.targets + int(rows.count_targets()[last].sum())


class MixedBatches(TextBatches):
    """`TextBatches` of several texts."""

    def __init__(
        self,
        mixed: MixedRows,
        *,
        summary: Summary,
        fingerprint: str,
        batch_size: int,
        rows: Sequence[int],
        prefetch: int,
    ):
        """Not for direct use; call `Mixture.batches`."""
        super().__init__(
            mixed,
            summary=summary,
            fingerprint=fingerprint,
            batch_size=batch_size,
            rows=rows,
            prefetch=prefetch,
        )
        self._mixed = mixed

    def read(self) -> list[SourceReading]:
        """What all processes together have read of each text since the run began."""
        return self._mixed.read(self.rows_before)


class Mixture:
    """The texts of a config, each opened and split once."""

    def __init__(self, config: MixtureConfig, tokenizer: Tokenizer):
        """Opens the sources; entries that differ only in sizes or packing share theirs.

        Args:
          config: the texts, and how to mix them.
          tokenizer: the model's tokenizer.

        Raises:
          ValueError: a text cannot be read, or one holds out what another trains on; the message
            names them.
        """
        self._config = config
        corpora: dict[TextConfig, Corpus] = {}
        self._texts: dict[str, Text] = {}
        for name in sorted(config.sources):  # their order in the config is no part of a run
            text = config.text(name)
            fields = dataclasses.fields(TextConfig)
            with _blaming(name):
                where = TextConfig(**{field.name: getattr(text, field.name) for field in fields})
                if where not in corpora:
                    corpora[where] = Corpus(where, config, tokenizer)
                self._texts[name] = Text(text, tokenizer, corpora[where])
        _check_heldout(config, self._texts)

    @property
    def heldout_by_source(self) -> dict[str, list[tuple[str, np.ndarray]]]:
        """The held-out documents of each text that has any; see `Text.heldout`.

        Raises:
          ValueError: a text cannot be read, or none has held-out documents.
        """
        documents = {}
        for name, text in self._texts.items():
            with _blaming(name):
                if text.holds_out and text.heldout:
                    documents[name] = text.heldout
        if not documents:
            raise ValueError(
                f"no document of the sources {', '.join(self._texts)} is held out; name some in "
                "their heldout, or set their heldout_share"
            )
        return documents

    @property
    def heldout(self) -> list[tuple[str, np.ndarray]]:
        """The held-out documents of all texts, under the name SOURCE/NAME; see `Text.heldout`.

        Raises:
          ValueError: a text cannot be read, or none has held-out documents.
        """
        return [
            (f"{source}/{name}", tokens)
            for source, documents in self.heldout_by_source.items()
            for name, tokens in documents
        ]

    def batches(
        self,
        *,
        batch_size: int,
        length: int,
        rows: Sequence[int] | None = None,
        steps: int | None = None,
    ) -> MixedBatches:
        """Returns batches of the training documents of all texts; see `Text.batches`.

        Raises:
          ValueError: a text has nothing to train on or too little, or an argument is out of range.
        """
        own_rows, config = check_rows(rows, batch_size), self._config
        packed: dict[str, PackedText] = {}
        for name, text in self._texts.items():
            with _blaming(name):
                packed[name] = text.pack(length)
        weights = {name: source.weight for name, source in config.sources.items()}
        mixed = MixedRows(packed, weights, config.seed)
        shares = dict(zip(packed, mixed.interleaving.quotas, strict=True))
        whole = sum(shares.values())
        for name, each in packed.items():
            share = f"{shares[name] / whole:.1%} of the rows"
            _LOG.info("%s, %s: %s", name, share, each.rows.summary)
        if steps is not None:
            needed = mixed.interleaving.counts(steps * batch_size)
            for (name, each), count in zip(packed.items(), needed, strict=True):
                with _blaming(name):
                    check_epochs(config.sources[name].max_epochs, len(each.rows), count)
        digest = hashlib.blake2b(digest_size=16)
        for name, each in packed.items():
            digest.update(f"{name} {shares[name]} {each.fingerprint}\n".encode())
        return MixedBatches(
            mixed,
            summary=_together([each.rows.summary for each in packed.values()], length),
            fingerprint=digest.hexdigest(),
            batch_size=batch_size,
            rows=own_rows,
            prefetch=config.prefetch,
        )


def open_text(config: MixtureConfig | DataConfig, tokenizer: Tokenizer) -> Mixture | Text:
    """Opens the text of a config, or its several texts; see their classes."""
    if isinstance(config, MixtureConfig):
        return Mixture(config, tokenizer)
    return Text(config, tokenizer)


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Lets the message of a ValueError begin with the name of a source."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"sources.{name}: {error}") from error


def _check_heldout(config: MixtureConfig, texts: Mapping[str, Text]) -> None:
    """Raises ValueError if a text trains on documents that another one holds out."""
    for one, other in itertools.permutations(texts, 2):
        if (names := texts[one].trained_on_by(texts[other])) is not None:
            ours, theirs = config.sources[one].source, config.sources[other].source
            raise ValueError(
                f"sources.{one} holds out {names[0]!r} of source={ours!r}, on which "
                f"sources.{other} trains, as {names[1]!r} of source={theirs!r}; hold it "
                "out in both, with heldout or heldout_share, or leave it out of one"
            )


def _together(summaries: Sequence[Summary], length: int) -> Summary:
    counts = {
        field: sum(getattr(summary, field) for summary in summaries)
        for field in ("documents", "tokens", "without_target", "rows", "targets")
    }
    return Summary(**counts, padding=1 - counts["targets"] / (counts["rows"] * length))
