"""The processes of one job: who is there, what each of them says, and that they end together.

JAX joins processes by itself, but ends them with an abort from C++ when one does not come or goes
missing: it cannot say which one did not come, and a heartbeat has to be missed before a death is
noticed. So process 0 keeps a connection to every other process besides, made on the coordinator's
port before JAX's own service takes it. A process that dies closes its connection, whatever killed
it; only a machine that vanishes is noticed by its silence.
"""

import abc
import collections
import contextlib
import dataclasses
import json
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

RETRYABLE = 42
"""Exit code of a job that was preempted or has lost a process: the same command goes on."""

_RETRY_SECONDS = 0.2
_LINGER_SECONDS = 5.0  # for the others to hear why the job ends, before their connection does
_WAKE_SECONDS = 0.5
_LONGEST = 1 << 24  # bytes of a message; configs, the largest of them, have some thousands
_BEATS = 4  # in the time without one after which a process counts as lost


@dataclasses.dataclass(frozen=True)
class Place:
    """One process among those of a job.

    Attributes:
      address: HOST:PORT of process 0.
      count: processes.
      index: of this one.
      devices: indices of its devices on its machine; None for all.
    """

    address: str
    count: int
    index: int
    devices: list[int] | None = None


@dataclasses.dataclass(frozen=True)
class End:
    """Why a job ends before it is done.

    Attributes:
      code: the exit code of all processes.
      process: whose doing it is.
      reason: for people.
      lost: whether that process could not say so itself.
    """

    code: int
    process: int
    reason: str
    lost: bool = False


class JoinError(RuntimeError):
    """Not all processes have come; the message names those that have not."""


class MessageError(ValueError):
    """What has come is no message of a process of ours; the text says what it is."""


class _Line:
    """A connection that carries JSON, one object a line."""

    def __init__(self, connection: socket.socket, index: int = -1) -> None:
        self.socket, self.index = connection, index
        self.heard = time.monotonic()
        self.closed = False
        self.unread: list[dict[str, Any]] = []
        self._rest = b""
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def receive(self) -> list[dict[str, Any]]:
        """What has come; waits for something.

        Raises:
          OSError: the connection has ended.
          MessageError: it does not come from a process of ours.
        """
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionResetError("closed by the other side")
        self.heard = time.monotonic()
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST:
            raise MessageError(_shown(self._rest[:80]))
        return [_read_message(line) for line in lines]


def _read_message(line: bytes) -> dict[str, Any]:
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        message = None
    if not isinstance(message, dict):
        raise MessageError(_shown(line))
    return message


def _field(message: dict[str, Any], name: str, kind: type) -> Any:
    """A field of a message, which has to be there and of a type."""
    value = message.get(name)
    if type(value) is not kind:
        raise MessageError(_shown(message))
    return value


def _read_end(message: dict[str, Any]) -> End:
    end = _field(message, "end", dict)
    return End(
        _field(end, "code", int),
        _field(end, "process", int),
        _field(end, "reason", str),
        _field(end, "lost", bool),
    )


def _shown(what: object) -> str:
    """The beginning of a message, for people."""
    text = repr(what)
    return text if len(text) <= 80 else text[:77] + "..."


class Group(abc.ABC):
    """The processes, seen from one of them.

    A thread listens to the others. Once one of them has failed or is lost, or they have given up
    this one, it calls `on_end`, which is to end the process, also while the main thread waits for
    devices that will not answer.
    """

    def __init__(self, place: Place, heartbeat: float) -> None:
        """Use `join`."""
        self.place = place
        self._heartbeat = heartbeat
        self._changed = threading.Condition(threading.RLock())
        self._answers: dict[str, list[Any]] = {}
        self._turn = 0
        self._end: End | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._listen, name="peers", daemon=True)
        self._on_end: Callable[[End], None] = lambda end: None

    def start(self, on_end: Callable[[End], None]) -> None:
        """Begins to listen; `on_end` hears of an end that is not this process's own doing."""
        self._on_end = on_end
        self._thread.start()

    def gather(self, name: str, value: Any) -> list[Any]:
        """What every process gives, in their order; waits for all of them.

        Args:
          name: of what is gathered. All processes gather the same things in the same order.
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
        """Ends the job; returns why it ends: another process may have been the first to."""
        own = End(code, self.place.index, reason)
        self._report(own)
        end = self.wait_for_end(_LINGER_SECONDS) or own
        self._thread.join(_LINGER_SECONDS)
        return end

    def close(self) -> None:
        """Leaves a job that is done."""
        self._closing = True
        self._send_all({"bye": True})
        self._thread.join(_LINGER_SECONDS)

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
        """Runs in the thread until the job ends, which it does as well where the thread fails."""
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            for line in self._lines():
                stack.enter_context(line.socket)
            try:
                self._listen_until_the_end(selector)
            except Exception as error:
                reason = f"{type(error).__name__} while it listens to the others: {error}"
                self._end_all(End(1, self.place.index, reason, lost=True))
            if self._end is not None:
                self._tell(self._end, selector)
                # one that the others have given up may be stuck, and only cut off from them
                if self._end.lost or self._end.process != self.place.index:
                    self._on_end(self._end)

    def _listen_until_the_end(self, selector: selectors.BaseSelector) -> None:
        beat = 0.0
        for line in self._lines():
            selector.register(line.socket, selectors.EVENT_READ, line)
            for message in line.unread:
                self._hear(line, message)
        while self._end is None and selector.get_map():
            for found, _ in selector.select(_WAKE_SECONDS):
                self._read(found.data, selector)
            now = time.monotonic()
            for line in self._lines():
                if now - line.heard > self._heartbeat and not line.closed:
                    self._decide(self._lost(line, f"no sign of life for {self._heartbeat:g} s"))
            if now - beat > self._heartbeat / _BEATS:
                beat = now
                self._send_all({"beat": True})

    def _read(self, line: _Line, selector: selectors.BaseSelector) -> None:
        try:
            messages = line.receive()
        except OSError:
            self._drop(line, selector)
            self._decide(self._lost(line, "its connection is gone"))
            return
        except MessageError as error:
            self._drop(line, selector)
            self._refuse(line, error)
            return
        for message in messages:
            if "bye" in message:
                self._drop(line, selector)
                return
            self._hear(line, message)

    def _hear(self, line: _Line, message: dict[str, Any]) -> None:
        """Acts on a message, whatever it holds."""
        try:
            self._take(line, message)
        except MessageError as error:
            self._refuse(line, error)

    def _drop(self, line: _Line, selector: selectors.BaseSelector) -> None:
        line.closed = True
        selector.unregister(line.socket)

    def _refuse(self, line: _Line, error: MessageError) -> None:
        """Ends the job, in all processes: what does not understand itself cannot stay together."""
        reason = (
            f"what it sends is no message of this job: {error}; start all processes with the same "
            "release, and keep others off the coordinator's port"
        )
        self._end_all(End(1, line.index, reason, lost=True))

    def _end_all(self, end: End) -> None:
        """Ends the job from the thread that listens."""
        self._report(end)
        self._decide(end)

    def _lost(self, line: _Line, how: str) -> End:
        return End(RETRYABLE, line.index, f"lost process {line.index} ({how})", lost=True)

    def _send_all(self, message: dict[str, Any]) -> None:
        for line in self._lines():
            with self._changed, contextlib.suppress(OSError):
                line.send(message)

    @abc.abstractmethod
    def _lines(self) -> list[_Line]:
        """The connections."""

    @abc.abstractmethod
    def _say(self, key: str, value: Any) -> None:
        """Gives this process's part of what is gathered."""

    @abc.abstractmethod
    def _report(self, end: End) -> None:
        """Asks for the end of the job."""

    @abc.abstractmethod
    def _take(self, line: _Line, message: dict[str, Any]) -> None:
        """Acts on a message; raises MessageError for what is none."""

    @abc.abstractmethod
    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        """Lets the others know of the end."""


class _Hub(Group):
    """Process 0."""

    def __init__(self, place: Place, heartbeat: float, lines: list[_Line]) -> None:
        super().__init__(place, heartbeat)
        self._members = lines
        self._said: dict[str, dict[int, Any]] = collections.defaultdict(dict)

    def _lines(self) -> list[_Line]:
        return self._members

    def _say(self, key: str, value: Any) -> None:
        self._collect(key, 0, value)

    def _report(self, end: End) -> None:
        self._decide(end)

    def _take(self, line: _Line, message: dict[str, Any]) -> None:
        if "say" in message:
            if "value" not in message:
                raise MessageError(_shown(message))
            self._collect(_field(message, "say", str), line.index, message["value"])
        elif "end" in message:
            self._decide(_read_end(message))
        elif "beat" not in message:
            raise MessageError(_shown(message))

    def _collect(self, key: str, index: int, value: Any) -> None:
        with self._changed:
            said = self._said[key]
            said[index] = value
            if len(said) < self.place.count:
                return
            values = [said[i] for i in range(self.place.count)]
            del self._said[key]
            self._send_all({"all": key, "values": values})
            self._answer(key, values)

    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        self._send_all({"end": dataclasses.asdict(end)})
        # until they are gone: what is closed with something unread takes back what was sent
        deadline = time.monotonic() + _LINGER_SECONDS
        while selector.get_map() and time.monotonic() < deadline:
            for found, _ in selector.select(_RETRY_SECONDS):
                self._read(found.data, selector)


class _Member(Group):
    """Any other process."""

    def __init__(self, place: Place, heartbeat: float, line: _Line) -> None:
        super().__init__(place, heartbeat)
        self._hub = line

    def _lines(self) -> list[_Line]:
        return [self._hub]

    def _say(self, key: str, value: Any) -> None:
        self._send_all({"say": key, "value": value})

    def _report(self, end: End) -> None:
        self._send_all({"end": dataclasses.asdict(end)})

    def _end_all(self, end: End) -> None:
        super()._end_all(end)
        # until process 0 has read it: as in its `_tell`
        with contextlib.suppress(OSError):
            self._hub.socket.shutdown(socket.SHUT_WR)
            self._hub.socket.settimeout(_LINGER_SECONDS)
            while self._hub.socket.recv(1 << 16):
                pass

    def _tell(self, end: End, selector: selectors.BaseSelector) -> None:
        pass  # process 0 does

    def _take(self, line: _Line, message: dict[str, Any]) -> None:
        if "all" in message:
            values = _field(message, "values", list)
            if len(values) != self.place.count:
                raise MessageError(_shown(message))
            self._answer(_field(message, "all", str), values)
        elif "end" in message:
            self._decide(_read_end(message))
        elif "beat" not in message:
            raise MessageError(_shown(message))


def join(place: Place, *, timeout: float, heartbeat: float) -> Group:
    """Waits until all processes are there.

    Args:
      place: this process's.
      timeout: seconds.
      heartbeat: seconds of silence after which a process counts as lost.

    Raises:
      JoinError: some do not come in time.
    """
    deadline = time.monotonic() + timeout
    if place.index == 0:
        return _Hub(place, heartbeat, _call_roll(place, deadline, timeout))
    return _Member(place, heartbeat, _answer_roll(place, deadline, timeout))


def _call_roll(place: Place, deadline: float, timeout: float) -> list[_Line]:
    joined: dict[int, _Line] = {}
    refused = ""
    with _server(place, deadline) as server, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        while len(joined) < place.count - 1 and not refused and time.monotonic() < deadline:
            for found, _ in selector.select(_RETRY_SECONDS):
                if found.data is None:
                    connection, _ = server.accept()
                    selector.register(connection, selectors.EVENT_READ, _Line(connection))
                    continue
                line: _Line = found.data
                try:
                    claims = [
                        (_field(message, "join", int), _field(message, "of", int))
                        for message in line.receive()
                    ]
                except (OSError, MessageError):
                    # a process that was stopped and may come again, or something else
                    selector.unregister(line.socket)
                    line.socket.close()
                    joined = {i: other for i, other in joined.items() if other is not line}
                    continue
                for line.index, count in claims:
                    joined[line.index] = line
                    if count != place.count or not 0 < line.index < place.count:
                        refused = (
                            f"one process was started as {line.index} of {count}, process 0 as one "
                            f"of {place.count}"
                        )
        lines = list(joined.values())
        for key in list(selector.get_map().values()):
            if key.data is not None and key.data not in lines:
                key.data.socket.close()
    missing = [str(i) for i in range(1, place.count) if i not in joined]
    if missing and not refused:
        refused = (
            f"process{'es' * (len(missing) > 1)} {', '.join(missing)} of {place.count} did not "
            f"join within {timeout:g} s (RROPE_JOIN_TIMEOUT)"
        )
    for line in lines:
        with contextlib.suppress(OSError):
            line.send({"refused": refused})
    if refused:
        for line in lines:
            line.socket.close()
        raise JoinError(refused)
    return lines


@contextlib.contextmanager
def _server(place: Place, deadline: float) -> Iterator[socket.socket]:
    """Listens where JAX's service will; a process of an earlier run may not have left it yet."""
    bound = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS")
    host, port = (bound or place.address).rsplit(":", 1)
    everywhere = not bound or host in ("[::]", "0.0.0.0")
    dual = everywhere and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual or host.startswith("[") else socket.AF_INET
    where = ("" if everywhere else host.strip("[]"), int(port))
    while True:
        try:
            server = socket.create_server(where, family=family, dualstack_ipv6=dual)
        except OSError as error:
            if time.monotonic() > deadline:
                raise JoinError(
                    f"process 0 cannot listen on {place.address}: {error.strerror}"
                ) from error
            time.sleep(_RETRY_SECONDS)
        else:
            break
    with server:
        yield server


def _answer_roll(place: Place, deadline: float, timeout: float) -> _Line:
    host, port = place.address.rsplit(":", 1)
    while time.monotonic() < deadline:
        left = deadline - time.monotonic()
        with contextlib.suppress(OSError, MessageError):
            connection = socket.create_connection((host.strip("[]"), int(port)), timeout=left)
            with contextlib.ExitStack() as stack:
                stack.enter_context(connection)
                line = _Line(connection, 0)
                line.send({"join": place.index, "of": place.count})
                # process 0 began to wait at another time than this one
                connection.settimeout(timeout + _LINGER_SECONDS)
                answers = line.receive()
                connection.settimeout(None)
                if answers:  # else of something else, such as the JAX of an earlier run
                    if refused := _field(answers[0], "refused", str):
                        raise JoinError(refused)
                    line.unread = answers[1:]
                    stack.pop_all()
                    return line
        time.sleep(_RETRY_SECONDS)
    raise JoinError(
        f"process 0 does not answer at {place.address} within {timeout:g} s (RROPE_JOIN_TIMEOUT)"
    )
