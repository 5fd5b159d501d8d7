"""Which trainings an ablation needs and under which methods each is tested.

A method is a scaling with or without resonance (`rrope_jax.rope.methods`). Two protocols turn
methods into trainings:

- `scaled_training` (the paper's text): every method is trained and tested with its own tables.
- `scaled_at_test` (the authors' code): models are trained unscaled, once without and once with
  resonance, and a scaling's tables are used in validation and test only.

Each training runs once, whichever protocols and methods it serves.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from rrope_jax.rope import RopeSpec
from rrope_jax.rope.methods import method_name, parse_method


def _trained_as_itself(method: str) -> str:
    return method


def _trained_unscaled(method: str) -> str:
    return method_name("none", resonance=parse_method(method)[1])


PROTOCOLS: dict[str, Callable[[str], str]] = {
    "scaled_training": _trained_as_itself,
    "scaled_at_test": _trained_unscaled,
}
"""Protocol -> the method whose tables a method is trained with."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """One row of a table: a trained model under the tables of one method."""

    protocol: str
    method: str
    spec: RopeSpec


@dataclasses.dataclass(frozen=True)
class Training:
    """One model to train, and all it is tested as."""

    task: str
    method: str
    seed: int
    spec: RopeSpec
    evaluations: tuple[Evaluation, ...]

    @property
    def name(self) -> str:
        """Unique within an ablation; usable as a file name."""
        return f"{self.task}-{self.method}-{self.seed}"


def trainings(
    *,
    tasks: Iterable[str],
    methods: Iterable[str],
    seeds: Iterable[int],
    specs: Mapping[tuple[str, str], RopeSpec],
) -> tuple[Training, ...]:
    """All trainings of a grid, seed by seed, so that a partial run compares whole seeds.

    Args:
      tasks, methods, seeds: the grid.
      specs: (protocol, method) -> spec. Has every method of the grid, and the method that it is
        trained as, under every protocol that is to be run.
    """
    methods = tuple(methods)
    protocols = tuple(dict.fromkeys(protocol for protocol, _ in specs))
    rows: dict[tuple[str, RopeSpec], list[Evaluation]] = {}
    for protocol in protocols:
        for method in methods:
            trained = PROTOCOLS[protocol](method)
            rows.setdefault((trained, specs[protocol, trained]), []).append(
                Evaluation(protocol, method, specs[protocol, method])
            )
    return tuple(
        Training(task, method, seed, spec, tuple(evaluations))
        for seed in seeds
        for task in tasks
        for (method, spec), evaluations in rows.items()
    )
