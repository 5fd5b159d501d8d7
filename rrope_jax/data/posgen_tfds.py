"""PosGen as TFDS data sets `posgen/TASK`, so that any framework trains on the very same rows.

Importing this module registers them: `tfds.builder("posgen/cot", data_dir=...)` and its
`download_and_prepare()` write array_record files, which `tfds.data_source` reads anywhere, this
package and TensorFlow not needed.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds  # type: ignore[import-untyped]

from rrope_jax.data.tfds_builder import LocalBuilder
from rrope_jax.posgen.splits import SPLITS, Sizes
from rrope_jax.posgen.tasks import COMBINATIONS, TASKS, generate


@dataclasses.dataclass(kw_only=True, eq=False)
class PosgenConfig(tfds.core.BuilderConfig):  # type: ignore[misc]
    """One task; the defaults are the paper's (arXiv 2403.00071, section 6.1).

    Give a config with other values another `name`: TFDS finds data by it.

    Attributes:
      task: a key of `TASKS`.
      seed: of the splits. The rows are those of a `rrope posgen` run with this seed.
      modulus, j, k, combination: see `posgen.generate`; `combination` is a key of `COMBINATIONS`.
      splits: a key of `SPLITS`.
      train_length, test_length: tokens of a row of `train`, and of `validation` and `test`.
      train_sequences, validation_sequences, test_sequences: rows of each.
    """

    task: str
    seed: int = 0
    modulus: int = 17
    j: int = 1
    k: int = 3
    combination: str = "modular_sum"
    splits: str = "disjoint"
    train_length: int = 64
    test_length: int = 256
    train_sequences: int = 10_000
    validation_sequences: int = 1_000
    test_sequences: int = 1_000

    def setting(self) -> dict[str, Any]:
        """The fields that make the rows."""
        inherited = {field.name for field in dataclasses.fields(tfds.core.BuilderConfig)}
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in inherited}


class Posgen(LocalBuilder):
    """Rows of PosGen: `tokens`, int32[length], in the order of `posgen.generate`.

    The metadata of the data set are the fields of its `PosgenConfig`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(PosgenConfig(name=task, task=task) for task in TASKS)

    def _info(self) -> tfds.core.DatasetInfo:
        return self._described(
            "Sequences whose next token is a function of earlier ones (arXiv 2403.00071).",
            metadata=self.builder_config.setting(),
            tokens=tfds.features.Tensor(shape=(None,), dtype=np.int32),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config = self.builder_config
        sizes = Sizes(config.train_sequences, config.validation_sequences, config.test_sequences)
        # the first of the keys that an ablation draws from its seed
        key = jax.random.split(jax.random.key(config.seed), 3)[0]
        seeds = SPLITS[config.splits](
            key, sizes, modulus=config.modulus, seed_length=config.j + config.k
        )
        return {
            "train": self._generate_examples(seeds.train, config.train_length),
            "validation": self._generate_examples(seeds.validation, config.test_length),
            "test": self._generate_examples(seeds.test, config.test_length),
        }

    def _generate_examples(
        self, seeds_BS: jax.Array, length: int
    ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        config = self.builder_config
        rows_BT = generate(
            config.task,
            seeds_BS,
            length,
            modulus=config.modulus,
            j=config.j,
            k=config.k,
            combine=COMBINATIONS[config.combination],
        )
        for index, row_T in enumerate(np.asarray(rows_BT)):
            yield index, {"tokens": row_T}
