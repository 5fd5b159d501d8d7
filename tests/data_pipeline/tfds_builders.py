"""TFDS data sets for tests: made as array_record, without TensorFlow and without a word."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds  # type: ignore[import-untyped]


class LocalBuilder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """A data set that downloads nothing; examples keep the order in which they are generated."""

    # Else TFDS looks for a list of checksums, with a package (importlib_resources) that it does not
    # ask for at installation.
    url_infos = None

    def __init__(self, *, file_format: str = "array_record", **arguments: Any):
        """Takes what every TFDS builder takes."""
        super().__init__(file_format=file_format, **arguments)

    def _described(
        self, description: str, *, metadata: dict[str, Any] | None = None, **features: Any
    ) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=description,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(metadata or {}),
            disable_shuffling=True,
        )


def prepare(builder: type[tfds.core.DatasetBuilder], *arguments: Any, **keywords: Any) -> Path:
    """Makes a builder, writes its data set unless it exists, and returns its folder."""
    with _quiet():
        made = builder(*arguments, **keywords)
        made.download_and_prepare()
    return Path(made.data_path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS prints to stdout, where a command's own words go, and warns of its own defaults."""
    tfds.disable_progress_bar()
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.setLevel(level)
