"""The site's pages: commands that exist, keys that are written, links that lead somewhere."""

import ast
import contextlib
import functools
import io
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from rrope_jax.__main__ import COMMANDS, main

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
FENCED = r"^ *```[^\n]*\n(.*?)^ *```"
PAGES = [path for path in sorted(DOCS.rglob("*.md")) if path.name != "report.md"]


def _commands() -> list[tuple[str, list[str]]]:
    """Every `rrope ...` of the code blocks of all pages."""
    commands = []
    for page in [ROOT / "README.md", *PAGES]:
        for block in re.findall(FENCED, page.read_text(), re.S | re.M):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if match := re.search(r"(?:^|\s)rrope ([a-z]+ -.*|inspect .*)", line):
                    words = shlex.split(match[1], comments=True)
                    commands.append((f"{page.name}: {' '.join(words)}", words))
    return commands


COMMANDS_OF_PAGES = dict(_commands())


@functools.cache
def _flags(command: str) -> frozenset[str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([command, "--help"])
    names = re.findall(r"--(?:\[no\])?([a-z_]+)", printed.getvalue())
    return frozenset([*names, *(f"no{name}" for name in names)])


@functools.cache
def _config(path: str) -> ConfigDict:
    file, *argument = path.split(":")
    return runpy.run_path(str(ROOT / file))["get_config"](*argument)


def test_there_are_some() -> None:
    assert len(COMMANDS_OF_PAGES) > 40
    assert {words[0] for words in COMMANDS_OF_PAGES.values()} == set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS_OF_PAGES.values(), ids=COMMANDS_OF_PAGES)
def test_flags_of_a_command_exist(words: list[str]) -> None:
    command, *rest = words
    config = next((word.partition("=")[2] for word in rest if word.startswith("--config=")), None)
    for word in rest:
        name = word.partition("=")[0].removeprefix("--")
        if not word.startswith("--"):
            continue
        if name.startswith("config."):
            group = name.removeprefix("config.").rpartition(".")[0]
            if (
                config is None or "/" not in config
            ):  # `rrope convert` and `generate` have no config file
                assert group.partition(".")[0] in ("rope", "model", "mesh", ""), word
                continue
            at = _config(config)
            for part in filter(None, group.split(".")):
                unset = ("lora", "mesh", "positions", "rope", "full_attention", "sliding_attention")
                assert part in at or part in unset, word
                at = at.get(part, ConfigDict())
        else:
            assert name in _flags(command), word


@pytest.mark.parametrize(
    ("section", "folder"),
    [
        ("posgen", "posgen_quick"),
        ("evaluate", "smollm2_scaled"),
        ("plan", "plans/sweep_llama2_7b_32k_v5p"),
        ("plan", "plans/posgen_paper_v5e"),
    ],
)
def test_every_key_of_results_is_described(section: str, folder: str) -> None:
    text = (DOCS / "reference" / "results.md").read_text()
    described = text.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    names = set(re.findall(r"[`.](\w+)`", described))
    results = json.loads((DOCS / "results" / folder / "results.json").read_text())
    keys = {*results, *(key for cell in results.get("cells", ()) for key in cell)}
    assert keys - names == set()


def test_exit_codes_are_those_of_the_command() -> None:
    import rrope_jax.__main__

    promised = set(re.findall(r"\b(\d+)\b", rrope_jax.__main__.__doc__ or ""))
    table = (DOCS / "reference" / "exit_codes.md").read_text()
    assert promised - set(re.findall(r"^\| (\d+) \|", table, re.M)) == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s:]+)[^):]*\)", page.read_text()):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_a_table_of_contents() -> None:
    index = (DOCS / "index.md").read_text()
    for page in PAGES:
        name = page.relative_to(DOCS).with_suffix("").as_posix()
        assert name in ("index", "idea/models") or re.search(rf"^{name}$", index, re.M), name


def _config_classes() -> list[tuple[str, ast.ClassDef]]:
    """The dataclasses that groups of a config become."""
    return [
        (f"{path.stem}.{node.name}", node)
        for path in sorted((ROOT / "rrope_jax").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and node.decorator_list
        and (node.name.endswith("Config") or node.name in ("RopeSpec", "PositionSampling"))
    ]


CONFIG_CLASSES = dict(_config_classes())


@pytest.mark.parametrize("name", CONFIG_CLASSES)
def test_every_field_of_a_config_is_documented(name: str) -> None:
    node = CONFIG_CLASSES[name]
    document = ast.get_docstring(node) or ""
    fields = [
        each.target.id
        for each in node.body
        if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    ]
    assert [field for field in fields if not re.search(rf"\b{field}\b", document)] == []
