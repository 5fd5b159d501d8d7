"""JSON that others wrote."""

import json
from typing import Any


def parse(text: bytes | str) -> Any:
    """What a text means as JSON.

    Raises:
      ValueError: it is not JSON, or nested too deeply for Python's stack, of which `json` itself
        says so with a RecursionError.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
