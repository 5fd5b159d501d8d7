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
from tests.inspection.test_runtimes import CASES, YARN, config

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


def _theirs(keys: dict[str, Any], layer_type: str = "") -> tuple[np.ndarray, float]:
    """Frequencies and temperature of a tiny model that transformers makes of a config.

    Args:
      keys: the config.
      layer_type: of a model with several embeddings.
    """
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    made = {**_SIZES, **{k: v for k, v in keys.items() if k != "model_type" and v is not None}}
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[keys["model_type"]](**made))
    rotary = next(module for name, module in model.named_modules() if name.endswith("rotary_emb"))
    prefix = f"{layer_type}_" if layer_type else ""
    inv_freq = getattr(rotary, f"{prefix}inv_freq").double().numpy()
    return inv_freq, float(getattr(rotary, f"{prefix}attention_scaling"))


LAYERED = {
    "OLMo 3": config("olmo3", rope_theta=5e5, rope_scaling=YARN, sliding_window=512),
    "OLMo 3, keys of transformers 5": config(
        "olmo3",
        rope_theta=None,
        sliding_window=512,
        rope_parameters={
            "full_attention": {**YARN, "rope_theta": 2e5},
            "sliding_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 3e4},
        },
    ),
    "Gemma 3": config(
        "gemma3_text",
        rope_theta=1e6,
        rope_local_base_freq=2e4,
        sliding_window=512,
        layer_types=["sliding_attention", "full_attention"] * 2,
        rope_scaling={"rope_type": "linear", "factor": 8.0},
    ),
}


@pytest.mark.parametrize("layer_type", ["full_attention", "sliding_attention"])
@pytest.mark.parametrize("name", LAYERED)
def test_layers_of_both_types(name: str, layer_type: str) -> None:
    keys = LAYERED[name]
    with quietly():
        read, _ = reader_of(keys)
        positions = read(keys)
    case = Case(False, keys["model_type"], keys, layer_type, positions)
    assert verdicts(case)["transformers 5"][0] == SAME
    assert case.spec is not None
    ours = frequencies(case.spec)
    inv_freq, temperature = _theirs(keys, layer_type)
    np.testing.assert_allclose(inv_freq, ours.inv_freq, rtol=1e-5)  # theirs are in float32
    assert temperature == pytest.approx(ours.attention_factor, rel=1e-6)


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
