"""The processes of a running job: what each of them says, and that they end together.

JAX ends processes with an abort from C++ once one has missed heartbeats for 15 s or more, and then
every process loses what it could have said. So process 0 keeps a connection of its own to every
other process. A process that dies closes its connection, whatever killed it; only a machine that
vanishes is noticed by its silence.
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
"""Exit code of a job that was preempted or has lost a process: the same command resumes it."""

_LINGER_SECONDS = 5.0  # for the others to hear why the job ends, before their connection does
_WAKE_SECONDS = 0.5
_BEATS = 4  # in the time without one after which a process counts as lost


@dataclasses.dataclass(frozen=True)
class End:
    """Why a job ends before it is done.

    Attributes:
      code: The exit code of all processes.
      process: The one that caused it.
      reason: For people.
      lost: Whether that process could not say so itself.
    """

    code: int
    process: int
    reason: str
    lost: bool = False


class Group(abc.ABC):
    """The processes, seen from one of them.

    A thread listens to the others. Once one of them has failed or is lost, or they have given up
    this one, it calls `on_end`, which is to end the process even while the main thread waits for
    devices that will not answer.
    """

    def __init__(self, process: Process, heartbeat: float, connections: list[Connection]) -> None:
        """Use `join`."""
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
        """Begins to listen; `on_end` hears of an end that this process did not ask for."""
        self._on_end = on_end
        self._thread.start()

    def gather(self, name: str, value: Any) -> list[Any]:
        """The values of all processes, in their order; waits for all of them.

        Args:
          name: Of what is gathered. All processes gather the same things in the same order.
          value: JSON-able.
        """
        self._turn += 1
        key = f"{self._turn} {name}"
        self._say(key, value)
        with self._changed:
            while not self._changed.wait_for(lambda: key in self._answers, _WAKE_SECONDS):
                pass  # a signal is answered between two turns
            return self._answers.pop(key)

    def wait_for_end(self, seconds: float) -> End | None:
        """Waits for another process to fail or be lost; None where none does."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None, seconds)
            return self._end

    def finish(self, code: int, reason: str) -> End:
        """Ends the job; returns why it ends: another process may have been the first to end it."""
        request = End(code, self.process.index, reason)
        self._report(request)
        end = self.wait_for_end(_LINGER_SECONDS) or request
        self._thread.join(_LINGER_SECONDS)
        return end

    def close(self) -> None:
        """Leaves a job that is done."""
        self._closing = True
        self.send_all("bye")
        self._thread.join(_LINGER_SECONDS)

    def send_all(self, kind: str, **fields: Any) -> None:
        """Sends a message over all connections that still exist."""
        for connection in self.connections:
            with self._changed, contextlib.suppress(OSError):
                connection.send(kind, **fields)

    def _answer(self, key: str, values: list[Any]) -> None:
        with self._changed:
            self._answers[key] = values
            self._changed.notify_all()

    def _decide(self, end: End) -> None:
        """Takes the first reason to end; what comes later is its consequence."""
        with self._changed:
            if self._end is not None or self._closing:
                return
            self._end = end
            self._changed.notify_all()

    def _listen(self) -> None:
        """Runs in the thread until the job ends; ends the job where the thread itself fails."""
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
                # a process that the others have given up may be stuck, and only cut off from them
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
        """Ends the job in all processes: those that do not understand each other cannot go on."""
        reason = (
            f"what it sends is no message of this job: {error}; start all processes with the same "
            "release, and keep others off the coordinator's port"
        )
        self._end_all(End(1, connection.index, reason, lost=True))

    def _end_all(self, end: End) -> None:
        """Ends the job from the thread that listens."""
        self._report(end)
        self._decide(end)

    @abc.abstractmethod
    def _say(self, key: str, value: Any) -> None:
        """Gives this process's part of what is gathered."""

    @abc.abstractmethod
    def _report(self, end: End) -> None:
        """Asks for the end of the job."""

    @abc.abstractmethod
    def _take(self, connection: Connection, message: Message) -> None:
        """Acts on a message; raises MessageError where it has no place here."""

    @abc.abstractmethod
    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        """Lets the others know of the end."""


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
        # until they are gone: closing a connection with something unread takes back what was sent
        deadline = time.monotonic() + _LINGER_SECONDS
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(_WAKE_SECONDS):
                self._read(key.data, selector)


class _Member(Group):
    """Any other process."""

    def _say(self, key: str, value: Any) -> None:
        self.send_all("say", name=key, value=value)

    def _report(self, end: End) -> None:
        self.send_all("end", **dataclasses.asdict(end))

    def _end_all(self, end: End) -> None:
        super()._end_all(end)
        (hub,) = self.connections
        with contextlib.suppress(OSError):  # until process 0 has read it: as in its `_tell`
            hub.socket.shutdown(socket.SHUT_WR)
            hub.socket.settimeout(_LINGER_SECONDS)
            while hub.socket.recv(1 << 16):
                pass

    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        pass  # process 0 does

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
    """Waits until all processes have come.

    Args:
      process: This one.
      timeout: Seconds.
      heartbeat: Seconds of silence after which a process counts as lost.

    Raises:
      JoinError: Some do not come in time.
    """
    connections = connect(process, timeout)
    return (_Member if process.index else _Hub)(process, heartbeat, connections)
