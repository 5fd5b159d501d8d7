"""Serializes compiled steps, to be written on one machine and run on another."""

from typing import Any

import jax
from jax.experimental import serialize_executable


def dump(compiled: jax.stages.Compiled) -> bytes:
    """Serializes a compiled step.

    Raises:
      ValueError: the platform's compiler cannot serialize programs.
    """
    try:
        data: bytes = serialize_executable.serialize(compiled)[0]
    except (NotImplementedError, jax.errors.JaxRuntimeError) as error:
        raise ValueError(f"the step cannot be saved: {error}") from error
    return data


def load(data: bytes, lowered: jax.stages.Lowered, devices: list[jax.Device]) -> Any:
    """Loads a compiled step, which is called like the result of `lowered.compile()`.

    JAX unpickles the data: load only what you have written yourself.

    Args:
      data: from `dump`, with the same versions of jax and the platform's compiler.
      lowered: the same step lowered here, for example by `train.sharded.lower_step`.
      devices: the devices to run it on, as many as it was compiled for.
    """
    return serialize_executable.deserialize_and_load(
        data, lowered.in_tree, lowered.out_tree, execution_devices=devices
    )
