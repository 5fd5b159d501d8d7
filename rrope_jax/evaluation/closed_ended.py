"""Questions on long documents with one right answer, from JSONL files in the format of L-Eval.

Each line (arXiv 2307.11088; github OpenLMLab/LEval) has `input`, the document, `instructions`, the
questions, and `outputs`, the answers in the same order.
"""

import dataclasses
import re
import string
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rrope_jax.data.tokenizers import Tokenizer
from rrope_jax.evaluation.generation import Generator
from rrope_jax.evaluation.units import SECONDS, Benchmark, Unit, UnitStore, seconds_of, unit_name
from rrope_jax.io import json_text
from rrope_jax.io.local_copies import file_here
from rrope_jax.model import Decoder
from rrope_jax.model.flops import causal_flops

_DOCUMENT, _INSTRUCTION = "{document}", "{instruction}"


# a list of option letters, up to a bracket, a period or the end: `A, C and D.`
_LEADING_LETTERS = re.compile(
    r"\W*([A-H](?:(?:\s*[,;/&]\s*|\s+and\s+|\s+or\s+|)[A-H])*)\s*(?:[).,:;]|$)"
)
# `A` is also an article, but an article is never followed by one of these
_SINGLE_LETTER = re.compile(r"(?<![A-Za-z0-9'])([A-H])(?=\s*(?:[).,:;&/]|and\b|or\b|$))")


def choice(text: str) -> str:
    """The letters of the options that an answer names, sorted.

    These are the letters at the start of its first line (`B) because A is wrong` is `B`, `C, A` is
    `AC`), or otherwise all stand-alone letters in it (`the answers are A and C` is `AC`).
    """
    line = next((line for line in text.splitlines() if line.strip()), "")
    leading = _LEADING_LETTERS.match(line)
    letters = re.findall("[A-H]", leading[1]) if leading else _SINGLE_LETTER.findall(line)
    return "".join(sorted(set(letters)))


def number(text: str) -> str:
    """The last number of an answer's first paragraph, without thousands separators."""
    paragraph = text.strip().split("\n\n")[0]
    numbers = re.findall(r"(?:(?<!\d)-)?\d[\d,]*(?:\.\d+)?", paragraph)
    return f"{Decimal(numbers[-1].replace(',', '')).normalize():f}" if numbers else ""


def exact(text: str) -> str:
    """The first line in lower case, without punctuation and articles, as in SQuAD."""
    line = next((line for line in text.splitlines() if line.strip()), "")
    plain = line.lower().translate(str.maketrans("", "", string.punctuation))
    return " ".join(word for word in plain.split() if word not in ("a", "an", "the"))


METRICS: Mapping[str, Callable[[str], str]] = {"choice": choice, "number": number, "exact": exact}
"""Metric -> the part of a text to compare; correct if equal to the right answer's and not empty."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClosedEndedSetting:
    """The fields of `config.eval.closed_ended`.

    Attributes:
      enabled: whether to ask the questions.
      files: JSONL files, one per task.
      metric: a key of `METRICS`; `auto` takes `choice` if all answers of a file begin with option
        letters, `number` if all end in a number, and `exact` otherwise.
      context: maximum tokens of a document, question and answer together.
      max_tokens: maximum tokens of an answer.
      documents: use only this many lines from the start of each file; None for all.
      template: the prompt, with `{document}` and then `{instruction}`, once each.
      chunk: tokens of a prompt that go through the model at a time.
    """

    enabled: bool = True
    files: tuple[str, ...] = ()
    metric: Literal["auto", "choice", "number", "exact"] = "auto"
    context: int = 8192
    max_tokens: int = 32
    documents: int | None = None
    template: str = "{document}\n\nQuestion: {instruction}\nAnswer:"
    chunk: int = 2048

    def __post_init__(self) -> None:
        if not self.files:
            raise ValueError("files=() must name at least one JSONL file")
        for name in ("context", "max_tokens", "documents", "chunk"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        before, _, after = self.template.partition(_DOCUMENT)
        if _INSTRUCTION in before or after.count(_INSTRUCTION) != 1 or _DOCUMENT in after:
            raise ValueError(
                f"template={self.template!r} must contain {_DOCUMENT} and, after it, "
                f"{_INSTRUCTION}, once each"
            )


class Line(NamedTuple):
    """A document with its questions and their answers."""

    document: str
    instructions: list[str]
    outputs: list[str]


def read_lines(path: str) -> list[Line]:
    """The lines of a JSONL file.

    Raises:
      ValueError: a line is not an object with the fields of L-Eval, or the file has no lines; the
        message names the file and the line.
    """
    lines = []
    try:
        whole = Path(file_here(path)).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error}); convert it, as iconv does"
        ) from error
    # not splitlines, which also splits at characters that JSON strings may contain
    for index, text in enumerate(whole.split("\n"), start=1):
        if not text.strip():
            continue
        try:
            raw = json_text.parse(text)
            line = Line(raw["input"], raw["instructions"], raw["outputs"])
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(
                f"{path}, line {index}: not an object with input, instructions and outputs "
                f"({type(error).__name__}: {error})"
            ) from error
        lists = isinstance(line.instructions, list) and isinstance(line.outputs, list)
        if (
            not lists
            or len(line.instructions) != len(line.outputs)
            or not all(
                isinstance(each, str) for each in (line.document, *line.instructions, *line.outputs)
            )
        ):
            raise ValueError(
                f"{path}, line {index}: instructions and outputs must be lists of as many texts"
            )
        lines.append(line)
    if not lines:
        raise ValueError(f"{path} has no lines; a task needs at least one")
    return lines


def metric_of(lines: Sequence[Line]) -> str:
    """The metric that suits all answers of a task; see `ClosedEndedSetting.metric`."""
    outputs = [output for line in lines for output in line.outputs]
    if all(_LEADING_LETTERS.match(output) for output in outputs):
        return "choice"
    if all(re.search(r"\d[.\s]*$", output) for output in outputs):
        return "number"
    return "exact"


class QuestionedDocument(NamedTuple):
    """The subject of a unit: one document and its questions.

    Attributes:
      task: name of the file.
      metric: a key of `METRICS`.
      outputs: the right answers.
      cut_tokens: number of tokens cut from the document to fit the context.
    """

    task: str
    metric: str
    outputs: list[str]
    cut_tokens: int


class ClosedEnded(Benchmark[QuestionedDocument]):
    """Closed-ended tasks; a unit is one document with all its questions."""

    def __init__(
        self,
        setting: ClosedEndedSetting,
        decoder: Decoder,
        tokenizer: Tokenizer,
        *,
        bos: bool,
        stop_ids: Sequence[int] | None = None,
    ):
        """Reads the files; computes nothing.

        Args:
          setting: what to ask.
          decoder: the model.
          tokenizer: its tokenizer.
          bos: whether prompts begin with the tokenizer's beginning-of-sequence token.
          stop_ids: tokens that end an answer; None for the tokenizer's end-of-sequence token.

        Raises:
          ValueError: a file cannot be used, two files have the same name, or a question alone
            exceeds the context.
        """
        tasks = [Path(file).stem for file in setting.files]
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"files={setting.files!r}: two of them have one name; rename one")
        self._first = tokenizer.beginning(bos)
        self._setting, self._tokenizer = setting, tokenizer
        eos = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self._stop_ids = eos if stop_ids is None else tuple(sorted(stop_ids))
        # keeps the unit names of earlier releases, which stopped only at end-of-sequence
        self._named_ends = [] if self._stop_ids == eos else [list(self._stop_ids)]
        self._model = decoder.config
        self._generator = Generator(decoder, chunk=setting.chunk)
        units: list[Unit[QuestionedDocument]] = []
        for task, file in zip(tasks, setting.files, strict=True):
            lines = read_lines(file)[: setting.documents]
            metric = metric_of(lines) if setting.metric == "auto" else setting.metric
            units += [self._unit(task, metric, index, line) for index, line in enumerate(lines)]
        self.units = units

    def _questions(self, line: Line) -> list[list[int]]:
        """The token ids that follow the document, for each question."""
        after = self._setting.template.partition(_DOCUMENT)[2]
        return [
            self._tokenizer.encode(after.replace(_INSTRUCTION, instruction))
            for instruction in line.instructions
        ]

    def _unit(self, task: str, metric: str, index: int, line: Line) -> Unit[QuestionedDocument]:
        setting = self._setting
        before = self._tokenizer.encode(setting.template.partition(_DOCUMENT)[0])
        questions = self._questions(line)
        longest = max(map(len, questions), default=0)
        room = setting.context - len(self._first) - len(before) - longest - setting.max_tokens
        if room < 1:
            raise ValueError(
                f"context={setting.context} is too short for a question of {longest} tokens in "
                f"{task} and an answer of {setting.max_tokens}"
            )
        document = self._tokenizer.encode(line.document)
        tokens = [*self._first, *before, *document[:room]]
        flops = causal_flops(self._model, 0, len(tokens), logits=False) + sum(
            causal_flops(self._model, len(tokens), len(tokens) + len(q), logits=False)
            for q in questions
        )
        depends_on = [tokens, questions, setting.context, setting.max_tokens, setting.chunk]
        depends_on += self._named_ends
        return Unit(
            unit_name("closed_ended", [task, index], depends_on),
            flops,
            self._run,
            (tokens, questions),
            QuestionedDocument(task, metric, line.outputs, max(0, len(document) - room)),
            shape=bool(questions),
        )

    def _run(self, inputs: Sequence[tuple[list[int], list[list[int]]]]) -> list[dict[str, Any]]:
        """Reads every document once and asks its questions, one after another, from its cache."""
        setting = self._setting
        documents = [document for document, _ in inputs]
        shared = self._generator.read(documents, capacity=setting.context)
        last_tokens = [document[-1] for document in documents]
        answers: list[list[str]] = [[] for _ in inputs]
        for number in range(max(len(questions) for _, questions in inputs)):
            # where a document has no more questions, its last one is asked again and not counted
            asked = [questions[min(number, len(questions) - 1)] for _, questions in inputs]
            cache = self._generator.read_on_rows(shared, last_tokens, asked)
            written = self._generator.generate(
                [question[-1] for question in asked],
                cache,
                max_tokens=setting.max_tokens,
                stop_ids=self._stop_ids,
                in_place=True,
            )
            for row, tokens, (_, questions) in zip(answers, written, inputs, strict=True):
                if number < len(questions):
                    row.append(self._tokenizer.decode(tokens))
        return [{"answers": row} for row in answers]

    def results(self, store: UnitStore) -> dict[str, Any]:
        """The entries of results.json, from the finished units in the store.

        `closed_ended` has one entry per task: `accuracy` is the share of questions answered
        correctly, `cut_documents` the number of documents cut to fit the context.
        """
        tasks: dict[str, list[tuple[QuestionedDocument, dict[str, Any]]]] = {}
        for document, result in self.finished(store):
            tasks.setdefault(document.task, []).append((document, result))
        return {"closed_ended": list(map(_task_entry, tasks.values()))}


def _task_entry(documents: Sequence[tuple[QuestionedDocument, dict[str, Any]]]) -> dict[str, Any]:
    """The entry of one task, from its documents and the results of their units."""
    task, metric, *_ = documents[0][0]
    reduce = METRICS[metric]
    answers: list[dict[str, Any]] = [
        {
            "answer": answer,
            "expected": output,
            "correct": bool(reduce(output)) and reduce(answer) == reduce(output),
        }
        for document, result in documents
        for answer, output in zip(result["answers"], document.outputs, strict=True)
    ]
    return {
        "task": task,
        "metric": metric,
        "accuracy": sum(answer["correct"] for answer in answers) / max(1, len(answers)),
        "questions": len(answers),
        "documents": len(documents),
        "cut_documents": sum(document.cut_tokens > 0 for document, _ in documents),
        "cut_tokens": sum(document.cut_tokens for document, _ in documents),
        SECONDS: seconds_of(result for _, result in documents),
        "answers": answers,
    }
