"""What JAX and PyTorch reach in float32 matrix products of a PosGen model's shapes.

On a GPU both are given TF32 products: that is JAX's own choice, and PyTorch is told to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rrope_jax.posgen.training import PosgenProgram
from tests.benchmarks.timing import interleaved_medians

_FLOPS_PER_TIMING = 2e9


class Product(NamedTuple):
    """A matrix product `left @ right`, either side transposed before it.

    Attributes:
      left, right: shapes as stored.
      transposed: `left`, `right` or `neither`.
      flops: floating point operations, 2 per multiply-add.
    """

    left: tuple[int, int]
    right: tuple[int, int]
    transposed: str
    flops: float

    def of(self, a: Any, b: Any) -> Any:
        """The product of two arrays, of either library."""
        return (a.T if self.transposed == "left" else a) @ (
            b.T if self.transposed == "right" else b
        )


def products(program: PosgenProgram) -> dict[str, Product]:
    """Those of the first feed-forward matrix: forward, gradient of the input, of the matrix."""
    M = program.train.batch_size * program.task.train_length
    D, F = program.model.d_model, program.model.d_ff
    flops = 2.0 * M * D * F
    return {
        "x W": Product((M, D), (D, F), "neither", flops),
        "dy Wᵀ": Product((M, F), (D, F), "right", flops),
        "xᵀ dy": Product((M, D), (M, F), "left", flops),
    }


def rates(
    program: PosgenProgram, *, with_torch: bool, repeats: int, device: str = "cpu"
) -> dict[str, dict[str, float]]:
    """Median FLOP/s: library -> product -> rate.

    JAX's are those of its first device, PyTorch's those of what it calls `device`.
    """
    made: dict[str, dict[str, float]] = {}
    for name, product in products(program).items():
        random = np.random.default_rng(0)
        a, b = (
            random.standard_normal(shape, np.float32) for shape in (product.left, product.right)
        )
        calls = max(1, round(_FLOPS_PER_TIMING / product.flops))
        arrays = jnp.asarray(a), jnp.asarray(b)
        runs = {"JAX": _calls(jax.jit(product.of), *arrays, calls, jax.block_until_ready)}
        if with_torch:
            import torch

            # on the CPU, PyTorch has computed when it returns
            wait = torch.cuda.synchronize if device == "cuda" else lambda: None
            left, right = (torch.tensor(x, device=device) for x in (a, b))
            runs["PyTorch"] = _calls(product.of, left, right, calls, lambda _, wait=wait: wait())
        for library, seconds in interleaved_medians(runs, repeats).items():
            made.setdefault(library, {})[name] = calls * product.flops / seconds
    return made


def _calls(
    function: Callable[[Any, Any], Any], a: Any, b: Any, calls: int, wait: Callable[..., object]
) -> Callable[[], object]:
    def run() -> None:
        for _ in range(calls):
            result = function(a, b)
        wait(result)

    return run
