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

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (LLAMA, MISTRAL, MINISTRAL3, PHI3, GRANITE, OLMO2, OLMO3, GEMMA3)
}
# Other model types, with why they are refused.
REFUSED: dict[str, str] = {}


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
