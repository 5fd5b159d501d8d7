"""Imports point one way, and the parts that promise to be light are."""

import ast
import configparser
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rrope_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "rrope_jax"

# A module may import from its own layer and from those above it in this table. The longest name
# that fits decides.
LAYERS = (
    (
        "rrope_jax",
        "rrope_jax.algorithmic.answers",
        "rrope_jax.algorithmic.binary",
        "rrope_jax.algorithmic.context_free",
        "rrope_jax.algorithmic.context_sensitive",
        "rrope_jax.algorithmic.expressions",
        "rrope_jax.algorithmic.regular",
        "rrope_jax.algorithmic.tasks",
        "rrope_jax.rope",
        "rrope_jax.posgen.config",
        "rrope_jax.posgen.splits",
        "rrope_jax.posgen.tasks",
    ),
    ("rrope_jax.sharding",),
    ("rrope_jax.model.platform", "rrope_jax.model.attention.mask"),
    ("rrope_jax.model.attention",),
    ("rrope_jax.model",),
    ("rrope_jax.io", "rrope_jax.reporting"),
    ("rrope_jax.data",),
    ("rrope_jax.train",),
    ("rrope_jax.evaluation", "rrope_jax.inspection", "rrope_jax.posgen", "rrope_jax.planning"),
    ("rrope_jax.algorithmic",),
    ("rrope_jax.planning.roofline",),
    ("rrope_jax.cli",),
    ("rrope_jax.run",),
    ("rrope_jax.reporting.pieces", "rrope_jax.reporting.writing"),
    ("rrope_jax.jobs",),
    ("rrope_jax.__main__",),
)
LAYER_OF = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# What these parts may import from outside, besides the standard library.
DEPENDENCIES = {
    **{name: {"jax", "numpy"} for name in LAYERS[0] if name.startswith("rrope_jax.algorithmic.")},
    "rrope_jax.rope": {"jax", "numpy"},
    "rrope_jax.posgen.tasks": {"jax", "numpy"},
    "rrope_jax.posgen.splits": {"jax", "numpy"},
    "rrope_jax.posgen.config": {"jax", "numpy"},
}


def _module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {_module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def _layer(name: str) -> int:
    while name not in LAYER_OF:
        name = name.rpartition(".")[0]
    return LAYER_OF[name]


def _imports(source: str, module: str, is_package: bool) -> Iterator[str]:
    """The modules a source imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")
                parents = parents[: len(parents) - node.level + is_package]
                base = ".".join([*parents, *([node.module] if node.module else [])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield full if full in MODULES else base


def _violations(source: str, module: str, is_package: bool = False) -> list[str]:
    found = []
    allowed = next((d for p, d in DEPENDENCIES.items() if f"{module}.".startswith(f"{p}.")), None)
    for name in _imports(source, module, is_package):
        top = name.partition(".")[0]
        if top in ("configs", "launch", "tests"):
            found.append(f"{module} imports {name}, which is not part of the package")
        elif top == "rrope_jax":
            if _layer(name) > _layer(module):
                found.append(f"{module} imports {name}, which is built on it")
        elif allowed is not None and top not in allowed and top not in sys.stdlib_module_names:
            found.append(f"{module} imports {name}; it may only import {sorted(allowed)}")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    path = MODULES[module]
    assert _violations(path.read_text(), module, path.name == "__init__.py") == []


def test_no_modules_import_each_other() -> None:
    """Not even in a circle of several, or for types alone."""
    # __init__.py is left out: it gathers names from modules, which do not need it
    graph = {
        module: {
            name
            for name in _imports(path.read_text(), module, path.name == "__init__.py")
            if name in MODULES and MODULES[name].name != "__init__.py"
        }
        for module, path in MODULES.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rrope_jax.rope.spec", "import rrope_jax.run.workdir"),
        ("rrope_jax.rope.spec", "from rrope_jax.run import workdir"),
        ("rrope_jax.rope.spec", "from ..run import workdir"),
        ("rrope_jax.rope.spec", "def f():\n    from flax import nnx"),
        ("rrope_jax.model.decoder", "import rrope_jax.posgen.report"),
        ("rrope_jax.planning.plan", "from rrope_jax.planning.roofline import step_time"),
        ("rrope_jax.jobs.posgen", "from configs import posgen_quick"),
    ],
)
def test_walker_sees_a_wrong_import(module: str, source: str) -> None:
    assert len(_violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rrope_jax.model.decoder", "from rrope_jax import rope"),
        ("rrope_jax.rope.spec", "from .frequencies import frequencies"),
        ("rrope_jax.jobs.posgen", "import flax, optax, rrope_jax.model"),
    ],
)
def test_walker_accepts_a_right_import(module: str, source: str) -> None:
    assert _violations(source, module) == []


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("rrope_jax", ("jax", "numpy")),
        ("rrope_jax.rope", ("flax", "optax", "orbax", "matplotlib")),
        ("rrope_jax.posgen.tasks", ("flax", "optax", "orbax", "matplotlib")),
        ("rrope_jax.algorithmic", ("flax", "optax", "orbax", "matplotlib")),
    ],
)
def test_light_modules_load_nothing_heavy(module: str, absent: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert loaded.stdout.strip() == "[]"


# Every command says its help, refuses a config and a place; then one trains.
_COMMANDS = """
import contextlib, io, sys
from rrope_jax.__main__ import COMMANDS, main
config, text, workdir = sys.argv[1:]
words = [f"--config={config}", f"--workdir={workdir}", f"--config.data.source={text}"]
for name in COMMANDS:
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main([name, "--help"])
assert main(["train", *words, "--config.train.steps=0"]) == 2
assert main(["plan", *words, "--topology=v5p:4x4"]) == 2
assert main(["train", *words, "--config.train.steps=1", "--config.eval.every_steps=None"]) == 0
print([name for name in ("tensorflow_datasets", "matplotlib") if name in sys.modules])
"""


@pytest.mark.slow
def test_commands_load_neither_tfds_nor_matplotlib_unless_they_need_them(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("some text to train on")
    (tmp_path / "text" / "c.txt").write_text("held out")
    config = ROOT / "tests" / "jobs" / "train_tiny.py"
    words = [sys.executable, "-c", _COMMANDS, config, tmp_path / "text", tmp_path / "run"]
    run = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "[]"


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {rrope_jax.__version__}" in citation
    assert f"## {rrope_jax.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_file_of_the_package_is_installed() -> None:
    """Setuptools finds packages by their __init__.py; a folder without one would be left out."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    assert setup["options"]["packages"] == "find:"
    assert [p for p in MODULES.values() if not (p.parent / "__init__.py").exists()] == []


@pytest.mark.parametrize("module", ["rrope_jax.model.layers", "rrope_jax.model.decoder"])
def test_the_transformer_names_no_processor(module: str) -> None:
    """What one of them wants in a form of its own is in `rrope_jax.model.platform`."""
    source = MODULES[module].read_text().lower()
    assert not {word for word in ("cpu", "gpu", "tpu") if word in source.replace("output", "")}
