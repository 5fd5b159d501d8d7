"""PosGen as TFDS data sets `posgen/TASK`, so any framework can train on the same rows.

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

from rrope_jax.posgen.config import TaskConfig, seed_keys
from rrope_jax.posgen.tasks import TASKS


class PosgenConfig(tfds.core.BuilderConfig):  # type: ignore[misc]
    """One task; the defaults are the paper's (arXiv 2403.00071, section 6.1).

    Give a config with other values another `name`: TFDS finds data by it.
    """

    def __init__(self, *, name: str, task: str, seed: int = 0, **data: Any):
        """Checks all fields.

        Args:
          name: of the config.
          task: a key of `TASKS`.
          seed: of the splits. The rows are those of a `rrope posgen` run with this seed.
          data: fields of `TaskConfig`.

        Raises:
          ValueError: a field is out of range.
        """
        super().__init__(name=name)
        self.task, self.seed, self.data = task, seed, TaskConfig(**data)

    def setting(self) -> dict[str, Any]:
        """The fields that make the rows."""
        return {"task": self.task, "seed": self.seed, **dataclasses.asdict(self.data)}


class Posgen(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """Rows of PosGen: `tokens`, int32[length], in the order of `posgen.generate`.

    The metadata of the data set are the fields of its `PosgenConfig`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = tuple(PosgenConfig(name=task, task=task) for task in TASKS)
    # Otherwise TFDS looks for a list of checksums, with a package (importlib_resources) that it
    # does not ask for at installation.
    url_infos = None

    def __init__(self, *, file_format: str = "array_record", **arguments: Any):
        """Takes what every TFDS builder takes; this format is written without TensorFlow."""
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
