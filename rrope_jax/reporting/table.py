"""Markdown tables for reports."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_AVAILABLE = "n/a"
"""Shown for entries that were not measured."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """Makes a table in GitHub's markdown.

    Args:
      header: Column titles.
      rows: Entries; each row is as long as the header.
      text_columns: Number of leading columns to align left; the others are aligned right.
    """
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def pivot_table(corner: str, columns: Sequence[Any], rows: Mapping[str, Mapping[Any, str]]) -> str:
    """Makes a table of entries by row and column.

    Args:
      corner: Title of the first column, which contains the row names.
      columns: Keys of the other columns; their string forms are the titles.
      rows: Row name -> column key -> entry; missing entries are shown as `NOT_AVAILABLE`.
    """
    lines = [
        (name, *(entries.get(column, NOT_AVAILABLE) for column in columns))
        for name, entries in rows.items()
    ]
    return table((corner, *map(str, columns)), lines)
