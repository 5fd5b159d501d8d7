"""Reads the cells of a PosGen `results.json`, and says which of them are still missing."""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from rrope_jax.posgen import labels


@dataclasses.dataclass(frozen=True)
class CellKey:
    """What names a cell: one trained model tested under one method."""

    protocol: str
    task: str
    method: str
    seed: int


@dataclasses.dataclass(frozen=True)
class Cell:
    """One trained model tested under one method. Accuracies in [0, 1]; nan where not measured.

    Attributes:
      key: protocol, task, method and seed.
      trained_as: the method whose tables were used in training.
      id_accuracy: accuracy over generated positions below the training length.
      ood_accuracy: accuracy over positions from the training length on.
      accuracy_by_position: one entry per position of the test length, nan for the seed tokens.
      validation_loss: losses in the order of `validation_step`.
      validation_step: training steps at which the losses were taken.
    """

    key: CellKey
    trained_as: str
    id_accuracy: float
    ood_accuracy: float
    accuracy_by_position: tuple[float, ...]
    validation_loss: tuple[float, ...]
    validation_step: tuple[int, ...]


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _read_cell(raw: Mapping[str, Any]) -> Cell:
    try:
        cell = Cell(
            key=CellKey(raw["protocol"], raw["task"], raw["method"], int(raw["seed"])),
            trained_as=raw["trained_as"],
            id_accuracy=_number(raw["id_accuracy"]),
            ood_accuracy=_number(raw["ood_accuracy"]),
            accuracy_by_position=tuple(map(_number, raw["accuracy_by_position"])),
            validation_loss=tuple(map(_number, raw["validation_loss"])),
            validation_step=tuple(map(int, raw["validation_step"])),
        )
    except KeyError as error:
        raise ValueError(
            f"results: a cell has no key {error.args[0]!r}, only {', '.join(sorted(raw))}; "
            "write the results again with `rrope posgen`"
        ) from error
    if len(cell.validation_loss) != len(cell.validation_step):
        raise ValueError(
            f"results: {cell.key} has {len(cell.validation_loss)} entries in validation_loss and "
            f"{len(cell.validation_step)} in validation_step; they must be as many"
        )
    return cell


def read_cells(results: Mapping[str, Any]) -> tuple[Cell, ...]:
    """Cells of a results dict in report order: by protocol, task, method, then seed.

    Args:
      results: the dict that `rrope posgen` writes as results.json.

    Raises:
      ValueError: a cell lacks a key, appears twice, or has losses and steps of unequal number.
    """
    cells: dict[CellKey, Cell] = {}
    for raw in results["cells"]:
        cell = _read_cell(raw)
        if cell.key in cells:
            raise ValueError(
                f"results: {cell.key} appears twice in cells; each must appear once, "
                "so remove one of the two"
            )
        cells[cell.key] = cell
    protocols = labels.order_protocols(key.protocol for key in cells)
    tasks = labels.order_tasks(key.task for key in cells)
    methods = labels.order_methods(key.method for key in cells)

    def rank(cell: Cell) -> tuple[int, int, int, int]:
        key = cell.key
        return (
            protocols.index(key.protocol),
            tasks.index(key.task),
            methods.index(key.method),
            key.seed,
        )

    return tuple(sorted(cells.values(), key=rank))


def missing_cells(
    results: Mapping[str, Any], cells: Sequence[Cell]
) -> tuple[tuple[CellKey, ...], int]:
    """What a partial run still owes.

    The expected grid is protocols x tasks x methods x seeds of the setting. Where the setting does
    not list an axis, the names seen in the cells stand for it.

    Args:
      results: the results dict; a complete one owes nothing.
      cells: its cells, from `read_cells`.

    Returns:
      The missing cells that can be named, in report order, and how many more `cells_expected`
      counts whose names the results do not tell.
    """
    if results["complete"]:
        return (), 0
    setting = results["setting"]
    done = {cell.key for cell in cells}
    grid = itertools.product(
        labels.order_protocols(setting.get("protocols") or (key.protocol for key in done)),
        labels.order_tasks(setting.get("tasks") or (key.task for key in done)),
        labels.order_methods(setting.get("methods") or (key.method for key in done)),
        setting["seeds"],
    )
    missing = tuple(key for key in itertools.starmap(CellKey, grid) if key not in done)
    unnamed = max(0, int(results["cells_expected"]) - len(done) - len(missing))
    return missing, unnamed
