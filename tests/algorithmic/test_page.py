"""docs/algorithmic.md: its table of tasks and its example."""

import re
from pathlib import Path
from typing import Any

from rrope_jax.algorithmic import TASKS

PAGE = (Path(__file__).parents[2] / "docs" / "algorithmic.md").read_text()


def test_the_table_has_every_task_with_its_level() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (regular|context-\w+) \|", PAGE, re.M)
    assert rows == [(name, task.level.replace("_", "-")) for name, task in TASKS.items()]


def test_the_example_gives_what_it_says() -> None:
    code = re.findall(r"```python\n(.*?)```", PAGE, re.S)[0]
    scope: dict[str, Any] = {}
    exec(code, scope)
    assert scope["rows"].question.shape == scope["rows"].answer.shape == (3, 40)
    assert scope["answer"].tokens.tolist() == [0, 0, 1, 2, 0, 0]
    assert scope["answer"].length == 4
