"""The lock of a workdir in an object store: an object that its owner renews.

Creating and replacing the object are conditional on its version, so of several processes that try
one succeeds. The lock of a process that has died stops changing. Whoever finds a lock watches it:
no clocks are compared.
"""

import dataclasses
import json
import logging
import os
import secrets
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any, NoReturn

from rrope_jax.cli.errors import UsageError
from rrope_jax.io import json_text
from rrope_jax.io.stores import StoreError, StorePath

_LOG = logging.getLogger(__name__)

NAME = ".lock"
# Renewals in the time after which a lock that has not changed counts as left behind.
_RENEWALS = 6
_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class _Owner:
    """Who holds a lock.

    Attributes:
      token: differs for all locks ever taken.
      host: name of the machine.
      process: process id.
      boot: identifies the machine's start and the container; empty where it cannot be told.
      seconds: time after which a lock that has not changed counts as left behind.
    """

    token: str
    host: str
    process: int
    boot: str
    seconds: float

    @classmethod
    def here(cls, seconds: float) -> "_Owner":
        return cls(secrets.token_hex(8), socket.gethostname(), os.getpid(), _boot(), seconds)

    @classmethod
    def parse(cls, data: bytes) -> "_Owner":
        """Reads a lock's content; a damaged one has no owner that is alive."""
        try:
            value: Any = json_text.parse(data)
            fields = {field.name: value[field.name] for field in dataclasses.fields(cls)}
            return cls(**fields)
        except (ValueError, KeyError, TypeError):
            return cls("", "another machine", 0, "", 0.0)

    def content(self, renewals: int) -> bytes:
        """The content of the lock, another one after each renewal."""
        return json.dumps(dataclasses.asdict(self) | {"renewals": renewals}).encode()

    def is_dead(self) -> bool:
        """Whether the owner was a process of this machine that has ended."""
        if not self.boot or self.boot != _boot() or self.host != socket.gethostname():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:
            pass
        return False


class StoreLock:
    """A lock that this process holds and renews in a thread until `release`."""

    def __init__(self, path: StorePath, owner: _Owner, version: bytes) -> None:
        """Do not call this directly: use `take`."""
        self._path, self._owner, self._version = path, owner, version
        self._released = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    @classmethod
    def take(cls, folder: StorePath, seconds: float) -> "StoreLock":
        """Takes the lock of a folder, if need be after watching it.

        Args:
          folder: the folder.
          seconds: time after which others may take a lock that this process no longer renews.

        Raises:
          UsageError: another process holds it.
          StoreError: the store cannot be read and written.
        """
        path, owner = folder / NAME, _Owner.here(seconds)
        for _ in range(_ATTEMPTS):
            version = _put(path, owner, None)
            if version is None:
                try:
                    data, seen = path.read_version()
                except FileNotFoundError:  # released in the meantime
                    continue
                _wait_until_left(path, _Owner.parse(data), seen)
                version = _put(path, owner, seen)
            if version is not None:
                return cls(path, owner, version)
        raise _in_use(path, "another process")

    def release(self) -> None:
        """Removes the lock, so that others need not wait until it counts as left behind."""
        self._released.set()
        self._thread.join()
        try:
            self._path.replace_version(None, self._version)
        except StoreError as error:
            _LOG.warning("the lock stays behind: %s", error)

    def _renew(self) -> None:
        renewals = 0
        while not self._released.wait(self._owner.seconds / _RENEWALS):
            renewals += 1
            try:
                version = _put(self._path, self._owner, self._version, renewals)
            except StoreError as error:
                _LOG.warning("the lock is not renewed: %s", error)
                continue
            if version is None and not self._released.is_set():
                _end(f"another process has taken {self._path}, which was not renewed in time")
            self._version = version or self._version


def _put(path: StorePath, owner: _Owner, version: bytes | None, renewals: int = 0) -> bytes | None:
    """Writes the lock if it is this version; returns the new one or None.

    If an answer was lost, this request or a later renewal finds what was written all the same.
    """
    if (new := path.replace_version(owner.content(renewals), version)) is not None:
        return new
    try:
        data, seen = path.read_version()
    except FileNotFoundError:
        return None
    return seen if _Owner.parse(data).token == owner.token else None


def _wait_until_left(path: StorePath, owner: _Owner, version: bytes) -> None:
    """Waits until a lock counts as left behind; raises UsageError as soon as it is renewed."""
    who = f"process {owner.process} on {owner.host}"
    if owner.is_dead():
        return
    _LOG.warning("%s is of %s; watching for %.0f s whether it is alive", path, who, owner.seconds)
    end = time.monotonic() + owner.seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, owner.seconds / _RENEWALS / 2))
        try:
            if path.read_version()[1] != version:
                raise _in_use(path, who)
        except FileNotFoundError:
            return


def _in_use(path: StorePath, who: str) -> UsageError:
    return UsageError(
        f"--workdir={path.parent} is in use by {who}; wait for it to end or give another --workdir"
    )


def _boot() -> str:
    """Identifies this start of the machine and this container; empty where it cannot be told."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _end(reason: str) -> NoReturn:
    """Ends the process from a thread: two runs must not write one workdir."""
    print(f"rrope: {reason}; this run ends", file=sys.stderr, flush=True)
    os._exit(1)
