"""Saves array trees with Orbax, and reports at once what fails in this process."""

import dataclasses
from collections.abc import Callable
from typing import Any

import orbax.checkpoint as ocp

Failed = Callable[[Exception], None]


class WatchedHandler(ocp.StandardCheckpointHandler):  # type: ignore[misc]
    """Writes what its parent writes, under its parent's name.

    When several processes save, Orbax lets each one wait for all others before it raises anything,
    so a process that has failed would wait until the others time out.
    """

    def __init__(self, failed: Failed):
        """A handler for the registry of a manager.

        Args:
          failed: gets the error at once, in a thread of Orbax.
        """
        super().__init__()
        self._failed = failed

    @classmethod
    def typestr(cls) -> str:
        """By which Orbax names the format on disk."""
        name: str = ocp.StandardCheckpointHandler.typestr()
        return name

    async def async_save(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As its parent's."""
        futures = await super().async_save(*args, **kwargs)
        return [_Watched(future, self._failed) for future in futures or ()]


@dataclasses.dataclass
class _Watched:
    """A future of Orbax."""

    future: Any
    failed: Failed

    def result(self, timeout: float | None = None) -> Any:
        try:
            return self.future.result(timeout)
        except Exception as error:  # of the drivers, which raise many kinds
            self.failed(error)
            raise

    def cancel(self) -> bool | None:
        cancelled: bool | None = self.future.cancel()
        return cancelled
