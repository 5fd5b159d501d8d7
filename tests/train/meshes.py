"""Run by test_sharded.py in a process with 8 simulated devices; prints what it finds as JSON."""

import dataclasses
import json
import math
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rrope_jax.io.adapters.config import TARGETS, LoraConfig
from rrope_jax.model import ModelConfig
from rrope_jax.model.attention import splash
from rrope_jax.model.attention.choice import attention
from rrope_jax.model.attention.context_parallel import arrange, restore
from rrope_jax.model.attention.mask import CausalMask
from rrope_jax.model.platform import operations as platform
from rrope_jax.rope import RopeSpec
from rrope_jax.sharding import AXES, MeshConfig, constrain, make_mesh
from rrope_jax.train.config import TrainConfig
from rrope_jax.train.rounding import round_stochastically
from rrope_jax.train.sharded import init_state, lower_step, make_placement
from rrope_jax.train.step import Program

MESHES = ((8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1), (1, 2, 2, 2), (1, 1, 4, 2))
ONE = (1, 1, 1, 1)
NO_LORA = LoraConfig()
LORA = LoraConfig(rank=3, targets=tuple(TARGETS), train_also=("norm", "embed"), dropout=0.1)
TRAIN = TrainConfig(steps=4, batch_size=8, length=32, loss_chunk=16, gradient_clip=1.0)
ROPE = RopeSpec(
    head_dim=16, theta=1e4, scaling="yarn", factor=2.0, original_context=16, resonance=True
)


def make(sizes: tuple[int, ...]) -> jax.sharding.Mesh:
    config = MeshConfig(**dict(zip(AXES, sizes, strict=True)))
    return make_mesh(config, jax.devices()[: math.prod(sizes)])


def packed(B: int, T: int) -> dict[str, np.ndarray]:
    """Rows of three documents of different lengths."""
    rng = np.random.default_rng(0)
    segments_BT = np.sort(rng.integers(1, 4, (B, T)), axis=1).astype(np.int32)
    first_BT = np.stack([np.searchsorted(row, row) for row in segments_BT])
    return {
        "tokens": rng.integers(0, 64, (B, T)).astype(np.int32),
        "targets": rng.integers(0, 64, (B, T)).astype(np.int32),
        "segment_ids": segments_BT,
        "positions": (np.arange(T) - first_BT).astype(np.int32),
        "weights": rng.integers(0, 2, (B, T)).astype(np.float32),
    }


def gradients(program: Program, meshes: tuple[tuple[int, ...], ...]) -> dict[str, float]:
    """Largest relative differences of a batch's gradients from those of one device."""

    def run(sizes: tuple[int, ...]) -> Any:
        placement = make_placement(program, make(sizes))
        params = init_state(program, placement, jax.random.key(0)).params
        with jax.set_mesh(placement.mesh):
            return jax.jit(jax.grad(lambda *given: program.heldout(*given)[0]))(
                params, placement.put(packed(8, 32))
            )

    expected = run(ONE)
    return {str(sizes): _difference(run(sizes), expected) for sizes in meshes}


def loss(sizes: tuple[int, ...], lora: LoraConfig = NO_LORA, **fields: Any) -> float:
    """Of the second step, relative to that of one device."""
    train = dataclasses.replace(TRAIN, **fields)
    program = dataclasses.replace(_program("auto"), lora=lora, train=train)

    def run(sizes: tuple[int, ...]) -> float:
        placement = make_placement(program, make(sizes))
        state = init_state(program, placement, jax.random.key(0))
        step = lower_step(program, placement).compile()
        batch, key = (
            placement.put(packed(8, 32)),
            jax.device_put(jax.random.key(1), placement.whole),
        )
        state, _ = step(state, batch, key)
        return float(step(state, batch, key)[1].loss)

    return abs(run(sizes) / run(ONE) - 1)


def rounding() -> int:
    """How many elements are rounded otherwise where an array is split over devices."""
    x = np.random.default_rng(0).standard_normal((64, 48)).astype(np.float32)
    key, expected = jax.random.key(0), round_stochastically(jax.random.key(0), jnp.asarray(x))
    mesh = make((2, 2, 2, 1))
    split = jax.NamedSharding(mesh, jax.P(("fsdp", "seq"), "data"))
    whole = jax.NamedSharding(mesh, jax.P())
    rounded = jax.jit(round_stochastically, in_shardings=(whole, split), out_shardings=split)
    found = rounded(jax.device_put(key, whole), jax.device_put(x, split))
    return int(np.sum(np.asarray(found) != np.asarray(expected)))


def _program(implementation: str) -> Program:
    model = ModelConfig(
        vocab_size=64,
        d_model=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        d_ff=96,
        layer_types=("sliding_attention", "full_attention"),
        sliding_window=5,  # pieces are longer than that, or as short as 4 tokens
        attention=implementation,
        remat="full",
    )
    return Program(model, ROPE, TRAIN)


def _layered_program(implementation: str, **fields: Any) -> Program:
    """A model with windows, NoPE, two embeddings, biases, and norms wherever there can be some."""
    model = dataclasses.replace(
        _program(implementation).model,
        num_layers=5,
        layer_types=("sliding_attention", "nope", "full_attention"),
        sliding_window=6,
        activation="geglu",
        qkv_bias=True,
        norm_offset=True,
        embedding_scale=8.0,
        residual_scale=0.5,
        **fields,
    )
    rope = dataclasses.replace(
        ROPE, llama_4_scaling_beta=0.1, sliding_attention=RopeSpec(head_dim=16, theta=100.0)
    )
    return Program(model, rope, TRAIN)


def layers() -> dict[str, dict[str, float]]:
    """Of the gradients of models whose layers differ, where rows are split, too.

    Pieces are shorter than the window on the first mesh and longer on the second. What the other
    meshes split is no other for these layers.
    """
    both = _layered_program("chunked", qk_norm="all_heads", norm_placement="both")
    after = _layered_program("xla", qk_norm="head", norm_placement="after")
    return {
        "both": gradients(both, ((1, 1, 4, 2),)),
        "after": gradients(after, ((1, 2, 2, 2),)),
    }


def attend(implementation: str, meshes: tuple[tuple[int, ...], ...] = MESHES) -> dict[str, float]:
    """Of attention alone and its gradients, from `xla` on one device.

    In both orders of tokens, and within a sliding window in the order that training uses.
    """
    return {str(sizes): _attend(implementation, sizes) for sizes in meshes}


def _attend(implementation: str, sizes: tuple[int, ...]) -> float:
    data, fsdp, seq, _ = sizes
    B, T, N, K, H = data * fsdp, 256 * seq if seq > 1 else 128, 4, 2, 16
    segments_BT = jnp.asarray(packed(B, T)["segment_ids"])
    normal = np.random.default_rng(1).standard_normal
    qkv = [jnp.asarray(normal((B, T, n, H)), jnp.float32) for n in (N, K, K)]
    weight = jnp.asarray(normal((B, T, N, H)), jnp.float32)

    def run(implementation: str, order: bool, window: int | None) -> Any:
        def weighted(qkv: Any) -> Any:
            q, k, v = (arrange(x) if order else x for x in qkv)
            segments = arrange(segments_BT) if order else segments_BT
            out = attention(
                *(constrain(0.25 * q, ("batch", "length", "heads", None)), k, v),
                CausalMask(segment_ids_BT=segments, arranged=order, window=window),
                implementation=implementation,
            )
            out = restore(out) if order else out
            return jnp.sum(weight * out), out

        (_, out), found = jax.jit(jax.value_and_grad(weighted, has_aux=True))(qkv)
        return out, found

    cases = ((False, None), (True, None), (True, 100)) if seq > 1 else ((False, None),)
    expected = {window: run("xla", False, window) for _, window in cases}
    with jax.set_mesh(make(sizes)):
        return max(_difference(run(implementation, *case), expected[case[1]]) for case in cases)


def memory() -> dict[int, int]:
    """Bytes for the gradient of blockwise attention, on each of 4 parts of a row, by its length."""
    found = {}
    with jax.set_mesh(make((1, 1, 4, 1))):
        for T in (4096, 16_384, 131_072):
            shapes = [jax.ShapeDtypeStruct((1, T, n, 64), jnp.float32) for n in (4, 2, 2)]

            def total(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
                q, k, v = (constrain(x, ("batch", "length", None, None)) for x in (q, k, v))
                mask = CausalMask(arranged=True)
                return jnp.sum(attention(q, k, v, mask, implementation="chunked"))

            compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(*shapes).compile()
            found[T] = compiled.memory_analysis().temp_size_in_bytes
    return found


def _difference(found: Any, expected: Any) -> float:
    """The largest difference of two trees' arrays, relative to an array's largest number."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(
        float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(b))) for a, b in pairs
    )


def main(what: str) -> None:
    jax.config.update("jax_num_cpu_devices", 8)
    if what == "splash":  # by the interpreter of Pallas
        splash.INTERPRET = True
        platform.backend_platform = lambda: "tpu"
    found = {
        "xla": lambda: {
            "attend": attend("xla"),
            "gradients": gradients(_program("xla"), ((1, 8, 1, 1),)),
        },
        "chunked": lambda: {
            "attend": attend("chunked", MESHES[1:]),
            "gradients": gradients(_program("chunked"), (MESHES[2], MESHES[4])),
        },
        "others": lambda: {
            "attend": attend("chunked", MESHES[:1]),
            "gradients": gradients(_program("chunked"), (MESHES[3],)),
        },
        "layers": layers,
        "splash": lambda: {"attend": attend("splash")},
        "lora": lambda: {"loss": loss((1, 2, 2, 2), LORA)},
        "step": lambda: {
            "loss": loss((1, 2, 2, 2)),
            "rounding": rounding(),
            "memory": memory(),
        },
        "state": lambda: {
            "bfloat16": loss((1, 2, 2, 2), param_dtype="bfloat16", moment_dtype="bfloat16"),
            "factored": loss((1, 2, 2, 2), optimizer="adafactor", param_dtype="bfloat16"),
        },
    }[what]()
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
