"""All proofs of all families; see `case` for how to add a family or a case."""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import pytest

from rrope_jax.io.families.table import FAMILIES
from tests.io.families.case import all_cases

_CASES = all_cases()
_NAMES = ("logits", "cached", "round_trip", "folded", "llama_cpp", "llama_cpp_extended")
# One case of each family is in .ci/run; `python -m tests.io.families.table` goes through all.
_USUAL = {case.family: case for case in reversed(_CASES)}.values()


def test_every_family_has_a_case() -> None:
    assert {case.family for case in _CASES} == FAMILIES.keys()


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(case, marks=() if case in _USUAL else pytest.mark.long, id=str(case))
        for case in _CASES
    ],
)
def model(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    from tests.io.families import proofs

    yield proofs.save(request.param, tmp_path_factory.mktemp("model"))
    jax.clear_caches()


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("name", _NAMES)
def test_proof(
    name: str, model: Any, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    from tests.io.families import proofs

    assert tuple(proofs.PROOFS) == _NAMES
    proof = proofs.PROOFS[name]
    if not proof.applies(model.case):
        pytest.skip("the case has no such proof")
    if proof.needs is not None and importlib.util.find_spec(proof.needs) is None:
        pytest.skip(f"needs {proof.needs}")
    figure = proof.measure(model, tmp_path)
    record_property("figure", figure)
    assert proof.holds(figure), f"{figure} is not within {proof.limit}"
