"""Named slices and clusters, and their devices, for compiling without having them.

`v5p:4x4x4` is a TPU slice of 64 chips, `h100:1x8x8` is 1 island of 8 hosts with 8 GPUs each, and
`cpu:8` is 8 devices of this machine's own CPU.
"""

import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies

from rrope_jax.planning.chips import CHIPS, Chip


class DeviceLocation(NamedTuple):
    """The location of a device.

    Attributes:
      island: index of its slice (TPU) or host (GPU, CPU), inside which links are fast.
      coordinates: coordinates on the torus of the slice, or its index on the host.
    """

    island: int
    coordinates: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices of one kind and how they are connected.

    Attributes:
      name: as in `--topology`.
      chip_name: a key of `CHIPS`.
      shape: chips along each axis of a slice; islands, hosts and GPUs; or CPU devices.
      num_slices: TPU slices of that shape.
    """

    name: str
    chip_name: str
    shape: tuple[int, ...]
    num_slices: int = 1

    @property
    def chip(self) -> Chip:
        """The figures of its chips."""
        return CHIPS[self.chip_name]

    @property
    def size(self) -> int:
        """The number of devices over all slices."""
        return math.prod(self.shape) * self.num_slices * self.chip.devices_per_chip

    def prepare(self) -> None:
        """Sets what JAX must know before it starts its first backend."""
        jax.config.update("jax_platforms", "cpu")
        for name, value in _COMPILE_ONLY.items():
            os.environ.setdefault(name, value)
        if self.chip.platform == "cpu":
            jax.config.update("jax_num_cpu_devices", self.size)

    def devices(self) -> list[jax.Device]:
        """Its devices, for compiling programs; only those of `cpu` can also run them.

        Raises:
          ValueError: the compiler does not know this slice.
        """
        return _PLATFORMS[self.chip.platform].devices(self)

    def locate(self, device: jax.Device) -> DeviceLocation:
        """The location of one of its devices."""
        return _PLATFORMS[self.chip.platform].locate(self, device)


# Without these, libtpu queries Google Cloud's metadata server, which takes minutes outside Google
# Cloud, locks the machine's TPUs, and warns about both.
_COMPILE_ONLY = {
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}


def parse(name: str, num_slices: int = 1) -> Topology:
    """Parses the name of a topology, without starting a backend.

    Raises:
      ValueError: the chip is unknown, the shape has the wrong number of axes, the chip's compiler
        is not installed, or `num_slices` is above 1 for a chip that is not a TPU.
    """
    parts = re.fullmatch(r"([a-z]\w*):(\d+(?:x\d+)*)", name)
    if parts is None or parts[1] not in CHIPS:
        raise ValueError(
            f"{name!r} is no topology; it is CHIP:SIZES such as v5p:4x4x4, v5e:16x16, h100:1x8x8 "
            f"or cpu:8, with a chip of {', '.join(CHIPS)}"
        )
    chip_name, chip = parts[1], CHIPS[parts[1]]
    shape = tuple(map(int, parts[2].split("x")))
    axes = _PLATFORMS[chip.platform].axes(chip)
    if len(shape) != len(axes) or 0 in shape:
        raise ValueError(
            f"{name!r}: the sizes of {chip_name} are {len(axes)} ({' x '.join(axes)}), each at "
            "least 1"
        )
    if num_slices > 1 and chip.platform != "tpu":
        raise ValueError(
            f"num_slices={num_slices}: only TPUs come in slices; the sizes of {name!r} say how "
            "many hosts there are"
        )
    if (missing := _PLATFORMS[chip.platform].missing()) is not None:
        raise ValueError(f"{name!r}: {missing}")
    return Topology(name, chip_name, shape, num_slices)


class _Platform(NamedTuple):
    """The differences between platforms.

    Attributes:
      axes: what the sizes in a name count.
      missing: how to install the compiler; None if it is installed.
      devices, locate: see `Topology`.
    """

    axes: Callable[[Chip], tuple[str, ...]]
    missing: Callable[[], str | None]
    devices: Callable[[Topology], list[jax.Device]]
    locate: Callable[[Topology, Any], DeviceLocation]


def _tpu_axes(chip: Chip) -> tuple[str, ...]:
    return ("chips",) * chip.network.dimensions  # type: ignore[union-attr]


def _no_libtpu() -> str | None:
    if importlib.util.find_spec("libtpu") is not None:
        return None
    return "compiling for TPUs needs libtpu: pip install libtpu (no TPU is needed)"


def _tpu_devices(topology: Topology) -> list[jax.Device]:
    options: dict[str, Any] = {}
    if topology.num_slices > 1:
        options["num_slices"] = topology.num_slices
    if topology.chip.core_mode is not None:
        options["chip_config_name"] = topology.chip.core_mode
    try:
        described = topologies.get_topology_desc(
            platform="tpu", topology_name=topology.name, **options
        )
    except Exception as error:  # its type depends on the version
        raise ValueError(
            f"{topology.name!r} is not a slice that libtpu compiles for: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return list(described.devices)


def _locate_tpu(topology: Topology, device: Any) -> DeviceLocation:
    del topology
    return DeviceLocation(getattr(device, "slice_index", None) or 0, tuple(device.coords))


def _no_cuda() -> str | None:
    if importlib.util.find_spec("jax_plugins") is not None and any(
        importlib.util.find_spec(f"jax_plugins.xla_cuda{version}") for version in (12, 13)
    ):
        return None
    return (
        "compiling for GPUs needs jax-cuda12-plugin and jax-cuda12-pjrt of jax's own version (no "
        "GPU and no other wheel of NVIDIA is needed)"
    )


def _gpu_devices(topology: Topology) -> list[jax.Device]:
    described = topologies.get_topology_desc(
        platform="cuda",
        topology_name=topology.chip_name,
        topology="x".join(map(str, topology.shape)),
        target_config=target_config(topology.chip),
    )
    return list(described.devices)


def _locate_gpu(topology: Topology, device: jax.Device) -> DeviceLocation:
    host, number = divmod(device.id, topology.shape[-1])
    return DeviceLocation(host, (number,))


def _cpu_devices(topology: Topology) -> list[jax.Device]:
    devices = jax.devices("cpu")
    if len(devices) < topology.size:
        raise ValueError(f"{topology.name!r}: JAX has started with {len(devices)} CPU devices")
    return devices[: topology.size]


_PLATFORMS = {
    "tpu": _Platform(_tpu_axes, _no_libtpu, _tpu_devices, _locate_tpu),
    "gpu": _Platform(
        lambda chip: ("islands", "hosts", "GPUs"), _no_cuda, _gpu_devices, _locate_gpu
    ),
    "cpu": _Platform(
        lambda chip: ("devices",),
        lambda: None,
        _cpu_devices,
        lambda topology, device: DeviceLocation(0, (device.id,)),
    ),
}


def target_config(chip: Chip) -> str:
    """A chip's `stream_executor.GpuTargetConfigProto` of XLA, in text form.

    Numbers shared by all NVIDIA data center GPUs since 2020 (warps, grids, registers) are from the
    specs in XLA's repository; see the sources in `chips`.
    """
    gpu = chip.gpu
    assert gpu is not None
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.core_shared_memory}
  shared_memory_per_block_optin: {gpu.block_shared_memory}
  threads_per_core_limit: 2048
  core_count: {gpu.cores}
  fpus_per_core: {gpu.fpus_per_core}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  memory_bandwidth: {round(chip.memory_bandwidth)}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "{gpu.name}"
"""
