"""Question data sets in the JSON formats of SQuAD 2.0 and HotpotQA."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rrope_jax.io import json_text


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
    articles = [article["paragraphs"] for article in data["data"]]
    documents = sorted({paragraph["context"] for article in articles for paragraph in article})
    index = {document: number for number, document in enumerate(documents)}
    questions = []
    for article in articles:
        of_article = [index[paragraph["context"]] for paragraph in article]
        for paragraph in article:
            own = index[paragraph["context"]]
            near = tuple(number for number in of_article if number != own)
            questions += [
                Question(
                    each["question"],
                    tuple(answer["text"] for answer in each["answers"]),
                    (own,),
                    near,
                )
                for each in paragraph["qas"]
                if not each["is_impossible"]
            ]
    return Questions(tuple(questions), tuple(documents))


def _hotpotqa(data: Any) -> Questions:
    """`hotpot_dev_distractor_v1.json` of HotpotQA."""

    def of(entry: Any) -> list[str]:
        return [f"{title}\n{''.join(sentences)}" for title, sentences in entry["context"]]

    documents = sorted({document for entry in data for document in of(entry)})
    index = {document: number for number, document in enumerate(documents)}
    questions = tuple(
        Question(
            entry["question"],
            (entry["answer"],),
            tuple(index[document] for document in of(entry)),
        )
        for entry in data
    )
    return Questions(questions, tuple(documents))


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
        data = json_text.parse_file(Path(path).read_bytes(), path)
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
