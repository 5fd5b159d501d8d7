"""Small data sets and a tokenizer that needs no files."""

import re
from typing import Any


def count_words(text: str) -> int:
    """Tokens of a made-up tokenizer: pieces of words of at most four letters, and other marks."""
    return len(re.findall(r"\w{1,4}|[^\w\s]", text))


_TOPICS = ("mill", "river", "cart", "harbor", "tower", "bridge", "orchard", "lamp")

SQUAD: dict[str, Any] = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"The {topic} of part {part} was built in {1700 + 10 * i + part}. "
                    + f"Its {topic} is old. " * (3 + i),
                    "qas": [
                        {
                            "question": f"When was the {topic} of part {part} built?",
                            "answers": [
                                {"text": f"{1700 + 10 * i + part}"},
                                {"text": f"in {1700 + 10 * i + part}"},
                            ],
                            "is_impossible": False,
                        },
                        {"question": "Who?", "answers": [], "is_impossible": True},
                    ],
                }
                for part in range(6)
            ]
        }
        for i, topic in enumerate(_TOPICS)
    ]
}
"""48 paragraphs of 8 articles, one answerable question each."""

HOTPOTQA: list[dict[str, Any]] = [
    {
        "question": f"Is the {topic} older than the mill?",
        "answer": "yes" if i % 2 else "no",
        "context": [
            [f"{topic} {part}", [f"The {topic} has {part} doors.", " All of them are green."]]
            for part in range(4)
        ],
    }
    for i, topic in enumerate(_TOPICS)
]
"""8 questions with 4 documents each."""
