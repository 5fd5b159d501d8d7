"""The sharding rules' transfers and a step's memory traffic, worked by hand."""

import dataclasses
from typing import Any

import pytest

from rrope_jax.model import ModelConfig
from rrope_jax.planning.roofline.collectives import sum_by_axis
from rrope_jax.planning.roofline.rules import expected
from rrope_jax.planning.roofline.traffic import memory_traffic, saved_bytes
from rrope_jax.planning.workload import StepShape

# Numbers of a layer: 4 x 16 x 16 of attention, 3 x 16 x 32 of feed-forward; and of both ends.
MODEL = ModelConfig(
    vocab_size=64, d_model=16, num_layers=3, num_heads=4, d_ff=32, compute_dtype="bfloat16"
)
LAYER, ENDS = 4 * 16 * 16 + 3 * 16 * 32, 2 * 64 * 16
ONE = {"data": 1, "fsdp": 1, "seq": 1, "tensor": 1}


def _shape(mesh_shape: dict[str, int], **changes: Any) -> StepShape:
    fields: dict[str, Any] = {
        "model": MODEL,
        "rows": 4,
        "length": 8,
        "accumulation": 1,
        "parameters": 1000,
        "attention": "xla",
        "chunked_logits": False,
    }
    fields |= changes
    if isinstance(fields["attention"], str):
        fields["attention"] = dict.fromkeys(fields["model"].layer_types, fields["attention"])
    return StepShape(mesh_shape=mesh_shape, **fields)


def test_one_device_sends_nothing() -> None:
    assert expected(_shape(ONE, rows=4, accumulation=1)) == ()


def test_parameters_are_gathered_twice_and_their_gradients_scattered_once() -> None:
    mesh = {**ONE, "fsdp": 4}
    sent = sum_by_axis(expected(_shape(mesh, rows=8, accumulation=2)), mesh)
    of_pass = 0.75 * 2 * (3 * LAYER)
    ends = 0.75 * 2 * ENDS
    assert sent == {
        "all-gather": {"fsdp": pytest.approx(2 * (2 * of_pass + ends))},  # in each of two parts
        "reduce-scatter": {"fsdp": pytest.approx(2 * (of_pass + ends))},
    }


def test_gradients_are_summed_over_data() -> None:
    """Of the layers and of both ends, what scattering over fsdp leaves."""
    mesh = {**ONE, "data": 2, "fsdp": 4}
    sent = sum_by_axis(expected(_shape(mesh, rows=8, accumulation=1)), mesh)
    assert sent["all-reduce"] == {"data": 2 * 0.5 * 2 * (3 * LAYER + ENDS) / 4}


def test_keys_and_values_are_gathered_over_seq() -> None:
    mesh = {**ONE, "seq": 2}
    sent = sum_by_axis(expected(_shape(mesh, rows=1, accumulation=1)), mesh)
    keys_and_values = 0.5 * 2 * (2 * 8 * 16) * 3
    parameters = 0.5 * 2 * (2 * 3 * LAYER + ENDS)
    assert sent["all-gather"]["seq"] == pytest.approx(2 * keys_and_values + parameters)


@pytest.mark.parametrize(
    ("attention", "near"),
    [
        ("chunked", True),
        ("splash", False),
        ({"sliding_attention": "chunked", "nope": "splash"}, True),
        ({"sliding_attention": "splash", "nope": "chunked"}, False),
    ],
)
def test_small_windows_need_the_ends_of_pieces_only(
    attention: str | dict[str, str], near: bool
) -> None:
    """Two of three layers see 3 of 16 tokens: two tokens before each of four pieces of 4."""
    mesh = {**ONE, "seq": 2}
    model = dataclasses.replace(
        MODEL, layer_types=("sliding_attention",) * 2 + ("nope",), sliding_window=3
    )
    shape = _shape(mesh, rows=1, length=16, model=model, attention=attention)
    sent = sum_by_axis(expected(shape), mesh)
    parameters = 0.5 * 2 * (2 * 3 * LAYER + ENDS)
    gathered = 0.5 * 2 * (2 * 16 * 16) * (1 if near else 3)
    assert sent["all-gather"]["seq"] == pytest.approx(2 * gathered + parameters)
    assert ("collective-permute" in sent) == near
    if near:  # in the forward and the backward pass, and gradients in the other direction
        ends = 2 * 2 * (2 * 2 * 16)
        assert sent["collective-permute"]["seq"] == 2 * 3 * ends
    wider = dataclasses.replace(shape, model=dataclasses.replace(model, sliding_window=5))
    assert "collective-permute" not in sum_by_axis(expected(wider), mesh)


def test_sums_over_tensor() -> None:
    """After attention and feed-forward, and for their inputs' gradients."""
    mesh = {**ONE, "tensor": 2}
    sent = sum_by_axis(expected(_shape(mesh, rows=1, accumulation=1)), mesh)
    assert sent == {"all-reduce": {"tensor": 4 * 3 * (2 * 0.5 * 2 * 8 * 16)}}


def test_saved_activations() -> None:
    """`full` keeps the residual stream; `dots` the results of all products but the last."""
    full, dots = (
        ModelConfig(vocab_size=64, d_model=16, num_layers=3, num_heads=4, d_ff=32, remat=remat)
        for remat in ("full", "dots")
    )
    assert saved_bytes(_shape(ONE, model=full, rows=2, length=5)) == 10 * 3 * 16 * 4
    assert (
        saved_bytes(_shape(ONE, model=dots, rows=2, length=5))
        == 10 * 3 * (16 + 16 + 3 * 16 + 2 * 32) * 4
    )
    assert saved_bytes(_shape({**ONE, "fsdp": 5}, model=full, rows=2, length=5)) == 2 * 3 * 16 * 4


def test_layers_with_a_window_move_fewer_bytes_of_attention() -> None:
    """Of 8 blocks of 128 tokens, each sees itself and, after the first, the one before it."""
    model = dataclasses.replace(MODEL, layer_types=("sliding_attention",), sliding_window=129)
    full, windowed = (
        memory_traffic(_shape(ONE, model=model, length=1024, attention="cudnn"))["attention"]
        for model in (MODEL, model)
    )
    assert windowed / full == pytest.approx((8 + 7) / (8 * 9 / 2))


def test_the_optimizer_reads_and_writes_its_share() -> None:
    """Four arrays read and four written, of float32."""
    moved = memory_traffic(_shape({**ONE, "fsdp": 4}))
    assert moved["optimizer"] == 8 * 4 * 250


def test_each_layer_type_moves_the_bytes_of_its_implementation() -> None:
    types = ("sliding_attention", "full_attention")
    model = dataclasses.replace(MODEL, num_layers=2, layer_types=types, sliding_window=129)
    full = dataclasses.replace(MODEL, num_layers=1)
    windowed = dataclasses.replace(full, layer_types=types[:1], sliding_window=129)
    both = memory_traffic(
        _shape(
            ONE, model=model, length=1024, attention=dict(zip(types, ("cudnn", "xla"), strict=True))
        )
    )
    parts = [
        memory_traffic(_shape(ONE, model=each, length=1024, attention=attention))
        for each, attention in ((windowed, "cudnn"), (full, "xla"))
    ]
    assert both["attention"] == sum(part["attention"] for part in parts)
