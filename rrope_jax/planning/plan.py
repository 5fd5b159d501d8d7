"""Plans a workload on a topology by compiling it, and caches the results."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import jax

import rrope_jax
from rrope_jax.planning.compilation import Compilation, Keep, Memory, Summarize, compile_step
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import Demands, Workload
from rrope_jax.reporting.quantities import gib

# All modules and folders that build the program, choose its devices, compile it, or read the
# compiler's output.
CODE = (
    *("data/packing.py", "evaluation", "io/adapters/config.py", "io/weights.py", "model"),
    *("planning", "posgen", "reporting", "rope", "sharding.py", "train"),
)
_PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "libtpu"),
    *(f"jax-cuda{version}-{part}" for version in (12, 13) for part in ("plugin", "pjrt")),
)
# Environment variables that the compilers read.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_optimization_level")


class Cache(Protocol):
    """Stores JSON values by key."""

    def get(self, key: str) -> Any | None:
        """The value; None if there is no such key."""

    def put(self, key: str, value: Any) -> None:
        """Stores a value."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """Whether a workload fits on a topology.

    Attributes:
      workload: the program.
      topology: the devices.
      mesh_shape: axis -> devices.
      demands: the demands of one call of the program.
      compilation: what the compiler reported.
    """

    workload: Workload
    topology: Topology
    mesh_shape: Mapping[str, int]
    demands: Demands
    compilation: Compilation

    @property
    def peak(self) -> float:
        """Peak memory per device in bytes; infinite if the compiler rejected the program."""
        memory = self.compilation.memory
        return math.inf if memory is None else memory.peak

    @property
    def fits(self) -> bool:
        """Whether the program's peak stays within the memory that a program may use."""
        return self.peak <= self.topology.chip.memory

    @property
    def why_not(self) -> str | None:
        """A sentence on what does not fit; None if the program fits."""
        if self.fits:
            return None
        chip, memory = self.topology.chip, self.compilation.memory
        if memory is None:
            return f"the compiler refuses it: it needs {self.compilation.refusal} of memory"
        return (
            f"its peak is {gib(memory.peak)} of {gib(chip.memory)} that a program may use on "
            f"{chip.title}"
        )

    def as_json(self) -> dict[str, Any]:
        """The keys of results.json that say whether it fits."""
        memory, demands, chip = self.compilation.memory, self.demands, self.topology.chip
        devices = math.prod(self.mesh_shape.values())
        return {
            "topology": self.topology.name,
            "num_slices": self.topology.num_slices,
            "chip": chip.title,
            "devices": devices,
            "mesh": dict(self.mesh_shape),
            "workload": self.workload.name,
            "details": dict(demands.details),
            "fits": self.fits,
            "why_not": self.why_not,
            "peak_bytes_per_device": None if memory is None else memory.peak,
            "hbm_bytes_per_device": chip.memory,
            "memory": None if memory is None else dataclasses.asdict(memory),
            "bytes_per_device": _bytes_by_content(memory, demands),
            "flops_per_device": demands.executed_flops / (devices * demands.steps),
            "model_flops_per_device": demands.model_flops / (devices * demands.steps),
            "calls": demands.calls,
            "compile_seconds": self.compilation.seconds,
        }


def make_plan(
    workload: Workload,
    topology: Topology,
    cache: Cache,
    summarize: Summarize,
    *,
    quick: bool = False,
    keep: Keep | None = None,
) -> Plan:
    """Compiles a workload for a topology, or reuses the result of an earlier compilation.

    Args:
      workload: the program.
      topology: the devices.
      cache: results of earlier compilations.
      summarize: see `compile_step`.
      quick: see `compile_step`; applies only to TPUs, since other platforms compile fast.
      keep: see `compile_step`; if given, the program is compiled even if it is in the cache.

    Raises:
      ValueError: the workload does not fit the mesh, such as a size that an axis does not divide.
    """
    quick = quick and topology.chip.platform == "tpu"
    mesh = workload.make_mesh(topology.devices())
    key = fingerprint(workload, topology, quick=quick)
    cached = cache.get(key)
    if cached is not None and keep is None:
        compilation = Compilation.from_json(cached)
    else:
        title = f"{workload.name} for {topology.name}, {_shape_in_words(mesh.shape)}"
        compilation = compile_step(workload, topology, title, summarize, quick=quick, keep=keep)
        cache.put(key, dataclasses.asdict(compilation))
    return Plan(workload, topology, dict(mesh.shape), workload.demands(mesh), compilation)


def fingerprint(workload: Workload, topology: Topology, *, quick: bool) -> str:
    """A cache key that covers everything a compilation depends on.

    That is the program, the devices and their figures, the compilers' settings, package versions,
    and this package's code.
    """
    content = {
        "workload": workload.identity(),
        "topology": [topology.name, topology.num_slices],
        "chip": repr(topology.chip),
        "quick": quick,
        "variables": {name: os.environ.get(name, "") for name in _VARIABLES},
        "settings": {name: getattr(jax.config, name) for name in _SETTINGS},
        "versions": _versions(),
        "code": code_digest(),
    }
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _versions() -> dict[str, str]:
    versions = {}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def code_digest(package: Path = Path(rrope_jax.__file__).parent) -> str:
    """A digest of the names and contents of the files of `CODE` in a package."""
    digest = hashlib.sha256()
    for name in CODE:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _bytes_by_content(memory: Memory | None, demands: Demands) -> dict[str, int]:
    """Peak memory by content; everything but state and gradients counts as activations."""
    parts = dict(demands.state)
    if memory is not None:
        parts["activations"] = max(memory.peak - sum(parts.values()), 0)
    return parts


def _shape_in_words(mesh_shape: Mapping[str, int]) -> str:
    """The mesh in words, such as `fsdp 16 x seq 4`."""
    return " x ".join(f"{name} {size}" for name, size in mesh_shape.items() if size > 1) or "1"
