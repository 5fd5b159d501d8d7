"""Names of methods: `[resonance_]scaling`, where plain RoPE is `rope`.

Configs, results, reports and logs name an embedding's method this way: `rope`, `yarn`,
`resonance_rope`, `resonance_yarn`.
"""

from rrope_jax.rope.scalings import SCALINGS
from rrope_jax.rope.spec import RopeSpec

_RESONANCE = "resonance_"
_PLAIN = "rope"


def method_name(scaling: str, *, resonance: bool) -> str:
    """The name of a method, such as `resonance_yarn`."""
    plain = _PLAIN if scaling == "none" else scaling
    return resonance_variant(plain) if resonance else plain


def method_of(spec: RopeSpec) -> str:
    """The name of a spec's method."""
    return method_name(spec.scaling, resonance=spec.resonance)


def is_resonance(method: str) -> bool:
    """Whether a method, known or not, is named as a resonance variant."""
    return method.startswith(_RESONANCE)


def plain_variant(method: str) -> str:
    """The same scaling without resonance: `resonance_yarn` -> `yarn`."""
    return method.removeprefix(_RESONANCE)


def resonance_variant(method: str) -> str:
    """The same scaling with resonance: `yarn` -> `resonance_yarn`."""
    return _RESONANCE + plain_variant(method)


def parse_method(method: str) -> tuple[str, bool]:
    """Splits a method's name into its scaling and whether it uses resonance.

    Raises:
      ValueError: the method is unknown.
    """
    plain = plain_variant(method)
    scaling = "none" if plain == _PLAIN else plain
    if scaling not in SCALINGS or plain == "none":
        names = [method_name(key, resonance=False) for key in SCALINGS]
        raise ValueError(
            f"method {method!r} is unknown; choose from {', '.join(names)}, each also with "
            f"{_RESONANCE!r} in front"
        )
    return scaling, is_resonance(method)
