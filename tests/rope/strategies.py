"""Random embeddings for property tests."""

from typing import Any

from hypothesis import strategies as st

from rrope_jax.rope import SCALINGS, RopeSpec


@st.composite
def specs(draw: st.DrawFn, num_features: int | None = None, **fixed: Any) -> RopeSpec:
    """Any valid spec of any scaling; `fixed` fields keep their value.

    Tests that compile fix the number of features, so that all examples share a program.
    """
    scaling = draw(st.sampled_from(list(SCALINGS)))
    half = num_features or draw(st.integers(2, 16))
    partial = scaling == "proportional" or draw(st.booleans())
    # DPRoPE looks at every position
    context = draw(st.integers(4, 256 if scaling == "dprope" else 10_000))
    fields: dict[str, Any] = {
        "head_dim": half * (4 if partial and scaling != "proportional" else 2),
        "theta": draw(st.floats(1.5, 1e6)),
        "partial_rotary_factor": 0.5 if partial else 1.0,
        "factor": draw(st.one_of(st.integers(1, 32), st.floats(1, 32))),
        "original_context": context,
        "resonance": draw(st.booleans()),
        "attention_factor": draw(st.one_of(st.none(), st.floats(0.1, 2))),
        "beta_slow": draw(st.floats(0.5, 4)),
        "beta_fast": draw(st.floats(4.5, 64)),
        "truncate": draw(st.booleans()),
        "low_freq_factor": draw(st.floats(0.5, 2)),
        "high_freq_factor": draw(st.floats(2.5, 8)),
        # below 1 as in released LongRoPE lists, above what would leave no rotation to round
        "short_factor": tuple(draw(st.lists(st.floats(0.5, 8), min_size=half, max_size=half))),
        "long_factor": tuple(draw(st.lists(st.floats(0.5, 64), min_size=half, max_size=half))),
        "abf_theta": draw(st.floats(1.5, 1e6)),
        "clipped_features": draw(st.integers(2, half)),
        "shortest_wavelength": draw(st.floats(2, context / 2)),
        **fixed,
    }
    if draw(st.booleans()):
        fields |= {"mscale": draw(st.floats(0, 2)), "mscale_all_dim": draw(st.floats(0, 2))}
    unread = set().union(*(row.reads for row in SCALINGS.values())) - SCALINGS[scaling].reads
    return RopeSpec(
        scaling=scaling, **{key: value for key, value in fields.items() if key not in unread}
    )
