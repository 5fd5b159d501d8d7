"""Workdirs in object stores: one owner at a time, one config, and no lock that outlives a run."""

import os
import subprocess
import sys
import threading
import time

import pytest

from rrope_jax.cli.errors import UsageError
from rrope_jax.io.stores import StoreError, StorePath
from rrope_jax.run import store_lock
from rrope_jax.run.store_lock import StoreLock
from rrope_jax.run.workdir import Workdir
from tests.stores.object_server import Faults, ObjectServer

IDENTITY = {"config": {"steps": 3, "tasks": ("cot",)}}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RROPE_LOCK_SECONDS", "1")


def test_belongs_to_one_config(folder: StorePath) -> None:
    with Workdir.claim(str(folder), IDENTITY) as workdir:
        assert workdir.path == folder
        workdir.write_json("cells/one.json", {"done": True})
    with Workdir.claim(str(folder), IDENTITY) as workdir:
        assert workdir.find_json("cells/one.json") == {"done": True}
        assert workdir.find_json("cells/two.json") is None
    with pytest.raises(UsageError, match=f"{folder} belongs to another config: config.steps is 3"):
        Workdir.claim(str(folder), {"config": {"steps": 4, "tasks": ("cot",)}})
    assert [path.name for path in folder.iterdir()] == ["cells", "config.json"]
    with pytest.raises(
        UsageError, match=r"first' but no config\.json, so it is not a job's folder"
    ):
        Workdir.claim(str(folder.parent), IDENTITY)


def test_second_run_is_refused_by_name(folder: StorePath) -> None:
    with Workdir.claim(str(folder), IDENTITY):
        who = f"in use by process {os.getpid()} on "
        with pytest.raises(UsageError, match=f"--workdir={folder} is {who}"):
            Workdir.claim(str(folder), IDENTITY)
    Workdir.claim(str(folder), IDENTITY).release()


def test_one_of_many_gets_it(folder: StorePath) -> None:
    claimed: list[Workdir] = []
    refused: list[str] = []

    def claim() -> None:
        try:
            claimed.append(Workdir.claim(str(folder), IDENTITY))
        except UsageError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=claim) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(claimed) == 1
    assert all("is in use by process" in message for message in refused)
    claimed[0].release()


def test_lock_that_nobody_renews_is_taken(folder: StorePath) -> None:
    lock = folder / ".lock"
    lock.write_text('{"token": "t", "host": "h", "process": 1, "boot": "b", "seconds": 0.5}')
    with Workdir.claim(str(folder), IDENTITY):
        assert lock.read_bytes() != b""
    lock.write_bytes(b"damaged")
    Workdir.claim(str(folder), IDENTITY).release()


def test_lock_of_a_killed_process_here_is_taken_at_once(
    folder: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = (
        "import os, sys; from rrope_jax.run.workdir import Workdir;"
        f"Workdir.claim({str(folder)!r}, {IDENTITY!r}); os.kill(os.getpid(), 9)"
    )
    environment = {**os.environ, "RROPE_LOCK_SECONDS": "1000"}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -9
    assert (folder / ".lock").exists()
    Workdir.claim(str(folder), IDENTITY).release()
    assert not (folder / ".lock").exists()


def test_lost_answer_leaves_no_lock(folder: StorePath, server: ObjectServer) -> None:
    """The request that is sent again finds an object that is its own."""
    answers = threading.Event()

    def lose_first(method: str, key: str) -> None:
        if key.endswith(".lock") and method in ("POST", "PUT") and not answers.is_set():
            answers.set()
            server.faults.drop_after = 1.0
        else:
            server.faults.drop_after = 0.0

    server.faults = Faults(before=lose_first)
    Workdir.claim(str(folder), IDENTITY).release()
    assert answers.is_set()


def test_run_that_lost_its_lock_ends(folder: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()

    def end(reason: str) -> None:
        assert "has taken" in reason
        ended.set()

    monkeypatch.setattr(store_lock, "_end", end)
    lock = StoreLock.take(folder, 0.3)
    (folder / ".lock").write_bytes(b"another's")
    assert ended.wait(10)
    lock.release()
    assert (folder / ".lock").read_bytes() == b"another's"


def test_renewal_of_which_nothing_was_heard_is_no_loss(
    folder: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store took a renewal, and no answer came until the requests were given up."""
    contents: list[bytes] = []
    write = StorePath.replace_version

    def unheard(path: StorePath, data: bytes | None, version: bytes | None) -> bytes | None:
        new = write(path, data, version)
        if data is not None and new is not None:
            contents.append(data)
            if len(contents) == 2:
                raise StoreError("no answer")
        return new

    monkeypatch.setattr(StorePath, "replace_version", unheard)
    monkeypatch.setattr(store_lock, "_end", lambda reason: contents.append(b""))
    lock = StoreLock.take(folder, 0.3)
    end = time.monotonic() + 10
    while len(contents) < 5 and time.monotonic() < end:
        time.sleep(0.05)
    lock.release()
    assert len(contents) >= 5
    assert all(contents)
    assert not (folder / ".lock").exists()


@pytest.mark.parametrize("fault", ["bucket", "forbidden", "silent"])
def test_unusable_stores_are_refused(folder: StorePath, server: ObjectServer, fault: str) -> None:
    path = str(folder)
    if fault == "bucket":
        path, message = path.replace("bucket", "absent"), "absent does not exist; make it"
    elif fault == "forbidden":
        server.faults, message = Faults(forbidden=("PUT", "POST")), "permission denied"
    else:
        server.faults, message = Faults(drop_before=1.0), "does not answer"
    with pytest.raises(UsageError, match=f"^--workdir: {path}.*{message}"):
        Workdir.claim(path, IDENTITY)
    assert server.names("bucket") == []
