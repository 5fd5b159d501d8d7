"""Frequencies, wavelengths and attention factors against other implementations and by hand."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.rope import RopeSpec, frequencies, spec_for_method

_FILE = Path(__file__).parents[1] / "data" / "rope_reference.json"
REFERENCE = {entry["id"]: entry for entry in json.loads(_FILE.read_text())["entries"]}

# Methods whose name here differs from ours; the two quirks are settings of ours, not methods:
# "PosGen as coded" is a ramp over the extrapolated length, and llama3 from 1 to 32 is the ramp of
# the YaRN paper.
_SCALINGS = {"default": "none", "rope": "none", "ntk_aware": "ntk", "ntk_by_parts": "part_ntk"}
_FIELDS = {
    "base": "theta",
    "original_max_position_embeddings": "original_context",
    "max_position_embeddings_used_in_ramp": "original_context",
}


def reference_spec(entry: dict[str, Any]) -> tuple[RopeSpec, int | None]:
    """The spec of a reference entry, and the length its frequencies are taken at."""
    params = dict(entry["params"])
    method = entry["method"].split(" ")[0]
    seq_len = params.pop("seq_len", None)
    if params.pop("branch", "short") == "long":
        seq_len = params["original_max_position_embeddings"] + 1
    params.pop("max_position_embeddings", None)
    fields = {_FIELDS.get(key, key): value for key, value in params.items()}
    scaling = method.removeprefix("resonance_")
    spec = spec_for_method(
        fields, _SCALINGS.get(scaling, scaling), resonance=method.startswith("resonance_")
    )
    return spec, seq_len


def test_reference_has_all_entries() -> None:
    assert len(REFERENCE) == 51


@pytest.mark.smoke
@pytest.mark.parametrize("name", REFERENCE)
def test_agrees_with_reference(name: str) -> None:
    entry = REFERENCE[name]
    spec, seq_len = reference_spec(entry)
    ours = frequencies(spec, seq_len)
    np.testing.assert_allclose(ours.inv_freq, entry["inv_freq"], rtol=1e-12, atol=0)
    assert ours.attention_factor == pytest.approx(entry["attention_factor"], rel=1e-12)


@pytest.mark.parametrize("name", [n for n, e in REFERENCE.items() if "r_wavelengths" in e])
def test_rounds_to_the_integers_of_the_reference(name: str) -> None:
    spec, seq_len = reference_spec(REFERENCE[name])
    rounded = frequencies(spec, seq_len).wavelengths
    assert rounded.tolist() == REFERENCE[name]["r_wavelengths"]


def test_rounding_is_not_that_of_float32() -> None:
    """At base 500000 and factor 16, float32 wavelengths round to other integers."""
    spec = RopeSpec(
        head_dim=128,
        theta=500000.0,
        scaling="yarn",
        factor=16.0,
        original_context=8192,
        resonance=True,
    )
    inv_freq = frequencies(spec.with_method("yarn", resonance=False)).inv_freq
    in_float32 = np.rint(np.float32(2 * math.pi) / inv_freq.astype(np.float32))
    assert np.sum(in_float32 != frequencies(spec).wavelengths) > 0


def test_small_example_by_hand() -> None:
    """For d = 4 and b = 100: frequencies 1 and 1/10, so wavelengths 2 pi and 20 pi."""
    plain = frequencies(RopeSpec(head_dim=4, theta=100.0))
    np.testing.assert_allclose(plain.inv_freq, [1.0, 0.1], rtol=1e-15)
    np.testing.assert_allclose(plain.wavelengths, [2 * math.pi, 20 * math.pi], rtol=1e-15)
    assert plain.attention_factor == 1.0
    resonant = frequencies(RopeSpec(head_dim=4, theta=100.0, resonance=True))
    assert resonant.wavelengths.tolist() == [6.0, 63.0]
    np.testing.assert_allclose(resonant.inv_freq, [2 * math.pi / 6, 2 * math.pi / 63], rtol=1e-15)


def test_ntk_slows_the_slowest_feature_by_exactly_the_factor() -> None:
    plain = frequencies(RopeSpec(head_dim=64)).inv_freq
    ntk = frequencies(RopeSpec(head_dim=64, scaling="ntk", factor=8.0)).inv_freq
    assert ntk[0] == plain[0] == 1.0
    assert plain[-1] / ntk[-1] == pytest.approx(8.0, rel=1e-12)


def test_ntk_by_parts_is_llama3_with_its_betas() -> None:
    common: dict[str, Any] = {"head_dim": 128, "factor": 8.0, "original_context": 4096}
    by_parts = RopeSpec(scaling="ntk_by_parts", beta_slow=1.0, beta_fast=32.0, **common)
    llama3 = RopeSpec(scaling="llama3", low_freq_factor=1.0, high_freq_factor=32.0, **common)
    assert frequencies(by_parts).inv_freq.tolist() == frequencies(llama3).inv_freq.tolist()


def test_printed_ramp_is_not_the_index_ramp() -> None:
    common: dict[str, Any] = {"head_dim": 128, "factor": 8.0, "original_context": 4096}
    paper = frequencies(RopeSpec(scaling="ntk_by_parts", **common)).inv_freq
    code = frequencies(RopeSpec(scaling="yarn", **common)).inv_freq
    assert 0.5 < np.max(np.abs(paper / code - 1)) < 2.5


@pytest.mark.parametrize(("length", "factor"), [(None, 1.0), (64, 1.0), (96, 1.5), (512, 8.0)])
def test_dynamic_yarn_is_yarn_by_the_factor_of_the_length(
    length: int | None, factor: float
) -> None:
    common: dict[str, Any] = {"head_dim": 32, "original_context": 64, "beta_fast": 16.0}
    dynamic = frequencies(RopeSpec(scaling="dynamic_yarn", **common), length)
    yarn = frequencies(RopeSpec(scaling="yarn", factor=factor, **common))
    np.testing.assert_array_equal(dynamic.inv_freq, yarn.inv_freq)
    assert dynamic.attention_factor == yarn.attention_factor


def test_only_some_scalings_follow_the_length() -> None:
    dynamic = RopeSpec(head_dim=8, scaling="dynamic_ntk", factor=2.0, original_context=100)
    assert frequencies(dynamic).inv_freq.tolist() == frequencies(dynamic, 100).inv_freq.tolist()
    stretched = frequencies(dynamic, 150).inv_freq  # stretch 2 * 1.5 - 1 = 2
    ntk = frequencies(RopeSpec(head_dim=8, scaling="ntk", factor=2.0)).inv_freq
    np.testing.assert_allclose(stretched, ntk, rtol=1e-14)

    longrope = RopeSpec(
        head_dim=4,
        scaling="longrope",
        factor=4.0,
        original_context=100,
        short_factor=[1.0, 1.0],
        long_factor=[2.0, 4.0],
    )
    assert frequencies(longrope, 100).inv_freq.tolist() == frequencies(longrope).inv_freq.tolist()
    np.testing.assert_allclose(
        frequencies(longrope, 100).inv_freq / frequencies(longrope, 101).inv_freq, [2.0, 4.0]
    )


def test_proportional_stops_the_slow_features() -> None:
    spec = RopeSpec(head_dim=8, scaling="proportional", partial_rotary_factor=0.5, resonance=True)
    table = frequencies(spec)
    assert table.wavelengths.tolist() == [6.0, 63.0, math.inf, math.inf]
    assert table.inv_freq[2:].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"scaling": "none", "attention_factor": 1.5}, 1.5),
        ({"scaling": "yarn", "factor": 4.0}, 0.1 * math.log(4) + 1),
        ({"scaling": "yarn", "factor": 1.0}, 1.0),
        ({"scaling": "yarn", "factor": 4.0, "attention_factor": 1.0}, 1.0),
        (
            {"scaling": "yarn", "factor": 4.0, "mscale": 0.707, "mscale_all_dim": 1.0},
            (0.0707 * math.log(4) + 1) / (0.1 * math.log(4) + 1),
        ),
        ({"scaling": "ntk_by_parts", "factor": 4.0}, 1.0),
    ],
)
def test_attention_factor(fields: dict[str, Any], expected: float) -> None:
    context = {} if fields["scaling"] == "none" else {"original_context": 64}
    spec = RopeSpec(head_dim=32, **context, **fields)
    assert frequencies(spec).attention_factor == pytest.approx(expected, rel=1e-14)


def test_arrays_are_read_only() -> None:
    table = frequencies(RopeSpec(head_dim=8))
    for array in (table.inv_freq, table.wavelengths):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 2.0
