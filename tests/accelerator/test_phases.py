"""Phases are exact on the device: its integers, its cosine, and no product of floats in between."""

import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax import rope
from rrope_jax.rope import RopeSpec

pytestmark = pytest.mark.accelerator

YARN: dict[str, Any] = {"scaling": "yarn", "factor": 16.0, "original_context": 8192}
SPECS = {
    "rope": RopeSpec(head_dim=128, theta=500_000.0),
    "resonance_rope": RopeSpec(head_dim=128, theta=500_000.0, resonance=True),
    "yarn": RopeSpec(head_dim=128, **YARN),
    "resonance_yarn": RopeSpec(head_dim=128, resonance=True, **YARN),
}
LARGEST = 2**31 - 1
TWO_PI = 2 * Fraction(31415926535897932384626433832795028841972, 10**40)


def _positions() -> np.ndarray:
    random = np.random.default_rng(0)
    drawn = (random.integers(0, end, 100) for end in (4096, 2**20, 10**7, LARGEST))
    return np.concatenate([*drawn, [10**7, LARGEST - 1, LARGEST]]).astype(np.int32)


def _exact(spec: RopeSpec, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine, float64[n, d/2], of phases reduced as fractions."""
    table = rope.frequencies(spec)
    turns = []
    for inv_freq, wavelength in zip(table.inv_freq, table.wavelengths, strict=True):
        step = 1 / Fraction(int(wavelength))
        if not spec.resonance:
            # the quotient to 128 bits, of which positions take 31
            step = Fraction(int(Fraction(float(inv_freq)) / TWO_PI * 2**128), 2**128)
        turns.append([float(int(position) * step % 1) for position in positions])
    angle = 2 * math.pi * np.array(turns).T
    return table.attention_factor * np.cos(angle), table.attention_factor * np.sin(angle)


@pytest.mark.parametrize("name", SPECS)
def test_error_at_any_position(name: str) -> None:
    spec, positions = SPECS[name], _positions()
    found = jax.jit(lambda positions: rope.cos_sin(spec, positions))(positions)
    factor = max(1.0, rope.frequencies(spec).attention_factor)
    for one, exact in zip(found, _exact(spec, positions), strict=True):
        assert np.max(np.abs(np.asarray(one) - exact)) <= 2e-7 * factor


@pytest.mark.parametrize("name", [name for name in SPECS if name.startswith("resonance")])
def test_repeats_bit_for_bit(name: str) -> None:
    spec = SPECS[name]
    cos_sin = jax.jit(lambda positions: rope.cos_sin(spec, positions))
    random = np.random.default_rng(1)
    wavelengths = rope.frequencies(spec).wavelengths.astype(np.int64)
    for feature in (0, len(wavelengths) // 2, len(wavelengths) - 1):
        period = int(wavelengths[feature])
        first = random.integers(0, period, 8)
        laps = random.integers(1, LARGEST // period, (64, 1))
        repeats = (first + period * laps).astype(np.int32)
        for once, again in zip(cos_sin(first.astype(np.int32)), cos_sin(repeats), strict=True):
            bits = np.asarray(once)[:, feature].view(np.uint32)
            assert (np.asarray(again)[..., feature].view(np.uint32) == bits).all()


def test_rotation_rounds_once() -> None:
    """Products of float32 with float32, whatever the device does to products of matrices."""
    random = np.random.default_rng(2)
    x = random.standard_normal((1, 64, 2, 128)).astype(np.float32)
    spec, positions = SPECS["resonance_yarn"], np.arange(64, dtype=np.int32) * 10_007
    rotated = jax.jit(lambda x, p: rope.rotate(x, *rope.cos_sin(spec, p)))(
        jnp.asarray(x), positions
    )
    cos, sin = (table[None, :, None] for table in _exact(spec, positions))
    one, other = np.split(x.astype(np.float64), 2, axis=-1)
    exact = np.concatenate([one * cos - other * sin, other * cos + one * sin], axis=-1)
    # of values up to 5: two products and a sum, each rounded, of a cosine that is off by 2e-7
    assert np.max(np.abs(np.asarray(rotated) - exact)) <= 4e-6
