"""Attention: the mask, every implementation against plain loops or XLA's, and the choice."""

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rrope_jax.model.attention import splash
from rrope_jax.model.attention.call import Call
from rrope_jax.model.attention.choice import IMPLEMENTATIONS, attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.platform import operations
from tests.closeness import assert_close

SEGMENTS = jnp.array([[0, 0, 0, 1, 1], [2, 2, 2, 2, 2]])


def _qkv(
    B: int, T: int, S: int, N: int, K: int, H: int, dtype: Any = jnp.float32
) -> tuple[jax.Array, jax.Array, jax.Array]:
    random = np.random.default_rng(0)
    shapes = ((B, T, N, H), (B, S, K, H), (B, S, K, H))
    q, k, v = (jnp.asarray(random.standard_normal(shape), dtype) for shape in shapes)
    return q, k, v


def _by_loops(q: Any, k: Any, v: Any, visible: Any, scale: float) -> np.ndarray:
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    B, T, N, _ = q.shape
    group = N // k.shape[2]
    out = np.zeros(q.shape)
    for b in range(B):
        for n in range(N):
            for t in range(T):
                seen = np.flatnonzero(visible[b][t])
                logits = scale * k[b, seen, n // group] @ q[b, t, n]
                weights = np.exp(logits - logits.max())
                out[b, t, n] = weights / weights.sum() @ v[b, seen, n // group]
    return out


def test_mask_of_whole_sequences() -> None:
    np.testing.assert_array_equal(CausalMask().dense(3, 3), [np.tri(3)])


def test_mask_of_segments() -> None:
    first, second = CausalMask(segment_ids_BT=SEGMENTS).dense(5, 5)
    np.testing.assert_array_equal(
        first,
        [
            [1, 0, 0, 0, 0],
            [1, 1, 0, 0, 0],
            [1, 1, 1, 0, 0],
            [0, 0, 0, 1, 0],
            [0, 0, 0, 1, 1],
        ],
    )
    np.testing.assert_array_equal(second, np.tri(5))


def test_mask_of_continued_sequences() -> None:
    mask = CausalMask(start_B=jnp.array([0, 2])).dense(2, 4)
    np.testing.assert_array_equal(
        mask, [[[1, 0, 0, 0], [1, 1, 0, 0]], [[1, 1, 1, 0], [1, 1, 1, 1]]]
    )


def test_mask_of_a_window() -> None:
    """A query sees itself and the key before it; the second row continues after two tokens."""
    mask = CausalMask(start_B=jnp.array([0, 2]), window=2).dense(3, 5)
    np.testing.assert_array_equal(
        mask,
        [
            [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [0, 1, 1, 0, 0]],
            [[0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 1, 1]],
        ],
    )


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize(
    ("mask", "T", "S"),
    [
        (CausalMask(), 5, 5),
        (CausalMask(segment_ids_BT=SEGMENTS), 5, 5),
        (CausalMask(start_B=jnp.array([0, 3])), 2, 7),
        (CausalMask(segment_ids_BT=SEGMENTS, window=2), 5, 5),
    ],
    ids=["causal", "segments", "decoding", "window"],
)
def test_xla_against_loops(mask: CausalMask, T: int, S: int, kv_heads: int) -> None:
    q, k, v = _qkv(2, T, S, 4, kv_heads, 6)
    expected = _by_loops(q, k, v, np.broadcast_to(mask.dense(T, S), (2, T, S)), 0.7)
    result = attention(0.7 * q, k, v, mask, implementation="xla")
    assert_close(result, expected)


def test_bfloat16_keeps_float32_logits() -> None:
    """Large, close logits: a softmax of logits rounded to bfloat16 would be off by a half."""
    q = jnp.full((1, 2, 1, 2), 16.0, jnp.bfloat16)
    k = jnp.array([[16.0, 1.0], [16.0, 1.0625]], jnp.bfloat16)[None, :, None]
    v = jnp.array([0.0, 1.0], jnp.bfloat16)[None, :, None, None] * jnp.ones((2,), jnp.bfloat16)
    result = attention(q, k, v, CausalMask(), implementation="xla")
    assert result.dtype == jnp.bfloat16
    np.testing.assert_allclose(result[0, 1, 0], 1 / (1 + np.exp(-1.0)), rtol=2**-8)


def test_dropout_acts_on_the_weights() -> None:
    q, k, v = _qkv(1, 3, 3, 2, 2, 4)
    seen = []

    def only_the_first_key(weights: jax.Array) -> jax.Array:
        seen.append(weights)
        return weights.at[..., 1:].set(0)

    result = attention(q, k, v, CausalMask(), dropout=only_the_first_key)
    np.testing.assert_allclose(seen[0].sum(-1), 1, rtol=1e-6)
    for head in range(2):
        expected = seen[0][0, head, 0, :, :1] * v[:, 0, head]
        np.testing.assert_allclose(result[0, :, head], expected, rtol=1e-6)


# --- splash, by the interpreter of Pallas --------------------------------------------------------


@pytest.fixture
def splash_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splash, "INTERPRET", True)
    monkeypatch.setattr(operations, "backend_platform", lambda: "tpu")


@pytest.mark.slow
@pytest.mark.usefixtures("splash_anywhere")
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize("segmented", [False, True])
def test_splash_against_xla(segmented: bool, window: int | None) -> None:
    """Outputs and gradients, with two queries per key head and two blocks of keys."""
    B, T, N, K, H = 2, 256, 4, 2, 16
    monotonous = jnp.cumsum(jax.random.bernoulli(jax.random.key(0), 0.02, (B, T)), axis=1)
    mask = CausalMask(segment_ids_BT=monotonous if segmented else None, window=window)
    weight = jnp.asarray(np.random.default_rng(1).standard_normal((B, T, N, H)), jnp.float32)

    def outputs(implementation: str) -> Any:
        def weighted(qkv: Any) -> tuple[jax.Array, jax.Array]:
            out = attention(*qkv, mask, implementation=implementation)
            return jnp.sum(weight * out), out

        q, k, v = _qkv(B, T, T, N, K, H)
        return jax.jit(jax.value_and_grad(weighted, has_aux=True))((0.25 * q, k, v))

    (_, out), gradients = outputs("splash")
    (_, expected), expected_gradients = outputs("xla")
    assert_close(out, expected)
    for gradient, expected_gradient in zip(gradients, expected_gradients, strict=True):
        assert_close(gradient, expected_gradient)


@pytest.mark.usefixtures("splash_anywhere")
@pytest.mark.parametrize(("window", "blocks"), [(None, 10), (512, 7), (513, 7), (514, 9)])
def test_splash_visits_blocks_in_the_window_only(window: int | None, blocks: int) -> None:
    """Of 4 by 4 blocks of 512 tokens; a window of 514 reaches the last key before a neighbor."""
    x = jax.ShapeDtypeStruct((1, 2048, 1, 64), jnp.bfloat16)
    kernel = splash._make_kernel(Call(x, x, x, CausalMask(window=window)).shape)
    assert np.count_nonzero(kernel.fwd_mask_info.block_mask) == blocks


# --- the choice ----------------------------------------------------------------------------------


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces what the implementations compute; holds the names of those that were run."""
    names: list[str] = []

    def record(name: str) -> Any:
        def run(call: Any) -> jax.Array:
            names.append(name)
            return call.q_BTNH

        return run

    for name, row in IMPLEMENTATIONS.items():
        monkeypatch.setitem(IMPLEMENTATIONS, name, dataclasses.replace(row, run=record(name)))
    return names


LONG = 4096
SEGMENTED = CausalMask(segment_ids_BT=jnp.zeros((1, LONG), jnp.int32))
LONGER = CausalMask(segment_ids_BT=jnp.zeros((1, 2 * LONG), jnp.int32))
DECODING = CausalMask(start_B=jnp.zeros((1,), jnp.int32))


@pytest.mark.parametrize(
    ("platform", "length", "dtype", "mask", "dropout", "expected"),
    [
        ("tpu", LONG, "bfloat16", CausalMask(), False, "splash"),
        ("tpu", LONG, "float32", SEGMENTED, False, "splash"),
        ("tpu", LONG // 2, "bfloat16", CausalMask(), False, "chunked"),
        ("tpu", LONG + 1, "bfloat16", CausalMask(), False, "chunked"),
        ("tpu", LONG, "bfloat16", DECODING, False, "chunked"),
        ("tpu", 256, "bfloat16", CausalMask(), False, "xla"),
        ("tpu", LONG, "bfloat16", CausalMask(), True, "xla"),
        ("gpu", 64, "bfloat16", CausalMask(), False, "cudnn"),
        ("gpu", LONG, "float16", SEGMENTED, False, "cudnn"),
        ("gpu", 2 * LONG, "bfloat16", LONGER, False, "chunked"),
        ("gpu", 8 * LONG, "bfloat16", CausalMask(), False, "cudnn"),
        ("gpu", 65, "bfloat16", CausalMask(), False, "cudnn"),
        ("gpu", 64, "float32", CausalMask(), False, "xla"),
        ("gpu", 64, "bfloat16", DECODING, False, "xla"),
        ("gpu", 64, "bfloat16", CausalMask(), True, "xla"),
        ("cpu", LONG, "float32", SEGMENTED, False, "chunked"),
        ("cpu", LONG, "float32", CausalMask(), True, "xla"),
        ("cpu", 256, "float32", CausalMask(), False, "xla"),
    ],
)
def test_auto(
    monkeypatch: pytest.MonkeyPatch,
    ran: list[str],
    platform: str,
    length: int,
    dtype: str,
    mask: CausalMask,
    dropout: bool,
    expected: str,
) -> None:
    monkeypatch.setattr(operations, "backend_platform", lambda: platform)
    x = jax.ShapeDtypeStruct((1, length, 1, 64), dtype)
    jax.eval_shape(
        lambda q, k, v: attention(
            q, k, v, mask, dropout=(lambda weights: weights) if dropout else None
        ),
        *(x, x, x),
    )
    assert ran == [expected]


@pytest.mark.parametrize(
    ("name", "platform", "shape", "dtype", "mask", "dropout", "reason"),
    [
        (
            "splash",
            "cpu",
            (1, 128, 1, 64),
            "float32",
            CausalMask(),
            False,
            "needs a TPU, not a CPU",
        ),
        ("splash", "tpu", (1, 100, 1, 64), "float32", CausalMask(), False, "128 divides, not 100"),
        ("splash", "tpu", (1, 128, 1, 64), "float32", DECODING, False, "decoding with a cache"),
        ("splash", "tpu", (1, 128, 1, 64), "float32", CausalMask(), True, "no dropout"),
        ("chunked", "cpu", (1, 128, 1, 64), "float32", CausalMask(), True, "no dropout"),
        ("cudnn", "tpu", (1, 128, 1, 64), "bfloat16", CausalMask(), False, "a GPU, not a TPU"),
        ("cudnn", "gpu", (1, 128, 1, 64), "float32", CausalMask(), False, "bfloat16 or float16"),
        ("cudnn", "gpu", (1, 128, 1, 60), "bfloat16", CausalMask(), False, "not 60"),
        ("cudnn", "gpu", (1, 128, 1, 256), "bfloat16", CausalMask(), False, "not 256"),
        ("cudnn", "gpu", (1, 5, 1, 64), "bfloat16", SEGMENTED, False, "even length, not 5"),
        ("cudnn", "gpu", (1, 2 * LONG, 1, 64), "bfloat16", LONGER, False, "up to 4096, not 8192"),
        ("cudnn", "gpu", (1, 128, 1, 64), "bfloat16", DECODING, False, "decoding with a cache"),
        ("cudnn", "gpu", (1, 128, 1, 64), "bfloat16", CausalMask(), True, "no dropout"),
    ],
)
def test_what_is_asked_for_by_name_runs_or_says_why_not(
    monkeypatch: pytest.MonkeyPatch,
    ran: list[str],
    name: str,
    platform: str,
    shape: tuple[int, ...],
    dtype: str,
    mask: CausalMask,
    dropout: bool,
    reason: str,
) -> None:
    monkeypatch.setattr(operations, "backend_platform", lambda: platform)
    x = jnp.zeros(shape, dtype)
    with pytest.raises(ValueError, match=f"attention='{name}' cannot be used here: .*{reason}"):
        attention(
            *(x, x, x),
            mask,
            implementation=name,
            dropout=(lambda weights: weights) if dropout else None,
        )
    assert ran == []


def test_cudnn_refuses_parts_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "backend_platform", lambda: "gpu")
    mesh = jax.sharding.AbstractMesh((2,), ("seq",))
    x = jnp.zeros((2, 128, 1, 64), jnp.bfloat16)
    with (
        jax.sharding.use_abstract_mesh(mesh),
        pytest.raises(ValueError, match="whole rows, and the mesh splits them over seq"),
    ):
        attention(x, x, x, CausalMask(), implementation="cudnn")


def test_the_mesh_says_for_which_platform() -> None:
    """A program may be compiled here for machines that are elsewhere."""
    device = jax.sharding.AbstractDevice("TPU v5p", num_cores=1, platform="tpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    assert operations.backend_platform() == jax.default_backend()
    with jax.sharding.use_abstract_mesh(mesh):
        assert operations.backend_platform() == "tpu"


@pytest.mark.skipif(jax.default_backend() != "gpu", reason="cuDNN needs a GPU")
@pytest.mark.parametrize("window", [None, 1, 20])
@pytest.mark.parametrize("segmented", [False, True])
def test_cudnn_against_xla(segmented: bool, window: int | None) -> None:
    segments = jnp.arange(128)[None] // 50 if segmented else None
    mask = CausalMask(segments, window=window)
    q, *kv = _qkv(1, 128, 128, 4, 2, 64, jnp.bfloat16)
    qkv = (0.125 * q, *kv)
    fused = attention(*qkv, mask, implementation="cudnn")
    expected = attention(*qkv, mask, implementation="xla")
    np.testing.assert_allclose(fused.astype(float), expected.astype(float), rtol=0, atol=2e-2)


@pytest.mark.parametrize("window", [1, 2, 5])
@pytest.mark.parametrize("segmented", [False, True])
def test_cudnn_is_asked_for_the_window(
    monkeypatch: pytest.MonkeyPatch, segmented: bool, window: int
) -> None:
    """By JAX's own computation of what cuDNN is asked for, as cuDNN itself needs a GPU."""
    own = jax.nn.dot_product_attention
    monkeypatch.setattr(operations, "backend_platform", lambda: "gpu")
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda *x, **y: own(*x, **{**y, "implementation": "xla"})
    )
    mask = CausalMask(jnp.array([[0, 0, 1, 1, 1, 1]]) if segmented else None, window=window)
    qkv = _qkv(1, 6, 6, 4, 2, 8, jnp.float16)
    asked = attention(*qkv, mask, implementation="cudnn")
    expected = attention(*qkv, mask, implementation="xla")
    np.testing.assert_allclose(asked.astype(float), expected.astype(float), rtol=0, atol=5e-3)


# --- over a mesh ---------------------------------------------------------------------------------

_ON_TWO_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 2)
import jax.numpy as jnp
import numpy as np
from rrope_jax.model.attention.choice import attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.attention.context_parallel import arrange, restore
from rrope_jax.sharding import MeshConfig, make_mesh
from tests.closeness import assert_close

random = np.random.default_rng(0)
qkv = [jnp.asarray(random.standard_normal((2, 8, 2, 8)), jnp.float32) for _ in range(3)]
of_queries = jnp.array([[1] * 8, [1] * 4 + [2] * 4])
of_keys = jnp.array([[1, 2] * 4, [1, 3, 3, 3, 2, 1, 3, 3]])

def run(implementation, order=lambda x: x, back=lambda x: x, **fields):
    mask = CausalMask(order(of_queries), order(of_keys), **fields)
    q, k, v = map(order, qkv)
    attend = lambda q, k, v: attention(q, k, v, mask, implementation=implementation)
    return back(jax.jit(attend)(q, k, v))

expected = run("xla")
assert jnp.abs(expected - attention(*qkv, CausalMask(of_queries))).max() > 0.1
for sizes in ({"fsdp": 2}, {"seq": 2}, {"tensor": 2}):
    with jax.set_mesh(make_mesh(MeshConfig(**sizes))):
        for implementation in ("xla", "chunked"):
            found = {"as given": run(implementation)}
            if "seq" in sizes:
                found["arranged"] = run(implementation, arrange, restore, arranged=True)
            for order, out in found.items():
                difference = float(jnp.abs(out - expected).max() / jnp.abs(expected).max())
                assert difference < 1e-6, (sizes, implementation, order, difference)
print("the same")
"""


@pytest.mark.slow
def test_segments_of_keys_are_the_same_over_a_mesh() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ON_TWO_DEVICES], capture_output=True, text=True, check=False
    )
    assert done.stdout == "the same\n", done.stderr


_WINDOWS_ON_FOUR_DEVICES = """
import jax
jax.config.update("jax_num_cpu_devices", 4)
import jax.numpy as jnp
import numpy as np
from rrope_jax.model.attention.choice import attention
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.attention.context_parallel import arrange, restore
from rrope_jax.sharding import MeshConfig, constrain, make_mesh

random = np.random.default_rng(0)
T = 32  # four parts of 8 tokens, or of two pieces of 4
qkv = [jnp.asarray(random.standard_normal((1, T, n, 8)), jnp.float32) for n in (4, 2, 2)]
weight = jnp.asarray(random.standard_normal((1, T, 4, 8)), jnp.float32)
packed = jnp.array([[0] * 3 + [1] * 9 + [2] * 12 + [3] * 8])

def program(implementation, window, segments, arranged):
    order, back = (arrange, restore) if arranged else (lambda x: x, lambda x: x)
    def weighted(qkv):
        ids = None if segments is None else order(segments)
        mask = CausalMask(ids, arranged=arranged, window=window)
        q, k, v = (constrain(order(x), ("batch", "length", None, None)) for x in qkv)
        out = back(attention(q, k, v, mask, implementation=implementation))
        return jnp.sum(weight * out), out
    return jax.jit(jax.value_and_grad(weighted, has_aux=True))

for window, segments in ((1, None), (4, packed), (5, None), (8, None), (9, packed)):
    expected = jax.tree.leaves(program("xla", window, segments, False)(qkv))
    with jax.set_mesh(make_mesh(MeshConfig(seq=4))):
        for arranged in (False, True):
            run = program("chunked", window, segments, arranged)
            found = jax.tree.leaves(run(qkv))
            # not the sum, which rounding moves most; in windows of 1, some gradients are zero
            for one, other in zip(found[1:], expected[1:], strict=True):
                error = float(jnp.abs(one - other).max())
                case = (window, arranged, error)
                assert error < 1e-5 * max(1, float(jnp.abs(other).max())), case
print("the same")

shapes = [jax.ShapeDtypeStruct((1, 4096, n, 8), jnp.float32) for n in (4, 2, 2)]
for window in (64, 2048):
    with jax.set_mesh(make_mesh(MeshConfig(seq=4))):
        def attend(q, k, v):
            q, k, v = (constrain(x, ("batch", "length", None, None)) for x in (q, k, v))
            mask = CausalMask(arranged=True, window=window)
            return attention(q, k, v, mask, implementation="chunked")
        text = jax.jit(attend).lower(*shapes).compile().as_text()
    print(window, "all-gather" in text, "collective-permute" in text)
"""


@pytest.mark.slow
def test_windows_over_parts_of_rows() -> None:
    """Pieces as long as the window receive the end of the one before, not whole rows."""
    done = subprocess.run(
        [sys.executable, "-c", _WINDOWS_ON_FOUR_DEVICES],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.splitlines() == ["the same", "64 False True", "2048 True False"], done.stderr
