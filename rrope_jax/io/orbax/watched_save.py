"""Saves array trees with Orbax and reports failures of this process immediately."""

import dataclasses
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

Failed = Callable[[Exception], None]


class WatchedHandler(ocp.StandardCheckpointHandler):  # type: ignore[misc]
    """A `StandardCheckpointHandler` that reports errors early; the files on disk are the same.

    When several processes save, each Orbax process waits for all others before it raises an error,
    so a process that has failed would wait until the others time out.
    """

    def __init__(self, failed: Failed):
        """Creates a handler for the registry of a manager.

        Args:
          failed: called with the error as soon as it occurs, in an Orbax thread.
        """
        super().__init__()
        self._failed = failed

    @classmethod
    def typestr(cls) -> str:
        """The name that Orbax stores for the format on disk: that of the parent class."""
        name: str = ocp.StandardCheckpointHandler.typestr()
        return name

    async def async_save(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Starts a save, as the parent class does."""
        futures = await super().async_save(*args, **kwargs)
        return [_Watched(future, self._failed) for future in futures or ()]


@dataclasses.dataclass
class _Watched:
    """An Orbax future that reports its error."""

    future: Any
    failed: Failed

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self.future.result(timeout)
        except Exception as error:  # storage drivers raise many types
            self.failed(error)
            raise

    def cancel(self) -> bool | None:
        cancelled: bool | None = self.future.cancel()
        return cancelled
