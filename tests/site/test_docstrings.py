"""docs/docstrings.py: the site reads our docstrings as they are meant."""

import importlib.util
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "docs" / "docstrings.py"


def _to_rst(text: str) -> str:
    spec = importlib.util.spec_from_file_location("docstrings", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "\n".join(module.to_rst(text.split("\n")))


def test_fence_is_a_code_block() -> None:
    assert _to_rst("Say:\n\n```\na_ = b * c\n```\nDone.") == (
        "Say:\n\n\n.. code-block:: python\n\n   a_ = b * c\n\nDone."
    )


def test_indented_lines_are_a_code_block() -> None:
    assert _to_rst("This is\n\n    max |x|\n\nwith x.") == (
        "This is\n\n.. code-block:: text\n\n    max |x|\n\nwith x."
    )


def test_sections_stay() -> None:
    text = "Does.\n\nArgs:\n  x: float[T], of\n    two lines.\n\nReturns:\n  float[T]."
    assert _to_rst(text) == text


def test_names_that_share_a_description_get_it_each() -> None:
    text = "Args:\n  a, b: two,\n    of them.\n  c: one."
    assert _to_rst(text) == "Args:\n  a: two,\n    of them.\n  b: two,\n    of them.\n  c: one."
    assert _to_rst("In text:\n\nfast, slow: a pair.") == "In text:\n\nfast, slow: a pair."


def test_list_gets_its_empty_line() -> None:
    assert _to_rst("Two:\n- one,\n  long\n- two") == "Two:\n\n- one,\n  long\n- two"


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("a * b and |c|", r"a \* b and \|c\|"),
        ("`a * b` stays", "`a * b` stays"),
        ("two `Spec`s", r"two `Spec`\ s"),
        ("the name x_ ends", r"the name x\_ ends"),
        ("a_BTD has none", "a_BTD has none"),
    ],
)
def test_characters(markdown: str, expected: str) -> None:
    assert _to_rst(markdown) == expected
