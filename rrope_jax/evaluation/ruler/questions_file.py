"""Question data sets in the JSON formats of SQuAD 2.0 and HotpotQA."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rrope_jax.io import json_text
from rrope_jax.io.local_copies import file_here


class Question(NamedTuple):
    """A question on some documents.

    Attributes:
      text: the question.
      answers: the answers that count as right.
      own: indices of the documents that it is about.
      near: indices of others from the same article, which are the first to be added.
    """

    text: str
    answers: tuple[str, ...]
    own: tuple[int, ...]
    near: tuple[int, ...] = ()


class Questions(NamedTuple):
    """Questions and all documents that they are about."""

    questions: tuple[Question, ...]
    documents: tuple[str, ...]


def _squad(data: Any) -> Questions:
    """`dev-v2.0.json` of SQuAD; questions without an answer are left out."""
    articles = [
        [
            (_text(paragraph, "context", f"data[{i}].paragraphs[{j}]"), paragraph["qas"])
            for j, paragraph in enumerate(article["paragraphs"])
        ]
        for i, article in enumerate(data["data"])
    ]
    documents = sorted({document for article in articles for document, _ in article})
    index = {document: number for number, document in enumerate(documents)}
    questions = []
    for i, article in enumerate(articles):
        of_article = [index[document] for document, _ in article]
        for j, (document, qas) in enumerate(article):
            own = index[document]
            near = tuple(number for number in of_article if number != own)
            for k, entry in enumerate(qas):
                where = f"data[{i}].paragraphs[{j}].qas[{k}]"
                if not isinstance(entry["is_impossible"], bool):
                    raise ValueError(f"{where}.is_impossible must be true or false")
                if entry["is_impossible"]:
                    continue
                answers = tuple(
                    _text(answer, "text", f"{where}.answers[{n}]", empty=True)
                    for n, answer in enumerate(entry["answers"])
                )
                questions.append(Question(_text(entry, "question", where), answers, (own,), near))
    return Questions(tuple(questions), tuple(documents))


def _hotpotqa(data: Any) -> Questions:
    """`hotpot_dev_distractor_v1.json` of HotpotQA."""
    contexts = [_documents(entry, f"[{i}].context") for i, entry in enumerate(data)]
    documents = sorted({document for context in contexts for document in context})
    index = {document: number for number, document in enumerate(documents)}
    questions = tuple(
        Question(
            _text(entry, "question", f"[{i}]"),
            (_text(entry, "answer", f"[{i}]", empty=True),),
            tuple(index[document] for document in context),
        )
        for i, (entry, context) in enumerate(zip(data, contexts, strict=True))
    )
    return Questions(questions, tuple(documents))


def _documents(entry: Any, where: str) -> list[str]:
    """The documents of an entry of HotpotQA: pairs of a title and its sentences."""
    context = entry["context"]
    pairs = isinstance(context, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and isinstance(pair[1], list)
        and all(isinstance(sentence, str) for sentence in pair[1])
        for pair in context
    )
    if not pairs or not context:
        raise ValueError(f'{where} must be a list of ["title", ["sentence", ...]]')
    return [f"{title}\n{''.join(sentences)}" for title, sentences in context]


def _text(holder: Any, key: str, where: str, *, empty: bool = False) -> str:
    """The text under a key.

    Raises:
      ValueError: it is no text, or has no characters and `empty` does not allow that.
    """
    value = holder[key]
    if not isinstance(value, str) or not (value or empty):
        raise ValueError(f"{where}.{key} must be text, not {repr(value)[:40]}")
    return value


FORMATS: Mapping[str, Callable[[Any], Questions]] = {"squad": _squad, "hotpotqa": _hotpotqa}
"""Name of a data set -> reader of its parsed JSON."""


def read_questions(format_name: str, path: str) -> Questions:
    """Reads a data set.

    Args:
      format_name: a key of `FORMATS`.
      path: its JSON file.

    Raises:
      ValueError: the file cannot be read, has another format or no question; the message begins
        with the name of the format and the path.
    """
    said = f"{format_name}={path!r}"
    try:
        data = json_text.parse_file(Path(file_here(path)).read_bytes(), path)
        read = FORMATS[format_name](data)
    except OSError as error:
        raise ValueError(f"{said} cannot be read: {error}") from error
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{said} is not in the JSON format of {format_name} ({type(error).__name__}: {error}); "
            f"give {_PUBLISHED[format_name]}"
        ) from error
    if not read.questions or not all(_answered(question.answers) for question in read.questions):
        raise ValueError(f"{said} has no questions, or one without an answer")
    return read


_PUBLISHED = {"squad": "SQuAD's dev-v2.0.json", "hotpotqa": "hotpot_dev_distractor_v1.json"}


def _answered(answers: Sequence[str]) -> bool:
    return bool(answers) and all(answers)
