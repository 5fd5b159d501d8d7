"""Units of an evaluation that all processes of a job compute together, and process 0 stores."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

from rrope_jax.evaluation.units import UnitStore
from rrope_jax.run.distributed import Peers
from rrope_jax.run.stopping import stopping


def shared_store(store: UnitStore, names: Sequence[str], peers: Peers) -> UnitStore:
    """Returns a store from which all processes learn the same, as each sees the files differently.

    Args:
      store: The store, to which process 0 alone writes.
      names: The names of all units.
      peers: The processes.
    """
    return store if peers.count == 1 else _StoreOfFirst(store, names, peers)


class _StoreOfFirst:
    """What process 0 has finished, as all processes see it; only process 0 has the results."""

    def __init__(self, store: UnitStore, names: Sequence[str], peers: Peers) -> None:
        """Process 0 looks up all names; the others are told."""
        missing = [name for name in names if store.get(name) is None] if peers.first else None
        self._missing = set(peers.gather("missing units", missing)[0])
        self._store = store if peers.first else None

    def get(self, name: str) -> dict[str, Any] | None:
        return None if name in self._missing else {}

    def put(self, name: str, result: Mapping[str, Any]) -> None:
        self._missing.discard(name)
        if self._store is not None:
            self._store.put(name, result)


def between_units(peers: Peers) -> AbstractContextManager[Callable[[], bool]]:
    """Lets several processes stop together, after a batch of units.

    A single process stops at once, since its signals are handled while it waits for the device.

    Yields:
      A function that returns whether to stop now. All processes must call it equally often.
    """
    if peers.count == 1:
        return contextlib.nullcontext(lambda: False)
    return stopping(peers)
