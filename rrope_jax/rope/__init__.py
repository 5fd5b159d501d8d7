"""Rotary position embeddings as pure functions: scalings, resonance, exact phases.

```
from rrope_jax import rope
spec = rope.RopeSpec(head_dim=128, scaling="yarn", factor=8, original_context=4096, resonance=True)
cos, sin = rope.cos_sin(spec, positions)  # int32[..., T] -> float32[..., T, d/2]
q = rope.rotate(q_BTHD, cos, sin)
```
"""

from rrope_jax.rope.factor_lists import llama3_context as llama3_context
from rrope_jax.rope.frequencies import Frequencies as Frequencies
from rrope_jax.rope.frequencies import frequencies as frequencies
from rrope_jax.rope.huggingface.read import from_hf as from_hf
from rrope_jax.rope.huggingface.read import original_context as original_context
from rrope_jax.rope.huggingface.write import to_hf as to_hf
from rrope_jax.rope.huggingface.write import why_not_in_hf as why_not_in_hf
from rrope_jax.rope.rotary import PhaseTable as PhaseTable
from rrope_jax.rope.rotary import cos_sin as cos_sin
from rrope_jax.rope.rotary import cos_sin_from_table as cos_sin_from_table
from rrope_jax.rope.rotary import phase_table as phase_table
from rrope_jax.rope.rotary import rotate as rotate
from rrope_jax.rope.scalings import SCALINGS as SCALINGS
from rrope_jax.rope.spec import RopeSpec as RopeSpec
from rrope_jax.rope.spec import spec_for_method as spec_for_method
from rrope_jax.rope.temperature import query_temperature as query_temperature
from rrope_jax.rope.temperature import (
    query_temperature_from_table as query_temperature_from_table,
)
from rrope_jax.rope.temperature import query_temperature_table as query_temperature_table
