"""The trainings that an ablation needs, and the methods under which each is tested.

A method is a scaling with or without resonance (`rrope_jax.rope.methods`). Two protocols turn
methods into trainings:

- `scaled_training` (the paper's text): every method is trained and tested with its own tables.
- `scaled_at_test` (the authors' code): models are trained unscaled, once without and once with
  resonance, and a scaling's tables are used only in validation and test.

A training that serves several protocols or methods runs only once. One that learns its frequencies
(`learned_rope`) serves all rules of resonance, which move only what it has learned.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping

from rrope_jax.rope import RopeSpec
from rrope_jax.rope.methods import (
    is_learned,
    learned_variant,
    method_name,
    plain_variant,
    with_scaling,
)


def _trained_as_itself(method: str) -> str:
    return plain_variant(method) if is_learned(method) else method


def _trained_unscaled(method: str) -> str:
    if is_learned(method):
        return learned_variant(method_name("none", resonance=False))
    return with_scaling(method, "none")


PROTOCOLS: dict[str, Callable[[str], str]] = {
    "scaled_training": _trained_as_itself,
    "scaled_at_test": _trained_unscaled,
}
"""Protocol -> function from a method to the method whose tables are used in training."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A test of a trained model with the tables of a method.

    Attributes:
      protocol: A key of `PROTOCOLS`.
      method: The method tested.
      spec: The method's embedding at test, before what the training has learned moves it.
    """

    protocol: str
    method: str
    spec: RopeSpec


@dataclasses.dataclass(frozen=True)
class Training:
    """A model to train, and its evaluations.

    Attributes:
      task: A key of `TASKS`.
      method: The method whose tables are used in training.
      seed: Seed of all random keys.
      spec: The embedding in training.
      evaluations: The tests of the trained model.
    """

    task: str
    method: str
    seed: int
    spec: RopeSpec
    evaluations: tuple[Evaluation, ...]

    @property
    def learned(self) -> bool:
        """Whether the frequencies are learned, starting from those of `spec`."""
        return is_learned(self.method)

    @property
    def name(self) -> str:
        """Name that is unique within an ablation and valid as a file name."""
        return f"{self.task}-{self.method}-{self.seed}"


def trainings(
    *,
    tasks: Iterable[str],
    methods: Iterable[str],
    seeds: Iterable[int],
    specs: Mapping[tuple[str, str], RopeSpec],
) -> tuple[Training, ...]:
    """Returns all trainings of a grid, ordered by seed so that a partial run has complete seeds.

    Args:
      tasks, methods, seeds: The grid.
      specs: (protocol, method) -> spec. It must contain every protocol to run, with every method
        of the grid and the method that each is trained as.
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
