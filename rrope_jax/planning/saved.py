"""Compiled steps as bytes, written on one machine and run on another."""

from typing import Any

import jax
from jax.experimental import serialize_executable


def dump(compiled: jax.stages.Compiled) -> bytes:
    """A compiled step as bytes.

    Raises:
      ValueError: the platform's compiler cannot write its programs.
    """
    try:
        data: bytes = serialize_executable.serialize(compiled)[0]
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"the step cannot be saved: {error}") from error
    return data


def load(data: bytes, lowered: jax.stages.Lowered, devices: list[jax.Device]) -> Any:
    """The compiled step, to be called as `lowered.compile()` would be.

    JAX unpickles the data: load only what you have written yourself.

    Args:
      data: from `dump`, by the same releases of jax and the platform's compiler.
      lowered: the same step, lowered here, such as by `train.sharded.lower_step`.
      devices: to run it on, as many as it was compiled for.
    """
    return serialize_executable.deserialize_and_load(
        data, lowered.in_tree, lowered.out_tree, execution_devices=devices
    )
