"""Parses JSON from files that may be damaged."""

import json
from typing import Any


def parse(text: bytes | str) -> Any:
    """Parses JSON.

    Raises:
      ValueError: the text is not JSON, or is nested too deeply for Python's stack (`json` itself
        raises a RecursionError then).
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def parse_file(text: bytes | str, name: object) -> Any:
    """Parses the content of a JSON file.

    Args:
      text: the content.
      name: the file's name, for error messages.

    Raises:
      ValueError: the content is not JSON.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name} cannot be read as JSON: {error}") from error


def parse_object(text: bytes | str, name: object) -> dict[str, Any]:
    """Like `parse_file`, but raises ValueError unless the file holds a JSON object."""
    value = parse_file(text, name)
    if not isinstance(value, dict):
        raise ValueError(f"{name} must hold a JSON object, not {type(value).__name__}")
    return value
