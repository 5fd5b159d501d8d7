"""Paths in object stores, against a server on loopback."""

import pytest

from rrope_jax.io.paths import absolute
from rrope_jax.io.stores import StoreError, StorePath
from tests.stores.object_server import Faults, ObjectServer


def test_objects_and_folders(folder: StorePath) -> None:
    assert not folder.exists()
    for number in range(120):  # more than the server lists at once
        (folder / "many" / f"{number:03}").write_bytes(b"")
    (folder / "many.txt").write_text("not in the folder")
    (folder / "a name#?% é").write_text("é")
    assert [path.name for path in folder.iterdir()] == ["a name#?% é", "many", "many.txt"]
    assert len((folder / "many").walk()) == 120
    assert [(folder / name).is_dir() for name in ("many", "many.txt", "man")] == [
        True,
        False,
        False,
    ]
    assert [(folder / name).is_file() for name in ("many", "many.txt", "m")] == [False, True, False]
    assert folder.glob("*.txt") == [folder / "many.txt"]
    assert (folder / "a name#?% é").read_text() == "é"
    (folder / "many").rmtree()
    assert [path.name for path in folder.iterdir()] == ["a name#?% é", "many.txt"]
    with pytest.raises(FileNotFoundError, match="many/001 does not exist"):
        (folder / "many" / "001").read_bytes()


def test_only_one_creates_and_replaces(folder: StorePath) -> None:
    path = folder / "lock"
    version = path.replace_version(b"first", None)
    assert version is not None
    assert path.replace_version(b"second", None) is None
    assert path.read_version() == (b"first", version)
    newer = path.replace_version(b"third", version)
    assert newer is not None
    assert path.replace_version(b"fourth", version) is None
    assert path.read_bytes() == b"third"
    path.replace_version(None, newer)
    assert not path.exists()


@pytest.mark.parametrize("fault", [{"drop_before": 0.3}, {"drop_after": 0.3}, {"busy": 0.3}])
def test_lost_requests_are_sent_again(
    folder: StorePath, server: ObjectServer, fault: dict[str, float]
) -> None:
    server.faults = Faults(**fault)
    for number in range(4):
        (folder / str(number)).write_bytes(b"%d" % number)
    assert [path.read_bytes() for path in folder.walk()] == [b"0", b"1", b"2", b"3"]


def test_what_is_wrong_is_said_soon(folder: StorePath, server: ObjectServer) -> None:
    bucket = f"{folder.scheme}://bucket"
    server.faults = Faults(forbidden=("GET", "HEAD"))
    for ask in (folder.check, folder.exists, (folder / "x").read_bytes):
        with pytest.raises(StoreError, match=f"permission denied; .* objects of {bucket}, and"):
            ask()
    server.faults = Faults(forbidden=("PUT", "POST"))
    with pytest.raises(StoreError, match="runs/first/x: permission denied"):
        (folder / "x").write_bytes(b"")
    server.faults = Faults(busy=1.0)
    with pytest.raises(StoreError, match="does not answer; check the network"):
        folder.check()
    server.faults = Faults()
    absent = StorePath.of(f"{folder.scheme}://absent/run")
    with pytest.raises(StoreError, match=r"the bucket .*://absent does not exist; make it"):
        (absent / "x").write_bytes(b"")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://", "names no bucket"),
        ("gs://BUCKET/run", "Invalid GCS bucket name"),
        ("s3://bucket/../run", "the part '..'"),
        ("gs://bucket/a//b", "the part ''"),
        ("hf://datasets/a", "is a URL"),
        ("https://storage.googleapis.com/bucket", "is a URL"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        absolute(url)


def test_urls() -> None:
    path = absolute("gs:/bucket/a/b.txt/")
    assert str(path) == "gs://bucket/a/b.txt"
    assert (path.name, path.suffix, path.parts) == ("b.txt", ".txt", ("a", "b.txt"))
    assert str(path.parent.parent) == "gs://bucket"
