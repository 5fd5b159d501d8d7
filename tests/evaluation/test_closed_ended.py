"""Questions with one right answer."""

import json
from pathlib import Path
from typing import Any

import pytest

from rrope_jax.data.tokenizers import Tokenizer, load_tokenizer
from rrope_jax.evaluation.closed_ended import (
    METRICS,
    ClosedEnded,
    ClosedEndedSetting,
    Line,
    metric_of,
    read_lines,
)
from rrope_jax.evaluation.units import run_units
from tests.evaluation.tiny import Memory, byte_decoder


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


@pytest.mark.parametrize(
    ("metric", "text", "expected"),
    [
        ("choice", "B", "B"),
        ("choice", " (B) because A is wrong", "B"),
        ("choice", "CA", "AC"),
        ("choice", "C, A and D.", "ACD"),
        ("choice", "\n\nThe answer is D.\nA) is wrong", "D"),
        ("choice", "The answers are A and C", "AC"),
        ("choice", "A cat sat on the mat", ""),
        ("choice", "", ""),
        ("number", "8 + 10 is 18, so the answer is 18.", "18"),
        ("number", "The answer is 1,234.50\n\nQuestion: 7", "1234.5"),
        ("number", "-3", "-3"),
        ("number", "the years 2019-2020", "2020"),
        ("number", "1234567", "1234567"),
        ("number", "100.0012", "100.0012"),
        ("number", "100", "100"),
        ("number", "none", ""),
        ("exact", "The  Great Gatsby!\nIt was", "great gatsby"),
        ("exact", "", ""),
    ],
)
def test_what_is_compared(metric: str, text: str, expected: str) -> None:
    assert METRICS[metric](text) == expected


@pytest.mark.parametrize(
    ("outputs", "metric"),
    [
        (["A", "BC", "D."], "choice"),
        (["(B) Their ship was lost.", "A. 256"], "choice"),  # as in L-Eval's quality
        (["It is 3 + 4. The answer is 7", "12"], "number"),
        (["A", "7"], "exact"),
        (["True", "a house"], "exact"),
    ],
)
def test_metric_follows_the_answers(outputs: list[str], metric: str) -> None:
    assert metric_of([Line("", [""] * len(outputs), outputs)]) == metric


def write_task(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_answers_are_those_of_the_whole_prompt(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The shared document gives what a prompt of its own would, and right answers count."""
    from rrope_jax.evaluation.generation import Generator

    decoder = byte_decoder()
    document, questions = "Once upon a time there was a cat.", ["Who?", "When was it?"]
    setting = {"context": 128, "max_tokens": 6, "chunk": 16, "metric": "exact"}
    expected = []
    for question in questions:
        prompt = tokenizer.encode(f"{document}\n\nQuestion: {question}\nAnswer:")
        generator = Generator(decoder, chunk=16)
        cache = generator.read([prompt], capacity=128)
        (written,) = generator.generate(prompt[-1:], cache, max_tokens=6, stop_ids=[257])
        expected.append(tokenizer.decode(written))
    file = write_task(
        tmp_path / "cats.jsonl",
        {"input": document, "instructions": questions, "outputs": [expected[0], "surely not"]},
    )
    task = ClosedEnded(ClosedEndedSetting(files=(file,), **setting), decoder, tokenizer, bos=False)  # type: ignore[arg-type]
    memory = Memory()
    run_units(task.units, memory)
    (entry,) = task.results(memory)["closed_ended"]
    assert [answer["answer"] for answer in entry["answers"]] == expected
    assert [answer["correct"] for answer in entry["answers"]] == [
        bool(METRICS["exact"](expected[0])),
        False,
    ]
    assert (entry["task"], entry["questions"], entry["documents"]) == ("cats", 2, 1)
    assert entry["cut_documents"] == 0


def test_answers_end_at_every_end_of_a_text(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Of those that the checkpoint names, not only at the tokenizer's; results are not mixed up."""
    line = {"input": "Once upon a time.", "instructions": ["Who?"], "outputs": ["A"]}
    setting = ClosedEndedSetting(
        files=(write_task(tmp_path / "task.jsonl", line),), context=64, max_tokens=6, chunk=16
    )

    def asked(*stop_ids: int) -> tuple[str, str]:
        task = ClosedEnded(setting, byte_decoder(), tokenizer, bos=False, stop_ids=stop_ids)
        (unit,) = task.units
        return unit.name, unit.run()["answers"][0]

    plain = ClosedEnded(setting, byte_decoder(), tokenizer, bos=False).units[0]
    name, answer = asked(257)
    assert (plain.name, plain.run()["answers"][0]) == (name, answer)
    end = tokenizer.encode(answer)[1]
    other, shorter = asked(257, end)
    assert other != name
    assert tokenizer.encode(shorter) == tokenizer.encode(answer)[: len(tokenizer.encode(shorter))]
    assert len(shorter) < len(answer)
    assert asked(end, 257) == (other, shorter)


def test_a_long_document_is_cut_and_counted(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write_task(
        tmp_path / "long.jsonl", {"input": "x" * 200, "instructions": ["?"], "outputs": ["A"]}
    )
    setting = ClosedEndedSetting(files=(file,), context=64, max_tokens=4, chunk=16)
    task = ClosedEnded(setting, byte_decoder(), tokenizer, bos=False)
    memory = Memory()
    run_units(task.units, memory)
    (entry,) = task.results(memory)["closed_ended"]
    around = len("\n\nQuestion: ?\nAnswer:") + 4
    assert (entry["cut_documents"], entry["cut_tokens"]) == (1, 200 - (64 - around))


def test_lines_end_where_json_says(tmp_path: Path) -> None:
    """Other separators of lines may stand in a string, and a byte order mark before the first."""
    path = tmp_path / "task.jsonl"
    line = {"input": "a\u2028b\u0085c", "instructions": ["d"], "outputs": ["e"]}
    text = json.dumps(line, ensure_ascii=False)
    path.write_bytes(f"\ufeff{text}\r\n{text}\n".encode())
    assert read_lines(str(path)) == [Line(line["input"], ["d"], ["e"])] * 2


def test_other_encodings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_bytes(b'{"input": "\xff"}')
    with pytest.raises(ValueError, match=r"task.jsonl is not UTF-8 text"):
        read_lines(str(path))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no lines"),
        ("not json\n", "line 1: not an object"),
        ('{"input": "a", "instructions": []}\n', "line 1: not an object"),
        ('\n{"input": "a", "instructions": ["b"], "outputs": []}\n', "line 2: .* as many texts"),
        ('{"input": 1, "instructions": ["b"], "outputs": ["c"]}\n', "line 1: .* as many texts"),
    ],
)
def test_broken_files_are_named(text: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "task.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_lines(str(path))


def test_a_context_without_room_for_the_question(tokenizer: Tokenizer, tmp_path: Path) -> None:
    file = write_task(tmp_path / "a.jsonl", {"input": "x", "instructions": ["?"], "outputs": ["A"]})
    setting = ClosedEndedSetting(files=(file,), context=20)
    with pytest.raises(ValueError, match="context=20 is too short for a question"):
        ClosedEnded(setting, byte_decoder(), tokenizer, bos=False)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({}, "must name at least one JSONL file"),
        ({"files": ("a",), "context": 0}, "context=0 must be at least 1"),
        ({"files": ("a",), "template": "{document}"}, "must contain {document} and"),
        ({"files": ("a",), "template": "{instruction}{document}"}, "must contain {document} and"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ClosedEndedSetting(**fields)
