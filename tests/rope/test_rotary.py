"""Phases against exact arithmetic, and what the rotation does to heads."""

import functools
import math
from fractions import Fraction
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rrope_jax import rope
from rrope_jax.rope import RopeSpec
from tests.closeness import assert_close
from tests.rope.strategies import specs

_INT32_MIN, _INT32_MAX = -(2**31), 2**31 - 1
# to forty digits, written down apart from those in the code under test
_TWO_PI = 2 * Fraction(31415926535897932384626433832795028841972, 10**40)
_BITS = 128
_cos_sin = jax.jit(rope.cos_sin_from_table)
_YARN = {"scaling": "yarn", "factor": 16.0, "original_context": 8192}


def exact_cos_sin(
    spec: RopeSpec, positions: np.ndarray, fractions: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine and sine, float64[n, d/2], from phases in integer arithmetic of 128 bits.

    Args:
      spec: its float64 frequencies, or integer wavelengths under resonance, are taken as exact.
      positions: int[n].
      fractions: float32[n], added to them.
    """
    table = rope.frequencies(spec)
    offset = fractions if fractions is not None else np.zeros(len(positions), np.float32)
    # in units of 2^-64 tokens, which a float32 in [0, 1) of 2^-40 and more is a multiple of
    ticks = [
        (int(p) << 64) + int(Fraction(float(x)) * 2**64)
        for p, x in zip(positions, offset, strict=True)
    ]
    turns = []
    for inv_freq, wavelength in zip(table.inv_freq, table.wavelengths, strict=True):
        if spec.resonance:
            whole = int(wavelength) << 64
            turns.append([tick % whole / whole for tick in ticks])
        else:
            per_tick = int(Fraction(float(inv_freq)) / _TWO_PI * 2**_BITS)
            wrap = 1 << (64 + _BITS)
            turns.append([tick * per_tick % wrap / wrap for tick in ticks])
    angle = 2 * math.pi * np.array(turns).T
    return table.attention_factor * np.cos(angle), table.attention_factor * np.sin(angle)


def largest_error(
    spec: RopeSpec, positions: np.ndarray, fractions: np.ndarray | None = None
) -> float:
    """Of cos and sin, computed under jit from traced positions."""
    ours = _cos_sin(rope.phase_table(spec), positions.astype(np.int32), fraction=fractions)
    exact = exact_cos_sin(spec, positions, fractions)
    return max(float(np.max(np.abs(o - e))) for o, e in zip(ours, exact, strict=True))


@pytest.mark.smoke
@pytest.mark.parametrize("resonance", [False, True])
@pytest.mark.parametrize("scaling", [{}, _YARN])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
@pytest.mark.parametrize("head_dim", [64, 128, 256])
def test_phases_are_exact_at_any_position(
    head_dim: int, theta: float, scaling: dict[str, Any], resonance: bool
) -> None:
    spec = RopeSpec(head_dim=head_dim, theta=theta, resonance=resonance, **scaling)
    random = np.random.default_rng(head_dim)
    positions = np.concatenate(
        [
            np.arange(64),
            random.integers(0, 10_000_000, 60),
            [10_000_000 - 1, 10_000_000],
            random.integers(_INT32_MIN, _INT32_MAX, 40),
            [_INT32_MIN, _INT32_MIN + 1, -1, _INT32_MAX - 1, _INT32_MAX],
        ]
    )
    assert largest_error(spec, positions) <= 2e-7 * max(
        1.0, rope.frequencies(spec).attention_factor
    )


@pytest.mark.parametrize("resonance", [False, True])
def test_fractions_of_a_position_are_as_exact(resonance: bool) -> None:
    spec = RopeSpec(head_dim=128, resonance=resonance)
    random = np.random.default_rng(0)
    positions = random.integers(_INT32_MIN, _INT32_MAX, 200)
    fractions = random.random(200, dtype=np.float32)
    fractions[:4] = [0.0, 0.5, 2.0**-20, 1 - 2.0**-24]
    assert largest_error(spec, positions, fractions) <= 2e-7


def test_fractions_are_exact_for_wavelengths_below_a_token() -> None:
    """LongRoPE factors below 1 / (2 pi) turn a feature more than once a token."""
    spec = RopeSpec(
        head_dim=8,
        scaling="longrope",
        original_context=64,
        attention_factor=1.0,
        short_factor=[0.01, 0.07, 0.1, 1.0],
        long_factor=[1.0] * 4,
    )
    random = np.random.default_rng(1)
    assert largest_error(spec, np.arange(99), random.random(99, dtype=np.float32)) <= 1e-6


@given(
    specs(resonance=False, num_features=8),
    st.lists(st.integers(_INT32_MIN, _INT32_MAX), min_size=20, max_size=20),
)
@settings(max_examples=40)
def test_phases_are_exact_for_any_spec(spec: RopeSpec, positions: list[int]) -> None:
    factor = rope.frequencies(spec).attention_factor
    assert largest_error(spec, np.array(positions)) <= 3e-7 * max(1.0, factor)


@pytest.mark.smoke
@given(specs(resonance=True, num_features=8), st.integers(0, 7), st.integers(0, 2**32))
@settings(max_examples=60)
def test_resonant_features_repeat_bit_for_bit(spec: RopeSpec, feature: int, seed: int) -> None:
    wavelength = rope.frequencies(spec).wavelengths[feature]
    period = int(min(wavelength, 2**30))
    assume(period == wavelength)
    random = np.random.default_rng(seed)
    laps = random.integers(-(2**31 // period) + 1, 2**31 // period - 1, 20, endpoint=True)
    positions = (random.integers(0, period) + period * laps).astype(np.int32)
    for fraction in (None, np.full(20, random.random(), np.float32)):
        for table in _cos_sin(rope.phase_table(spec), positions, fraction=fraction):
            assert len(np.unique(np.asarray(table)[:, feature].view(np.uint32))) == 1


def test_positions_may_be_scalars_ranges_or_packed_segments() -> None:
    spec = RopeSpec(head_dim=16, **_YARN)
    cos_TK, sin_TK = rope.cos_sin(spec, np.arange(6))
    assert cos_TK.shape == (6, 8)
    assert cos_TK.dtype == jnp.float32

    scalar_cos, scalar_sin = rope.cos_sin(spec, 5)
    np.testing.assert_array_equal(scalar_cos, cos_TK[5])
    np.testing.assert_array_equal(scalar_sin, sin_TK[5])

    packed_BT = np.array([[0, 1, 2, 3, 0, 1], [0, 0, 5, 4, 4, 1]], np.int16)
    packed_cos, packed_sin = rope.cos_sin(spec, packed_BT)
    np.testing.assert_array_equal(packed_cos, np.asarray(cos_TK)[packed_BT])
    np.testing.assert_array_equal(packed_sin, np.asarray(sin_TK)[packed_BT])


def test_negative_positions_mirror_positive_ones() -> None:
    spec = RopeSpec(head_dim=16)
    cos, sin = rope.cos_sin(spec, np.array([12345, -12345]))
    np.testing.assert_array_equal(cos[0], cos[1])
    np.testing.assert_array_equal(sin[0], -sin[1])


def test_first_position_is_not_rotated() -> None:
    cos, sin = rope.cos_sin(RopeSpec(head_dim=16, attention_factor=1.5, resonance=True), 0)
    np.testing.assert_array_equal(cos, np.full(8, 1.5, np.float32))
    np.testing.assert_array_equal(sin, np.zeros(8, np.float32))


@pytest.mark.parametrize("positions", [0.5, np.arange(3.0), np.array([True])])
def test_positions_must_be_integers(positions: Any) -> None:
    with pytest.raises(TypeError, match=r"must be integers .*fraction="):
        rope.cos_sin(RopeSpec(head_dim=8), positions)


def test_one_program_serves_the_tables_of_many_specs() -> None:
    several = [
        RopeSpec(head_dim=16),
        RopeSpec(head_dim=16, resonance=True),
        RopeSpec(head_dim=16, resonance=True, **_YARN),
    ]
    tables = [rope.phase_table(spec) for spec in several]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *tables)
    positions = np.array([0, 1, 1000, 10_000_000, -3], np.int32)
    cos, sin = jax.jit(jax.vmap(lambda t: rope.cos_sin_from_table(t, positions)))(stacked)
    for index, spec in enumerate(several):
        one_cos, one_sin = jax.jit(functools.partial(rope.cos_sin, spec))(positions)
        np.testing.assert_array_equal(cos[index], one_cos)
        np.testing.assert_array_equal(sin[index], one_sin)


def test_rotation_by_hand() -> None:
    """A quarter turn of the pair (0, 2) and half a turn of the pair (1, 3)."""
    x = jnp.array([[[1.0, 2.0, 3.0, 4.0]]])  # one token, one head
    cos, sin = jnp.array([[0.0, -1.0]]), jnp.array([[1.0, 0.0]])
    assert rope.rotate(x, cos, sin).tolist() == [[[-3.0, -2.0, 1.0, -4.0]]]


def test_partial_rotary_leaves_the_rest_alone() -> None:
    spec = RopeSpec(head_dim=8, partial_rotary_factor=0.5)
    x_THD = jax.random.normal(jax.random.key(0), (5, 2, 8))
    rotated = rope.rotate(x_THD, *rope.cos_sin(spec, np.arange(5)))
    np.testing.assert_array_equal(rotated[..., 4:], x_THD[..., 4:])
    narrow = rope.rotate(x_THD[..., :4], *rope.cos_sin(RopeSpec(head_dim=4), np.arange(5)))
    np.testing.assert_array_equal(rotated[..., :4], narrow)


def test_tables_wider_than_a_head_are_refused() -> None:
    cos, sin = rope.cos_sin(RopeSpec(head_dim=16), np.arange(3))
    with pytest.raises(ValueError, match="rotate 16 dimensions but heads have 8; build them"):
        rope.rotate(jnp.zeros((3, 1, 8)), cos, sin)


@pytest.mark.parametrize("shift", [1, 4096, 1_000_000])
@pytest.mark.parametrize("scaling", [{}, _YARN])
@pytest.mark.parametrize("resonance", [False, True])
def test_scores_depend_on_distance_alone(
    shift: int, scaling: dict[str, Any], resonance: bool
) -> None:
    spec = RopeSpec(head_dim=64, resonance=resonance, **scaling)
    q_THD, k_THD = jax.random.normal(jax.random.key(1), (2, 7, 3, 64))

    def scores(first: int) -> jax.Array:
        tables = rope.cos_sin(spec, first + np.arange(7))
        return jnp.einsum("thd,shd->hts", rope.rotate(q_THD, *tables), rope.rotate(k_THD, *tables))

    assert_close(scores(shift), scores(0))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_heads_are_rounded_once_at_the_end(dtype: Any) -> None:
    """At 10M tokens a bf16 head is as close to the exact rotation as its own rounding allows."""
    spec = RopeSpec(head_dim=128)
    positions = np.array([257, 131_071, 10_000_000])
    x_THD = jax.random.normal(jax.random.key(2), (3, 4, 128)).astype(dtype)
    rotated = rope.rotate(x_THD, *rope.cos_sin(spec, positions))
    assert rotated.dtype == dtype

    cos, sin = (table[:, None] for table in exact_cos_sin(spec, positions))
    first, second = np.split(np.asarray(x_THD, np.float64), 2, axis=-1)
    exact = np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    error = np.abs(np.asarray(rotated, np.float64) - exact)
    half_a_step = float(jnp.finfo(dtype).eps) / 2
    assert np.all(error <= half_a_step * np.abs(exact) + 1e-5)


@pytest.mark.parametrize(("end", "lost"), [(4096, 1e-4), (10_000_000, 0.3)])
def test_float32_product_loses_the_phase_that_we_keep(end: int, lost: float) -> None:
    """A float32 frequency times a float32 position, as in other code, is the comparison."""
    spec = RopeSpec(head_dim=128)
    positions = np.arange(end - 200, end)
    exact, _ = exact_cos_sin(spec, positions)
    inv_freq = rope.frequencies(spec).inv_freq.astype(np.float32)
    product = np.cos(positions.astype(np.float32)[:, None] * inv_freq)
    ours, _ = rope.cos_sin(spec, positions)
    assert np.max(np.abs(product - exact)) > lost
    assert np.max(np.abs(ours - exact)) < 2e-7


@pytest.mark.parametrize("width", [12, 8], ids=["whole", "partial"])
def test_a_scale_is_rounded_once(width: int) -> None:
    """Queries in bfloat16 are rotated and scaled in float32, and rounded at the end."""
    q_BTNH = jax.random.normal(jax.random.key(0), (2, 5, 3, 12), jnp.bfloat16)
    cos, sin = rope.cos_sin(RopeSpec(head_dim=width), jnp.arange(5))
    exact_BTNH = rope.rotate(q_BTNH.astype(jnp.float32), cos, sin) * 0.3
    scaled_BTNH = rope.rotate(q_BTNH, cos, sin, scale=0.3)
    np.testing.assert_array_equal(scaled_BTNH, exact_BTNH.astype(jnp.bfloat16))
