"""A PosGen training step beside PyTorch's, the machine's matrix products and the whole grid's.

    python -m tests.benchmarks.posgen_step

To be run from the root of the repository, in an environment with the `peers` extra (without it, the
rows of PyTorch are left out). Prints Markdown tables: docs/speed.md says how they are made and how
to read them. All runs in float32, on the CPU unless --device says otherwise, and takes some five
minutes on two idle cores. A loaded machine makes every number worse, those with several threads
most: each run states the load. The part `grid` is about cores, so it is left out on other devices.
"""

import argparse
import dataclasses
import os
import platform
import re
import runpy
from collections.abc import Sequence
from pathlib import Path

import jax

from rrope_jax.cli.settings import from_config
from rrope_jax.jobs.posgen_setting import PosgenSetting
from rrope_jax.posgen.grid import Training
from rrope_jax.posgen.training import PosgenProgram
from tests.benchmarks import gemm, grid_rate, platforms, training_step

ROOT = Path(__file__).parents[2]
PARTS = ("gemm", "step", "grid")


@dataclasses.dataclass(frozen=True)
class Size:
    """A config to measure.

    Attributes:
      config: its path in the repository.
      steps: training steps that are timed as one.
    """

    config: str
    steps: int

    def plan(self) -> tuple[PosgenProgram, tuple[Training, ...]]:
        """The program and the trainings of `rrope posgen`."""
        config = runpy.run_path(str(ROOT / self.config))["get_config"]()
        setting = from_config(PosgenSetting, config, "config")
        program = setting.program()
        return program, setting.trainings(program)


SIZES = {
    "quick": Size("configs/posgen_quick.py", steps=50),
    "paper": Size("configs/posgen_paper.py", steps=2),
}


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=platforms.JAX_PLATFORMS, default="cpu")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--steps", type=int, help="training steps timed as one (default: by size)")
    parser.add_argument("--repeats", type=int, default=9, help="timings to take the median of")
    parser.add_argument("--grid_repeats", type=int, default=3, help="the same for the grid")
    parser.add_argument("--threads", type=int, default=_cores(), help="cores to use (default: all)")
    arguments = parser.parse_args(argv)
    for name in ("steps", "repeats", "grid_repeats", "threads"):
        if (value := getattr(arguments, name)) is not None and value < 1:
            parser.error(f"--{name}={value} must be at least 1")
    if arguments.threads > _cores():
        parser.error(f"--threads={arguments.threads}, but there are {_cores()} cores")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """PositionMeans and prints."""
    arguments = _parse(argv)
    platforms.select(arguments.device)
    if arguments.threads < _cores():  # before a library counts them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    peers: tuple[str, ...] = ()
    torch_device = "cpu"
    try:
        torch_device = platforms.torch_device(arguments.device)
        import torch
    except (ImportError, RuntimeError) as error:
        torch_version = f"no rows of PyTorch: {error}"
    else:
        torch.set_num_threads(arguments.threads)
        torch_version = f"torch {torch.__version__}"
        peers = tuple(training_step.PEERS)
    threads = f"{arguments.threads} thread{'s' * (arguments.threads > 1)}"
    where = _processor() if arguments.device == "cpu" else jax.devices()[0].device_kind
    print(f"{where}, {threads}, jax {jax.__version__}, {torch_version}")
    print(f"Load before: {os.getloadavg()[0]:.1f}\n")
    for name in arguments.sizes:
        _Report(name, arguments, peers, torch_device).write()
    print(f"Load after: {os.getloadavg()[0]:.1f}")


def _processor() -> str:
    """Its name as Linux knows it."""
    known = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", known.read_text()) if known.exists() else None
    return found[1] if found else platform.machine()


class _Report:
    """The tables of one size."""

    def __init__(
        self, name: str, arguments: argparse.Namespace, peers: tuple[str, ...], torch_device: str
    ):
        self._name, self._arguments, self._peers = name, arguments, peers
        self._torch_device = torch_device
        self._program, self._planned = SIZES[name].plan()
        self._steps: int = arguments.steps or SIZES[name].steps
        self._peak = float("nan")  # until it is measured

    def write(self) -> None:
        """PositionMeans and prints the parts asked for; the step's table refers to the products."""
        for part, write_part in zip(PARTS, (self._gemm, self._step, self._grid), strict=True):
            if part in self._arguments.parts:
                write_part()

    def _gemm(self) -> None:
        by_library = gemm.rates(
            self._program,
            with_torch=bool(self._peers),
            repeats=self._arguments.repeats,
            device=self._torch_device,
        )
        self._peak = max(by_library["JAX"].values())
        _print_table(
            [f"{self._name}: GFLOP/s in", *gemm.products(self._program), "best"],
            [
                [library, *(f"{rate / 1e9:.0f}" for rate in (*rates.values(), max(rates.values())))]
                for library, rates in by_library.items()
            ],
        )

    def _step(self) -> None:
        flops, training = training_step.flops(self._program), self._planned[0]
        times, left_out = training_step.times(
            self._program,
            training,
            peers=self._peers,
            steps=self._steps,
            repeats=self._arguments.repeats,
            device=self._torch_device,
        )
        ours = times[training_step.OURS]
        _print_table(
            [
                f"{self._name}: {flops / 1e9:.3g} GFLOP a step",
                "ms per step",
                "time over ours",
                "GFLOP/s",
                "of JAX's best product",
            ],
            [
                [
                    name,
                    f"{1e3 * seconds:.1f}",
                    f"{seconds / ours:.2f}",
                    f"{flops / seconds / 1e9:.1f}",
                    f"{100 * flops / seconds / self._peak:.0f} %",
                ]
                for name, seconds in times.items()
            ],
        )
        for name, reason in left_out.items():
            print(f"No row of {name}: {reason}\n")
        if self._peers:
            difference = training_step.largest_difference(
                self._program, training, device=self._torch_device
            )
            print(f"From the same weights, losses differ by {difference:.0e} of theirs.\n")

    def _grid(self) -> None:
        if self._arguments.device != "cpu":
            print("No part grid: it is about the cores of a CPU\n")
            return
        rates = grid_rate.rates(
            self._program,
            self._planned,
            at_a_time=sorted({1, self._arguments.threads}),
            steps_per_call=self._steps,
            repeats=self._arguments.grid_repeats,
        )
        _print_table(
            [f"{self._name}: trainings at a time", "steps/s of all together", "over one alone"],
            [
                [str(number), f"{rate:.3g}", f"{rate / rates[1]:.2f}"]
                for number, rate in rates.items()
            ],
        )


def _print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Markdown, all columns but the first aligned right, and an empty line after it."""
    ruler = ["---", *["---:"] * (len(head) - 1)]
    lines = (f"| {' | '.join(cells)} |" for cells in (head, ruler, *rows))
    print(*lines, sep="\n", end="\n\n", flush=True)


if __name__ == "__main__":
    main()
