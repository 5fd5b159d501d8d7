"""A loopback server of both protocols, and a folder in it."""

from collections.abc import Iterator

import pytest

from rrope_jax.io.stores import StorePath
from tests.stores.object_server import ObjectServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectServer]:
    """The server, with one bucket, where this process finds it."""
    server = ObjectServer("bucket")
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    yield server
    server.close()


@pytest.fixture(params=["gs", "s3"])
def folder(request: pytest.FixtureRequest, server: ObjectServer) -> StorePath:
    """A folder in the bucket, by both protocols."""
    return StorePath.of(f"{request.param}://bucket/runs/first")
