"""Positions to train at."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax import rope
from rrope_jax.rope import positions
from rrope_jax.rope.positions import SAMPLERS, Positions, PositionSampling

_SETTINGS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "pose": {"target_length": 40},
    "e2_llm": {"max_scale": 4},
    "randomized": {"target_length": 40},
}


_sample = jax.jit(positions.sample, static_argnums=(0, 2, 3))


def draw(sampling: PositionSampling, batch: int, length: int, seed: int = 0) -> Positions:
    return _sample(sampling, jax.random.key(seed), batch, length)


def test_every_sampler_is_tried_here() -> None:
    assert _SETTINGS.keys() == SAMPLERS.keys()


@pytest.mark.smoke
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_rows_rise_strictly_and_repeat_under_a_key(sampler: str) -> None:
    sampling = PositionSampling(sampler=sampler, **_SETTINGS[sampler])
    drawn = draw(sampling, 50, 12)
    assert drawn.whole.shape == (50, 12)
    assert drawn.whole.dtype == jnp.int32
    exact = np.asarray(drawn.whole, np.float64)
    if drawn.fraction is not None:
        assert drawn.fraction.shape == (50, 12)
        assert drawn.fraction.dtype == jnp.float32
        fraction = np.asarray(drawn.fraction)
        assert np.all((fraction >= 0) & (fraction < 1))
        exact += fraction
    assert np.all(np.diff(exact) > 0)
    assert exact.min() >= 0
    np.testing.assert_array_equal(drawn.whole, draw(sampling, 50, 12).whole)
    if sampler != "contiguous":
        assert np.any(drawn.whole != draw(sampling, 50, 12, seed=1).whole)
        assert len(np.unique(drawn.whole, axis=0)) > 1


def test_contiguous_counts() -> None:
    drawn = draw(PositionSampling(), 2, 4)
    assert drawn.whole.tolist() == [[0, 1, 2, 3]] * 2
    assert drawn.fraction is None


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 12])
def test_pose_moves_whole_chunks_within_the_target(num_chunks: int) -> None:
    sampling = PositionSampling(sampler="pose", target_length=40, num_chunks=num_chunks)
    whole = np.asarray(draw(sampling, 500, 12).whole)
    assert whole[:, 0].tolist() == [0] * 500
    assert whole.max() <= 39
    jumps = np.sum(np.diff(whole) > 1, axis=1)
    assert jumps.max() <= num_chunks - 1
    assert (jumps.max() > 0) == (num_chunks > 1)
    if num_chunks == 2:
        # every bias 0..28 and every cut 1..11 occurs, none beyond
        assert set((whole[:, -1] - 11).tolist()) == set(range(29))
        cuts = np.argmax(np.diff(whole) > 1, axis=1)[jumps == 1] + 1
        assert set(cuts.tolist()) == set(range(1, 12))


def test_pose_reaches_every_distance_of_the_target() -> None:
    sampling = PositionSampling(sampler="pose", target_length=40)
    whole = np.asarray(draw(sampling, 3000, 12).whole)
    distances = {
        int(d) for i, j in itertools.combinations(range(12), 2) for d in whole[:, j] - whole[:, i]
    }
    assert distances == set(range(1, 40))


def test_e2_llm_scales_and_shifts_all_but_the_first_tokens() -> None:
    sampling = PositionSampling(sampler="e2_llm", max_scale=4, context=20)
    drawn = draw(sampling, 2000, 12)
    exact = np.asarray(drawn.whole) + np.asarray(drawn.fraction, np.float64)
    steps = np.diff(exact[:, 4:])
    scales = np.rint(1 / steps[:, 0]).astype(int)
    np.testing.assert_allclose(steps, 1 / np.repeat(scales[:, None], 7, axis=1), atol=1e-6)
    np.testing.assert_allclose(exact[:, :4], np.arange(4) / scales[:, None], atol=1e-6)
    shifts = np.rint(exact[:, 4] * scales).astype(int) - 4
    for scale in range(1, 5):  # t is uniform in 0..g L - R
        assert set(shifts[scales == scale].tolist()) <= set(range(scale * 20 - 12 + 1))
        assert shifts[scales == scale].max() > 0.8 * (scale * 20 - 12)
        assert 0.15 < np.mean(scales == scale) < 0.35
    assert exact.max() < 20


def test_e2_llm_without_shift_where_there_is_no_room() -> None:
    drawn = draw(PositionSampling(sampler="e2_llm", max_scale=1, context=5), 3, 8)
    assert drawn.whole.tolist() == [list(range(8))] * 3


def test_e2_llm_rotates_by_its_fractions() -> None:
    """Position (m + t) / g is position m + t under linear scaling by g."""
    spec = rope.RopeSpec(head_dim=16)
    drawn = draw(PositionSampling(sampler="e2_llm", max_scale=7, context=5000), 40, 30)
    cos, sin = rope.cos_sin(spec, drawn.whole, fraction=drawn.fraction)
    exact = np.asarray(drawn.whole) + np.asarray(drawn.fraction, np.float64)
    angle = exact[..., None] * rope.frequencies(spec).inv_freq
    np.testing.assert_allclose(cos, np.cos(angle), atol=1e-6)
    np.testing.assert_allclose(sin, np.sin(angle), atol=1e-6)


def test_randomized_is_a_uniform_subset() -> None:
    whole = np.asarray(draw(PositionSampling(sampler="randomized", target_length=6), 6000, 3).whole)
    subsets, counts = np.unique(whole, axis=0, return_counts=True)
    assert [tuple(s) for s in subsets.tolist()] == list(itertools.combinations(range(6), 3))
    assert np.all(np.abs(counts - 300) < 5 * np.sqrt(300))


def test_packed_documents_index_into_a_row() -> None:
    spec = rope.RopeSpec(head_dim=8)
    drawn = draw(PositionSampling(sampler="pose", target_length=100), 1, 6)
    in_document_BT = np.array([[0, 1, 2, 0, 1, 0]])
    packed = jnp.take_along_axis(drawn.whole, in_document_BT, axis=-1)
    cos, _ = rope.cos_sin(spec, packed)
    whole_cos, _ = rope.cos_sin(spec, drawn.whole)
    np.testing.assert_array_equal(cos[0], np.asarray(whole_cos)[0, in_document_BT[0]])


@pytest.mark.parametrize(("length", "target", "num_chunks"), [(1, 1, 1), (1, 9, 1), (5, 5, 5)])
def test_pose_at_its_limits(length: int, target: int, num_chunks: int) -> None:
    sampling = PositionSampling(sampler="pose", target_length=target, num_chunks=num_chunks)
    assert draw(sampling, 3, length).whole.tolist() == [list(range(length))] * 3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sampler": "pos"}, "sampler='pos' is unknown; choose one of contiguous, pose"),
        ({"sampler": "pose"}, "target_length is not set, but sampler='pose' needs it"),
        ({"sampler": "e2_llm"}, "max_scale is not set, but sampler='e2_llm' needs it"),
        ({"target_length": 9}, "target_length=9 has no effect .* sampler that reads it .pose"),
        ({"sampler": "pose", "target_length": 0}, "target_length=0 must be an integer from 1"),
        ({"sampler": "pose", "target_length": 9.5}, "target_length=9.5 must be an integer"),
        ({"sampler": "e2_llm", "max_scale": 2**31}, "max_scale=2147483648 must be .* 2.31 - 1"),
        ({"sampler": "e2_llm", "max_scale": 2, "fixed_tokens": -1}, "fixed_tokens=-1 must be"),
    ],
)
def test_refuses(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PositionSampling(**fields)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"sampler": "pose", "target_length": 7}, "target_length=7 must be at least .* .8."),
        ({"sampler": "randomized", "target_length": 7}, "target_length=7 must be at least"),
        ({"sampler": "pose", "target_length": 9, "num_chunks": 9}, "num_chunks=9 must be at most"),
        ({"sampler": "e2_llm", "max_scale": 2**29}, "max_scale=536870912 times .* lower max_scale"),
    ],
)
def test_refuses_lengths_that_do_not_fit(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        positions.sample(PositionSampling(**fields), jax.random.key(0), 1, 8)
