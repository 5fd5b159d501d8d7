"""docs/howto/add.md: a member is a row in the file that the page names, and in no other."""

import ast
import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax import algorithmic, posgen, rope
from rrope_jax.algorithmic import tasks as algorithmic_tasks
from rrope_jax.algorithmic.answers import single, uniform_tokens
from rrope_jax.io import pretrained
from rrope_jax.io.conversion import convert
from rrope_jax.io.families.table import FAMILIES
from rrope_jax.model.attention.choice import IMPLEMENTATIONS, attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.posgen.tasks import TASKS
from rrope_jax.rope import SCALINGS, methods, positions, resonance, scalings, temperature
from rrope_jax.rope.positions import SAMPLERS, PositionSampling
from tests.io import tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "howto" / "add.md").read_text()
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.M | re.S))
FILES = {title: re.findall(r"^\| `([^`]+)` \|", text, re.M) for title, text in SECTIONS.items()}


@functools.cache
def _strings(path: Path) -> frozenset[str]:
    tree = ast.parse(path.read_text())
    return frozenset(
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def _naming(members: Iterable[str]) -> dict[str, str]:
    """The modules of the package that name one of the members, with that member."""
    names = frozenset(members)
    modules = {path: _strings(path) & names for path in (ROOT / "rrope_jax").rglob("*.py")}
    return {str(p.relative_to(ROOT)): min(named) for p, named in modules.items() if named}


def test_sections() -> None:
    assert list(SECTIONS) == [
        "A scaling",
        "A rule of resonance",
        "A temperature by position",
        "A task",
        "An algorithmic task",
        "A position sampler",
        "An attention implementation",
        "A model family",
    ]


@pytest.mark.parametrize(
    ("section", "name"), [(section, name) for section, names in FILES.items() for name in names]
)
def test_files_exist(section: str, name: str) -> None:
    assert (ROOT / name).is_file()


@pytest.mark.parametrize(
    ("section", "members"),
    [
        # Names that are words of something else as well are left out.
        ("A task", set(TASKS) - {"recursive"}),
        ("An algorithmic task", set(algorithmic.TASKS)),
        ("A position sampler", set(SAMPLERS) - {"contiguous"}),
        ("An attention implementation", set(IMPLEMENTATIONS) - {"xla"}),
        ("A model family", {"mistral"}),
    ],
)
def test_no_other_file_names_the_members(section: str, members: set[str]) -> None:
    assert members
    others = {path: name for path, name in _naming(members).items() if path not in FILES[section]}
    # A module of one member may name itself.
    assert {path: name for path, name in others.items() if Path(path).stem != name} == {}


def test_add_a_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    def thirds(spec: Any, seq_len: int | None) -> np.ndarray:
        return np.full(spec.rotary_dim // 2, 1 / 3 / spec.factor)

    factor = frozenset({"factor"})
    monkeypatch.setitem(SCALINGS, "thirds", scalings.Scaling(thirds, factor, factor))
    spec = rope.RopeSpec(head_dim=8, scaling="thirds", factor=2.0, resonance=True)
    assert rope.frequencies(spec).wavelengths.tolist() == [38.0] * 4
    exported = rope.from_hf(rope.to_hf(spec, max_position_embeddings=64))
    np.testing.assert_allclose(
        rope.frequencies(exported).inv_freq, rope.frequencies(spec).inv_freq, rtol=1e-12
    )


def test_add_a_rule_of_resonance(monkeypatch: pytest.MonkeyPatch) -> None:
    def sevens(spec: Any, wavelengths: Sequence[float]) -> list[resonance.Period]:
        return [resonance.Period(7, 1)] * len(wavelengths)

    monkeypatch.setitem(resonance.RULES, "sevens", resonance.Rule(sevens))
    spec = rope.RopeSpec(head_dim=8, scaling="ntk", factor=2.0, resonance="sevens")
    assert rope.frequencies(spec).wavelengths.tolist() == [7.0] * 4
    assert methods.parse_method("sevens_ntk") == ("ntk", "sevens")
    assert methods.method_of(spec) == "sevens_ntk"
    exported = rope.from_hf(rope.to_hf(spec, max_position_embeddings=64))
    assert rope.frequencies(exported).periods.tolist() == [7] * 4


def test_add_a_temperature_by_position(monkeypatch: pytest.MonkeyPatch) -> None:
    def log2(spec: Any) -> temperature.QueryTemperature:
        return temperature.QueryTemperature(beta=0.0, context=1, log_weight=1 / math.log(2))

    row = temperature.PositionTemperature(log2)
    monkeypatch.setitem(temperature.POSITION_TEMPERATURES, "log2", row)
    spec = rope.RopeSpec(head_dim=8, position_temperature="log2")
    assert rope.RopeSpec(**spec.fields()) == spec
    factors = rope.query_temperature(spec, np.array([0, 1, 7]))
    np.testing.assert_allclose(factors, [1, 1, 3], rtol=1e-6)  # float32 logarithms
    with pytest.raises(ValueError, match="position_temperature='log2'"):
        rope.to_hf(spec)


def test_add_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(TASKS, "first_half", lambda steps: steps // 2)
    tokens = posgen.generate("first_half", jnp.array([[1, 0, 0, 0]]), 8, modulus=7)
    assert tokens.shape == (1, 8)


def test_add_an_algorithmic_task(monkeypatch: pytest.MonkeyPatch) -> None:
    row = algorithmic_tasks.AlgorithmicTask(
        level="regular",
        question=("0", "1", "2"),
        answer=("0", "1", "2"),
        draw=uniform_tokens(3),
        solve=lambda tokens_W, length: single(tokens_W[0]),
        answer_length=lambda length: 1,
    )
    monkeypatch.setattr(algorithmic_tasks, "TASKS", {**algorithmic.TASKS, "first_token": row})
    drawn = algorithmic.generate("first_token", jax.random.key(0), 3, width=4)
    assert drawn.answer.tolist() == [drawn.question[0]]
    assert algorithmic.solve("first_token", [2, 1, 0]).tokens.tolist() == [2]


def test_add_a_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    def even(sampling: PositionSampling, key: jax.Array, length: int) -> positions.Positions:
        return positions.Positions(2 * jnp.arange(length, dtype=jnp.int32))

    monkeypatch.setitem(SAMPLERS, "even", positions.Sampler(even))
    drawn = positions.sample(PositionSampling(sampler="even"), jax.random.key(0), 2, 4)
    assert drawn.whole.tolist() == [[0, 2, 4, 6]] * 2


def test_add_an_attention_implementation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMPLEMENTATIONS, "mine", IMPLEMENTATIONS["xla"])
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 8, 2, 16))
    mixed = [attention(q, k, v, CausalMask(), implementation=name) for name in ("mine", "xla")]
    np.testing.assert_array_equal(*mixed)


def test_add_a_model_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save(tiny.decoder(), tmp_path / "model", "hf")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "minillama"}))
    with pytest.raises(ValueError, match="minillama"):
        pretrained.describe(folder)
    row = dataclasses.replace(FAMILIES["llama"], name="minillama", architecture="MiniLlama")
    monkeypatch.setitem(FAMILIES, "minillama", row)
    assert pretrained.describe(folder).model.num_layers == config["num_hidden_layers"]
    convert(folder, tmp_path / "written", "hf")
    written = json.loads((tmp_path / "written" / "config.json").read_text())
    assert (written["model_type"], written["architectures"]) == ("minillama", ["MiniLlama"])
