"""metrics.jsonl and its twin for TensorBoard, over restarts."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from rrope_jax.train.metrics import MetricsLog, read


def _record(step: int, loss: float = 1.0) -> dict[str, Any]:
    return {"step": step, "loss": loss, "time": 1e9 + step}


def _events(folder: Path) -> list[tuple[int, float, float]]:
    """(step, time, loss) of the scalars, by the format of TFRecord files."""
    (file,) = (folder / "tensorboard").iterdir()
    data, found = file.read_bytes(), []
    while data:  # length (8 bytes), its checksum (4), content, checksum (4)
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        for value in event.summary.value:
            assert value.tag == "loss"
            found.append((event.step, event.wall_time, value.simple_value))
        data = data[16 + size :]
    return found


def test_records_come_back_exactly(tmp_path: Path) -> None:
    losses = [0.1, 1 / 3, 5.0307, 1e-30]
    with MetricsLog(tmp_path, after=0) as log:
        for step, loss in enumerate(losses, 1):
            log.write(_record(step, loss))
            assert len(read(tmp_path / "metrics.jsonl")) == step  # at once, not when it is closed
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == losses
    assert [(step, time) for step, time, _ in _events(tmp_path)] == [
        (step, 1e9 + step) for step in (1, 2, 3, 4)
    ]


def test_going_on_drops_what_came_after(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, after=0) as log:
        for step in (1, 2, 3, 4):
            log.write(_record(step))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    with MetricsLog(tmp_path, after=2) as log:
        log.write(_record(3, 7.0))
    assert [(r["step"], r["loss"]) for r in read(tmp_path / "metrics.jsonl")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 7.0),
    ]
    assert [(step, loss) for step, _, loss in _events(tmp_path)] == [(1, 1.0), (2, 1.0), (3, 7.0)]


DAMAGED = {
    "zeros": bytes(300),
    "half a line": b'{"step": 4, "lo',
    "another step's half": b'{"step": 4, "lo{"step": 5, "loss": 1.0, "time": 1.0}',
    "no UTF-8": b'{"step": 4, "\xff\xfe": 1.0, "time": 1.0}',
    "no object": b"3",
    "null": b"null",
    "no step": b'{"loss": 1.0, "time": 1.0}',
    "no time": b'{"step": 4, "loss": 1.0}',
    "step is text": b'{"step": "4", "loss": 1.0, "time": 1.0}',
    "step is huge": b'{"step": 99999999999999999999, "loss": 1.0, "time": 1.0}',
    "loss is text": b'{"step": 4, "loss": "1.0", "time": 1.0}',
    "loss is no number": b'{"step": 4, "loss": NaN, "time": 1.0}',
    "time is null": b'{"step": 4, "loss": 1.0, "time": null}',
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_line_is_left_out(name: str, place: int, tmp_path: Path) -> None:
    good = [json.dumps(_record(step)).encode() for step in (1, 2, 3, 6)]
    lines = [*good[:place], DAMAGED[name], *good[place:]]
    (tmp_path / "metrics.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
    with MetricsLog(tmp_path, after=3) as log:
        log.write(_record(4, 7.0))
    expected = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 7.0)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [(json.loads(line)["step"], json.loads(line)["loss"]) for line in lines] == expected
    assert [(step, loss) for step, _, loss in _events(tmp_path)] == expected


def test_blank_lines_are_no_damage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = json.dumps(_record(1))
    (tmp_path / "metrics.jsonl").write_text(f"\n{line}\n\n \n")
    assert read(tmp_path / "metrics.jsonl") == [_record(1)]
    assert not caplog.records


def test_loss_that_json_has_no_word_for_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path, after=0) as log, pytest.raises(ValueError, match="JSON"):
        log.write(_record(1, float("nan")))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs the device /dev/full of Linux")
def test_full_disk_names_the_file(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, after=0)
    log._file.close()
    log._file = open("/dev/full", "w")  # noqa: SIM115  closed by leaving the log
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), log:
        log.write(_record(1))
