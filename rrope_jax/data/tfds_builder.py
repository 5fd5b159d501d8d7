"""What our TFDS data sets have in common: made here, as array_record, without TensorFlow."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds  # type: ignore[import-untyped]

_LOG = logging.getLogger(__name__)

FORMAT = "array_record"
"""The one format of TFDS that is read at random places and without TensorFlow."""


class LocalBuilder(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc]
    """A data set that downloads nothing; examples keep the order in which they are generated."""

    # Else TFDS looks for a list of checksums, with a package (importlib_resources) that it does not
    # ask for at installation.
    url_infos = None

    def __init__(self, *, file_format: str = FORMAT, **arguments: Any):
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


def prepare(builder: type[LocalBuilder], *arguments: Any, **keywords: Any) -> Path:
    """Makes a builder and writes its data set, unless that is there.

    Args:
      builder: the class; the other arguments are its own.

    Returns:
      The folder of the data set.

    Raises:
      OSError: the folder cannot be written.
    """
    with _quiet():
        made = builder(*arguments, **keywords)
        if not made.data_path.exists():
            _LOG.info("making the TFDS data set %s", made.data_path)
        with contextlib.suppress(FileExistsError):  # another process may finish first
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
