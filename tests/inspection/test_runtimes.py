"""The table of what runtimes make of configs: every rule holds somewhere and has its source."""

import re
from typing import Any

import pytest

from rrope_jax.inspection.case import Case
from rrope_jax.inspection.config_json import reader_of
from rrope_jax.inspection.keys import quietly
from rrope_jax.inspection.positions import LayerPositions, Positions
from rrope_jax.inspection.runtimes import NOT_CHECKED, RELEASES, RULES, SAME, verdicts
from rrope_jax.rope import RopeSpec

LISTS = {
    "short_factor": [1.0] * 32,
    "long_factor": [1.0 + i for i in range(32)],
    "original_max_position_embeddings": 4096,
}
LLAMA3 = {"rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192}


def config(model_type: str = "llama", **keys: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "head_dim": 64,
        "num_hidden_layers": 4,
        "max_position_embeddings": 32768,
        "rope_theta": 10000.0,
        **keys,
    }


def verdicts_of(keys: dict[str, Any], layer_type: str = "full_attention") -> dict[str, str]:
    with quietly():
        read, _ = reader_of(keys)
        positions = read(keys)
    found = verdicts(Case(False, keys["model_type"], keys, layer_type, positions))
    return {runtime: says for runtime, (says, _) in found.items()}


CASES: dict[str, tuple[dict[str, Any], dict[str, str]]] = {
    "plain": (
        config(),
        dict.fromkeys(("transformers 4.57", "transformers 5", "vLLM", "SGLang"), SAME)
        | {"llama.cpp": SAME, "levanter": SAME, "MaxText": "rope_max_timescale=10000"},
    ),
    "an unknown architecture": (
        config("somebodys_own"),
        dict.fromkeys(RELEASES, NOT_CHECKED),
    ),
    "keys of transformers 5 alone": (
        config(rope_theta=None, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
        {
            "transformers 4.57": "rope_parameters is not read",
            "transformers 5": SAME,
            "levanter": "rope_parameters is not",
        },
    ),
    "yarn": (
        config(rope_scaling=YARN),
        dict.fromkeys(("transformers 4.57", "vLLM", "SGLang", "llama.cpp", "levanter"), SAME)
        | {"MaxText": "rope_attention_scaling=true", "Tunix": "no scaling"},
    ),
    "yarn with a temperature of its own": (
        config(rope_scaling={**YARN, "attention_factor": 1.0}),
        {
            "transformers 5": SAME,
            "vLLM": SAME,
            "SGLang": "multiplied by 1.13863, not 1",
            "levanter": "multiplied by 1.13863, not 1",
            "llama.cpp": "multiplied by 1.13863, not 1",
            "MaxText": "no flag",
        },
    ),
    "yarn whose stated temperature is its own": (
        config(rope_scaling={**YARN, "attention_factor": 1.1386294361119891}),
        {"SGLang": SAME, "levanter": SAME},
    ),
    "yarn without rounding, one mscale": (
        config(rope_scaling={**YARN, "truncate": False, "mscale": 0.7}),
        {"levanter": "truncate is not read", "vLLM": SAME},
    ),
    "yarn from a long context": (
        config(rope_scaling={**YARN, "original_max_position_embeddings": 131072}),
        {"levanter": "ends at the last feature", "vLLM": SAME},
    ),
    "two original contexts": (
        config(rope_scaling=YARN, original_max_position_embeddings=4096),
        {"transformers 4.57": "inside rope_scaling counts", "transformers 5": SAME},
    ),
    "Llama 3.2": (
        config(rope_scaling={**LLAMA3, "factor": 32.0, "original_max_position_embeddings": 8192}),
        {"llama.cpp": SAME, "MaxText": "cannot be said", "levanter": SAME, "Tunix": "no scaling"},
    ),
    "Llama 3.1": (
        config(rope_scaling={**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192}),
        {"MaxText": "rope_type=llama3.1"},
    ),
    "llama3 from another context": (
        config(rope_scaling={**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 4096}),
        {"llama.cpp": "8192 is taken for it"},
    ),
    "llama3 on Qwen": (
        config(
            "qwen3",
            rope_scaling={**LLAMA3, "factor": 8.0, "original_max_position_embeddings": 8192},
        ),
        {"llama.cpp": "drops llama3"},
    ),
    "longrope": (
        config(rope_scaling={"rope_type": "longrope", "factor": 8.0, **LISTS}),
        {
            "transformers 4.57": "top level only",
            "transformers 5": "cache",
            "vLLM": "--max-model-len",
            "SGLang": "whole batch",
            "llama.cpp": "drops the factor lists",
            "levanter": "refused",
            "MaxText": "no flag",
        },
    ),
    "longrope with a temperature of its own": (
        config(
            original_max_position_embeddings=4096,
            rope_scaling={"rope_type": "longrope", "attention_factor": 1.0, **LISTS},
        ),
        {"vLLM": "multiplied by 1.11803, not 1", "SGLang": "multiplied by 1.11803, not 1"},
    ),
    "Phi-3 with a temperature of its own": (
        config(
            "phi3",
            original_max_position_embeddings=4096,
            rope_scaling={"rope_type": "longrope", "attention_factor": 1.0, **LISTS},
        ),
        {"llama.cpp": "multiplied by 1.11803, not 1"},
    ),
    "dynamic": (
        config(rope_scaling={"rope_type": "dynamic", "factor": 2.0}),
        {
            "transformers 4.57": "cache",
            "transformers 5": "cache",
            "vLLM": "no stretch beyond",
            "SGLang": "one stretch for all lengths",
            "llama.cpp": "drops the scaling",
        },
    ),
    "a part of each head": (
        config(partial_rotary_factor=0.5),
        {
            "transformers 4.57": SAME,
            "transformers 5": "does not read partial_rotary_factor",
            "llama.cpp": "rotates whole heads",
            "levanter": "whole heads",
            "SGLang": NOT_CHECKED,
        },
    ),
    "a part of each head, keys of transformers 5 alone": (
        config(rope_theta=None, rope_parameters={**YARN, "partial_rotary_factor": 0.5}),
        {"transformers 4.57": "at the top level only"},
    ),
    "proportional": (
        config(rope_parameters={"rope_type": "proportional", "partial_rotary_factor": 0.5}),
        {"transformers 4.57": "unknown there"},
    ),
    "OLMo 2 scaled": (
        config("olmo2", rope_scaling=YARN),
        {"transformers 4.57": "refused", "transformers 5": SAME},
    ),
    "Mistral scaled": (
        config("mistral", rope_scaling=YARN, sliding_window=None),
        {"levanter": "not read for Mistral"},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_verdicts(name: str) -> None:
    keys, expected = CASES[name]
    found = verdicts_of(keys)
    assert found.keys() == RELEASES.keys()
    for runtime, says in expected.items():
        assert says in found[runtime], runtime
        assert (found[runtime] == SAME) == (says == SAME), runtime


def _layers(
    layer_type: str, spec: RopeSpec | None, window: int | None, layers: tuple[int, ...], **keys: Any
) -> Case:
    part = LayerPositions(spec, window, layers)
    other = LayerPositions(RopeSpec(head_dim=64), None, (9,))
    positions = Positions({"full_attention": other, layer_type: part}, 32768, 8192)
    return Case(False, keys["model_type"], keys, layer_type, positions)


_SCALED = RopeSpec(head_dim=64, scaling="linear", factor=8.0)
_PLAIN = RopeSpec(head_dim=64)
_LOCAL = RopeSpec(head_dim=64, theta=5e5)
_TEMPERATURE = RopeSpec(
    head_dim=64,
    scaling="yarn",
    factor=16.0,
    original_context=8192,
    llama_4_scaling_beta=0.1,
)
LAYER_CASES: dict[str, tuple[Case, dict[str, str]]] = {
    "NoPE in every fourth layer": (
        _layers("nope", None, None, (3, 7), model_type="smollm3"),
        {"llama.cpp": SAME, "vLLM": SAME, "transformers 5": SAME},
    ),
    "NoPE elsewhere": (
        _layers("nope", None, None, (3, 6), model_type="smollm3"),
        {"llama.cpp": "no_rope_layers is not read"},
    ),
    "Gemma 3 scaled in its windows": (
        _layers("sliding_attention", _SCALED, 512, (0, 1), model_type="gemma3_text"),
        {"SGLang": "no scaling", "levanter": "global there", "Tunix": "local_scale_factor"},
    ),
    "Gemma 3": (
        _layers("sliding_attention", _PLAIN, 512, (0, 1), model_type="gemma3_text"),
        {"SGLang": SAME, "vLLM": SAME, "MaxText": "local_rope_max_timescale=10000"},
    ),
    "OLMo 3 scaled in its windows": (
        _layers("sliding_attention", _SCALED, 512, (0, 1), model_type="olmo3"),
        {"llama.cpp": "no scaling", "levanter": "no scaling"},
    ),
    "OLMo 3": (
        _layers("sliding_attention", _LOCAL, 512, (0, 1), model_type="olmo3"),
        {"MaxText": "all layers of OLMo 3 get", "levanter": SAME},
    ),
    "OLMo 3 without a base": (
        _layers("full_attention", _PLAIN, None, (3,), model_type="olmo3"),
        {"transformers 4.57": "10,000 there", "transformers 5": SAME},
    ),
    "windows in some layers of Qwen 2": (
        _layers("sliding_attention", _PLAIN, 512, (0, 1), model_type="qwen2"),
        {"vLLM": "refused", "llama.cpp": "no window", "levanter": "not implemented"},
    ),
    "Ministral 3": (
        _layers("sliding_attention", _TEMPERATURE, 512, (0,), model_type="ministral3"),
        {
            "transformers 4.57": "no Ministral 3",
            "transformers 5": SAME,
            "vLLM": "params.json",
            "SGLang": "from max_position_embeddings on",
        },
    ),
}


@pytest.mark.parametrize("name", LAYER_CASES)
def test_verdicts_of_layers(name: str) -> None:
    case, expected = LAYER_CASES[name]
    found = verdicts(case)
    for runtime, says in expected.items():
        assert says in found[runtime][0], runtime
        assert (found[runtime][0] == SAME) == (says == SAME), runtime


def test_gguf() -> None:
    keys = {"general.architecture": "llama"}
    for spec, theirs in ((_PLAIN, SAME), (_SCALED, "plain RoPE")):
        positions = Positions({"full_attention": LayerPositions(spec, None, (0,))}, 32768, None)
        found = verdicts(Case(True, "llama", keys, "full_attention", positions))
        assert found["llama.cpp"][0] == SAME
        assert theirs in found["transformers 5"][0]
        assert found["vLLM"][0] == NOT_CHECKED
        by_name = Case(True, "llama", keys, "full_attention", positions, is_by_name=True)
        assert verdicts(by_name)["llama.cpp"][0] == NOT_CHECKED


def test_every_rule_has_a_source_that_does_not_move() -> None:
    for rule in RULES:
        assert rule.runtime in RELEASES
        assert re.match(
            r"https://github\.com/[\w.-]+/[\w.-]+/blob/(v[\d.]+|[0-9a-f]{40})/", rule.source
        )


def test_every_rule_holds_in_a_test() -> None:
    cases = [case for case, _ in LAYER_CASES.values()]
    for keys, _ in CASES.values():
        with quietly():
            read, _ = reader_of(keys)
            positions = read(keys)
        cases.append(Case(False, keys["model_type"], keys, "full_attention", positions))
    for spec in (_PLAIN, _SCALED):
        positions = Positions({"full_attention": LayerPositions(spec, None, (0,))}, 32768, None)
        cases.append(Case(True, "llama", {}, "full_attention", positions))
    idle = [
        (rule.runtime, rule.says) for rule in RULES if not any(rule.holds(case) for case in cases)
    ]
    assert idle == []
