"""What the table says of transformers 5, beside what transformers computes."""

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from rrope_jax.inspection.case import Case
from rrope_jax.inspection.config_json import reader_of
from rrope_jax.inspection.keys import quietly
from rrope_jax.inspection.runtimes import SAME, verdicts
from rrope_jax.rope import frequencies
from tests.inspection.test_runtimes import CASES

pytestmark = [pytest.mark.peers, pytest.mark.slow]

_SIZES = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
    "pad_token_id": 0,
}


@pytest.fixture(autouse=True)
def _silence() -> Iterator[None]:
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def _theirs(keys: dict[str, Any]) -> tuple[np.ndarray, float]:
    """Frequencies and temperature of a tiny model that transformers makes of a config."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    made = {**_SIZES, **{k: v for k, v in keys.items() if k != "model_type" and v is not None}}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[keys["model_type"]](**made))
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    return rotary.inv_freq.double().numpy(), float(rotary.attention_scaling)


@pytest.mark.parametrize("name", [n for n, (keys, _) in CASES.items() if "own" not in n])
def test_same_where_the_table_says_so(name: str) -> None:
    """A rule about caches is about another thing than the tables of one pass."""
    keys, _ = CASES[name]
    with quietly():
        read, _ = reader_of(keys)
        positions = read(keys)
    case = Case(False, keys["model_type"], keys, "full_attention", positions)
    says, _ = verdicts(case)["transformers 5"]
    inv_freq, temperature = _theirs(keys)
    assert case.spec is not None
    ours = frequencies(case.spec)
    # Theirs are in float32.
    is_same = inv_freq.shape == ours.inv_freq.shape and (
        np.allclose(inv_freq, ours.inv_freq, rtol=1e-5)
        and np.isclose(temperature, ours.attention_factor, rtol=1e-5)
    )
    assert is_same == (says == SAME or says.startswith("same for one pass")), says
