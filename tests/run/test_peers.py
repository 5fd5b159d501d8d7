"""Processes that find each other and end together, as threads of one process."""

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rrope_jax.cli.errors import UsageError
from rrope_jax.run import distributed
from rrope_jax.run.cluster import Process, find_process
from rrope_jax.run.joining import JoinError
from rrope_jax.run.peers import RETRYABLE, End, Group, join

SECONDS = 30.0  # of patience with a busy machine
TPU_CLUSTERS = "jax._src.clusters.cloud_tpu_cluster"


def _address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def _each(count: int, call: Callable[[int], Any]) -> list[Any]:
    """What a call gives for each index, all called at once."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(call, range(count)))


@contextlib.contextmanager
def _metadata(attributes: dict[str, str]) -> Iterator[str]:
    """The address of a server that knows the attributes of a virtual machine in Google's cloud."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            folder, _, name = self.path.rpartition("/")
            known = folder == "/computeMetadata/v1/instance/attributes" and name in attributes
            self.send_response(200 if known else 404)
            self.end_headers()
            self.wfile.write(attributes.get(name, "").encode())

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _greet(group: Group) -> list[int]:
    """The processes that a new group has."""
    group.start(lambda end: None)
    found = group.gather("index", group.process.index)
    group.close()
    return found


class _Job:
    """A group of three whose ends are noted; one of them may neither listen nor speak."""

    def __init__(self, mute: int | None = None) -> None:
        address = _address()
        self.ends: queue.Queue[tuple[int, End]] = queue.Queue()
        self.groups: list[Group] = _each(
            3, lambda i: join(Process(address, 3, i), timeout=SECONDS, heartbeat=SECONDS)
        )
        for group in self.groups:
            if group.process.index != mute:
                group.start(lambda end, index=group.process.index: self.ends.put((index, end)))

    def noted(self, count: int) -> dict[int, End]:
        return dict(self.ends.get(timeout=SECONDS) for _ in range(count))


@pytest.fixture
def job() -> Iterator[_Job]:
    made = _Job()
    yield made
    _each(3, lambda i: made.groups[i].close())


class TestTogether:
    def test_gather(self, job: _Job) -> None:
        for turn in range(3):  # the same name again is another turn
            found = _each(3, lambda i, turn=turn: job.groups[i].gather("x", [turn, i]))
            assert found == [[[turn, 0], [turn, 1], [turn, 2]]] * 3

    def test_gather_waits_for_all(self, job: _Job) -> None:
        with ThreadPoolExecutor(2) as pool:
            early = [pool.submit(job.groups[i].gather, "x", i) for i in (0, 1)]
            time.sleep(0.05)
            assert not any(future.done() for future in early)
            assert job.groups[2].gather("x", 2) == [0, 1, 2]
            assert [future.result() for future in early] == [[0, 1, 2]] * 2

    def test_done_is_no_loss(self) -> None:
        made = _Job()
        _each(3, lambda i: made.groups[i].close())
        assert made.ends.empty()


class TestEnd:
    @pytest.mark.parametrize("index", [0, 2])
    def test_error_ends_all(self, index: int) -> None:
        made = _Job()
        end = made.groups[index].finish(1, "no more")
        assert end == End(1, index, "no more")
        assert made.noted(2) == {i: end for i in range(3) if i != index}

    def test_first_error_counts(self) -> None:
        made = _Job()
        first = made.groups[1].finish(2, "first")
        assert [made.groups[i].finish(1, "later") for i in (0, 2)] == [first, first]

    @pytest.mark.parametrize("index", [0, 2])
    def test_lost_process_is_named(self, index: int) -> None:
        made = _Job(mute=index)
        for line in made.groups[index].connections:  # as the system does for a killed process
            line.socket.close()
        others = [i for i in range(3) if i != index]
        lost = End(RETRYABLE, index, f"lost process {index} (its connection is gone)", lost=True)
        assert made.noted(2) == dict.fromkeys(others, lost)

    def test_silent_process_is_lost(self) -> None:
        """As of a machine that is gone without a word."""
        address = _address()

        def member() -> socket.socket:
            place = Process(address, 2, 1)
            return join(place, timeout=SECONDS, heartbeat=SECONDS).connections[0].socket

        with ThreadPoolExecutor(1) as pool:
            silent = pool.submit(member)
            hub = join(Process(address, 2, 0), timeout=SECONDS, heartbeat=1.0)
            with silent.result():
                hub.start(lambda end: None)
                end = hub.wait_for_end(SECONDS)
        assert end is not None
        assert end.reason == "lost process 1 (no sign of life for 1 s)"

    def test_process_that_is_given_up_ends(self) -> None:
        """As of one that was suspended for a while: its main thread may wait for the others."""
        address = _address()

        def start(index: int) -> queue.Queue[End]:
            # the member says so seldom that it lives that process 0 does not wait for it
            place, heartbeat = Process(address, 2, index), SECONDS if index else 1.0
            ends: queue.Queue[End] = queue.Queue()
            join(place, timeout=SECONDS, heartbeat=heartbeat).start(ends.put)
            return ends

        ends = [noted.get(timeout=SECONDS) for noted in _each(2, start)]
        lost = End(RETRYABLE, 1, "lost process 1 (no sign of life for 1 s)", lost=True)
        assert ends == [lost, lost]


MALFORMED = {
    "no JSON": b"GET / HTTP/1.1\r\n",
    "no UTF-8": b'{"kind": "beat\xff"}\n',
    "no object": b"[1]\n",
    "a number": b"1\n",
    "nested": b"[" * 100_000 + b"\n",
    "without an end": b"a" * 300_000,
    "no kind": b'{"hello": 1}\n',
    "unknown": b'{"kind": "hello"}\n',
    "a kind that is none": b'{"kind": ["say"]}\n',
    "half an answer": b'{"kind": "say", "name": "1 x"}\n',
    "a name that is none": b'{"kind": "say", "name": ["1 x"], "value": 1}\n',
    "more than it has": b'{"kind": "beat", "value": 1}\n',
    "of another place": b'{"kind": "join", "index": 1, "count": 3}\n',
    "answers of others": b'{"kind": "answer", "name": "1 x", "values": [1]}\n',
    "half an end": b'{"kind": "end", "code": 1}\n',
    "an end of other types": (
        b'{"kind": "end", "code": "1", "process": 1, "reason": "", "lost": false}\n'
    ),
}


class TestMalformed:
    """What one process sends is named, and ends all of them."""

    @pytest.mark.parametrize("sent", MALFORMED.values(), ids=MALFORMED.keys())
    @pytest.mark.parametrize("index", [0, 2])
    def test_named_by_all(self, sent: bytes, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("rrope_jax.run.connection.LONGEST", 200_000)
        made = _Job(mute=index)
        try:
            for line in made.groups[index].connections:
                line.socket.sendall(sent)
                line.socket.shutdown(socket.SHUT_WR)  # the others do not wait for more
            others = [i for i in range(3) if i != index]
            for end in made.noted(2).values():
                assert (end.code, end.process, end.lost) == (1, index, True)
                assert end.reason.startswith("what it sends is no message of this job: ")
                assert "with the same release" in end.reason
                assert len(end.reason) < 300
            assert all(made.groups[i].wait_for_end(0) is not None for i in others)
        finally:
            for line in made.groups[index].connections:
                line.socket.close()

    def test_the_end_reaches_a_process_that_speaks_well(self) -> None:
        """Process 0 gets nonsense of one, and tells the other."""
        made = _Job(mute=1)
        (line,) = made.groups[1].connections
        line.socket.sendall(b'{"kind": "beat"}\nnonsense\n')
        line.socket.shutdown(socket.SHUT_WR)
        ends = made.noted(2)
        assert ends[0] == ends[2]
        assert "b'nonsense'" in ends[2].reason
        line.socket.close()

    def test_a_thread_that_fails_ends_the_job(self, monkeypatch: pytest.MonkeyPatch) -> None:
        made = _Job()

        def fail(line: object, message: object) -> None:
            raise ZeroDivisionError("no reason")

        monkeypatch.setattr(made.groups[2], "_take", fail)
        made.groups[0].send_all("beat")
        reason = "ZeroDivisionError while it listens to the others: no reason"
        assert made.noted(3) == dict.fromkeys(range(3), End(1, 2, reason, lost=True))


class TestJoin:
    def test_missing_are_named(self) -> None:
        address = _address()

        def refused(index: int) -> str:
            with pytest.raises(JoinError) as caught:
                join(Process(address, 5, index), timeout=3.0, heartbeat=SECONDS)
            return str(caught.value)

        assert set(_each(3, refused)) == {
            "processes 3, 4 of 5 did not join within 3 s (RROPE_JOIN_TIMEOUT)"
        }

    def test_no_process_0(self) -> None:
        with pytest.raises(JoinError, match=r"process 0 does not answer at 127\.0\.0\.1"):
            join(Process(_address(), 2, 1), timeout=0.5, heartbeat=SECONDS)

    def test_counts_that_differ(self) -> None:
        address = _address()

        def refused(index: int) -> str:
            with pytest.raises(JoinError) as caught:
                join(Process(address, 2 + index, index), timeout=SECONDS, heartbeat=SECONDS)
            return str(caught.value)

        assert set(_each(2, refused)) == {
            "one process was started as 1 of 3, process 0 as one of 2"
        }

    def test_strangers_do_no_harm(self) -> None:
        address = _address()
        host, port = address.split(":")

        def stranger() -> None:
            said_by_others = (
                b"",
                b"GET / HTTP/1.1\r\n\r\n",
                b"[1]\n",
                b'{"kind": "join"}\n',
                b'{"kind": "join", "index": [1], "count": 2}\n',
                b'{"kind": "join", "index": "1", "count": "2"}\n',
                b'{"kind": "join", "index": true, "count": 2}\n',
                b'{"kind": "beat"}\n',
            )
            for said in said_by_others:
                with socket.create_connection((host, int(port)), SECONDS) as connection:
                    connection.sendall(said)

        with ThreadPoolExecutor(2) as pool:
            hub = pool.submit(join, Process(address, 2, 0), timeout=SECONDS, heartbeat=SECONDS)
            while True:
                with contextlib.suppress(ConnectionRefusedError):  # it does not listen yet
                    stranger()
                    break
            member = join(Process(address, 2, 1), timeout=SECONDS, heartbeat=SECONDS)
            groups = [hub.result(), member]
        assert _each(2, lambda i: _greet(groups[i])) == [[0, 1]] * 2

    def test_waits_for_the_port(self) -> None:
        """A process of the run before may still be about to leave."""
        address = _address()
        host, port = address.split(":")
        taken = socket.create_server((host, int(port)))
        threading.Timer(0.5, taken.close).start()

        def greeted(index: int) -> list[int]:
            return _greet(join(Process(address, 2, index), timeout=SECONDS, heartbeat=SECONDS))

        assert _each(2, greeted) == [[0, 1]] * 2


class TestFindProcess:
    @pytest.fixture(autouse=True)
    def nothing_set(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
            monkeypatch.delenv(name, raising=False)

    @staticmethod
    def set(monkeypatch: pytest.MonkeyPatch, address: str, count: str, index: str) -> None:
        monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", address)
        monkeypatch.setenv("JAX_NUM_PROCESSES", count)
        monkeypatch.setenv("JAX_PROCESS_ID", index)

    def test_nothing_is_alone(self) -> None:
        assert find_process() is None

    def test_variables(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set(monkeypatch, "host:99", "3", "2")
        assert find_process() == Process("host:99", 3, 2)
        self.set(monkeypatch, "host:99", "1", "0")
        assert find_process() is None

    @pytest.mark.parametrize(
        ("address", "count", "index", "message"),
        [
            ("host:99", "", "", "JAX_NUM_PROCESSES is not set, but JAX_COORDINATOR_ADDRESS=host"),
            ("", "2", "0", "JAX_COORDINATOR_ADDRESS is not set"),
            ("host", "2", "0", "JAX_COORDINATOR_ADDRESS=host has to be host:port"),
            ("host:99", "two", "0", "JAX_NUM_PROCESSES=two has to be a whole number"),
            ("host:99", "2", "-1", "JAX_PROCESS_ID=-1 has to be a whole number"),
            ("host:99", "2", "2", "JAX_PROCESS_ID=2 has to be below JAX_NUM_PROCESSES=2"),
        ],
    )
    def test_bad_variables(
        self, monkeypatch: pytest.MonkeyPatch, address: str, count: str, index: str, message: str
    ) -> None:
        self.set(monkeypatch, address, count, index)
        with pytest.raises(UsageError, match="JAX_") as caught:
            find_process()
        assert str(caught.value).startswith(message)

    def test_slurm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        slurm = {
            "JOB_ID": "7",
            "STEP_NODELIST": "node[03-04]",
            "NTASKS": "16",
            "PROCID": "9",
            "LOCALID": "1",
        }
        for name, value in slurm.items():
            monkeypatch.setenv(f"SLURM_{name}", value)
        place = find_process()
        assert place is not None
        assert (place.count, place.index, place.devices) == (16, 9, [1])
        assert place.address.startswith("node03:")
        monkeypatch.setenv("SLURM_NTASKS", "1")
        assert find_process() is None

    @pytest.mark.parametrize("private", [None, lambda address: None], ids=["gone", "other"])
    def test_a_release_of_jax_that_detects_otherwise(
        self, monkeypatch: pytest.MonkeyPatch, private: object
    ) -> None:
        """A process that is alone needs nothing of it; several are told what to set."""
        monkeypatch.setattr(
            "jax._src.clusters.ClusterEnv.auto_detect_unset_distributed_params", private
        )
        assert find_process() is None
        monkeypatch.setenv("SLURM_NTASKS", "1")
        assert find_process() is None
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
        with pytest.raises(UsageError, match=r"set JAX_COORDINATOR_ADDRESS, .*_HOSTNAMES=a,b, but"):
            find_process()
        self.set(monkeypatch, "host:99", "2", "1")
        assert find_process() == Process("host:99", 2, 1)

    def test_tpus_in_kubernetes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the variables that GKE gives its pods, of one slice and of two."""
        monkeypatch.setattr(f"{TPU_CLUSTERS}.running_in_cloud_tpu_vm", True)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
        monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "127.0.0.1,pod-1,pod-2,pod-3")
        monkeypatch.setenv("TPU_WORKER_ID", "2")
        for name in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID"):
            monkeypatch.setenv(f"MEGASCALE_{name}", "")
        assert find_process() == Process("127.0.0.1:8482", 4, 2)
        monkeypatch.setenv("MEGASCALE_COORDINATOR_ADDRESS", "localhost:8080")
        monkeypatch.setenv("MEGASCALE_NUM_SLICES", "2")
        monkeypatch.setenv("MEGASCALE_SLICE_ID", "1")
        assert find_process() == Process("localhost:8482", 8, 6)

    def test_tpu_vms(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """By the metadata server that every host of a slice asks."""
        monkeypatch.setattr(f"{TPU_CLUSTERS}.running_in_cloud_tpu_vm", True)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES"):
            monkeypatch.delenv(name, raising=False)
        hosts = {
            "agent-worker-number": "1",
            "worker-network-endpoints": "a:b:127.0.0.1,c:d:10.0.0.2",
            "tpu-env": "ACCELERATOR_TYPE: 'v5litepod-16'\n",
        }
        with _metadata(hosts) as server:
            monkeypatch.setenv("GCE_METADATA_IP", server)
            assert find_process() == Process("127.0.0.1:8482", 2, 1)
            hosts["worker-network-endpoints"] = "a:b:127.0.0.1"
            hosts["agent-worker-number"] = "0"
            assert find_process() is None

    @pytest.mark.parametrize("value", ["soon", "0", "inf", "-3"])
    def test_bad_seconds(self, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
        self.set(monkeypatch, "host:99", "2", "0")
        monkeypatch.setenv("RROPE_JOIN_TIMEOUT", value)
        with pytest.raises(UsageError, match=f"RROPE_JOIN_TIMEOUT={value} has to be"):
            distributed.run("train", lambda peers: 0, preemption=True)
