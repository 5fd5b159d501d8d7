"""cuDNN's fused attention for GPUs, through JAX."""

import jax
import jax.numpy as jnp

from rrope_jax.model.attention.call import Call, CallShape, first_obstacle, fused_obstacle

# Up to this length, a row's mask of all pairs in the dtype of q takes at most 32 MiB.
_LONGEST_MASK = 4096


def run(call: Call) -> jax.Array:
    """Never holds the logits of all pairs, but needs a mask of all pairs for segments.

    JAX's public interface supports the lengths of padded rows, but not segments.
    """
    T = call.q_BTNH.shape[1]
    window = call.mask.window
    segmented = call.mask.segment_ids_BT is not None
    return jax.nn.dot_product_attention(
        call.q_BTNH,
        call.k_BSKH,
        call.v_BSKH,
        mask=call.mask.dense(T, T)[:, None] if segmented else None,
        is_causal=not segmented,
        # JAX counts the keys on the left of a query, without its own
        local_window_size=None if window is None or segmented else (window - 1, 0),
        scale=1.0,
        implementation="cudnn",
    )


def obstacle(shape: CallShape) -> str | None:
    """Why `run` cannot compute calls of a shape, or None."""
    T, H, dtype = shape.T, shape.H, shape.dtype
    return fused_obstacle(shape, "gpu") or first_obstacle(
        (dtype not in (jnp.bfloat16, jnp.float16), f"it needs bfloat16 or float16, not {dtype}"),
        (H % 8 != 0 or H > 128, f"it needs a head_dim that 8 divides, up to 128, not {H}"),
        (shape.S != T, "it needs whole rows, and the mesh splits them over seq"),
        (T % 2 != 0 and shape.segmented, f"with segments it needs an even length, not {T}"),
        (
            T > _LONGEST_MASK and shape.segmented,
            f"with segments it reads a mask of all pairs, so it needs a length up to "
            f"{_LONGEST_MASK}, not {T}",
        ),
    )
