"""Connects the processes of a job: process 0 takes the roll on the coordinator's port.

This happens before JAX's own service takes the port. If a process is missing, JAX would abort in
C++ without saying which one.
"""

import contextlib
import os
import selectors
import socket
import time
from collections.abc import Iterator

from rrope_jax.run.cluster import Process
from rrope_jax.run.connection import Connection, MessageError

_RETRY_SECONDS = 0.2
_LINGER_SECONDS = 5.0  # process 0 may have started its timeout later


class JoinError(RuntimeError):
    """The processes did not all join, or do not fit together; the message says why."""


def connect(process: Process, timeout: float) -> list[Connection]:
    """Waits until all processes have joined.

    Args:
      process: This process.
      timeout: Time limit in seconds.

    Returns:
      In process 0, the connections to all other processes; in those, the connection to process 0.

    Raises:
      JoinError: Some processes did not join in time, or were started with another count.
    """
    deadline = time.monotonic() + timeout
    if process.index > 0:
        return [_answer_roll(process, deadline, timeout)]
    joined, refused = _call_roll(process, deadline)
    missing = [str(index) for index in range(1, process.count) if index not in joined]
    if missing and not refused:
        plural = "es" if len(missing) > 1 else ""
        refused = (
            f"process{plural} {', '.join(missing)} of {process.count} did not join within "
            f"{timeout:g} s (RROPE_JOIN_TIMEOUT)"
        )
    for connection in joined.values():
        with contextlib.suppress(OSError):
            connection.send("roll", refused=refused)
        if refused:
            connection.socket.close()
    if refused:
        raise JoinError(refused)
    return list(joined.values())


def _call_roll(process: Process, deadline: float) -> tuple[dict[int, Connection], str]:
    """Returns the processes that joined by the deadline, and why the job cannot start, or ''."""
    joined: dict[int, Connection] = {}
    refused = ""
    with _server(process, deadline) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(joined) < process.count - 1 and not refused and time.monotonic() < deadline:
            for key, _ in selector.select(_RETRY_SECONDS):
                if key.data is None:
                    accepted, _ = server.accept()
                    selector.register(accepted, selectors.EVENT_READ, Connection(accepted))
                    continue
                connection: Connection = key.data
                try:
                    counts = _read_joins(connection)
                except (OSError, MessageError):
                    # either a process that was stopped and may retry, or an unrelated client
                    selector.unregister(connection.socket)
                    connection.socket.close()
                    joined = {i: other for i, other in joined.items() if other is not connection}
                    continue
                for index, count in counts:
                    joined[index] = connection
                    if count != process.count or not 0 < index < count:
                        refused = (
                            f"one process was started as {index} of {count}, process 0 as one of "
                            f"{process.count}"
                        )
        for key in list(selector.get_map().values()):
            if key.data is not None and key.data not in joined.values():
                key.data.socket.close()
    return joined, refused


def _read_joins(connection: Connection) -> list[tuple[int, int]]:
    """Reads the process index and process count that the other side was started with."""
    joins = []
    for message in connection.receive():
        if message["kind"] != "join":
            raise MessageError(message)
        connection.index = message["index"]
        joins.append((message["index"], message["count"]))
    return joins


@contextlib.contextmanager
def _server(process: Process, deadline: float) -> Iterator[socket.socket]:
    """Listens on JAX's future port, retrying while an earlier run may still occupy it."""
    bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    host, port = (bound or process.address).rsplit(":", 1)
    everywhere = not bound or host in ("[::]", "0.0.0.0")
    dual = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or host.startswith("[") else socket.AF_INET
    address = ("" if everywhere else host.strip("[]"), int(port))
    while True:
        try:
            server = socket.create_server(address, family=family, dualstack_ipv6=dual)
        except OSError as error:
            if time.monotonic() > deadline:
                raise JoinError(
                    f"process 0 cannot listen on {process.address}: {error.strerror}"
                ) from error
            time.sleep(_RETRY_SECONDS)
        else:
            break
    with server:
        yield server


def _answer_roll(process: Process, deadline: float, timeout: float) -> Connection:
    host, port = process.address.rsplit(":", 1)
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError, MessageError):
            connected = socket.create_connection((host.strip("[]"), int(port)), timeout=left)
            with contextlib.ExitStack() as stack:
                stack.enter_context(connected)
                connection = Connection(connected, 0)
                connection.send("join", index=process.index, count=process.count)
                connected.settimeout(timeout + _LINGER_SECONDS)
                messages = connection.receive()
                connected.settimeout(None)
                if messages:  # otherwise something else answered, such as an earlier run's JAX
                    if messages[0]["kind"] != "roll":
                        raise MessageError(messages[0])
                    if messages[0]["refused"]:
                        raise JoinError(messages[0]["refused"])
                    connection.unread = messages[1:]
                    stack.pop_all()
                    return connection
        time.sleep(_RETRY_SECONDS)
    raise JoinError(
        f"process 0 does not answer at {process.address} within {timeout:g} s (RROPE_JOIN_TIMEOUT)"
    )
