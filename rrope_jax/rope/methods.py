"""Names of methods: `[rule_]scaling`, where plain RoPE is `rope` and the paper's rule `resonance`.

Configs, results, reports and logs name an embedding's method this way: `rope`, `yarn`,
`resonance_rope`, `resonance_yarn`, `rational_yarn`. A number after a rule that needs
`resonance_period` sets it, so that one grid can have several: `rational16_yarn`, `rational32_yarn`.
Other positions for far pairs come before the scaling, or take its place if there is none:
`self_extend`, `resonance_self_extend`, `self_extend_yarn`.
In `[rule_]learned_scaling`, training learns the frequencies, from those of the scaling on, and the
rule moves what it has learned.
"""

import itertools
import re
from collections.abc import Mapping
from typing import Any

from rrope_jax.rope.far_positions import FAR_POSITIONS
from rrope_jax.rope.resonance import RULES
from rrope_jax.rope.scalings import SCALINGS
from rrope_jax.rope.spec import RopeSpec

_PLAIN = "rope"
_WITH_PERIOD = tuple(name for name, rule in RULES.items() if "resonance_period" in rule.requires)
_PERIOD = re.compile(rf"({'|'.join(_WITH_PERIOD)})([1-9]\d*)_")
_LEARNED = "learned_"


def _prefixes() -> dict[str, bool | str]:
    """The prefix of each rule, and its value of `RopeSpec.resonance`; the paper's first."""
    names = [name for name in RULES if name not in ("none", "nearest")]
    return {"resonance_": True, **{f"{name}_": name for name in names}}


def method_name(scaling: str, *, resonance: bool | str, far_positions: str = "none") -> str:
    """The name of a method, such as `resonance_yarn`."""
    plain = _PLAIN if scaling == "none" else scaling
    if far_positions != "none":
        plain = far_positions if scaling == "none" else f"{far_positions}_{scaling}"
    return next((p + plain for p, value in _prefixes().items() if value == resonance), plain)


def split_period(method: str) -> tuple[str, int | None]:
    """A name without the number of its rule, and the number: `rational16_yarn` -> 16.

    The number is the method's `resonance_period`, None if the name has none.
    """
    number = _PERIOD.match(method)
    if number is None:
        return method, None
    return f"{number[1]}_{method[number.end() :]}", int(number[2])


def with_scaling(method: str, scaling: str) -> str:
    """The name of another scaling under the same rule, with the same number."""
    bare, period = split_period(method)
    name = method_name(scaling, resonance=rule_of(bare))
    return name if period is None else name.replace("_", f"{period}_", 1)


def method_of(spec: RopeSpec) -> str:
    """The name of a spec's method."""
    return method_name(spec.scaling, resonance=spec.resonance, far_positions=spec.far_positions)


def rule_of(method: str) -> bool | str:
    """The `RopeSpec.resonance` of a method, known or not."""
    bare = split_period(method)[0]
    return next((value for p, value in _prefixes().items() if bare.startswith(p)), False)


def is_resonance(method: str) -> bool:
    """Whether a method, known or not, is named as a variant with any rule of resonance."""
    return bool(rule_of(method))


def changes_far_positions(method: str) -> bool:
    """Whether a method, which must be known, has other positions for far pairs."""
    return bool(fields_of(method)["far_positions"] != "none")


def plain_variant(method: str) -> str:
    """The same scaling without resonance: `resonance_yarn` -> `yarn`."""
    bare = split_period(method)[0]
    return next((bare.removeprefix(p) for p in _prefixes() if bare.startswith(p)), method)


def variants(method: str) -> tuple[str, ...]:
    """The same scaling without resonance and under each rule, the paper's first."""
    plain = plain_variant(method)
    return (plain, *(prefix + plain for prefix in _prefixes()))


def resonance_variant(method: str) -> str:
    """The same scaling under the paper's rule: `yarn` -> `resonance_yarn`."""
    return variants(method)[1]


def fields_of(method: str) -> Mapping[str, Any]:
    """The fields of `RopeSpec` whose values make a method: scaling, resonance, far_positions.

    Raises:
      ValueError: the method is unknown.
    """
    rule, bare = rule_of(method), split_period(method)[0]
    for far, scaling in itertools.product(FAR_POSITIONS, SCALINGS):
        if bare == method_name(scaling, resonance=rule, far_positions=far):
            return {"scaling": scaling, "resonance": rule, "far_positions": far}
    names = [method_name(key, resonance=False) for key in SCALINGS]
    others = [method_name("none", resonance=False, far_positions=name) for name in FAR_POSITIONS]
    raise ValueError(
        f"method {method!r} is unknown; choose from {', '.join([*names, *others[1:]])}, each also "
        f"with {', '.join(map(repr, _prefixes()))} in front, and scalings with "
        f"{', '.join(repr(name + '_') for name in others[1:])}"
    )


def is_learned(method: str) -> bool:
    """Whether a method, known or not, is named as one whose frequencies are learned."""
    return plain_variant(method).startswith(_LEARNED)


def fixed_variant(method: str) -> str:
    """The same method with the frequencies that learning starts from: `learned_yarn` -> `yarn`."""
    plain = plain_variant(method)
    return method.removesuffix(plain) + plain.removeprefix(_LEARNED)


def learned_variant(method: str) -> str:
    """The method of a training that learns its frequencies: `yarn` -> `learned_yarn`."""
    return _LEARNED + plain_variant(method)


def parse_method(method: str) -> tuple[str, bool | str]:
    """Splits a method's name into its scaling and its rule, a value of `RopeSpec.resonance`.

    Raises:
      ValueError: the method is unknown, or its frequencies are learned.
    """
    fields = fields_of(method)
    return fields["scaling"], fields["resonance"]
