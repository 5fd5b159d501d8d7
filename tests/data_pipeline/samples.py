"""Seven documents in files of every kind, and the words of a small tokenizer."""

SENTENCES = {
    "a.txt": "one two three four five six seven",
    "b.txt": "two four six",
    "c.txt.gz": "one three five seven",
    "deep/d.txt": "six five four three two one",
    "e.jsonl": ["seven six five", "one one two"],
    "f.jsonl.gz": ["two two three three"],
}
NAMES = ["a.txt", "b.txt", "c.txt.gz", "deep/d.txt", "e.jsonl:1", "e.jsonl:3", "f.jsonl.gz:1"]
TEXTS = [
    text for value in SENTENCES.values() for text in ([value] if isinstance(value, str) else value)
]
WORDS = ("one", "two", "three", "four", "five", "six", "seven")
"""Word number i has token id i + 3."""
