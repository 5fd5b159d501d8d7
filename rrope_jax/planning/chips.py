"""The supported accelerators: published figures, with sources.

Rates are per JAX device and second, decimal (1 GB/s = 1e9 bytes/s); memory is in bytes.
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True, kw_only=True)
class Torus:
    """Chips linked to their neighbors along each dimension of a slice.

    Attributes:
      dimensions: number of dimensions of a slice.
      link: bytes/s of one link in one direction; a ring sends in both directions at once.
      wraps_at: an axis closes to a ring if its size is a multiple of this.
      cubes: whether rings are switched cube by cube, so that an axis closes only if the sizes of
        all axes are multiples of `wraps_at`.
    """

    dimensions: int
    link: float
    wraps_at: int
    cubes: bool = False

    def wraps(self, shape: tuple[int, ...]) -> tuple[bool, ...]:
        """Whether each axis of a slice is a ring."""
        closed = tuple(size % self.wraps_at == 0 for size in shape)
        return tuple(all(closed) for _ in shape) if self.cubes else closed


@dataclasses.dataclass(frozen=True, kw_only=True)
class Switch:
    """Chips of a host that reach each other at the same rate.

    Attributes:
      per_chip: bytes/s into a chip, and simultaneously out of it.
    """

    per_chip: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class GpuTarget:
    """The GPU properties that XLA's compiler needs (its `GpuTargetConfigProto`).

    Attributes:
      name: product name.
      memory: memory of the card, bytes.
      capability: CUDA compute capability.
      cores: number of streaming multiprocessors (SMs).
      fpus_per_core, core_shared_memory: FPUs and shared memory (bytes) per SM.
      block_shared_memory: maximum shared memory of a thread block, bytes.
      l2_cache: size of the L2 cache, bytes.
      clock_ghz: boost clock, GHz.
    """

    name: str
    memory: int
    capability: tuple[int, int]
    cores: int
    fpus_per_core: int
    core_shared_memory: int
    block_shared_memory: int
    l2_cache: int
    clock_ghz: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chip:
    """One kind of accelerator.

    Attributes:
      title: its name in reports.
      platform: as in `jax.Device.platform`.
      memory: bytes that a program may use. On TPUs the compiler's own limit; on GPUs the share of
        the card that JAX allocates, `GPU_MEMORY_SHARE`.
      memory_bandwidth: bytes/s.
      peak: dtype -> FLOP/s of dense matrix products at JAX's default precision. For float32 that
        means one bfloat16 pass on TPUs and TF32 on GPUs.
      network: the links between the devices of a slice or host.
      between_slices: bytes/s per device from one slice or host to others.
      sources: sources of the figures.
      devices_per_chip: JAX devices per chip, as the topology's name counts chips.
      core_mode: libtpu's name for the way in which a chip's cores are joined, if not the default.
      gpu: the compiler's target; None for other platforms.
    """

    title: str
    platform: str
    memory: int
    memory_bandwidth: float
    peak: Mapping[str, float]
    network: Torus | Switch
    between_slices: float
    sources: tuple[str, ...]
    devices_per_chip: int = 1
    core_mode: str | None = None
    gpu: GpuTarget | None = None


def _peak(bfloat16: float, float32: float | None = None) -> Mapping[str, float]:
    return types.MappingProxyType(
        {"bfloat16": bfloat16, "float32": bfloat16 if float32 is None else float32}
    )


_CLOUD = "https://cloud.google.com/tpu/docs/"
_BOOK = "https://jax-ml.github.io/scaling-book/"
_XLA_GPU = "https://github.com/openxla/xla/tree/main/xla/backends/gpu/target_config/specs"
_COMPILER = "the limit named by the compiler of libtpu 0.0.52"

# The share of a GPU's memory that JAX allocates for programs; the rest is for CUDA and NCCL.
# launch/run_worker.sh reads the number in the next line to set XLA_PYTHON_CLIENT_MEM_FRACTION.
GPU_MEMORY_SHARE = 0.9


def _gpu_chip(title: str, target: GpuTarget, *, page: str, **rates: Any) -> Chip:
    """A GPU; programs may use `GPU_MEMORY_SHARE` of its memory."""
    return Chip(
        title=title,
        platform="gpu",
        memory=int(GPU_MEMORY_SHARE * target.memory),
        sources=(f"https://www.nvidia.com/en-us/data-center/{page}", _XLA_GPU, _BOOK + "gpus"),
        gpu=target,
        **rates,
    )


_H100 = GpuTarget(
    name="NVIDIA H100 80GB HBM3",
    memory=84_942_979_072,
    capability=(9, 0),
    cores=132,
    fpus_per_core=128,
    core_shared_memory=233_472,
    block_shared_memory=232_448,
    l2_cache=52_428_800,
    clock_ghz=1.98,
)
_HOPPER: Mapping[str, Any] = {
    "peak": _peak(989e12, 494e12),
    "network": Switch(per_chip=4.5e11),
    "between_slices": 5e10,
}

CHIPS: Mapping[str, Chip] = types.MappingProxyType(
    {
        "v4": Chip(
            title="TPU v4",
            platform="tpu",
            memory=int(30.75 * GIB),
            memory_bandwidth=1.2e12,
            peak=_peak(275e12),
            network=Torus(dimensions=3, link=4.5e10, wraps_at=4, cubes=True),
            between_slices=6.25e9,
            sources=(_CLOUD + "v4", _BOOK + "tpus (links, DCN per host of 4)", _COMPILER),
            core_mode="megacore",
        ),
        "v5e": Chip(
            title="TPU v5e",
            platform="tpu",
            memory=int(15.75 * GIB),
            memory_bandwidth=8.19e11,
            peak=_peak(197e12),
            network=Torus(dimensions=2, link=4.5e10, wraps_at=16),
            between_slices=3.125e9,
            sources=(_CLOUD + "v5e", _BOOK + "tpus (links, DCN per host of 8)", _COMPILER),
        ),
        "v5p": Chip(
            title="TPU v5p",
            platform="tpu",
            memory=int(95.73 * GIB),
            memory_bandwidth=2.765e12,
            peak=_peak(459e12),
            network=Torus(dimensions=3, link=9e10, wraps_at=4, cubes=True),
            between_slices=6.25e9,
            sources=(_CLOUD + "v5p", _BOOK + "tpus (links)", _COMPILER),
        ),
        "v6e": Chip(
            title="TPU v6e",
            platform="tpu",
            memory=int(31.24 * GIB),
            memory_bandwidth=1.6e12,
            peak=_peak(918e12),
            network=Torus(dimensions=2, link=9e10, wraps_at=16),
            between_slices=1.25e10,
            sources=(_CLOUD + "v6e", _BOOK + "tpus (links)", _CLOUD + "tpu7x (DCN)", _COMPILER),
        ),
        "tpu7x": Chip(
            title="TPU7x, one of a chip's two devices",
            platform="tpu",
            memory=int(94.74 * GIB),
            memory_bandwidth=7.38e12 / 2,
            peak=_peak(2307e12 / 2),
            network=Torus(dimensions=3, link=9e10 / 2, wraps_at=4, cubes=True),
            between_slices=1.25e10 / 2,
            sources=(_CLOUD + "tpu7x", _BOOK + "tpus (links)", _COMPILER),
            devices_per_chip=2,
        ),
        "a100": _gpu_chip(
            "NVIDIA A100 SXM 80 GB",
            GpuTarget(
                name="NVIDIA A100-SXM4-80GB",
                memory=85_100_068_864,
                capability=(8, 0),
                cores=108,
                fpus_per_core=64,
                core_shared_memory=167_936,
                block_shared_memory=166_912,
                l2_cache=41_943_040,
                clock_ghz=1.41,
            ),
            page="a100",
            memory_bandwidth=2.039e12,
            peak=_peak(312e12, 156e12),
            network=Switch(per_chip=3e11),
            between_slices=2.5e10,
        ),
        "h100": _gpu_chip(
            "NVIDIA H100 SXM", _H100, page="h100", memory_bandwidth=3.35e12, **_HOPPER
        ),
        "h200": _gpu_chip(
            "NVIDIA H200 SXM",
            dataclasses.replace(_H100, name="NVIDIA H200 141GB HBM3e", memory=151_397_597_184),
            page="h200",
            memory_bandwidth=4.8e12,
            **_HOPPER,
        ),
        # For experiments on any machine: one core of the machine in docs/speed.md.
        "cpu": Chip(
            title="CPU core",
            platform="cpu",
            memory=2 * GIB,
            memory_bandwidth=1e10,
            peak=_peak(1.4e11),
            network=Switch(per_chip=1e9),
            between_slices=1e9,
            sources=("docs/speed.md (peak)", "assumed (the rest)"),
        ),
    }
)
"""Name in `--topology` -> chip."""
