"""A run's logs: metrics.jsonl, TensorBoard event files, progress lines."""

import contextlib
import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary

from rrope_jax.io.stores import AnyPath, StoreError, StorePath, send
from rrope_jax.io.target import replace_file
from rrope_jax.reporting.quantities import clock

_LOG = logging.getLogger(__name__)

FILE = "metrics.jsonl"
_EVENTS = "tensorboard"
_PROGRESS_SECONDS = 10.0
_SEND_SECONDS = 60.0


class MetricsLog:
    """metrics.jsonl, with one object per step, and the same numbers for TensorBoard.

    A run that resumes from a checkpoint first drops the records after it, so that every step occurs
    once. TensorBoard's event files are then rewritten from metrics.jsonl, since records cannot be
    removed from them.
    """

    def __init__(self, folder: Path, *, after: int):
        """Opens the files of a run.

        Args:
          folder: the run's folder.
          after: the step to resume from; 0 for a new run.

        Raises:
          OSError: the files cannot be written.
        """
        records = [r for r in read(folder / FILE) if r["step"] <= after]
        replace_file(folder / FILE, "".join(map(_line, records)).encode())
        self._file = (folder / FILE).open("a")
        events = folder / _EVENTS
        shutil.rmtree(events, ignore_errors=True)
        events.mkdir()
        self._events = EventsWriter(str(events / "events"))
        for record in records:
            self._write_events(record)

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds the record of one step: `step`, `time` (seconds since 1970) and numbers.

        Raises:
          OSError: the disk is full.
          ValueError: a number is not finite, which JSON cannot express.
        """
        try:
            self._file.write(_line(record))
            self._file.flush()
            self._write_events(record)
        except OSError as error:
            error.filename = self._file.name  # write errors do not name the file
            raise

    def sync(self) -> None:
        """Flushes to disk, so that a checkpoint saved next never precedes its records."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._events.flush()

    def _write_events(self, record: Mapping[str, Any]) -> None:
        values = [
            Summary.Value(tag=name, simple_value=value)
            for name, value in record.items()
            if name not in ("step", "time")
        ]
        event = Event(step=record["step"], wall_time=record["time"], summary=Summary(value=values))
        self._events.write_event(event)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for close in (self._file.close, self._events.close):
            try:
                close()
            except OSError:
                if error is None:
                    raise


class StoreMetricsLog(MetricsLog):
    """The log of a run in an object store, which has no files to append to.

    Files are written on the disk and sent whole: with each checkpoint, at the end, and at times.
    """

    def __init__(self, folder: StorePath, *, after: int):
        """Opens the files of a run; see `MetricsLog`.

        Raises:
          StoreError: they cannot be read or sent.
        """
        self._folder = folder
        self._local = tempfile.TemporaryDirectory()
        local = Path(self._local.name)
        with contextlib.suppress(FileNotFoundError):
            (local / FILE).write_bytes((folder / FILE).read_bytes())
        super().__init__(local, after=after)
        (folder / _EVENTS).rmtree()
        self._send()

    def write(self, record: Mapping[str, Any]) -> None:
        """Adds a record; see `MetricsLog.write`."""
        super().write(record)
        if time.monotonic() - self._sent > _SEND_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Sends what has been written; see `MetricsLog.sync`."""
        super().sync()
        self._send()

    def _send(self) -> None:
        send(Path(self._local.name), self._folder)
        self._sent = time.monotonic()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, traceback)
        with self._local:
            try:
                self._send()
            except StoreError:
                if error is None:
                    raise


def log_of_run(folder: AnyPath, *, after: int) -> MetricsLog:
    """Opens the log of a run on a disk or in an object store; see `MetricsLog`."""
    if isinstance(folder, StorePath):
        return StoreMetricsLog(folder, after=after)
    return MetricsLog(folder, after=after)


class NoLog:
    """Replaces `MetricsLog` in processes that write no metrics."""

    def write(self, record: Mapping[str, Any]) -> None:
        """Does nothing."""

    def sync(self) -> None:
        """Does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass


def read(file: Path) -> list[dict[str, Any]]:
    """The records of a metrics.jsonl, in order.

    Damaged lines, such as zeros left by a power outage, are skipped with a warning, since a run's
    results do not depend on its log. An incomplete last line, left by a killed run, is skipped
    silently.
    """
    if not file.exists():
        return []
    *lines, _ = file.read_bytes().split(b"\n")  # the last line is empty or incomplete
    records, damaged = [], []
    for number, line in enumerate(lines, 1):
        if (record := _record(line)) is not None:
            records.append(record)
        elif line.strip():
            damaged.append(number)
    if damaged:
        several = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        _LOG.warning("%s: line %d%s is damaged and left out", file, damaged[0], several)
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    """The record of a line; None if it is not the record of a step."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not {"step", "time"} <= record.keys():
        return None
    step = record["step"]
    is_step = type(step) is int and 0 < step < 2**63
    return record if is_step and all(map(_is_number, record.values())) else None


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _line(record: Mapping[str, Any]) -> str:
    return json.dumps(record, allow_nan=False) + "\n"


class Progress:
    """Logs a progress line from time to time: step, loss, rate, speed, waiting, time left."""

    def __init__(self, *, first: int, steps: int):
        """Starts the clock of a run that has done `first` of its `steps` steps."""
        self._first, self._steps = first, steps
        self._start = self._logged = time.monotonic()

    def report(self, record: Mapping[str, Any]) -> None:
        """Logs a step if it is the first or last, was evaluated, or the previous line is old."""
        now = time.monotonic()
        step = record["step"]
        if (
            now - self._logged < _PROGRESS_SECONDS
            and "eval_loss" not in record
            and step not in (self._first + 1, self._steps)
        ):
            return
        self._logged = now
        left = (now - self._start) / (step - self._first) * (self._steps - step)
        evaluated = f"  held out {record['eval_loss']:.4f}" if "eval_loss" in record else ""
        _LOG.info(
            "step %d/%d  loss %.4f%s  rate %.2e  %.0f tokens/s  waiting %.1f %%  %s left",
            step,
            self._steps,
            record["loss"],
            evaluated,
            record["learning_rate"],
            record["tokens_per_second"],
            100 * record["waiting"],
            clock(left),
        )
