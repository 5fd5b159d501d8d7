"""Statistics over the seeds of a PosGen ablation."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from rrope_jax.posgen.results import Cell
from rrope_jax.rope.methods import is_resonance, plain_variant

Verdict = Literal["above", "below", "within spread", "no spread known", "not learned"]

LEARNED_ID_ACCURACY = 0.9
"""Minimum mean in-distribution accuracy of a model that counts as having learned its task.

Below it, out-of-distribution accuracy says nothing about extrapolation, and the ranking of methods
depends on rounding. Models that know the rule miss at most the first generated token, which leaves
11 of 12 positions in the shortest setting tried (16 training tokens, j + k = 4).
"""


@dataclasses.dataclass(frozen=True)
class SeedStatistics:
    """Statistics of an accuracy in [0, 1] over seeds; nan where undefined.

    Attributes:
      n: Number of seeds with a measured value.
      mean: Mean of the values.
      std: Sample standard deviation (divisor n - 1), nan for fewer than two seeds.
      minimum: Smallest value.
      maximum: Largest value.
    """

    n: int
    mean: float
    std: float
    minimum: float
    maximum: float


@dataclasses.dataclass(frozen=True)
class MethodSummary:
    """A row of the report: a method on a task under a protocol.

    Attributes:
      protocol: The protocol, a key of `grid.PROTOCOLS`.
      task: The PosGen task.
      method: The method tested.
      trained_as: The method whose tables were used in training.
      seeds: Seeds of the finished cells, ascending.
      ood: Accuracy at positions from the training length on.
      id: Accuracy at generated positions below the training length.
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
    """Difference in out-of-distribution accuracy, Resonance minus plain, paired by seed.

    Attributes:
      protocol: The protocol, a key of `grid.PROTOCOLS`.
      task: The PosGen task.
      scaling: The scaling of both variants (`rope` for none).
      n: Number of seeds that both variants finished.
      mean: Mean of the differences, as a fraction.
      std: Sample standard deviation of the differences, nan for one seed.
      spread: Pooled standard deviation of the two variants over those seeds,
        sqrt((std_plain^2 + std_resonance^2) / 2), nan for one seed.
      wins: Number of seeds for which Resonance is strictly higher.
      verdict: `not learned` if either variant has not learned the task in distribution over those
        seeds; otherwise `no spread known` for one seed, `above` or `below` if the absolute mean is
        larger than the spread, and `within spread` if not.
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
    """Computes statistics of one value per seed, ignoring nan (not measured)."""
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
    """Whether an in-distribution accuracy is that of a learned task; True for nan."""
    return not mean_id_accuracy < LEARNED_ID_ACCURACY


def have_learned(cells: Sequence[Cell]) -> bool:
    """Whether the models of one method and task have learned the task in distribution."""
    return is_learned(seed_statistics([cell.id_accuracy for cell in cells]).mean)


def verdict(mean_difference: float, spread: float) -> Verdict:
    """Compares a difference with the spread between seeds, which it must exceed to count."""
    if math.isnan(spread):
        return "no spread known"
    if abs(mean_difference) <= spread:
        return "within spread"
    return "above" if mean_difference > 0 else "below"


def by_row(cells: Iterable[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    """Groups cells by protocol, task and method, which make a row of the report."""
    rows: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        rows.setdefault((cell.protocol, cell.task, cell.method), []).append(cell)
    return rows


def summarise(cells: Iterable[Cell]) -> tuple[MethodSummary, ...]:
    """Summarizes finished cells in one row per protocol, task and method.

    Args:
      cells: Finished cells in report order.

    Raises:
      ValueError: Seeds of a row were trained as different methods.
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
    """Compares scalings with and without resonance, per protocol and task, paired by seed.

    Only seeds that both variants finished count; pairs without any are left out.

    Args:
      cells: Finished cells in report order.
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
