"""What `tests.benchmarks.smollm2` measures: which model, in which numbers, on which device."""

import dataclasses
from typing import Any

from rrope_jax.model.config import ModelConfig
from rrope_jax.model.presets import PRESETS, Preset


@dataclasses.dataclass(frozen=True)
class Setting:
    """A model with random parameters, on a device.

    Attributes:
      preset: a key of `PRESETS`.
      dtype: of activations and products; `float32` or `bfloat16`.
      platform: a key of `platforms.JAX_PLATFORMS`.
    """

    preset: str = "smollm2_135m"
    dtype: str = "float32"
    platform: str = "cpu"

    @property
    def known(self) -> Preset:
        """Its sizes and embedding."""
        return PRESETS[self.preset]

    @property
    def model(self) -> ModelConfig:
        """The sizes with the dtype."""
        fields: dict[str, Any] = {"compute_dtype": self.dtype}
        return dataclasses.replace(self.known.model, **fields)
