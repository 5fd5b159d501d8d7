"""Statistics over the seeds of a PosGen run."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from rrope_jax.posgen.results import Cell
from rrope_jax.rope.methods import is_resonance, plain_variant

Verdict = Literal["above", "below", "within spread", "no spread known", "not learned"]

LEARNED_ID_ACCURACY = 0.9
"""Mean in-distribution accuracy from which a model counts as having learned its task.

Below it the accuracy further out says nothing about extrapolation, and which method comes out on
top depends on the rounding of sums. Models that know the rule miss the first generated token at
most, which leaves 11 of 12 positions in the shortest setting tried (16 training tokens, j + k = 4).
"""


@dataclasses.dataclass(frozen=True)
class SeedStatistics:
    """Statistics of one accuracy over seeds, all in [0, 1]; nan where they do not exist.

    Attributes:
      n: number of seeds with a measured value.
      mean: their mean.
      std: sample standard deviation (divisor n - 1), nan for fewer than two seeds.
      minimum: smallest value.
      maximum: largest value.
    """

    n: int
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """One row of the report: a method on a task under a protocol.

    Attributes:
      protocol: when the scaled tables are used.
      task: PosGen task.
      method: method tested.
      trained_as: method whose tables were used in training.
      seeds: seeds of the finished cells, ascending.
      ood: accuracy at positions from the training length on.
      id: accuracy at generated positions below the training length.
    """

    protocol: str
    task: str
    method: str
    trained_as: str
    seeds: tuple[int, ...]
    ood: SeedStatistics
    id: SeedStatistics

    @property
    def learned(self) -> bool:
        """Whether the models have learned the task in distribution."""
        return is_learned(self.id.mean)


@dataclasses.dataclass(frozen=True)
class ResonanceDifference:
    """Out-of-distribution accuracy of Resonance minus plain, paired by seed.

    Attributes:
      protocol: when the scaled tables are used.
      task: PosGen task.
      scaling: the scaling on which Resonance is put (`rope` for none).
      n: number of seeds that both variants finished.
      mean: mean of the differences, as a fraction.
      std: sample standard deviation of the differences, nan for one seed.
      spread: pooled standard deviation of the two variants over those seeds,
        sqrt((std_plain^2 + std_resonance^2) / 2), nan for one seed.
      wins: number of seeds in which Resonance is strictly higher.
      verdict: `not learned` when one of the two variants has not learned the task in distribution
        over those seeds; else `above` or `below` when |mean| is larger than the spread, else
        `within spread`; `no spread known` with one seed.
    """

    protocol: str
    task: str
    scaling: str
    n: int
    mean: float
    std: float
    spread: float
    wins: int
    verdict: Verdict


def _std(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if values.size > 1 else math.nan


def seed_statistics(values: Sequence[float]) -> SeedStatistics:
    """Statistics of one value per seed; nan entries (not measured) are left out."""
    measured = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    if measured.size == 0:
        return SeedStatistics(0, math.nan, math.nan, math.nan, math.nan)
    return SeedStatistics(
        n=measured.size,
        mean=float(measured.mean()),
        std=_std(measured),
        minimum=float(measured.min()),
        maximum=float(measured.max()),
    )


def is_learned(mean_id_accuracy: float) -> bool:
    """Whether an accuracy in distribution is that of a learned task; nan (not measured) passes."""
    return not mean_id_accuracy < LEARNED_ID_ACCURACY


def have_learned(cells: Sequence[Cell]) -> bool:
    """Whether the models of one method and task have learned it in distribution."""
    return is_learned(seed_statistics([cell.id_accuracy for cell in cells]).mean)


def verdict(mean_difference: float, spread: float) -> Verdict:
    """Plain rule: a difference counts only when it is larger than the spread between seeds."""
    if math.isnan(spread):
        return "no spread known"
    if abs(mean_difference) <= spread:
        return "within spread"
    return "above" if mean_difference > 0 else "below"


def by_row(cells: Iterable[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    """Cells by protocol, task and method: a row of the report each."""
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.protocol, cell.task, cell.method), []).append(cell)
    return rows


def summarise(cells: Iterable[Cell]) -> tuple[MethodSummary, ...]:
    """One row per protocol, task and method, over the cells that are finished.

    Args:
      cells: in report order.

    Raises:
      ValueError: seeds of one row were trained with different methods.
    """
    rows = []
    for (protocol, task, method), group in by_row(cells).items():
        trained_as = {cell.trained_as for cell in group}
        if len(trained_as) > 1:
            raise ValueError(
                f"results: the seeds of {method!r} on {task!r} under {protocol!r} have trained_as "
                f"{sorted(trained_as)}; they must share one, so split them into two results"
            )
        rows.append(
            MethodSummary(
                protocol=protocol,
                task=task,
                method=method,
                trained_as=trained_as.pop(),
                seeds=tuple(cell.seed for cell in group),
                ood=seed_statistics([cell.ood_accuracy for cell in group]),
                id=seed_statistics([cell.id_accuracy for cell in group]),
            )
        )
    return tuple(rows)


def resonance_differences(cells: Iterable[Cell]) -> tuple[ResonanceDifference, ...]:
    """Resonance against the same scaling without it, per protocol and task, paired by seed.

    Only seeds that both variants finished are compared; a pair without a shared seed has no row.

    Args:
      cells: in report order.
    """
    by_method = {
        name: {cell.seed: cell for cell in group if not math.isnan(cell.ood_accuracy)}
        for name, group in by_row(cells).items()
    }
    rows = []
    for (protocol, task, method), resonance in by_method.items():
        scaling = plain_variant(method)
        plain = by_method.get((protocol, task, scaling), {})
        seeds = [seed for seed in resonance if seed in plain]
        if not is_resonance(method) or not seeds:
            continue
        pair = [[variant[seed] for seed in seeds] for variant in (plain, resonance)]
        plain_S, resonance_S = (np.array([cell.ood_accuracy for cell in of_one]) for of_one in pair)
        learned = all(map(have_learned, pair))
        difference_S = resonance_S - plain_S
        spread = math.sqrt((_std(plain_S) ** 2 + _std(resonance_S) ** 2) / 2)
        mean = float(difference_S.mean())
        rows.append(
            ResonanceDifference(
                protocol=protocol,
                task=task,
                scaling=scaling,
                n=len(seeds),
                mean=mean,
                std=_std(difference_S),
                spread=spread,
                wins=int((difference_S > 0).sum()),
                verdict=verdict(mean, spread) if learned else "not learned",
            )
        )
    return tuple(rows)
