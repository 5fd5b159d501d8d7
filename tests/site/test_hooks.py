""".pre-commit-config.yaml: the hooks are programs of the dev extra."""

import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_hooks_are_tools_of_the_dev_extra() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extra = setup["options.extras_require"]["dev"]
    text = (ROOT / ".pre-commit-config.yaml").read_text()
    tools = re.findall(r"entry: \.venv/bin/(\w+)", text)
    assert set(tools) == {"ruff", "mypy", "shellcheck"}
    assert len(tools) == text.count("- id:") == text.count("language: system")
    assert all(re.search(rf"^{tool}(-py)?>=", extra, re.M) for tool in tools)
