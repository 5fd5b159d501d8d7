"""Tables in the markdown of reports."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

NOT_AVAILABLE = "n/a"
"""An entry that was not measured."""


def table(header: Sequence[str], rows: Iterable[Sequence[str]], *, text_columns: int = 1) -> str:
    """A GitHub table.

    Args:
      header: titles of the columns.
      rows: entries, as many a row as there are titles.
      text_columns: how many of the first columns are aligned left; numbers are aligned right.
    """
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "\n".join(f"| {' | '.join(line)} |" for line in [header, rule, *rows])


def pivot_table(corner: str, columns: Sequence[Any], rows: Mapping[str, Mapping[Any, str]]) -> str:
    """A table of entries by row and column.

    Args:
      corner: title of the first column, which has the names of the rows.
      columns: keys of the other columns, whose text is their title.
      rows: row -> column -> entry; a missing entry is `NOT_AVAILABLE`.
    """
    lines = [
        (name, *(entries.get(column, NOT_AVAILABLE) for column in columns))
        for name, entries in rows.items()
    ]
    return table((corner, *map(str, columns)), lines)
