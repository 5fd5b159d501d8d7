"""A connection between two processes of a job, which carries one JSON message per line."""

import json
import socket
import time
from typing import Any

LONGEST = 1 << 24
"""Maximum size of a message in bytes; the largest ones, configs, have a few thousand."""

# Message kind -> its other fields and their types.
_FIELDS: dict[str, dict[str, type]] = {
    "join": {"index": int, "count": int},
    "roll": {"refused": str},  # the answer to `join`; empty if all processes have joined
    "say": {"name": str, "value": object},
    "answer": {"name": str, "values": list},
    "end": {"code": int, "process": int, "reason": str, "lost": bool},
    "beat": {},
    "bye": {},
}

Message = dict[str, Any]


class MessageError(ValueError):
    """Received something other than a message of this job; the error text quotes it."""

    def __init__(self, content: object) -> None:
        """Takes the received content."""
        text = repr(content)
        super().__init__(text if len(text) <= 80 else text[:77] + "...")


class Connection:
    """A socket that carries messages.

    Attributes:
      socket: The socket.
      index: Index of the process at the other end.
      heard: Time of the last receipt, by `time.monotonic`.
      closed: Whether the connection has been dropped.
      unread: Messages received together with the answer to `join`, not yet processed.
    """

    def __init__(self, connected: socket.socket, index: int = -1) -> None:
        """Takes a connected socket."""
        self.socket, self.index = connected, index
        self.heard = time.monotonic()
        self.closed = False
        self.unread: list[Message] = []
        self._rest = b""
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, kind: str, **fields: Any) -> None:
        """Sends a message; raises OSError if the connection is gone."""
        self.socket.sendall(json.dumps({"kind": kind, **fields}).encode() + b"\n")

    def receive(self) -> list[Message]:
        """Waits for data and returns the messages it completes.

        Raises:
          OSError: The connection has ended.
          MessageError: The data is not from a process of this job.
        """
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("closed by the other side")
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > LONGEST:
            raise MessageError(self._rest[:80])
        return [_parse(line) for line in lines]


def _parse(line: bytes) -> Message:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        raise MessageError(line) from None
    kind = message.get("kind") if isinstance(message, dict) else None
    fields = _FIELDS.get(kind) if isinstance(kind, str) else None
    if fields is None or message.keys() != {"kind", *fields}:
        raise MessageError(line)
    for name, expected in fields.items():
        if expected is not object and type(message[name]) is not expected:
            raise MessageError(line)
    return dict(message)
