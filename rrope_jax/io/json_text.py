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
