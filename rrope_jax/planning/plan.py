"""From a workload and a topology to a plan: compiled, measured, and remembered."""

import dataclasses
import hashlib
import importlib.metadata
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import jax
from jax.sharding import Mesh

import rrope_jax
from rrope_jax.planning.compilation import Compilation, Keep, Memory, compile_step
from rrope_jax.planning.roofline import step_time as roofline
from rrope_jax.planning.roofline.collectives import Collective, sum_by_axis
from rrope_jax.planning.roofline.step_time import Roofline
from rrope_jax.planning.topology import Topology
from rrope_jax.planning.workload import Demands, Workload
from rrope_jax.reporting.quantities import gib

# All modules that make the program, choose its devices, compile it, or read the compiler's answer;
# folders with what is in them.
CODE = ("data/packing.py", "model", "planning", "posgen", "rope", "sharding.py", "train")
_VERSIONS = (
    *("jax", "jaxlib", "flax", "optax", "libtpu"),
    *(f"jax-cuda{version}-{part}" for version in (12, 13) for part in ("plugin", "pjrt")),
)
# What of the environment compilers read.
_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
_SETTINGS = ("jax_default_matmul_precision", "jax_enable_x64", "jax_optimization_level")


SOURCES: Mapping[str, str] = MappingProxyType(
    {"program": "the compiled program", "rules": "the sharding rules"}
)


class Cache(Protocol):
    """Keeps JSON values by key; a workdir, or a dict of tests."""

    def get(self, key: str) -> Any | None:
        """The value, or None."""

    def put(self, key: str, value: Any) -> None:
        """Keeps a value."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is known of a workload on a topology.

    Attributes:
      workload, topology: see there.
      mesh_shape: axis -> devices.
      demands: see there.
      compilation: see there; None before anything is compiled.
      roofline: of one optimizer step, or of one call where there are none.
      collective_bytes: kind -> mesh axes -> bytes that a device sends in a call.
      collectives_from: what these are read from: a key of `SOURCES`.
    """

    workload: Workload
    topology: Topology
    mesh_shape: Mapping[str, int]
    demands: Demands
    compilation: Compilation | None
    roofline: Roofline
    collective_bytes: Mapping[str, Mapping[str, float]]
    collectives_from: str

    @property
    def memory(self) -> Memory | None:
        """Of the compiled program, where there is one."""
        return None if self.compilation is None else self.compilation.memory

    @property
    def peak(self) -> float:
        """Bytes of a device; without end where the compiler refused the program."""
        return math.inf if self.memory is None else self.memory.peak

    @property
    def fits(self) -> bool:
        """Whether the compiled program's peak stays within the device's memory."""
        return self.peak <= self.topology.chip.memory

    @property
    def why_not(self) -> str | None:
        """What does not fit, as a sentence; None where it fits."""
        if self.compilation is None or self.fits:
            return None
        chip, memory = self.topology.chip, self.memory
        if memory is None:
            return f"the compiler refuses it: it needs {self.compilation.refusal} of memory"
        return (
            f"its peak is {gib(memory.peak)} of {gib(chip.memory)} that a program may use on "
            f"{chip.title}"
        )

    @property
    def mfu(self) -> float:
        """Model FLOPs of the estimated step over what the devices could do meanwhile."""
        peak = self.topology.chip.peak[self.demands.dtype] * math.prod(self.mesh_shape.values())
        return self.demands.model_flops / self.demands.steps / (self.roofline.step * peak)

    @property
    def run_seconds(self) -> float:
        """Of the whole job, without start-up, evaluation and checkpoints."""
        return self.demands.calls * self.demands.steps * self.roofline.step

    def as_json(self) -> dict[str, Any]:
        """The content of results.json."""
        devices = math.prod(self.mesh_shape.values())
        share = devices * self.demands.steps
        memory, demands, chip = self.memory, self.demands, self.topology.chip
        sent = self.collective_bytes
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
            "bytes_per_device": _parts(memory, demands),
            "flops_per_device": demands.executed_flops / share,
            "model_flops_per_device": demands.model_flops / share,
            "memory_traffic_bytes_per_device": {
                what: size / demands.steps for what, size in demands.traffic.items()
            },
            "collective_bytes_per_device": sum(sum(by.values()) for by in sent.values()),
            "collective_bytes_by_kind_and_axis": sent,
            "collectives_from": SOURCES[self.collectives_from],
            "estimated_step_seconds": self.roofline.step,
            "estimated_mfu": self.mfu,
            "estimated_tokens_per_second": demands.tokens / demands.steps / self.roofline.step,
            "calls": demands.calls,
            "estimated_run_seconds": self.run_seconds,
            "roofline": roofline.as_json(self.roofline),
            "compile_seconds": None if self.compilation is None else self.compilation.seconds,
        }


def make_plan(
    workload: Workload,
    topology: Topology,
    cache: Cache,
    *,
    quick: bool = False,
    keep: Keep | None = None,
) -> Plan:
    """Compiles a workload for a topology, or takes what is known of it from the cache.

    Args:
      workload, topology: what for which devices.
      cache: what was compiled before.
      quick: see `compile_step`; of other platforms than TPUs, which compile fast, it changes
        nothing.
      keep: see `compile_step`; what is known is then compiled again.

    Raises:
      ValueError: the workload does not fit onto the mesh: a number does not divide another.
    """
    quick = quick and topology.chip.platform == "tpu"
    mesh = workload.make_mesh(topology.devices())
    key = fingerprint(workload, topology, quick=quick)
    known = cache.get(key)
    if known is not None and keep is None:
        return _plan(workload, topology, mesh, _compilation(known))
    what = f"{workload.name} for {topology.name}, {shape_in_words(mesh.shape)}"
    compilation = compile_step(workload, topology, what, quick=quick, keep=keep)
    cache.put(key, dataclasses.asdict(compilation))
    return _plan(workload, topology, mesh, compilation)


def outline(workload: Workload, topology: Topology) -> Plan:
    """A plan without compiling: no memory, and transfers by the sharding rules.

    Raises:
      ValueError: as `make_plan`.
    """
    return _plan(workload, topology, workload.make_mesh(topology.devices()), None)


def _plan(
    workload: Workload, topology: Topology, mesh: Mesh, compilation: Compilation | None
) -> Plan:
    demands, chip = workload.demands(mesh), topology.chip
    collectives, source = workload.expected(mesh.shape), "rules"
    if compilation is not None and compilation.collectives is not None:
        collectives, source = compilation.collectives, "program"
    places = [topology.place(device) for device in mesh.devices.flat]
    network = roofline.network_seconds(collectives, mesh.shape, places, topology)
    share = mesh.size * demands.steps
    return Plan(
        workload,
        topology,
        dict(mesh.shape),
        demands,
        compilation,
        Roofline(
            compute=demands.executed_flops / share / chip.peak[demands.dtype],
            memory=sum(demands.traffic.values()) / demands.steps / chip.memory_bandwidth,
            network={axes: seconds / demands.steps for axes, seconds in network.items()},
        ),
        sum_by_axis(collectives, mesh.shape),
        source,
    )


def fingerprint(workload: Workload, topology: Topology, *, quick: bool) -> str:
    """A key for all that a compilation depends on.

    That is the program, the devices and their figures, what compilers are told, releases, and code
    of ours.
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
    found = {}
    for name in _VERSIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_digest(package: Path = Path(rrope_jax.__file__).parent) -> str:
    """Of the files of `CODE` in a package, names and contents."""
    digest = hashlib.sha256()
    for name in CODE:
        path = package / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(f"{file.relative_to(package).as_posix()}\0".encode())
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _compilation(known: Mapping[str, Any]) -> Compilation:
    memory, collectives = known["memory"], known["collectives"]
    return Compilation(
        seconds=known["seconds"],
        memory=None if memory is None else Memory(**memory),
        refusal=known["refusal"],
        collectives=None
        if collectives is None
        else tuple(
            Collective(**{**each, "groups": tuple(map(tuple, each["groups"]))})
            for each in collectives
        ),
    )


def _parts(memory: Memory | None, demands: Demands) -> dict[str, int]:
    """Peak memory by what it holds; what is neither state nor gradient is called activations."""
    parts = dict(demands.state)
    if memory is not None:
        parts["activations"] = max(memory.peak - sum(parts.values()), 0)
    return parts


def shape_in_words(mesh_shape: Mapping[str, int]) -> str:
    """Such as `fsdp 16 x seq 4`."""
    return " x ".join(f"{name} {size}" for name, size in mesh_shape.items() if size > 1) or "1"
