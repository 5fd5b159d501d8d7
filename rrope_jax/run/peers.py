"""Messages between the processes of a running job, and a coordinated exit.

Once a process has missed heartbeats for 15 s or more, JAX aborts all of them in C++, before they
can report what happened. Process 0 therefore keeps its own connection to every other process. When
a process dies, for whatever reason, its connection closes; heartbeats are only needed to notice a
machine that vanishes.
"""

import abc
import collections
import contextlib
import dataclasses
import selectors
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from rrope_jax.run.cluster import Process
from rrope_jax.run.connection import Connection, Message, MessageError
from rrope_jax.run.joining import connect

RETRYABLE = 42
"""Exit code of a job that was preempted or lost a process; the same command resumes it."""

_LINGER_SECONDS = 5.0  # lets the others read why the job ends before their connection closes
_WAKE_SECONDS = 0.5
_BEATS = 4  # heartbeats sent per heartbeat timeout


@dataclasses.dataclass(frozen=True)
class End:
    """Why a job ends before it is done.

    Attributes:
      code: The exit code of all processes.
      process: Index of the process that caused it.
      reason: A message for the user.
      lost: Whether that process could not report the end itself.
    """

    code: int
    process: int
    reason: str
    lost: bool = False


class Group(abc.ABC):
    """The processes of a job, as seen from one of them.

    A thread listens to the other processes. When one of them fails or is lost, or the others
    consider this one lost, the thread calls `on_end`, which should exit the process even if the
    main thread is waiting for unresponsive devices.
    """

    def __init__(self, process: Process, heartbeat: float, connections: list[Connection]) -> None:
        """Do not call this directly: use `join`."""
        self.process, self.connections = process, connections
        self._heartbeat = heartbeat
        self._changed = threading.Condition(threading.RLock())
        self._answers: dict[str, list[Any]] = {}
        self._turn = 0
        self._end: End | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="peers", daemon=True)
        self._on_end: Callable[[End], None] = lambda end: None

    def start(self, on_end: Callable[[End], None]) -> None:
        """Starts listening; `on_end` is called with an end that this process did not request."""
        self._on_end = on_end
        self._thread.start()

    def gather(self, name: str, value: Any) -> list[Any]:
        """Waits for all processes and returns their values, by process index.

        Args:
          name: Name of the value. All processes must gather the same names in the same order.
          value: A JSON-serializable value.
        """
        self._turn += 1
        key = f"{self._turn} {name}"
        self._say(key, value)
        with self._changed:
            while not self._changed.wait_for(lambda: key in self._answers, _WAKE_SECONDS):
                pass  # wakes up regularly so that Python can handle signals
            return self._answers.pop(key)

    def wait_for_end(self, seconds: float) -> End | None:
        """Waits for the job to end because a process failed or was lost; returns None if not."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, seconds)
            return self._end

    def finish(self, code: int, reason: str) -> End:
        """Ends the job and returns the reason, which may be an earlier one of another process."""
        request = End(code, self.process.index, reason)
        self._report(request)
        end = self.wait_for_end(_LINGER_SECONDS) or request
        self._thread.join(_LINGER_SECONDS)
        return end

    def close(self) -> None:
        """Leaves a finished job."""
        self._closing = True
        self.send_all("bye")
        self._thread.join(_LINGER_SECONDS)

    def send_all(self, kind: str, **fields: Any) -> None:
        """Sends a message over all open connections."""
        for connection in self.connections:
            with self._changed, contextlib.suppress(OSError):
                connection.send(kind, **fields)

    def _answer(self, key: str, values: list[Any]) -> None:
        with self._changed:
            self._answers[key] = values
            self._changed.notify_all()

    def _decide(self, end: End) -> None:
        """Records the first reason to end; later ones are its consequences."""
        with self._changed:
            if self._end is not None or self._closing:
                return
            self._end = end
            self._changed.notify_all()

    def _listen(self) -> None:
        """Body of the thread: listens until the job ends, and ends the job if listening fails."""
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for connection in self.connections:
                stack.enter_context(connection.socket)
            try:
                self._listen_until_the_end(selector)
            except Exception as error:
                reason = f"{type(error).__name__} while it listens to the others: {error}"
                self._end_all(End(1, self.process.index, reason, lost=True))
            if self._end is not None:
                self._tell(self._end, selector)
                # the process may be this one: the others consider it lost, but it may still run
                if self._end.lost or self._end.process != self.process.index:
                    self._on_end(self._end)

    def _listen_until_the_end(self, selector: selectors.BaseSelector) -> None:
        last_beat = 0.0
        for connection in self.connections:
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            self._take_all(connection, connection.unread)
        while self._end is None and selector.get_map():
            for key, _ in selector.select(_WAKE_SECONDS):
                self._read(key.data, selector)
            now = time.monotonic()
            for connection in self.connections:
                if now - connection.heard > self._heartbeat and not connection.closed:
                    self._lose(connection, f"no sign of life for {self._heartbeat:g} s")
            if now - last_beat > self._heartbeat / _BEATS:
                last_beat = now
                self.send_all("beat")

    def _read(self, connection: Connection, selector: selectors.BaseSelector) -> None:
        try:
            messages = connection.receive()
        except OSError:
            self._drop(connection, selector)
            self._lose(connection, "its connection is gone")
        except MessageError as error:
            self._drop(connection, selector)
            self._refuse(connection, error)
        else:
            kinds = [message["kind"] for message in messages]
            if "bye" in kinds:
                self._drop(connection, selector)
                messages = messages[: kinds.index("bye")]
            self._take_all(connection, messages)

    def _take_all(self, connection: Connection, messages: list[Message]) -> None:
        try:
            for message in messages:
                self._take(connection, message)
        except MessageError as error:
            self._refuse(connection, error)

    def _drop(self, connection: Connection, selector: selectors.BaseSelector) -> None:
        connection.closed = True
        selector.unregister(connection.socket)

    def _lose(self, connection: Connection, how: str) -> None:
        reason = f"lost process {connection.index} ({how})"
        self._decide(End(RETRYABLE, connection.index, reason, lost=True))

    def _refuse(self, connection: Connection, error: MessageError) -> None:
        """Ends the job in all processes after a message that this one does not understand."""
        reason = (
            f"what it sends is no message of this job: {error}; start all processes with the same "
            "release, and keep others off the coordinator's port"
        )
        self._end_all(End(1, connection.index, reason, lost=True))

    def _end_all(self, end: End) -> None:
        """Ends the job from the listening thread."""
        self._report(end)
        self._decide(end)

    @abc.abstractmethod
    def _say(self, key: str, value: Any) -> None:
        """Submits this process's value for a `gather`."""

    @abc.abstractmethod
    def _report(self, end: End) -> None:
        """Requests the end of the job."""

    @abc.abstractmethod
    def _take(self, connection: Connection, message: Message) -> None:
        """Handles a message; raises MessageError if its kind is unexpected."""

    @abc.abstractmethod
    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        """Tells the other processes about the end."""


def _end_of(message: Message) -> End:
    return End(**{name: value for name, value in message.items() if name != "kind"})


class _Hub(Group):
    """Process 0."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._said: dict[str, dict[int, Any]] = collections.defaultdict(dict)

    def _say(self, key: str, value: Any) -> None:
        self._collect(key, 0, value)

    def _report(self, end: End) -> None:
        self._decide(end)

    def _take(self, connection: Connection, message: Message) -> None:
        match message["kind"]:
            case "say":
                self._collect(message["name"], connection.index, message["value"])
            case "end":
                self._decide(_end_of(message))
            case "beat":
                pass
            case _:
                raise MessageError(message)

    def _collect(self, key: str, index: int, value: Any) -> None:
        with self._changed:
            said = self._said[key]
            said[index] = value
            if len(said) < self.process.count:
                return
            values = [said[i] for i in range(self.process.count)]
            del self._said[key]
            self.send_all("answer", name=key, values=values)
            self._answer(key, values)

    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        self.send_all("end", **dataclasses.asdict(end))
        # Wait until they hang up: closing a socket with unread input discards the output just sent.
        deadline = time.monotonic() + _LINGER_SECONDS
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(_WAKE_SECONDS):
                self._read(key.data, selector)


class _Member(Group):
    """Any process other than process 0."""

    def _say(self, key: str, value: Any) -> None:
        self.send_all("say", name=key, value=value)

    def _report(self, end: End) -> None:
        self.send_all("end", **dataclasses.asdict(end))

    def _end_all(self, end: End) -> None:
        super()._end_all(end)
        (hub,) = self.connections
        with contextlib.suppress(OSError):  # wait until process 0 has read it, as in `_Hub._tell`
            hub.socket.shutdown(socket.SHUT_WR)
            hub.socket.settimeout(_LINGER_SECONDS)
            while hub.socket.recv(1 << 16):
                pass

    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        pass  # process 0 does this

    def _take(self, connection: Connection, message: Message) -> None:
        match message["kind"]:
            case "answer" if len(message["values"]) == self.process.count:
                self._answer(message["name"], message["values"])
            case "end":
                self._decide(_end_of(message))
            case "beat":
                pass
            case _:
                raise MessageError(message)


def join(process: Process, *, timeout: float, heartbeat: float) -> Group:
    """Waits until all processes have joined, and returns them as a group.

    Args:
      process: This process.
      timeout: Time limit in seconds.
      heartbeat: Seconds of silence after which a process counts as lost.

    Raises:
      JoinError: Some processes did not join in time, or were started with another count.
    """
    connections = connect(process, timeout)
    return (_Member if process.index else _Hub)(process, heartbeat, connections)
