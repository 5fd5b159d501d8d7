"""Docstrings of this project, which are Google style with Markdown inside, as reStructuredText."""

import re

_SECTION = re.compile(r"(Args|Attributes|Returns|Yields|Raises|Note|Example):$")
_SHARED = re.compile(r"(?P<indent> +)(?P<names>\w+(?:, \w+)+): (?P<text>.*)")
_CODE = re.compile(r"(``[^`]+``|`[^`]+`)")


def to_rst(lines: list[str]) -> list[str]:
    """A docstring of this project, which is Google style with Markdown inside, as reStructuredText.

    Fenced and indented blocks become code blocks, lists get the empty line before them that
    reStructuredText wants, and characters that mean something there only are escaped.
    """
    lines = _one_name_each(lines)
    prose: list[str] = []
    result: list[str] = []

    def flush() -> None:
        result.extend(_escape("\n".join(prose)).split("\n") if prose else [])
        prose.clear()

    fence = section = block = False
    for number, line in enumerate(lines):
        indent = line[: len(line) - len(line.lstrip())]
        before = lines[number - 1] if number else ""
        if line.strip().startswith("```"):
            flush()
            fence = not fence
            if fence:
                result.extend(["", f"{indent}.. code-block:: python", ""])
            else:
                result.append("")
            continue
        if fence:
            result.append(f"   {line}")
            continue
        if line.strip() and not indent:
            section, block = bool(_SECTION.match(line)), False
        if indent and not section and not before.strip() and not block:
            flush()
            result.extend([".. code-block:: text", ""])
            block = True
        if block:
            result.append(line)
            continue
        is_item = line.strip().startswith("- ")
        if is_item and before.strip() and not before.strip().startswith("- "):
            continues_item = before.startswith(f"{indent}  ")
            if not continues_item:
                prose.append("")
        prose.append(line)
    flush()
    return result


def _one_name_each(lines: list[str]) -> list[str]:
    """Fields that share a description get it each: napoleon takes `a, b:` for one of some type."""
    result: list[str] = []
    section = False
    number = 0
    while number < len(lines):
        line = lines[number]
        if line.strip() and not line.startswith(" "):
            section = _SECTION.match(line) is not None
        number += 1
        if not section or (shared := _SHARED.fullmatch(line)) is None:
            result.append(line)
            continue
        end = number
        while end < len(lines) and lines[end].startswith(f"{shared['indent']} "):
            end += 1
        for name in shared["names"].split(", "):
            result.append(f"{shared['indent']}{name}: {shared['text']}")
            result.extend(lines[number:end])
        number = end
    return result


def _escape(text: str) -> str:
    """Escapes what is markup in reStructuredText and plain in Markdown, outside of code."""
    parts = _CODE.split(text)
    for index in range(0, len(parts), 2):
        plain = re.sub(r"(?<!^)(?<!\n)([*|])", r"\\\1", parts[index])
        plain = re.sub(r"(\w)_(?!\w)", r"\1\\_", plain)
        if index and plain[:1].isalnum():
            plain = rf"\ {plain}"  # the plural of a name in code, say
        if index + 1 < len(parts) and plain[-1:].isalnum():
            plain = rf"{plain}\ "
        parts[index] = plain
    return "".join(parts)
