"""How other runtimes read the same keys: a table of rules, each with its source.

A rule says for which files and layers it holds, and what differs there; or that a runtime was
looked at and reads such a file as we do. What no rule covers is "not checked". To add a runtime,
add its name and release to `RELEASES` and its rules to `RULES`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

from rrope_jax.inspection.case import Case
from rrope_jax.rope.huggingface.model_types import model_type_of

SAME = "same"
NOT_CHECKED = "not checked"

_GITHUB = "https://github.com"
# What was looked at: release or commit. "run" where the rules were also seen in a run of it.
RELEASES: Mapping[str, str] = MappingProxyType(
    {
        "transformers 4.57": "4.57.6, run",
        "transformers 5": "5.23.0, run",
        "vLLM": "0.33.0",
        "SGLang": "0.5.23",
        "llama.cpp": "converter at 0274f0fc and 00bd27a6; GGUF as in xllamacpp 2026.10, run",
        "MaxText": "e591f30c of August 2026",
        "levanter": "marin 3560cb28, 0cf7458f and 1997a9c9",
        "Tunix": "c7d8950f of August 2026",
    }
)
_HF4 = f"{_GITHUB}/huggingface/transformers/blob/v4.57.6/src/transformers/"
_HF5 = f"{_GITHUB}/huggingface/transformers/blob/v5.23.0/src/transformers/"
_VLLM = f"{_GITHUB}/vllm-project/vllm/blob/v0.33.0/vllm/"
_SGLANG = f"{_GITHUB}/sgl-project/sglang/blob/v0.5.23/python/sglang/srt/"
_LLAMA_CPP = f"{_GITHUB}/ggml-org/llama.cpp/blob/"
_MAXTEXT = (
    f"{_GITHUB}/AI-Hypercomputer/maxtext/blob/e591f30cbbf217ed67ef71263ec0538239f9c3b8/src/maxtext/"
)
_LEVANTER_SRC = "lib/levanter/src/levanter/"
_LEVANTER = f"{_GITHUB}/marin-community/marin/blob/"
_LEVANTER_ROTARY = (
    f"{_LEVANTER}3560cb2866426f83f4b80533a08a0b7f6417ae49/{_LEVANTER_SRC}layers/rotary.py"
)
_TUNIX = f"{_GITHUB}/google/tunix/blob/c7d8950f12a9c55a976bf2e1a0d8b447d71c20b3/tunix/models/"
_VLLM_ROPE = f"{_VLLM}model_executor/layers/rotary_embedding/"
_SGLANG_ROPE = f"{_SGLANG}layers/rotary_embedding/"
_CONVERTER = f"{_LLAMA_CPP}0274f0fc7d7fbab69c33ccf757cf7f3d036c17aa/conversion/"

_CONVERTER_BASE = f"{_LLAMA_CPP}00bd27a621f92be9a99d24d7c5117a263b9b3c01/conversion/base.py"

_DENSE = frozenset(
    ("llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "olmo3", "phi3", "granite")
) | {"gemma3_text"}
_LLAMA_CLASS = frozenset(("llama", "mistral", "smollm3", "granite"))  # of llama.cpp's converter
_MAXTEXT_MODELS = frozenset(("llama", "mistral", "qwen2", "qwen3", "gemma3_text", "olmo3"))
_TUNIX_MODELS = frozenset(("llama", "qwen2", "qwen3", "gemma3_text"))
_NAMED = frozenset(("none", "linear", "llama3", "yarn"))


@dataclasses.dataclass(frozen=True)
class Rule:
    """One thing that is known of a runtime.

    Attributes:
      runtime: its name.
      holds: whether the rule is about a case.
      says: what differs there, or `SAME`.
      source: where this can be read.
    """

    runtime: str
    holds: Callable[[Case], bool]
    says: str | Callable[[Case], str]
    source: str


def verdicts(case: Case) -> dict[str, tuple[str, tuple[str, ...]]]:
    """What each runtime makes of a case.

    Returns:
      For each runtime: `SAME`, `NOT_CHECKED` or what differs; and the sources.
    """
    found: dict[str, tuple[str, tuple[str, ...]]] = {}
    for runtime in RELEASES:
        rules = [rule for rule in RULES if rule.runtime == runtime and rule.holds(case)]
        if case.positions.notes:  # what is not known is not the same
            rules = [rule for rule in rules if rule.says != SAME]
        differ = [rule for rule in rules if rule.says != SAME]
        if not rules:
            found[runtime] = (NOT_CHECKED, ())
            continue
        refused = [rule for rule in differ if str(rule.says).startswith("refused")]
        differ = refused or differ
        texts = [rule.says if isinstance(rule.says, str) else rule.says(case) for rule in differ]
        shown = differ or rules
        found[runtime] = ("; ".join(texts) or SAME, tuple(dict.fromkeys(r.source for r in shown)))
    return found


# --- conditions ---


def _hf(*conditions: Callable[[Case], bool]) -> Callable[[Case], bool]:
    return lambda case: not case.is_gguf and all(condition(case) for condition in conditions)


def _gguf(*conditions: Callable[[Case], bool]) -> Callable[[Case], bool]:
    return lambda case: case.is_gguf and all(condition(case) for condition in conditions)


def _of(types: frozenset[str]) -> Callable[[Case], bool]:
    return lambda case: (case.model_type or "llama") in types


def _scaled(*names: str) -> Callable[[Case], bool]:
    return lambda case: case.is_rotated and case.scaling in names


def _only_v5(case: Case) -> bool:
    return (
        bool(case.keys.get("rope_parameters"))
        and case.is_rotated
        and (
            case.keys.get("rope_theta") is None
            or (case.scaling != "none" and not case.keys.get("rope_scaling"))
        )
    )


def _known_to_5(case: Case) -> bool:
    """Whether `tests/rope/test_model_types.py` compares this type."""
    return model_type_of(case.model_type) is not None


def _ramp_beyond_features(case: Case) -> bool:
    """Whether even the slowest feature turns more than beta_slow times in the original context."""
    spec = case.spec
    if spec is None or spec.original_context is None:
        return False
    return spec.original_context / (2 * math.pi * spec.beta_slow) > spec.theta


def _without_theta(case: Case) -> bool:
    return case.keys.get("rope_theta") is None and case.parameters.get("rope_theta") is None


def _olmo2_refuses(case: Case) -> bool:
    group = case.keys.get("rope_scaling")
    return isinstance(group, Mapping) and group.get("type") not in ("linear", "dynamic")


def _only_nested_original(case: Case) -> bool:
    return (
        case.keys.get("original_max_position_embeddings") is None
        and case.parameters.get("original_max_position_embeddings") is not None
    )


def _two_originals(case: Case) -> bool:
    top = case.keys.get("original_max_position_embeddings")
    nested = case.parameters.get("original_max_position_embeddings")
    return top is not None and nested is not None and top != nested


def _explicit_temperature(case: Case) -> bool:
    return case.parameters.get("attention_factor") is not None and not math.isclose(
        case.temperature, case.derived_temperature, rel_tol=1e-6
    )


def _other_longrope_temperature(case: Case) -> bool:
    return not math.isclose(case.temperature, case.longrope_temperature, rel_tol=1e-6)


def _has_beta(case: Case) -> bool:
    return case.spec is not None and case.spec.llama_4_scaling_beta != 0


def _two_lists(case: Case) -> bool:
    return case.has_two_lists


def _windowed(case: Case) -> bool:
    return case.window is not None


def _partial(case: Case) -> bool:
    return case.is_partial


def _plain_partial(case: Case) -> bool:
    return case.is_partial and case.scaling == "none"


def _unrotated(case: Case) -> bool:
    return not case.is_rotated


def _not_every_fourth(case: Case) -> bool:
    layers = case.positions.by_type[case.layer_type].layers or ()
    return any((layer + 1) % 4 for layer in layers)


def _other_llama3(case: Case) -> bool:
    spec = case.spec
    return spec is not None and (
        (spec.factor, spec.low_freq_factor, spec.high_freq_factor, spec.original_context)
        != (8, 1, 4, 8192)
    )


def _other_nested_original(case: Case) -> bool:
    stated = case.keys.get("original_max_position_embeddings", 8192)
    return case.spec is not None and case.spec.original_context != stated


def _differs_from_full_layers(case: Case) -> bool:
    full = case.positions.by_type.get("full_attention")
    return case.is_rotated and full is not None and full.rope != case.spec


def _differs_from_full_layers_of_olmo3(case: Case) -> bool:
    return case.model_type == "olmo3" and _differs_from_full_layers(case)


def _scaled_window(case: Case) -> bool:
    return case.layer_type == "sliding_attention" and case.scaling != "none"


def _not(condition: Callable[[Case], bool]) -> Callable[[Case], bool]:
    return lambda case: not condition(case)


# --- what differs, in words that depend on the case ---


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.6g}"


def _temperature(read: Callable[[Case], float]) -> Callable[[Case], str]:
    return lambda case: (
        f"attention_factor is not read: cos and sin are multiplied by {_number(read(case))}, not "
        f"{_number(case.temperature)}"
    )


def _maxtext_flags(case: Case) -> str:
    spec = case.spec
    if spec is None:
        return "config.json is not read; the flag for layers without RoPE is nope_layer_interval"
    theta = (
        "local_rope_max_timescale"
        if case.layer_type == "sliding_attention"
        else ("rope_max_timescale")
    )
    flags = [f"{theta}={_number(spec.theta)}"]
    if spec.scaling == "linear":
        flags.append(f"rope_linear_scaling_factor={_number(spec.extension)}")
    elif spec.scaling == "llama3":
        flags.append("rope_type=llama3.1")
    elif spec.scaling == "yarn":
        flags += [
            "rope_type=yarn",
            f"rope_factor={_number(spec.extension)}",
            f"original_max_position_embeddings={spec.original_context}",
            f"beta_fast={_number(spec.beta_fast)} beta_slow={_number(spec.beta_slow)}",
            f"rope_truncate={str(spec.truncate).lower()}",
            "rope_interleave=false",
            f"rope_attention_scaling={str(case.temperature != 1).lower()}",
        ]
    if case.window is not None:
        flags.append(f"sliding_window_size={case.window}")
    return f"config.json is not read; the same is {' '.join(flags)}"


def _tunix_theta(case: Case) -> str:
    return (
        "config.json is not read; the theta of its own model configs has to be "
        f"{_number(case.spec.theta if case.spec else 0)}"
    )


_CACHE = (
    "same for one pass over a text; while generating, keys in the cache keep the frequencies of "
    "the length at which they were written"
)

RULES: tuple[Rule, ...] = (
    # --- transformers 4.57 ---
    Rule(
        "transformers 4.57",
        _hf(_only_v5),
        "rope_parameters is not read: plain RoPE, with the class's own theta where rope_theta is "
        "missing beside it",
        f"{_HF4}modeling_rope_utils.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_scaled("longrope"), _only_nested_original),
        "original_max_position_embeddings is read at the top level only: max_position_embeddings "
        "is taken for it, or an error raised where factor is missing",
        f"{_HF4}modeling_rope_utils.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_scaled("yarn"), _two_originals),
        "original_max_position_embeddings inside rope_scaling counts, not the one at the top level",
        f"{_HF4}modeling_rope_utils.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_scaled("proportional")),
        "rope_type='proportional' is unknown there",
        f"{_HF4}modeling_rope_utils.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_has_beta),
        "llama_4_scaling_beta is not read: queries are not multiplied by a factor that grows with "
        "the position",
        f"{_HF4}models/mistral/modeling_mistral.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_partial, lambda case: case.keys.get("partial_rotary_factor") is None),
        "partial_rotary_factor is read at the top level only",
        f"{_HF4}modeling_rope_utils.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_scaled("dynamic_ntk")),
        _CACHE,
        f"{_HF4}modeling_rope_utils.py",
    ),
    Rule("transformers 4.57", _hf(_two_lists), _CACHE, f"{_HF4}modeling_rope_utils.py"),
    Rule(
        "transformers 4.57",
        _hf(_of(frozenset(("ministral3",)))),
        "refused: it has no Ministral 3",
        f"{_HF4}models/auto/configuration_auto.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_of(frozenset(("olmo2",))), _olmo2_refuses),
        "refused: OLMo 2 takes rope_scaling only with the old key type, as linear or dynamic",
        f"{_HF4}models/olmo2/configuration_olmo2.py",
    ),
    Rule(
        "transformers 4.57",
        _hf(_of(frozenset(("olmo3",))), _without_theta),
        "rope_theta is missing, and is 10,000 there",
        f"{_HF4}models/olmo3/configuration_olmo3.py",
    ),
    Rule("transformers 4.57", _hf(_of(_DENSE)), SAME, f"{_HF4}modeling_rope_utils.py"),
    *(
        Rule(
            runtime,
            _gguf(_not(_scaled("none"))),
            "plain RoPE: neither the keys rope.scaling nor the tensor rope_freqs are read",
            f"{source}integrations/ggml.py",
        )
        for runtime, source in (("transformers 4.57", _HF4), ("transformers 5", _HF5))
    ),
    *(
        Rule(
            runtime,
            _gguf(_of(frozenset(("llama", "qwen2", "qwen3"))), _scaled("none"), _not(_windowed)),
            SAME,
            f"{source}integrations/ggml.py",
        )
        for runtime, source in (("transformers 4.57", _HF4), ("transformers 5", _HF5))
    ),
    # --- transformers 5 ---
    Rule(
        "transformers 5",
        _hf(_plain_partial, _of(_DENSE - {"phi3"})),
        "plain RoPE of this class does not read partial_rotary_factor: whole heads are rotated",
        f"{_HF5}models/llama/modeling_llama.py",
    ),
    Rule(
        "transformers 5",
        _hf(_scaled("dynamic_ntk")),
        _CACHE,
        f"{_HF5}modeling_rope_utils.py",
    ),
    Rule("transformers 5", _hf(_two_lists), _CACHE, f"{_HF5}modeling_rope_utils.py"),
    Rule(
        "transformers 5",
        _hf(_known_to_5),
        SAME,
        f"{_HF5}modeling_rope_utils.py",
    ),
    # --- vLLM ---
    Rule(
        "vLLM",
        _hf(_scaled("longrope"), _other_longrope_temperature),
        _temperature(lambda case: case.longrope_temperature),
        f"{_VLLM_ROPE}phi3_long_rope_scaled_rope.py",
    ),
    Rule(
        "vLLM",
        _hf(_two_lists),
        "one list for all lengths: the long one if --max-model-len is above the original context, "
        "else the short one",
        f"{_VLLM_ROPE}phi3_long_rope_scaled_rope.py",
    ),
    Rule(
        "vLLM",
        _hf(_scaled("dynamic_ntk")),
        "plain RoPE up to max_position_embeddings, as here, and no stretch beyond",
        f"{_VLLM_ROPE}dynamic_ntk_scaling_rope.py",
    ),
    Rule(
        "vLLM",
        _hf(_has_beta),
        "llama_4_scaling_beta of config.json is not read, only that of a params.json",
        f"{_VLLM}model_executor/models/mistral.py",
    ),
    Rule(
        "vLLM",
        _hf(_of(frozenset(("qwen2",))), lambda case: len(case.positions.by_type) > 1),
        "refused: windows in some layers only are not implemented for Qwen2",
        f"{_VLLM}model_executor/models/qwen2.py",
    ),
    Rule(
        "vLLM",
        _hf(_of(_DENSE), _scaled(*_NAMED, "longrope")),
        SAME,
        f"{_VLLM_ROPE}__init__.py",
    ),
    Rule(
        "vLLM",
        _hf(_of(frozenset(("smollm3",))), _unrotated),
        SAME,
        f"{_VLLM}model_executor/models/registry.py",
    ),
    # --- SGLang ---
    Rule(
        "SGLang",
        _hf(_scaled("yarn"), _explicit_temperature),
        _temperature(lambda case: case.derived_temperature),
        f"{_SGLANG_ROPE}yarn.py",
    ),
    Rule(
        "SGLang",
        _hf(_scaled("longrope"), _other_longrope_temperature),
        _temperature(lambda case: case.longrope_temperature),
        f"{_SGLANG_ROPE}rope_variant.py",
    ),
    Rule(
        "SGLang",
        _hf(_two_lists),
        "the list is chosen for a whole batch in each step, by its furthest position; keys in the "
        "cache keep theirs",
        f"{_SGLANG_ROPE}rope_variant.py",
    ),
    Rule(
        "SGLang",
        _hf(_scaled("dynamic_ntk")),
        "one stretch for all lengths, that of factor * max_position_embeddings tokens",
        f"{_SGLANG_ROPE}rope_variant.py",
    ),
    Rule(
        "SGLang",
        _hf(_of(frozenset(("gemma3_text",))), _scaled_window),
        "layers with a window get no scaling",
        f"{_SGLANG}models/gemma3_causal.py",
    ),
    Rule(
        "SGLang",
        _hf(_has_beta),
        "the factor on queries grows from max_position_embeddings on, not the original context",
        f"{_SGLANG}models/ministral3.py",
    ),
    Rule(
        "SGLang",
        _hf(
            _of(frozenset(("llama", "qwen2", "qwen3", "gemma3_text", "granite", "phi3"))),
            _scaled(*_NAMED, "longrope"),
            _not(_partial),
            lambda case: case.model_type == "gemma3_text" or case.window is None,
        ),
        SAME,
        f"{_SGLANG_ROPE}factory.py",
    ),
    # --- llama.cpp ---
    Rule(
        "llama.cpp",
        _gguf(lambda case: not case.is_by_name),
        SAME,
        f"{_LLAMA_CPP}a0b8c172c7113ff5275be4de7f6f68d214a527c6/src/models/",
    ),
    Rule(
        "llama.cpp",
        _hf(_scaled("longrope"), _not(_of(frozenset(("phi3",))))),
        "its converter drops the factor lists; `rrope convert` writes them",
        f"{_CONVERTER}llama.py",
    ),
    Rule(
        "llama.cpp",
        _hf(_scaled("longrope"), _of(frozenset(("phi3",))), _other_longrope_temperature),
        _temperature(lambda case: case.longrope_temperature),
        f"{_LLAMA_CPP}7bca1fd9ca2a681b0182e16f24f832b7be1942af/conversion/phi.py",
    ),
    Rule(
        "llama.cpp",
        _hf(_scaled("llama3"), _of(_LLAMA_CLASS), _other_nested_original),
        lambda case: (
            "its converter reads original_max_position_embeddings of llama3 at the top level only: "
            f"{case.keys.get('original_max_position_embeddings', 8192)} is taken for it"
        ),
        f"{_CONVERTER}llama.py",
    ),
    Rule(
        "llama.cpp",
        _hf(_scaled("llama3"), _of(_LLAMA_CLASS), _not(_other_nested_original)),
        SAME,
        f"{_CONVERTER}llama.py",
    ),
    Rule(
        "llama.cpp",
        _hf(_scaled("llama3"), _of(frozenset(("qwen2", "qwen3", "olmo2", "olmo3")))),
        "its converter drops llama3 scaling for this architecture",
        f"{_CONVERTER}qwen.py",
    ),
    Rule(
        "llama.cpp",
        _hf(_scaled("yarn"), _explicit_temperature),
        lambda case: (
            "its converter writes attention_factor as yarn_attn_factor, which is not read: cos and "
            f"sin are multiplied by {_number(case.derived_temperature)}, not "
            f"{_number(case.temperature)}"
        ),
        _CONVERTER_BASE,
    ),
    Rule(
        "llama.cpp",
        _hf(_scaled("dynamic_ntk")),
        "its converter drops the scaling: plain RoPE, without a stretch beyond the context",
        _CONVERTER_BASE,
    ),
    Rule(
        "llama.cpp",
        _hf(_partial, _of(_LLAMA_CLASS)),
        "its converter rotates whole heads: partial_rotary_factor is not read",
        f"{_CONVERTER}llama.py",
    ),
    Rule(
        "llama.cpp",
        _hf(_windowed, _of(frozenset(("llama", "mistral", "qwen2", "qwen3")))),
        "its converter writes no window: all tokens before are seen",
        f"{_CONVERTER}llama.py",
    ),
    Rule(
        "llama.cpp",
        _hf(_unrotated, _not_every_fourth, _of(frozenset(("smollm3",)))),
        "no_rope_layers is not read: every fourth layer is the one without rotation",
        f"{_LLAMA_CPP}a0b8c172c7113ff5275be4de7f6f68d214a527c6/src/models/smollm3.cpp",
    ),
    Rule(
        "llama.cpp",
        _hf(_of(frozenset(("smollm3",))), _unrotated, _not(_not_every_fourth)),
        SAME,
        f"{_LLAMA_CPP}a0b8c172c7113ff5275be4de7f6f68d214a527c6/src/models/smollm3.cpp",
    ),
    Rule(
        "llama.cpp",
        _hf(_of(frozenset(("olmo3",))), _scaled_window),
        "layers with a window get no scaling",
        f"{_LLAMA_CPP}8a5c4e03d11bbcb157cbf05b9cd2968f34a55969/src/models/olmo2.cpp",
    ),
    Rule(
        "llama.cpp",
        _hf(
            _of(_LLAMA_CLASS | {"qwen2", "qwen3", "olmo2", "olmo3", "gemma3_text"}),
            _scaled("none", "linear", "yarn"),
            _not(_explicit_temperature),
            _not(_has_beta),
            lambda case: case.spec is not None and case.spec.truncate and case.spec.mscale is None,
        ),
        SAME,
        _CONVERTER_BASE,
    ),
    # --- MaxText ---
    Rule(
        "MaxText",
        _hf(_differs_from_full_layers_of_olmo3),
        "config.json is not read, and all layers of OLMo 3 get the embedding of full attention",
        f"{_MAXTEXT}models/olmo3.py",
    ),
    Rule(
        "MaxText",
        _hf(
            _not(_differs_from_full_layers_of_olmo3),
            _of(_MAXTEXT_MODELS),
            _scaled("none", "linear", "yarn"),
            _not(_explicit_temperature),
        ),
        _maxtext_flags,
        f"{_MAXTEXT}configs/base.yml",
    ),
    Rule(
        "MaxText",
        _hf(_of(_MAXTEXT_MODELS), _scaled("yarn"), _explicit_temperature),
        "config.json is not read, and no flag is its attention_factor",
        f"{_MAXTEXT}layers/embeddings.py",
    ),
    Rule(
        "MaxText",
        _hf(_of(_MAXTEXT_MODELS), _scaled("llama3"), _other_llama3),
        "config.json is not read, and this llama3 scaling cannot be said: 8, 1, 4 and 8192 are "
        "constants there",
        f"{_MAXTEXT}layers/embeddings.py",
    ),
    Rule(
        "MaxText",
        _hf(_of(_MAXTEXT_MODELS), _scaled("llama3"), _not(_other_llama3)),
        _maxtext_flags,
        f"{_MAXTEXT}layers/embeddings.py",
    ),
    Rule(
        "MaxText",
        _hf(_of(_MAXTEXT_MODELS), _scaled("longrope", "dynamic_ntk", "ntk", "proportional")),
        "config.json is not read, and no flag says this scaling",
        f"{_MAXTEXT}configs/base.yml",
    ),
    # --- levanter ---
    Rule(
        "levanter",
        _hf(_scaled("longrope", "dynamic_ntk", "proportional"), _of(_DENSE)),
        "refused: this rope_type is unknown there",
        _LEVANTER_ROTARY,
    ),
    Rule(
        "levanter",
        _hf(_only_v5),
        "rope_theta and rope_scaling are read, and rope_parameters is not",
        f"{_LEVANTER}0cf7458fd09e81eeb9b9d3f1fe02535200adaa9f/{_LEVANTER_SRC}models/llama.py",
    ),
    Rule(
        "levanter",
        _hf(_scaled("yarn"), _explicit_temperature),
        _temperature(lambda case: case.derived_temperature),
        _LEVANTER_ROTARY,
    ),
    Rule(
        "levanter",
        _hf(_scaled("yarn"), lambda case: case.spec is not None and not case.spec.truncate),
        "truncate is not read: the ends of the ramp are rounded",
        _LEVANTER_ROTARY,
    ),
    Rule(
        "levanter",
        _hf(_scaled("yarn"), lambda case: case.parameters.get("mscale") not in (None, 1)),
        "mscale is read without mscale_all_dim, and makes another attention factor",
        _LEVANTER_ROTARY,
    ),
    Rule(
        "levanter",
        _hf(_scaled("yarn"), _ramp_beyond_features),
        "the ramp ends at the last feature, and not beyond it",
        _LEVANTER_ROTARY,
    ),
    Rule(
        "levanter",
        _hf(_partial, _of(_DENSE)),
        "partial_rotary_factor is not read: whole heads are rotated",
        _LEVANTER_ROTARY,
    ),
    Rule(
        "levanter",
        _hf(_of(frozenset(("mistral",))), _not(_scaled("none"))),
        "rope_scaling is not read for Mistral",
        f"{_GITHUB}/stanford-crfm/levanter/blob/9263f81e8b453241332c2c0b2d2001bfb2d2241c/src/levanter/"
        "models/mistral.py",
    ),
    Rule(
        "levanter",
        _hf(_of(frozenset(("gemma3_text",))), _windowed),
        "all layers of Gemma 3 are global there, with rope_theta and no window",
        f"{_LEVANTER}0cf7458fd09e81eeb9b9d3f1fe02535200adaa9f/{_LEVANTER_SRC}models/gemma.py",
    ),
    Rule(
        "levanter",
        _hf(_of(frozenset(("qwen2", "qwen3"))), _windowed),
        "windows are not implemented for Qwen: texts longer than one are refused, or seen whole",
        f"{_LEVANTER}5ab4b0b36432b4e69c355a7791236f133b4cf70a/{_LEVANTER_SRC}models/qwen.py",
    ),
    Rule(
        "levanter",
        _hf(_of(frozenset(("olmo3",))), _scaled_window),
        "layers with a window get no scaling",
        f"{_LEVANTER}1997a9c9a71c30e1a6c5618dcbaf59bbac0ee84e/{_LEVANTER_SRC}models/olmo3.py",
    ),
    Rule(
        "levanter",
        _hf(
            _of(frozenset(("llama", "qwen2", "qwen3", "olmo3", "gemma3_text"))),
            _scaled(*_NAMED),
        ),
        SAME,
        _LEVANTER_ROTARY,
    ),
    # --- Tunix ---
    Rule(
        "Tunix",
        _hf(_of(_TUNIX_MODELS), _scaled("none"), _not(_partial)),
        _tunix_theta,
        _TUNIX,
    ),
    Rule(
        "Tunix",
        _hf(
            _of(_TUNIX_MODELS - {"gemma3_text"}),
            _scaled("linear", "yarn", "llama3", "longrope", "dynamic_ntk", "ntk", "proportional"),
        ),
        "config.json is not read, and its models have no scaling",
        f"{_TUNIX}llama3/model.py",
    ),
    Rule(
        "Tunix",
        _hf(_of(frozenset(("gemma3_text",))), _scaled("linear")),
        lambda case: (
            "config.json is not read; the factor of its own model configs (global_scale_factor, "
            f"local_scale_factor) has to be {_number(case.spec.extension if case.spec else 1)}"
        ),
        f"{_TUNIX}gemma3/model.py",
    ),
)
