"""PosGen as TFDS datasets `posgen/TASK`, so that any framework can train on the same rows.

Importing this module registers the datasets. `download_and_prepare()` of
`tfds.builder("posgen/cot", data_dir=...)` writes array_record files, which `tfds.data_source` can
read without this package or TensorFlow.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import tensorflow_datasets as tfds  # type: ignore[import-untyped]

from rrope_jax.posgen.config import TaskConfig, seed_keys
from rrope_jax.posgen.tasks import TASKS


class PosgenConfig(tfds.core.BuilderConfig):  # type: ignore[misc]
    """The config of one task; the defaults are from section 6.1 of arXiv 2403.00071.

    Configs with different values need different names, since TFDS finds data by `name`.
    """

    def __init__(self, *, name: str, task: str, seed: int = 0, **data: Any):
        """Creates a config and checks its fields.

        Args:
          name: the config's name.
          task: a key of `TASKS`.
          seed: seed of the splits; a `rrope posgen` run with this seed has the same rows.
          data: fields of `TaskConfig`.

        Raises:
          ValueError: a field is out of range.
        """
        super().__init__(name=name)
        self.task, self.seed, self.data = task, seed, TaskConfig(**data)

    def setting(self) -> dict[str, Any]:
        """Returns the fields that determine the rows."""
        return {"task": self.task, "seed": self.seed, **dataclasses.asdict(self.data)}


class Posgen(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """The PosGen dataset: `tokens`, int32[length], in the order of `posgen.generate`.

    The dataset's metadata are the fields of its `PosgenConfig`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(PosgenConfig(name=task, task=task) for task in TASKS)
    # Otherwise TFDS looks for a list of checksums, using a package (importlib_resources) that it
    # does not declare as a dependency.
    url_infos = None

    def __init__(self, *, file_format: str = "array_record", **arguments: Any):
        """Takes the arguments of any TFDS builder; array_record does not need TensorFlow."""
        super().__init__(file_format=file_format, **arguments)

    def _info(self) -> tfds.core.DatasetInfo:
        tokens = tfds.features.Tensor(shape=(None,), dtype=np.int32)
        return tfds.core.DatasetInfo(
            builder=self,
            description=(
                "Sequences whose next token is a function of earlier ones (arXiv 2403.00071)."
            ),
            features=tfds.features.FeaturesDict({"tokens": tokens}),
            metadata=tfds.core.MetadataDict(self.builder_config.setting()),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        config = self.builder_config
        data = config.data.data(config.task, seed_keys(config.seed).data)
        return {
            "train": self._generate_examples(data.train_NT),
            "validation": self._generate_examples(data.validation_NT),
            "test": self._generate_examples(data.test_NT),
        }

    def _generate_examples(self, rows_NT: jax.Array) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
        for index, row_T in enumerate(np.asarray(rows_NT)):
            yield index, {"tokens": row_T}
