"""Stores finished pieces of a job as JSON files in its workdir, so that a killed job can resume."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from rrope_jax.io.orbax import checksums
from rrope_jax.run.workdir import Workdir, warn_damaged

Piece = TypeVar("Piece")

_CHECKSUM = "checksum"


class FinishedPieces:
    """JSON values by name, one file each, in a folder of the workdir.

    Pieces can always be recomputed, so an unusable file is logged as a warning and treated as
    missing.
    """

    def __init__(self, workdir: Workdir, folder: str, *, checksums: bool = False):
        """Does not read or write anything yet.

        Args:
          workdir: The job's workdir.
          folder: Name of the folder in the workdir.
          checksums: Whether to add a checksum to each piece, which must then be a JSON object.
            Files of earlier releases, which have no checksum, can still be read.
        """
        self._workdir, self._folder, self._checksums = workdir, folder, checksums

    def get(self, name: str, parse: Callable[[Any], Piece] = lambda value: value) -> Piece | None:
        """Returns a piece that this process or an earlier one wrote, or None if it is missing.

        Args:
          name: Name of the piece.
          parse: Converts the JSON value to the piece; raises ValueError if it is not valid.
        """
        file = self._file(name)
        value = self._workdir.find_json(file)
        if value is None:
            return None
        try:
            return parse(_verified(value) if self._checksums else value)
        except ValueError as error:
            warn_damaged(self._workdir.path / file, str(error))
            return None

    def put(self, name: str, value: Any) -> None:
        """Writes a piece, replacing any of the same name."""
        if self._checksums:
            line = json.dumps({**value, _CHECKSUM: checksums.of_json(value)})
            self._workdir.write_text(self._file(name), line + "\n")
        else:
            self._workdir.write_json(self._file(name), value)

    def _file(self, name: str) -> str:
        return f"{self._folder}/{name}.json"


def _verified(value: Any) -> dict[str, Any]:
    """Returns the object without its checksum; raises ValueError if they do not match."""
    content = dict(value) if isinstance(value, dict) else {}
    checksum = content.pop(_CHECKSUM, None)
    if not content or checksum not in (None, checksums.of_json(content)):
        raise ValueError("it is not what was saved")
    return content
