"""Finished pieces of a job as JSON files of its workdir, so that a killed job can resume."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from rrope_jax.io.orbax import checksums
from rrope_jax.run.workdir import Workdir, warn_damaged

Piece = TypeVar("Piece")

_CHECKSUM = "checksum"


class FinishedPieces:
    """JSON values by name, one file each in a folder of the workdir.

    A piece can always be computed again. So a file that cannot be used counts as missing, with a
    warning that names it, and costs no other.
    """

    def __init__(self, workdir: Workdir, folder: str, *, checksums: bool = False):
        """Reads and writes nothing yet.

        Args:
          workdir: of the job.
          folder: name of the folder in it.
          checksums: whether pieces are objects, written on one line together with their checksum.
            Files of earlier releases have none and are still read.
        """
        self._workdir, self._folder, self._checksums = workdir, folder, checksums

    def get(self, name: str, parse: Callable[[Any], Piece] = lambda value: value) -> Piece | None:
        """A piece that `put` wrote, in this process or an earlier one; None where there is none.

        Args:
          name: of the piece.
          parse: turns the JSON value into the piece; raises ValueError where it is no such piece.
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
        """Writes a piece, replacing the one of the same name."""
        if self._checksums:
            line = json.dumps({**value, _CHECKSUM: checksums.of_json(value)})
            self._workdir.write_text(self._file(name), line + "\n")
        else:
            self._workdir.write_json(self._file(name), value)

    def _file(self, name: str) -> str:
        return f"{self._folder}/{name}.json"


def _verified(value: Any) -> dict[str, Any]:
    """The object without its checksum."""
    content = dict(value) if isinstance(value, dict) else {}
    checksum = content.pop(_CHECKSUM, None)
    if not content or checksum not in (None, checksums.of_json(content)):
        raise ValueError("it is not what was saved")
    return content
