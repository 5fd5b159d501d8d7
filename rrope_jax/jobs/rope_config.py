"""RopeSpecs from a config group that describes several methods."""

from typing import Any

from ml_collections import ConfigDict

from rrope_jax.jobs.configuration import UsageError, from_config
from rrope_jax.posgen.grid import parse_method
from rrope_jax.rope import SCALINGS, RopeSpec
from rrope_jax.rope.spec import SCALING_FIELDS


def spec_of(
    group: ConfigDict, path: str, *, scaling: str, resonance: bool, **fixed: Any
) -> RopeSpec:
    """The spec of one scaling; fields that only other scalings read are left out.

    Args:
      group: RopeSpec fields, such as `config.rope`; its own scaling and resonance do not count.
      path: the group's name in messages.
      scaling, resonance: the method.
      **fixed: fields that the caller has settled, such as head_dim.

    Raises:
      UsageError: a key is unknown or a value wrong.
    """
    unread = SCALING_FIELDS - SCALINGS[scaling].reads if scaling in SCALINGS else frozenset()
    kept = {key: group[key] for key in group if key not in unread | {"scaling", "resonance"}}
    kept |= {"scaling": scaling, "resonance": resonance}
    return from_config(RopeSpec, ConfigDict(kept), path, **fixed)


def spec_of_method(group: ConfigDict, path: str, method: str, **fixed: Any) -> RopeSpec:
    """The spec of a method by its name (`[resonance_]scaling`): see `spec_of`."""
    scaling, resonance = parse_method(method)
    try:
        return spec_of(group, path, scaling=scaling, resonance=resonance, **fixed)
    except UsageError as error:
        raise UsageError(f"method {method!r}: {error}") from error
