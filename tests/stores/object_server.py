"""A loopback server of Google Cloud Storage and Amazon S3, as far as the package uses them.

Both protocols on one port and over the same objects, in memory. `Faults` says what goes wrong.
"""

import contextlib
import dataclasses
import hashlib
import http.server
import json
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from typing import Any
from xml.sax.saxutils import escape


@dataclasses.dataclass
class Faults:
    """What goes wrong, by chance or always.

    Attributes:
      drop_before: probability that a request is lost: the connection closes and nothing happens.
      drop_after: probability that an answer is lost: it happens, and the connection closes.
      busy: probability of a 503.
      delay: the longest delay of a request in seconds.
      forbidden: methods that are answered with 403, such as PUT and POST.
      before: called with the method and the object's key before anything happens.
    """

    drop_before: float = 0.0
    drop_after: float = 0.0
    busy: float = 0.0
    delay: float = 0.0
    forbidden: tuple[str, ...] = ()
    before: Callable[[str, str], None] | None = None


class _FailureError(Exception):
    def __init__(self, status: int, code: str):
        super().__init__(code)
        self.status, self.code = status, code


class ObjectServer:
    """The server; `url` is its address."""

    def __init__(self, *buckets: str) -> None:
        self.faults = Faults()
        self.objects: dict[str, dict[str, tuple[bytes, int]]] = {name: {} for name in buckets}
        self.requests = 0
        self._chance = random.Random(0)
        self._lock = threading.Lock()
        self._generation = 1_000_000
        server = self

        class Handler(_Handler):
            store = server

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stops the server."""
        self._http.shutdown()
        self._http.server_close()

    def environment(self) -> dict[str, str]:
        """The variables that point a process to this server."""
        return self.settings(self.url, self.url)

    @staticmethod
    def settings(gcs: str, s3: str) -> dict[str, str]:
        """The variables that point a process to two servers without real accounts."""
        return {
            "TENSORSTORE_GCS_HTTP_URL": gcs,
            "AWS_ENDPOINT_URL": s3,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_EC2_METADATA_DISABLED": "true",
            "GOOGLE_APPLICATION_CREDENTIALS": "",
        }

    def names(self, bucket: str) -> list[str]:
        """The keys of a bucket, in order."""
        with self._lock:
            return sorted(self.objects[bucket])

    def happens(self, probability: float) -> bool:
        """Draws a fault."""
        with self._lock:
            return self._chance.random() < probability

    def wait(self) -> None:
        """Delays a request."""
        if self.faults.delay:
            with self._lock:
                seconds = self._chance.random() * self.faults.delay
            time.sleep(seconds)

    @contextlib.contextmanager
    def bucket(self, name: str) -> Iterator[dict[str, tuple[bytes, int]]]:
        """The objects of a bucket, for one request at a time."""
        with self._lock:
            if name not in self.objects:
                raise _FailureError(404, "NoSuchBucket")
            yield self.objects[name]

    def put(self, objects: dict[str, tuple[bytes, int]], key: str, data: bytes) -> int:
        """Writes an object; returns its generation."""
        self._generation += 1
        objects[key] = (data, self._generation)
        return self._generation


def etag(data: bytes) -> str:
    """S3's name for a version."""
    return f'"{hashlib.md5(data).hexdigest()}"'


class _Handler(http.server.BaseHTTPRequestHandler):
    store: ObjectServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def _answer(self) -> None:
        faults = self.store.faults
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.store.requests += 1
        self.store.wait()
        if self.store.happens(faults.drop_before):
            self.close_connection = True
            return
        url = urllib.parse.urlsplit(self.path)
        query = {k: v[0] for k, v in urllib.parse.parse_qs(url.query, True).items()}
        is_gcs = url.path.startswith(("/storage/", "/upload/"))
        try:
            if self.command in faults.forbidden:
                raise _FailureError(403, "AccessDenied")
            if self.store.happens(faults.busy):
                raise _FailureError(503, "SlowDown")
            status, data, headers = (self._gcs if is_gcs else self._s3)(url.path, query, body)
        except _FailureError as failure:
            status, headers = failure.status, {}
            text = json.dumps({"error": {"code": status, "message": failure.code}})
            if not is_gcs:
                text = f"<?xml version='1.0'?><Error><Code>{failure.code}</Code></Error>"
            data = text.encode()
        if self.store.happens(faults.drop_after):
            self.close_connection = True
            return
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _answer

    def _ranged(self, data: bytes) -> tuple[int, bytes]:
        ranges = self.headers.get("range", "")
        if not ranges:
            return 200, data
        first, _, last = ranges.removeprefix("bytes=").partition("-")
        if not first:
            return 206, data[-int(last) :]
        if int(first) >= len(data):
            raise _FailureError(416, "InvalidRange")
        return 206, data[int(first) : int(last) + 1 if last else None]

    def _watched(self, key: str) -> None:
        if self.store.faults.before is not None:
            self.store.faults.before(self.command, key)

    def _gcs(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, Any]:
        parts = [urllib.parse.unquote(part) for part in path.strip("/").split("/")]
        if parts[0] == "upload":
            parts = parts[1:]
        bucket, key = parts[3], parts[5] if len(parts) > 5 else query.get("name")
        self._watched(key or "")
        with self.store.bucket(bucket) as objects:
            if key is None:
                return 200, json.dumps(_gcs_list(objects, query)).encode(), {}
            stored = objects.get(key)
            generation = stored[1] if stored else 0
            if int(query.get("ifGenerationMatch", generation)) != generation:
                raise _FailureError(412, "conditionNotMet")
            if self.command == "POST":
                made = self.store.put(objects, key, body)
                return 200, json.dumps(_gcs_object(bucket, key, body, made)).encode(), {}
            if stored is None:
                raise _FailureError(404, "No such object")
            if self.command == "DELETE":
                del objects[key]
                return 204, b"", {}
            if query.get("ifGenerationNotMatch") == str(generation):
                return 304, b"", {}
            if query.get("alt") != "media":
                return 200, json.dumps(_gcs_object(bucket, key, *stored)).encode(), {}
            status, data = self._ranged(stored[0])
            headers = {"x-goog-generation": str(generation)}
            if status == 206:
                headers["content-range"] = self._content_range(len(stored[0]), len(data))
            return status, data, headers

    def _content_range(self, size: int, length: int) -> str:
        first, _, _ = self.headers["range"].removeprefix("bytes=").partition("-")
        start = int(first) if first else size - length
        return f"bytes {start}-{start + length - 1}/{size}"

    def _s3(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, bytes, Any]:
        bucket, _, key = urllib.parse.unquote(path).lstrip("/").partition("/")
        self._watched(key)
        with self.store.bucket(bucket) as objects:
            if not key:
                return 200, _s3_list(objects, query).encode(), {"content-type": "application/xml"}
            stored = objects.get(key)
            current = etag(stored[0]) if stored else None
            match, none_match = self.headers.get("if-match"), self.headers.get("if-none-match")
            if self.command == "HEAD" and stored is None:
                raise _FailureError(404, "NoSuchKey")
            if match is not None and match != current:
                raise _FailureError(412, "PreconditionFailed")
            if none_match is not None and none_match in ("*", current) and stored:
                if self.command == "GET":
                    return 304, b"", {}
                raise _FailureError(412, "PreconditionFailed")
            if self.command == "PUT":
                self.store.put(objects, key, body)
                return 200, b"", {"etag": etag(body)}
            if self.command == "DELETE":
                objects.pop(key, None)
                return 204, b"", {}
            if stored is None:
                raise _FailureError(404, "NoSuchKey")
            status, data = self._ranged(stored[0])
            headers = {"etag": etag(stored[0])}
            if status == 206:
                headers["content-range"] = self._content_range(len(stored[0]), len(data))
            return status, data, headers


_PAGE = 100  # objects; small, so that listings have several pages


def _gcs_object(bucket: str, key: str, data: bytes, generation: int) -> dict[str, Any]:
    return {
        "kind": "storage#object",
        "name": key,
        "bucket": bucket,
        "generation": str(generation),
        "metageneration": "1",
        "size": str(len(data)),
    }


def _gcs_list(objects: dict[str, tuple[bytes, int]], query: dict[str, str]) -> dict[str, Any]:
    start, end = query.get("startOffset", ""), query.get("endOffset")
    keys = [key for key in sorted(objects) if start <= key and (end is None or key < end)]
    keys = [key for key in keys if key > query.get("pageToken", "")]
    page = {"items": [_gcs_object("", key, *objects[key]) for key in keys[:_PAGE]]}
    return page | ({"nextPageToken": keys[_PAGE - 1]} if len(keys) > _PAGE else {})


def _s3_list(objects: dict[str, tuple[bytes, int]], query: dict[str, str]) -> str:
    prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
    after = max(after, query.get("start-after", ""))
    keys = [key for key in sorted(objects) if key.startswith(prefix) and key > after]
    more = len(keys) > _PAGE
    items = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{len(objects[key][0])}</Size></Contents>"
        for key in keys[:_PAGE]
    )
    token = (
        f"<NextContinuationToken>{escape(keys[_PAGE - 1])}</NextContinuationToken>" if more else ""
    )
    return (
        "<?xml version='1.0' encoding='UTF-8'?><ListBucketResult>"
        f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(keys[:_PAGE])}</KeyCount>"
        f"{items}{token}</ListBucketResult>"
    )
