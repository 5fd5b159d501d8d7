"""JSON from files that may be damaged."""

import json
from typing import Any


def parse(text: bytes | str) -> Any:
    """Parses JSON.

    Raises:
      ValueError: it is not JSON, or is nested too deeply for Python's stack, where `json` raises a
        RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_file(text: bytes | str, name: object) -> Any:
    """Parses a file of JSON.

    Args:
      text: its content.
      name: the file, for messages.

    Raises:
      ValueError: it is not JSON.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as JSON: {error}") from error


def parse_object(text: bytes | str, name: object) -> dict[str, Any]:
    """`parse_file` for a file that holds a JSON object; ValueError also where it holds another."""
    value = parse_file(text, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold a JSON object, not {type(value).__name__}")
    return value
