"""The cells of an algorithmic `results.json`: PosGen's, with lengths in place of positions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Self

from rrope_jax.posgen.results import Cell, Results


@dataclasses.dataclass(frozen=True, kw_only=True)
class LengthCell(Cell):
    """A trained model tested under a method at several question lengths.

    Attributes:
      accuracy_by_position: Empty, and not in JSON.
      id_accuracy: Mean of `accuracy_by_length` over lengths up to the training length.
      ood_accuracy: Mean over the longer ones.
      lengths: Question lengths of the test, ascending.
      accuracy_by_length: Accuracy of answer tokens, teacher-forced, in [0, 1].
      loss_by_length: Mean loss of answer tokens, in nats.
    """

    accuracy_by_position: tuple[float, ...] = ()
    lengths: tuple[int, ...]
    accuracy_by_length: tuple[float, ...]
    loss_by_length: tuple[float, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of results.json."""
        entry = super().to_json()
        del entry["accuracy_by_position"]
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Reads an entry of results.json.

        Raises:
          ValueError: A field is missing or has the wrong type.
        """
        shared = Cell.from_json({**entry, "accuracy_by_position": ()})
        values = {field.name: getattr(shared, field.name) for field in dataclasses.fields(Cell)}
        try:
            return cls(
                **values,
                lengths=tuple(map(int, entry["lengths"])),
                accuracy_by_length=tuple(map(float, entry["accuracy_by_length"])),
                loss_by_length=tuple(map(float, entry["loss_by_length"])),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"results: a cell lacks what a length sweep has: {error}") from error


def results_from_json(content: Mapping[str, Any]) -> Results:
    """Reads the content of an algorithmic results.json.

    Raises:
      ValueError: A cell is malformed.
    """
    cells = tuple(map(LengthCell.from_json, content["cells"]))
    return dataclasses.replace(Results.from_json({**content, "cells": []}), cells=cells)
