"""Paths in object stores: Google Cloud Storage (`gs://`) and Amazon S3 (`s3://`).

All access goes through TensorStore's drivers, which also read and write the arrays of checkpoints,
so both find credentials alike and retry alike. An object appears whole or not at all, and can be
created or replaced on the condition that nobody else has done so.
"""

import contextlib
import dataclasses
import fnmatch
import functools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import tensorstore as ts

_URL = re.compile(r"\s*(gs|s3):/+([^/]*)/*(.*?)/*\s*", re.DOTALL)
# Of `StorageGeneration`: no object, and a condition that did not hold.
_NO_OBJECT, _NOT_MET = b"\x02", b""

# A request without an answer is sent again after these delays: 4 minutes before a run gives up, and
# seconds when it starts, where a wrong name or a missing network is likelier than an outage.
_PATIENT = {"max_retries": 14, "initial_delay": "100ms", "max_delay": "32s"}
_BRIEF = {"max_retries": 4, "initial_delay": "100ms", "max_delay": "2s"}
# An answer that stops arriving for this long counts as lost.
_STALLED_SECONDS = "30"
_BRIEF_SECONDS = 120
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
# The name of an object that nobody makes.
_PROBE = ".rrope-probe"


class StoreError(OSError):
    """Raised when an object store refuses a request or does not answer; says what mends it.

    Attributes:
      of_access: whether nothing is known of the object: the store does not answer, refuses, or has
        no such bucket.
    """

    def __init__(self, message: str, *, of_access: bool = True) -> None:
        super().__init__(message)
        self.of_access = of_access


class _Service(NamedTuple):
    """One kind of store.

    Attributes:
      driver: its TensorStore driver.
      settings: further fields of the driver's spec, from environment variables.
      name: what its vendor calls it.
      login: how a user gets credentials.
      server: the variable that names another server.
    """

    driver: str
    settings: dict[str, tuple[str, ...]]
    name: str
    login: str
    server: str


_SERVICES = {
    "gs": _Service(
        driver="gcs",
        settings={},
        name="Google Cloud Storage",
        login="`gcloud auth application-default login` or GOOGLE_APPLICATION_CREDENTIALS",
        server="TENSORSTORE_GCS_HTTP_URL",
    ),
    "s3": _Service(
        driver="s3",
        settings={
            "endpoint": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"),
            "aws_region": ("AWS_REGION", "AWS_DEFAULT_REGION"),
        },
        name="Amazon S3",
        login="AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
        server="AWS_ENDPOINT_URL",
    ),
}


@dataclasses.dataclass(frozen=True, order=True)
class StorePath:
    """An object in a store or a prefix of objects, used like a `pathlib.Path`.

    A prefix with objects below it counts as a folder. It is no `os.PathLike`, so that nothing takes
    it for a path on a disk.

    Attributes:
      scheme: `gs` or `s3`.
      bucket: the bucket.
      key: the rest of the URL, without slashes at its ends.
    """

    scheme: str
    bucket: str
    key: str = ""

    @classmethod
    def of(cls, url: str) -> "StorePath":
        """Parses a URL; one slash after the scheme is enough, as normalizing drops the other.

        Raises:
          ValueError: the URL names no bucket or has a part that stores do not resolve.
        """
        match = _URL.fullmatch(url)
        if match is None or not match[2]:
            raise ValueError(f"{url} names no bucket; give gs://BUCKET/PATH or s3://BUCKET/PATH")
        parts = match[3].split("/") if match[3] else []
        if wrong := [part for part in parts if part in ("", ".", "..")]:
            raise ValueError(f"{url} has the part {wrong[0]!r}, which object stores do not resolve")
        path = cls(match[1], match[2], match[3])
        try:
            ts.KvStore.Spec(path.spec())
        except ValueError as error:
            raise ValueError(f"{url} cannot be: {_first_line(error)}") from error
        return path

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.key}".rstrip("/")

    def __truediv__(self, name: str) -> "StorePath":
        return dataclasses.replace(self, key=f"{self.key}/{name}".lstrip("/"))

    @property
    def name(self) -> str:
        """The last part."""
        return PurePosixPath(self.key).name

    @property
    def suffix(self) -> str:
        """The ending of the name, such as `.json`."""
        return PurePosixPath(self.key).suffix

    @property
    def parts(self) -> tuple[str, ...]:
        """The names that slashes separate, without the bucket."""
        return PurePosixPath(self.key).parts

    @property
    def parent(self) -> "StorePath":
        """The path without its last part; a bucket is its own parent."""
        return dataclasses.replace(self, key=self.key.rpartition("/")[0])

    def exists(self) -> bool:
        """Whether there is an object of this name or below it."""
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return bool(self.key) and self in self._keys(self.key, _after(self.key))

    def is_dir(self) -> bool:
        """Whether there are objects below this name."""
        return any(True for _ in self.walk())

    def iterdir(self) -> Iterator["StorePath"]:
        """Yields the objects and folders directly below, in order."""
        start = len(self._prefix)
        names = {path.key[start:].partition("/")[0] for path in self.walk()}
        yield from (self / name for name in sorted(names))

    def glob(self, pattern: str) -> list["StorePath"]:
        """Returns what is directly below with a name that matches, in order."""
        return [path for path in self.iterdir() if fnmatch.fnmatchcase(path.name, pattern)]

    def walk(self) -> list["StorePath"]:
        """Returns all objects below this name at any depth, in order."""
        prefix = self._prefix
        end = prefix[:-1] + chr(ord("/") + 1) if prefix else ""
        return self._keys(prefix, end)

    def read_bytes(self) -> bytes:
        """Reads an object.

        Raises:
          FileNotFoundError: there is none.
          StoreError: it cannot be read.
        """
        return self.read_version()[0]

    def read_text(self, encoding: str = "utf-8") -> str:
        """Reads an object as text; see `read_bytes`."""
        return self.read_bytes().decode(encoding)

    def read_version(self) -> tuple[bytes, bytes]:
        """Reads an object and what identifies this version of it; see `read_bytes`."""
        read = self._result(self._store().read(self.key))
        if read.state != "value":
            raise FileNotFoundError(f"{self} does not exist")
        return bytes(read.value), bytes(read.stamp.generation)

    def read_if_changed(self, version: bytes | None) -> tuple[bytes, bytes] | None:
        """Like `read_version`, but returns None if the object is still the given version."""
        if version is None:
            return self.read_version()
        read = self._result(self._store().read(self.key, if_not_equal=version))
        if read.state == "unspecified":
            return None
        if read.state != "value":
            raise FileNotFoundError(f"{self} does not exist")
        return bytes(read.value), bytes(read.stamp.generation)

    def write_bytes(self, data: bytes | memoryview) -> None:
        """Writes an object whole: readers see the old content or the new.

        Raises:
          StoreError: it cannot be written.
        """
        self._result(self._store().write(self.key, bytes(data)))

    def write_text(self, text: str) -> None:
        """Writes text as UTF-8; see `write_bytes`."""
        self.write_bytes(text.encode())

    def replace_version(self, data: bytes | None, version: bytes | None) -> bytes | None:
        """Writes or removes an object only if it is still the given version.

        Args:
          data: the new content; None to remove the object.
          version: as `read_version` has returned it; None if there must be no object.

        Returns:
          The new version; None if the condition does not hold. After a lost answer the request is
          sent again, may find its own work and return None: compare the content.

        Raises:
          StoreError: the store cannot be written.
        """
        condition = _NO_OBJECT if version is None else version
        stamp = self._result(self._store().write(self.key, data, if_equal=condition))
        return None if stamp.generation == _NOT_MET else bytes(stamp.generation)

    def unlink(self, missing_ok: bool = False) -> None:
        """Removes an object; does not mind a missing one, as stores do not tell."""
        self._result(self._store().write(self.key, None))

    def rmtree(self) -> None:
        """Removes all objects below this name."""
        prefix = self._prefix
        limits = ts.KvStore.KeyRange(prefix, prefix[:-1] + chr(ord("/") + 1))
        self._result(self._store().delete_range(limits))

    def check(self) -> None:
        """Checks quickly that the store answers and that the bucket may be listed.

        Raises:
          StoreError: it may not, or the store does not answer; on S3 also if there is no bucket.
        """
        self._keys(f"{self._prefix}{_PROBE}", f"{self._prefix}{_PROBE}0", brief=True)

    def spec(self) -> dict[str, Any]:
        """The TensorStore spec of a key-value store whose keys are below this path."""
        service = _SERVICES[self.scheme]
        read = {
            field: next((os.environ[name] for name in names if os.environ.get(name)), None)
            for field, names in service.settings.items()
        }
        given = {field: value for field, value in read.items() if value is not None}
        return {"driver": service.driver, "bucket": self.bucket, "path": self._prefix, **given}

    @property
    def _prefix(self) -> str:
        return f"{self.key}/" if self.key else ""

    def _keys(self, start: str, end: str, *, brief: bool = False) -> list["StorePath"]:
        store, seconds = self._store(brief=brief), _BRIEF_SECONDS if brief else None
        keys = self._result(store.list(ts.KvStore.KeyRange(start, end)), seconds)
        if not keys:
            # TensorStore's driver for GCS lists nothing where it may not list. Then GCS also
            # answers 403, not 404, for an object that does not exist.
            self._result(store.read(f"{self._prefix}{_PROBE}"), seconds)
        return [dataclasses.replace(self, key=key.decode()) for key in sorted(keys)]

    def _store(self, *, brief: bool = False) -> ts.KvStore:
        spec = dataclasses.replace(self, key="").spec()
        store: ts.KvStore = self._result(ts.KvStore.open(spec, context=context(brief=brief)))
        return store

    def _result(self, future: Any, seconds: float | None = None) -> Any:
        """Waits for a request; raises StoreError with the path and what mends it."""
        try:
            return future.result(timeout=seconds)
        except Exception as error:  # TensorStore raises many types
            raise self.explain(error) from error

    def explain(self, error: Exception) -> StoreError:
        """Returns the error to raise for one of TensorStore's."""
        service = _SERVICES[self.scheme]
        text = _first_line(error)
        bucket = f"{self.scheme}://{self.bucket}"
        if isinstance(error, TimeoutError) or re.search("UNAVAILABLE|DEADLINE|ABORTED", text):
            server = os.environ.get(service.server)
            where = f"{service.name} (the server of {service.server}={server})" if server else ""
            return StoreError(
                f"{self}: {where or service.name} does not answer; check the network of this "
                f"machine and try again ({text})"
            )
        if re.search("NoSuchBucket|NOT_FOUND.*http_response_code", text):
            return StoreError(
                f"{self}: the bucket {bucket} does not exist; make it, or give another path"
            )
        if re.search("PERMISSION_DENIED|UNAUTHENTICATED|AccessDenied|Forbidden", text):
            return StoreError(
                f"{self}: permission denied; the account needs to list, read, write and delete "
                f"objects of {bucket}, and credentials come from {service.login}"
            )
        return StoreError(f"{self}: {text}", of_access=False)


AnyPath = Path | StorePath
"""A path on a disk or in an object store."""


def remove(folder: AnyPath) -> None:
    """Removes a folder and all that is in it; does not mind if it is missing."""
    if isinstance(folder, StorePath):
        folder.rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def sent_to(folder: StorePath) -> Iterator[Path]:
    """Yields a folder on the disk whose files are sent to a folder of a store at the end."""
    with tempfile.TemporaryDirectory() as name:
        local = Path(name)
        try:
            yield local
        finally:
            send(local, folder)


def send(local: Path, folder: StorePath) -> None:
    """Writes all files of a folder on the disk to a folder of a store."""
    for file in sorted(local.rglob("*")):
        if file.is_file():
            (folder / file.relative_to(local).as_posix()).write_bytes(file.read_bytes())


def is_store(path: str | os.PathLike[str] | StorePath) -> bool:
    """Whether a path is the URL of an object store."""
    return isinstance(path, StorePath) or re.match(r"\s*(gs|s3):/", os.fspath(path)) is not None


def context(*, brief: bool = False) -> ts.Context:
    """The TensorStore context for stores, whose connections all paths share."""
    # The first that are looked for anyway; looking for others logs errors with every request.
    in_environment = all(os.environ.get(name) for name in _AWS_KEYS)
    return _context(brief, "environment" if in_environment else "default")


@functools.cache
def _context(brief: bool, aws_credentials: str) -> ts.Context:
    for name in ("LOW_SPEED_TIME_SECONDS", "LOW_SPEED_LIMIT_BYTES"):
        value = _STALLED_SECONDS if "TIME" in name else "1"
        os.environ.setdefault(f"TENSORSTORE_CURL_{name}", value)
    retries = _BRIEF if brief else _PATIENT
    return ts.Context(
        {
            "gcs_request_retries": retries,
            "s3_request_retries": retries,
            "aws_credentials": {"type": aws_credentials},
        }
    )


def _after(key: str) -> str:
    """The first key after this one."""
    return key + "\x00"


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
