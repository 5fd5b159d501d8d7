"""Predicted against measured accuracy of PosGen models with different tables.

Nothing here writes files or draws; see `comparison_report`.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rrope_jax.posgen import labels
from rrope_jax.posgen.prediction import NEEDED_DISTANCE, Prediction, predict
from rrope_jax.posgen.results import Cell, Results
from rrope_jax.posgen.summary import SeedStatistics, have_learned, seed_statistics
from rrope_jax.reporting.methods import method_label, order_methods
from rrope_jax.rope import RopeSpec
from rrope_jax.rope.methods import is_learned

Float64Array = NDArray[np.float64]
SpecOf = Callable[[Results, str, str], RopeSpec]
"""(results, protocol, method) -> the method's embedding under a protocol."""

NUMBERS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "retention": ("retention", 1),
        "worst": ("worst coincidence", -1),
        "gap": ("feature gap", -1),
        "angles": ("distinct angles", -1),
    }
)
"""A number of `Prediction` -> its name, and the sign of the correlation that it predicts."""

CLIFF_WINDOW = 8
CLIFF_DROP = 0.02
CLIFF_TOLERANCE = 4
"""How a measured cliff is found, in positions and as a fraction, and how near counts as a hit."""

_BOOTSTRAPS = 2_000
_PERMUTATIONS = 10_000
_INTERVAL = (0.05, 0.95)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableRow:
    """One embedding in one setting on one task, over seeds.

    Attributes:
      setting: The name of the setting.
      task: The PosGen task.
      method: The method tested.
      label: Its name, and whether its scaling was there in training.
      group: Rows to be compared with each other: the scaling, and whether it was in training.
      train_length: L, in tokens.
      prediction: What its table predicts.
      cells: One per seed, ascending.
    """

    setting: str
    task: str
    method: str
    label: str
    group: str
    train_length: int
    prediction: Prediction
    cells: tuple[Cell, ...]

    @property
    def ood(self) -> SeedStatistics:
        """Accuracy from the training length on."""
        return seed_statistics([cell.ood_accuracy for cell in self.cells])

    @property
    def id(self) -> SeedStatistics:
        """Accuracy below the training length."""
        return seed_statistics([cell.id_accuracy for cell in self.cells])

    @property
    def learned(self) -> bool:
        """Whether the models have learned the task in distribution."""
        return have_learned(self.cells)

    @property
    def accuracy_by_position(self) -> Float64Array:
        """Mean over seeds, nan for the seed tokens."""
        return np.asarray(np.mean([cell.accuracy_by_position for cell in self.cells], axis=0))

    @property
    def cliff(self) -> tuple[int, float] | None:
        """The measured cliff and its drop (see `measured_cliff`), None without one."""
        return measured_cliff(self.accuracy_by_position, self.train_length)

    @property
    def cliff_is_measurable(self) -> bool:
        """Whether a measured cliff could lie near enough to the predicted one to be a hit."""
        first, last = _cliff_range(len(self.cells[0].accuracy_by_position), self.train_length)
        near = self.prediction.cliff - CLIFF_TOLERANCE, self.prediction.cliff + CLIFF_TOLERANCE
        return near[0] <= last and near[1] >= first

    @property
    def cliff_hit(self) -> bool | None:
        """Whether the cliff is where it was predicted; None if there is none to compare."""
        if self.cliff is None or not self.cliff_is_measurable:
            return None
        return abs(self.cliff[0] - self.prediction.cliff) <= CLIFF_TOLERANCE


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation between a number and mean OOD accuracy over tables.

    Only the seeds that all tables have count, as seeds differ.

    Attributes:
      setting, task: Where.
      tables: Which rows: a `TableRow.group`, or `all`.
      number: A key of `NUMBERS`.
      count: Number of tables.
      seeds: Number of seeds.
      rho: The correlation; its sign is as measured, for a higher number.
      low, high: 90 % interval by bootstrap over seeds; nan for one seed.
      p: Share of permutations of the tables with a correlation at least as far in the predicted
        direction.
    """

    setting: str
    task: str
    tables: str
    number: str
    count: int
    seeds: int
    rho: float
    low: float
    high: float
    p: float


def table_rows(runs: Iterable[Results], spec_of: SpecOf) -> tuple[TableRow, ...]:
    """Gathers the cells of several runs by embedding, and predicts each.

    Runs of one name are one setting. An embedding that two protocols share is one row. Tasks
    without a prediction are left out, and so are methods that learn their frequencies.

    Args:
      runs: The results, complete or not.
      spec_of: Returns embeddings.

    Raises:
      ValueError: Two runs of one name differ in more than their grids, or have a cell twice.
    """
    cells: dict[Any, dict[int, Cell]] = {}
    shown: dict[Any, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for results in runs:
        setting = {key: results.setting.get(key) for key in _SHARED}
        if settings.setdefault(results.name, setting) != setting:
            raise ValueError(
                f"two runs are called {results.name!r} and differ in data or model; give one of "
                "them another name with --config.name"
            )
        for cell in results.cells:
            if cell.task not in NEEDED_DISTANCE or is_learned(cell.method):
                continue
            at_test = spec_of(results, cell.protocol, cell.method)
            in_training = spec_of(results, cell.protocol, cell.trained_as)
            key = results.name, cell.task, in_training, at_test
            known = cells.setdefault(key, {}).setdefault(cell.seed, cell)
            if known.ood_accuracy != cell.ood_accuracy:
                raise ValueError(
                    f"{results.name!r} has two results for {cell.key}; give each run once"
                )
            label, group = _names(cell.method, in_training, at_test)
            shown.setdefault(key, {"method": cell.method, "label": label, "group": group})
    rows = [
        TableRow(
            setting=name,
            task=task,
            train_length=settings[name]["train_length"],
            prediction=predict(
                at_test.of("full_attention"),
                task=task,
                **{field: settings[name][field] for field in _PREDICTS},
            ),
            cells=tuple(of_seed[seed] for seed in sorted(of_seed)),
            **shown[name, task, in_training, at_test],
        )
        for (name, task, in_training, at_test), of_seed in cells.items()
    ]
    return _in_order(rows)


_PREDICTS = ("j", "k", "train_length", "test_length")
_SHARED = (
    *("modulus", "combination", "splits", "train_sequences", "model", "positions"),
    *_PREDICTS,
)


def _names(method: str, in_training: RopeSpec, at_test: RopeSpec) -> tuple[str, str]:
    """The label and the group of a row."""
    if at_test.scaling == "none":
        where = ""
    else:
        where = " in training" if in_training == at_test else " at test"
    scaling = method_label("rope" if at_test.scaling == "none" else at_test.scaling)
    return method_label(method) + where, scaling + where


def _in_order(rows: Sequence[TableRow]) -> tuple[TableRow, ...]:
    settings = list(dict.fromkeys(row.setting for row in rows))
    tasks = labels.order_tasks(row.task for row in rows)
    groups = list(dict.fromkeys(sorted((row.group for row in rows), key=_group_rank)))
    methods = order_methods(row.method for row in rows)

    def rank(row: TableRow) -> tuple[int, ...]:
        return (
            settings.index(row.setting),
            tasks.index(row.task),
            groups.index(row.group),
            methods.index(row.method),
        )

    return tuple(sorted(rows, key=rank))


def _group_rank(group: str) -> tuple[bool, bool, str]:
    return group != "RoPE", group.endswith("at test"), group


def _cliff_range(length: int, train_length: int) -> tuple[int, int]:
    return train_length + CLIFF_WINDOW, length - CLIFF_WINDOW


def measured_cliff(accuracy_T: Float64Array, train_length: int) -> tuple[int, float] | None:
    """The position where accuracy falls most, and by how much.

    The fall is the mean of the `CLIFF_WINDOW` positions before, from the training length on, minus
    that of the `CLIFF_WINDOW` positions from there on.

    Args:
      accuracy_T: float64[T], in [0, 1].
      train_length: L, in tokens.

    Returns:
      The position and the fall; None if it is below `CLIFF_DROP` everywhere.
    """
    first, last = _cliff_range(accuracy_T.size, train_length)
    if last < first:
        return None
    means = np.convolve(accuracy_T[train_length:], np.full(CLIFF_WINDOW, 1 / CLIFF_WINDOW), "valid")
    falls = means[: last - first + 1] - means[CLIFF_WINDOW : CLIFF_WINDOW + last - first + 1]
    steepest = int(np.argmax(falls))
    if falls[steepest] < CLIFF_DROP:
        return None
    return first + steepest, float(falls[steepest])


def spearman(x_N: Float64Array, y_SN: Float64Array) -> Float64Array:
    """Spearman's rank correlation, with mean ranks for ties.

    Args:
      x_N: float64[N].
      y_SN: float64[..., N].

    Returns:
      float64[...]; nan where a side is constant.
    """
    x_N, y_SN = (_centered_ranks(values) for values in (x_N, y_SN))
    norms = np.sqrt(np.sum(x_N**2) * np.sum(y_SN**2, axis=-1))
    products = np.asarray(y_SN @ x_N)
    undefined = np.full(products.shape, np.nan)
    return np.asarray(np.divide(products, norms, out=undefined, where=norms > 0))


def _centered_ranks(values: Float64Array) -> Float64Array:
    """Ranks along the last axis, minus their mean."""
    below = np.stack([np.sign(values - one[..., None]) for one in np.moveaxis(values, -1, 0)])
    return np.asarray(below.sum(axis=0) / 2)


def correlations(rows: Sequence[TableRow]) -> tuple[Correlation, ...]:
    """All correlations of at least three tables, by setting, task and group of tables."""
    found = []
    for setting, task in dict.fromkeys((row.setting, row.task) for row in rows):
        of_task = [row for row in rows if (row.setting, row.task) == (setting, task)]
        groups = {"all": of_task}
        for row in of_task:
            groups.setdefault(row.group, []).append(row)
        for name, of_group in groups.items():
            seeds = set.intersection(*({cell.seed for cell in row.cells} for row in of_group))
            whole = name != "all" and len(of_group) == len(of_task)
            if len(of_group) < 3 or not seeds or whole:
                continue
            found += [_correlation(name, number, of_group) for number in NUMBERS]
    return tuple(found)


def _correlation(tables: str, number: str, rows: Sequence[TableRow]) -> Correlation:
    predicted = np.array([getattr(row.prediction, number) for row in rows], np.float64)
    seeds = set.intersection(*({cell.seed for cell in row.cells} for row in rows))
    by_seed_RS = np.array(
        [[cell.ood_accuracy for cell in row.cells if cell.seed in seeds] for row in rows]
    )
    means = by_seed_RS.mean(axis=1)
    rho = float(spearman(predicted, means))
    random = np.random.default_rng(0)
    low = high = math.nan
    if len(seeds) > 1:
        drawn = random.integers(len(seeds), size=(_BOOTSTRAPS, len(seeds)))
        resampled = spearman(predicted, by_seed_RS[:, drawn].mean(axis=2).T)
        low, high = np.nanquantile(resampled, _INTERVAL).tolist()
    p = math.nan
    if not math.isnan(rho):
        sign = NUMBERS[number][1]
        shuffled = random.permuted(np.tile(means, (_PERMUTATIONS, 1)), axis=1)
        as_far = sign * spearman(predicted, shuffled) >= sign * rho - 1e-12
        p = (1 + int(as_far.sum())) / (1 + _PERMUTATIONS)
    return Correlation(
        rows[0].setting, rows[0].task, tables, number, len(rows), len(seeds), rho, low, high, p
    )


def chance_of_hit(row: TableRow) -> float:
    """The share of positions at which a measured cliff would hit the predicted one."""
    first, last = _cliff_range(len(row.cells[0].accuracy_by_position), row.train_length)
    near = range(
        max(first, row.prediction.cliff - CLIFF_TOLERANCE),
        min(last, row.prediction.cliff + CLIFF_TOLERANCE) + 1,
    )
    return len(near) / (last - first + 1)


def to_json(rows: Sequence[TableRow]) -> dict[str, Any]:
    """The content of results.json."""
    return {
        "tables": [
            {
                "setting": row.setting,
                "task": row.task,
                "table": row.label,
                "method": row.method,
                "seeds": [cell.seed for cell in row.cells],
                "ood_accuracy": [cell.ood_accuracy for cell in row.cells],
                "id_accuracy": [cell.id_accuracy for cell in row.cells],
                "mean": row.ood.mean,
                "std": None if math.isnan(row.ood.std) else row.ood.std,
                "learned": row.learned,
                "predicted": {name: getattr(row.prediction, name) for name in (*NUMBERS, "cliff")},
                "cliff": None if row.cliff is None else row.cliff[0],
                "cliff_drop": None if row.cliff is None else row.cliff[1],
                "cliff_hit": row.cliff_hit,
            }
            for row in rows
        ],
        "correlations": [
            {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in dataclasses.asdict(each).items()
            }
            for each in correlations(rows)
        ],
    }
