"""All families. The order decides which one a model is written as if it does not name its own."""

from collections.abc import Callable

from rrope_jax.io.families.family import Family
from rrope_jax.io.families.gemma3 import GEMMA3
from rrope_jax.io.families.granite import GRANITE
from rrope_jax.io.families.llama import LLAMA
from rrope_jax.io.families.ministral3 import MINISTRAL3
from rrope_jax.io.families.mistral import MISTRAL
from rrope_jax.io.families.olmo2 import OLMO2
from rrope_jax.io.families.olmo3 import OLMO3
from rrope_jax.io.families.phi3 import PHI3
from rrope_jax.io.families.qwen2 import QWEN2
from rrope_jax.io.families.qwen3 import QWEN3
from rrope_jax.io.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        SMOLLM3,
        GEMMA3,
        MINISTRAL3,
        PHI3,
        GRANITE,
        OLMO2,
        OLMO3,
    )
}
_EXPERTS = "has experts, which are not implemented"
_MIXED = "has layers of linear attention (Gated DeltaNet), which are not implemented"
_IMAGES = "reads images as well, which is not implemented; save its language model alone"
_IMAGES_OF_GEMMA = (
    f"{_IMAGES}: with transformers, text = Gemma3ForCausalLM(model.config.text_config), "
    "text.model = model.model.language_model, text.lm_head = model.lm_head and "
    "text.save_pretrained(folder)"
)
# Model types that users may well try, with why they are refused.
REFUSED: dict[str, str] = {
    **dict.fromkeys(
        ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "phimoe", "granitemoe", "gpt_oss"), _EXPERTS
    ),
    **dict.fromkeys(("qwen3_next", "qwen3_5", "qwen3_5_text"), _MIXED),
    **dict.fromkeys(("mistral3", "qwen2_5_vl", "qwen3_vl"), _IMAGES),
    "gemma3": _IMAGES_OF_GEMMA,
}


def named(name: str | None) -> Family:
    """The family of a description; LLaMA for one that names none."""
    return LLAMA if name is None else FAMILIES[name]


def first_without(obstacle: Callable[[Family], str | None], own: str | None) -> Family:
    """The family to write a model as: its own, or the first one that can express it.

    Args:
      obstacle: says why a family cannot express the model; None if it can.
      own: the name of the model's own family; None or the name of an unknown one for no preference.

    Raises:
      ValueError: no family can; the message is the obstacle of its own, or of the first.
    """
    order = ([FAMILIES[own]] if own in FAMILIES else []) + list(FAMILIES.values())
    reasons = []
    for family in order:
        reason = obstacle(family)
        if reason is None:
            return family
        reasons.append(reason)
    raise ValueError(reasons[0])
