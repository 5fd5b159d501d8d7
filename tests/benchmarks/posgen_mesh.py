"""The wall time of a whole PosGen grid by the number of CPU devices that share its trainings.

    python -m tests.benchmarks.posgen_mesh
    python -m tests.benchmarks.posgen_mesh --devices 1 2 --config.num_seeds=1

To be run from the root of the repository on an idle machine; with the quick grid and two cores it
takes a quarter of an hour. Every number is that of a new `rrope posgen`, from the start of its
process to the end, compilation, tests, checkpoints and plots included. With one device the
trainings run one after another, and every operation may use all cores. Prints a Markdown table;
other flags go to `rrope posgen`.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from rrope_jax.jobs.posgen import cores


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", default="configs/posgen_quick.py")
    parser.add_argument("--devices", nargs="+", type=int, default=[1, cores()])
    arguments, flags = parser.parse_known_args(argv)
    print("| CPU devices | seconds | first row over this | load before, after |")
    print("| ---: | ---: | ---: | ---: |", flush=True)
    first = None
    for devices in arguments.devices:
        before, seconds, after = _run(devices, [f"--config={arguments.config}", *flags])
        first = first or seconds
        ratio = f"{first / seconds:.2f}"
        print(f"| {devices} | {seconds:.0f} | {ratio} | {before:.1f}, {after:.1f} |", flush=True)


def _run(devices: int, flags: Sequence[str]) -> tuple[float, float, float]:
    """The seconds of one run, between the loads of the minute before and after it."""
    with tempfile.TemporaryDirectory() as workdir:
        command = [sys.executable, "-m", "rrope_jax", "posgen", f"--workdir={workdir}", *flags]
        command.append(f"--config.mesh.ablation={devices}")
        load, began = os.getloadavg()[0], time.perf_counter()
        subprocess.run(
            command,
            check=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.DEVNULL,
        )
        return load, time.perf_counter() - began, os.getloadavg()[0]


if __name__ == "__main__":
    main()
