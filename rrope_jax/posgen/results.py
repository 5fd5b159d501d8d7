"""The content of a PosGen `results.json`, which an ablation writes and a report reads."""

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, Self

from rrope_jax.posgen import labels
from rrope_jax.posgen.grid import Training
from rrope_jax.reporting.methods import order_methods


class CellKey(NamedTuple):
    """Identifies a cell."""

    protocol: str
    task: str
    method: str
    seed: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cell:
    """A trained model tested under a method; the fields are in the order of results.json.

    Numbers that were not measured are nan here and null in JSON. The defaults apply to results of
    older releases that lack a field.

    Attributes:
      task, method, protocol, seed: What was trained and how it was tested.
      trained_as: The method whose tables were used in training.
      id_accuracy: Accuracy in [0, 1] over generated positions below the training length.
      ood_accuracy: Accuracy in [0, 1] over positions from the training length on.
      id_loss, ood_loss: Losses over the same positions, in nats.
      accuracy_by_position: One entry per position of the test length, nan for the seed tokens.
      validation_step: Optimizer steps at which validation was done.
      validation_loss: Losses in the order of `validation_step`.
      train_loss: Mean training losses between validations.
      steps: Optimizer steps of the training.
      seconds: Device time of the training, in all runs that worked on it.
      inv_freq: Layer type -> the frequencies that were learned and tested, radians per token; empty
        and not in JSON if none were learned.
    """

    task: str
    method: str
    protocol: str
    trained_as: str
    seed: int
    id_accuracy: float
    ood_accuracy: float
    id_loss: float = math.nan
    ood_loss: float = math.nan
    accuracy_by_position: tuple[float, ...]
    validation_step: tuple[int, ...]
    validation_loss: tuple[float, ...]
    train_loss: tuple[float, ...] = ()
    steps: int = 0
    seconds: float = math.nan
    inv_freq: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict, hash=False)

    @property
    def key(self) -> CellKey:
        """The fields that identify this cell."""
        return CellKey(self.protocol, self.task, self.method, self.seed)

    def to_json(self) -> dict[str, Any]:
        """Returns the entry of results.json."""
        entry = {
            field.name: _without_nan(getattr(self, field.name))
            for field in dataclasses.fields(self)
        }
        if not entry["inv_freq"]:
            del entry["inv_freq"]
        return entry

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Self:
        """Reads an entry of results.json.

        Raises:
          ValueError: A field is missing or has the wrong type.
        """
        try:
            cell = cls(
                task=entry["task"],
                method=entry["method"],
                protocol=entry["protocol"],
                trained_as=entry["trained_as"],
                seed=int(entry["seed"]),
                id_accuracy=_number(entry["id_accuracy"]),
                ood_accuracy=_number(entry["ood_accuracy"]),
                id_loss=_number(entry.get("id_loss")),
                ood_loss=_number(entry.get("ood_loss")),
                accuracy_by_position=tuple(map(_number, entry["accuracy_by_position"])),
                validation_step=tuple(map(int, entry["validation_step"])),
                validation_loss=tuple(map(_number, entry["validation_loss"])),
                train_loss=tuple(map(_number, entry.get("train_loss", ()))),
                steps=int(entry.get("steps", 0)),
                seconds=_number(entry.get("seconds")),
                inv_freq={
                    name: tuple(map(_number, inv_freq_F))
                    for name, inv_freq_F in dict(entry.get("inv_freq", {})).items()
                },
            )
        except KeyError as error:
            raise ValueError(
                f"results: a cell has no key {error.args[0]!r}, only {', '.join(sorted(entry))}; "
                "write the results again with `rrope posgen`"
            ) from error
        except TypeError as error:
            raise ValueError(f"results: a cell has a field of another kind: {error}") from error
        if len(cell.validation_loss) != len(cell.validation_step):
            raise ValueError(
                f"results: {cell.key} has {len(cell.validation_loss)} entries in validation_loss "
                f"and {len(cell.validation_step)} in validation_step; they must be as many"
            )
        return cell


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _without_nan(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def training_cells(
    entries: Any, training: Training, cell_type: type[Cell] = Cell
) -> tuple[Cell, ...]:
    """Reads the cells of one training from JSON, as instances of `cell_type`.

    Raises:
      ValueError: The cells are not those of the training, or one cannot be read.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError("it is no list of cells")
    expected = [
        (training.task, evaluation.method, evaluation.protocol, training.method, training.seed)
        for evaluation in training.evaluations
    ]
    names = ("task", "method", "protocol", "trained_as", "seed")
    if [tuple(map(entry.get, names)) for entry in entries] != expected:
        raise ValueError("it has other cells")
    return tuple(map(cell_type.from_json, entries))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """The content of results.json; the fields are in its order.

    Attributes:
      name: Title of the report.
      setting: The config, the seeds, and whether the setting is that of the paper (`is_paper`).
      backend: One-line description of the backend.
      versions: Versions of the packages used.
      cells_expected: Number of cells of the whole grid.
      complete: Whether all cells are finished.
      cells: The finished cells.
    """

    name: str
    setting: Mapping[str, Any]
    backend: str
    versions: Mapping[str, str]
    cells_expected: int
    complete: bool
    cells: tuple[Cell, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the content of results.json."""
        content = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return content | {"cells": [cell.to_json() for cell in self.cells]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """Reads the content of results.json.

        Raises:
          ValueError: A cell is malformed.
        """
        values = {field.name: content[field.name] for field in dataclasses.fields(cls)}
        return cls(**values | {"cells": tuple(map(Cell.from_json, content["cells"]))})

    def in_report_order(self) -> Self:
        """Returns a copy with the cells in report order (see `in_report_order`)."""
        return dataclasses.replace(self, cells=in_report_order(self.cells))

    def of_protocol(self, protocol: str) -> Self:
        """Returns a copy with only the cells of a protocol."""
        cells = tuple(cell for cell in self.cells if cell.protocol == protocol)
        return dataclasses.replace(self, cells=cells)

    def missing_cells(self) -> tuple[tuple[CellKey, ...], int]:
        """Returns the cells that a partial run has not finished yet.

        The expected grid is protocols x tasks x methods x seeds of the setting. If the setting
        does not list an axis, the names in the finished cells are used.

        Returns:
          The missing cells of this grid, in report order, and the number of other missing cells
          according to `cells_expected`.
        """
        if self.complete:
            return (), 0
        done = {cell.key for cell in self.cells}
        grid = itertools.product(
            labels.order_protocols(self.setting.get("protocols") or (k.protocol for k in done)),
            labels.order_tasks(self.setting.get("tasks") or (key.task for key in done)),
            order_methods(self.setting.get("methods") or (key.method for key in done)),
            self.setting["seeds"],
        )
        missing = tuple(key for key in itertools.starmap(CellKey, grid) if key not in done)
        unnamed = max(0, self.cells_expected - len(done) - len(missing))
        return missing, unnamed


def in_report_order(cells: Iterable[Cell]) -> tuple[Cell, ...]:
    """Sorts cells by protocol, task, method and seed.

    Raises:
      ValueError: A cell appears twice.
    """
    by_key: dict[CellKey, Cell] = {}
    for cell in cells:
        if cell.key in by_key:
            raise ValueError(
                f"results: {cell.key} appears twice in cells; each must appear once, "
                "so remove one of the two"
            )
        by_key[cell.key] = cell
    protocols = labels.order_protocols(key.protocol for key in by_key)
    tasks = labels.order_tasks(key.task for key in by_key)
    methods = order_methods(key.method for key in by_key)

    def rank(key: CellKey) -> tuple[int, int, int, int]:
        return (
            protocols.index(key.protocol),
            tasks.index(key.task),
            methods.index(key.method),
            key.seed,
        )

    return tuple(by_key[key] for key in sorted(by_key, key=rank))
