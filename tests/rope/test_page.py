"""docs/rope.md: its code runs and its tables are complete."""

import json
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrope_jax import rope
from rrope_jax.rope.far_positions import FAR_POSITIONS
from rrope_jax.rope.positions import SAMPLERS
from rrope_jax.rope.resonance import RULES
from rrope_jax.rope.temperature import POSITION_TEMPERATURES

PAGE = (Path(__file__).parents[2] / "docs" / "rope.md").read_text()


def _first_column(heading: str) -> list[str]:
    """The names in the first column of the table under a heading, without its own head."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)[1:]


def test_code_of_the_page_runs() -> None:
    q, k = jax.random.normal(jax.random.key(0), (2, 2, 16, 4, 64), jnp.bfloat16)
    scope: dict[str, Any] = {
        "positions": jnp.broadcast_to(jnp.arange(16), (2, 16)),
        "q": q,
        "k": k,
        "key": jax.random.key(1),
        "config_json": json.dumps(
            {"head_dim": 64, "rope_scaling": {"type": "linear", "factor": 2.0}, "resonance": True}
        ),
    }
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 6
    exec(blocks[0], scope)
    assert len([line for line in blocks[0].splitlines() if line]) <= 5
    assert scope["q"].shape == q.shape
    assert scope["q"].dtype == q.dtype
    assert np.any(scope["q"] != q)
    for block in blocks[1:]:
        exec(block, scope)
    assert scope["spec"] == rope.RopeSpec(head_dim=64, scaling="linear", factor=2.0, resonance=True)
    assert scope["keys"]["resonance"] is True
    assert scope["local"] == rope.RopeSpec(head_dim=64, theta=1e4)
    assert scope["both_dialects"]["rope_local_base_freq"] == 1e4
    assert scope["table"].periods[:4].tolist() == [44, 42, 56, 15]
    assert scope["table"].turns[:4].tolist() == [7, 5, 5, 1]
    assert scope["cos"].shape == (2, 16, 32)


def test_tables_name_every_row() -> None:
    assert sorted(_first_column("Scalings")) == sorted(rope.SCALINGS)
    assert _first_column("Rules of resonance") == list(RULES)
    assert _first_column("Temperatures by position") == list(POSITION_TEMPERATURES)
    assert _first_column("Far pairs") == list(FAR_POSITIONS)
    assert _first_column("Positions to train at") == list(SAMPLERS)
