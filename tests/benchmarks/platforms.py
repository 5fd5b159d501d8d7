"""The platforms that benchmarks run on, by JAX's names, and what PyTorch can do there."""

import importlib.util
import os

JAX_PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
"""Platform -> the variable JAX_PLATFORMS, the CPU beside it for what is compared with it."""

_TORCH_DEVICES = {"cpu": "cpu", "gpu": "cuda"}


def torch_device(platform: str) -> str:
    """What PyTorch calls the device of a platform; products of float32 become TF32 on a GPU.

    TF32 is what JAX takes there when nothing is said.

    Raises:
      RuntimeError: PyTorch cannot be measured there; the message says why.
    """
    if platform not in _TORCH_DEVICES:
        raise RuntimeError(f"PyTorch has no {platform.upper()} here")
    if importlib.util.find_spec("torch") is None:
        raise RuntimeError("torch is not installed")
    import torch

    if platform == "gpu":
        if not torch.cuda.is_available():
            raise RuntimeError(f"torch {torch.__version__} has no CUDA here")
        torch.set_float32_matmul_precision("high")
    return _TORCH_DEVICES[platform]


def select(platform: str) -> None:
    """Makes JAX start with this platform and no other; to be called before it starts."""
    os.environ["JAX_PLATFORMS"] = JAX_PLATFORMS[platform]
    import jax

    jax.config.update("jax_platforms", JAX_PLATFORMS[platform])
