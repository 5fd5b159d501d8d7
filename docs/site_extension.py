"""What the site needs of Sphinx beside its extensions: our docstrings, and our commands' flags."""

import contextlib
import importlib
import io
import re
import shutil
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docstrings
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment

_MODEL = Path("models") / "SmolLM2-135M-Instruct.Q4_1.gguf"


def notebooks_without_their_model(root: Path) -> list[str]:
    """Patterns of the notebooks that cannot run here because no model was fetched before."""
    if (root / _MODEL).exists():
        return []
    # Printed, since `sphinx -q` shows warnings only, and -W makes an error of each.
    print(
        f"{_MODEL} is missing: the notebook extend_smollm2 is shown without outputs; "
        "bash launch/smollm2.sh fetches it"
    )
    return ["notebooks/extend_smollm2.ipynb"]


def _process_docstring(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]
) -> None:
    lines[:] = docstrings.to_rst(lines)


def _resolve_exported(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Leads a name that a package exports to the module that defines it."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("rrope_jax."):
        return None
    module, _, name = target.rpartition(".")
    try:
        exported = getattr(importlib.import_module(module), name)
        defined = f"{exported.__module__}.{exported.__qualname__}"
    except (ImportError, AttributeError):
        return None
    if defined == target:
        return None
    domain = env.domains["py"]
    return domain.resolve_xref(env, node["refdoc"], app.builder, "obj", defined, node, content)


class CommandsDirective(Directive):
    """A section for each command of `rrope`, with what its `--help` prints."""

    def run(self) -> list[nodes.Node]:
        from rrope_jax.__main__ import COMMANDS

        return [self._section(name) for name in COMMANDS]

    def _section(self, name: str) -> nodes.section:
        section = nodes.section(ids=[f"rrope-{name}"], names=[f"rrope {name}"])
        section += nodes.title("", f"rrope {name}")
        section += nodes.literal_block("", _help(name), language="text")
        return section


def _help(command: str) -> str:
    from rrope_jax.__main__ import main

    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.suppress(SystemExit):
        main([command, "--help"])
    lines = printed.getvalue().strip().splitlines()
    return "\n".join(
        textwrap.fill(line, 88, subsequent_indent=" " * (len(line) - len(line.lstrip())))
        for line in lines
    )


def _outside_links(text: str, page: Path, docs: Path) -> Iterator[tuple[str, str]]:
    for link in re.findall(r"\]\(((?:\.\./)+[^)#\s]*)\)", text):
        target = (page.parent / link).resolve()
        if not target.is_relative_to(docs):
            yield link, target.relative_to(docs.parent).as_posix()


def _name_files_of_the_clone(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the path of a file of the clone in place of a link that leads out of the site."""
    docs = Path(app.srcdir)
    for link, path in _outside_links(source[0], Path(app.env.doc2path(docname)), docs):
        pattern = re.compile(rf"\[([^\]]*)\]\({re.escape(link)}\)")
        source[0] = pattern.sub(
            lambda match, path=path: (
                f"`{path}`" if path.endswith(match[1].strip("`. ")) else f"{match[1]} (`{path}`)"
            ),
            source[0],
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Registers all of it; removes the pages of modules that may exist no more."""
    shutil.rmtree(Path(app.srcdir) / "reference" / "api", ignore_errors=True)
    app.add_directive("rrope-commands", CommandsDirective)
    app.connect("autodoc-process-docstring", _process_docstring, priority=400)  # before napoleon
    app.connect("missing-reference", _resolve_exported)
    app.connect("source-read", _name_files_of_the_clone)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
