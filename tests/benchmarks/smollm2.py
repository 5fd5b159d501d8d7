"""SmolLM2-135M: this package beside transformers, eager and compiled.

    python -m tests.benchmarks.smollm2

To be run from the root of the repository, in an environment with the `peers` extra. Prints a
Markdown table: docs/speed_smollm2.md says how it is made and how to read it. All runs on the CPU in
float32 unless --device and --dtype say otherwise, and takes some twenty minutes on two idle cores.
A loaded machine makes every number worse: each run states the load. On other devices, peaks are of
the device's memory.
"""

import argparse
import dataclasses
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tests.benchmarks import platforms
from tests.benchmarks.smollm2_setting import Setting

LIBRARIES = {
    "rrope_jax": "tests.benchmarks.smollm2_ours:Ours",
    "transformers": "tests.benchmarks.smollm2_transformers:Transformers",
    "torch.compile": "tests.benchmarks.smollm2_transformers:Compiled",
}
# Measured only when they are named: minutes a run, and for transformers many.
_LONG = ("prefill_32k",)
_DO_NOT_DECODE = ("torch.compile",)
_ON_CPUS = ("rrope_jax", "transformers")


@dataclasses.dataclass(frozen=True)
class Task:
    """Something to measure.

    Attributes:
      method: of the library's class.
      length: tokens of the row that it is given.
      new_tokens: how many it adds, where it does.
    """

    method: str
    length: int
    new_tokens: int | None = None

    @property
    def tokens(self) -> int:
        """How many of them count for the speed."""
        return self.new_tokens or self.length

    def can(self, library: str) -> bool:
        """Whether a library has something to measure."""
        return self.new_tokens is None or library not in _DO_NOT_DECODE

    def start(self, library: str, setting: Setting) -> tuple[Any, Callable[[], object]]:
        """Makes a model, and what runs the task on it."""
        module, name = LIBRARIES[library].split(":")
        model = getattr(importlib.import_module(module), name)(setting)
        extra = () if self.new_tokens is None else (self.new_tokens,)
        # a training step and a score have a target for every token but the first
        length = self.length + (self.method in ("train", "score"))
        vocabulary = setting.model.vocab_size
        tokens = np.random.default_rng(0).integers(0, vocabulary, length).astype(np.int32)
        return model, getattr(model, self.method)(tokens, *extra)


TASKS = {
    "prefill_512": Task("prefill", 512),
    "prefill_2k": Task("prefill", 2048),
    "prefill_8k": Task("prefill", 8192),
    "prefill_32k": Task("prefill", 32_768),
    "decode_512": Task("decode", 512, new_tokens=256),
    "decode_4k": Task("decode", 4096, new_tokens=256),
    "score_8k": Task("score", 8192),
    "train_1k": Task("train", 1024),
}


class _Worker:
    """A process of its own with one task of one library, which runs it whenever it is asked to.

    So memory is the task's alone, and the tasks can still be timed in turns.
    """

    def __init__(self, library: str, task: str, threads: int, setting: Setting):
        options = ["--serve", library, "--tasks", task, "--threads", str(threads)]
        options += ["--preset", setting.preset, "--dtype", setting.dtype]
        options += ["--device", setting.platform]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.smollm2", *options],
            # two of them share a GPU
            env=os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.loaded = self._answer()["peak_gib"]

    def run(self) -> dict[str, float]:
        """Seconds of one run, and the peak memory of the process so far in GiB."""
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark process ended with {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


def _serve(library: str, task: Task, threads: int, setting: Setting) -> None:
    """Answers every line of stdin with a run."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no answer

    def answer(model: Any, **values: float) -> None:
        peak_gib = model.peak_gib()
        if peak_gib is None:
            peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        os.write(answers, (json.dumps({"peak_gib": peak_gib, **values}) + "\n").encode())

    if library != "rrope_jax":
        import torch

        torch.set_num_threads(threads)
    model, run = task.start(library, setting)
    answer(model)
    for _ in sys.stdin:
        cpu, began = time.process_time(), time.perf_counter()
        run()
        answer(model, seconds=time.perf_counter() - began, cpu_seconds=time.process_time() - cpu)


def measure(
    task: str, libraries: Sequence[str], repeats: int, threads: int, setting: Setting
) -> tuple[dict[str, Any], dict[str, str]]:
    """Median seconds and peak memory by library, measured in turns, the first run not counting.

    Returns:
      The measured values by library, and the reasons for those that could not be measured.
    """
    workers: dict[str, _Worker] = {}
    left_out: dict[str, str] = {}
    try:
        for library in libraries:
            if not TASKS[task].can(library):
                left_out[library] = f"it does not {TASKS[task].method}"
                continue
            try:
                workers[library] = _Worker(library, task, threads, setting)
                if task not in _LONG:  # in those, compiling counts for little
                    workers[library].run()
            except RuntimeError as error:  # torch.compile without a C++ compiler, for instance
                left_out[library] = str(error)
                workers.pop(library, None)
        runs: dict[str, list[dict[str, float]]] = {library: [] for library in workers}
        for _ in range(repeats):
            for library, worker in workers.items():
                runs[library].append(worker.run())
    finally:
        for worker in workers.values():
            worker.close()
    measured = {
        library: {
            "seconds": statistics.median(run["seconds"] for run in found),
            "cpu_seconds": statistics.median(run["cpu_seconds"] for run in found),
            "best_seconds": min(run["seconds"] for run in found),
            "peak_gib": max(run["peak_gib"] for run in found),
        }
        for library, found in runs.items()
    }
    return measured, left_out


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    usual = [task for task in TASKS if task not in _LONG]
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=usual)
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(_ON_CPUS))
    parser.add_argument("--device", choices=platforms.JAX_PLATFORMS, default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--preset", default=Setting.preset, help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=5, help="runs to take the median of")
    parser.add_argument("--threads", type=int, default=2, help="cores to use")
    parser.add_argument("--serve", choices=LIBRARIES, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    for name in ("repeats", "threads"):
        if (value := getattr(arguments, name)) < 1:
            parser.error(f"--{name}={value} must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Measures and prints."""
    arguments = _parse(argv)
    os.environ["JAX_PLATFORMS"] = platforms.JAX_PLATFORMS[arguments.device]
    setting = Setting(arguments.preset, arguments.dtype, arguments.device)
    if hasattr(os, "sched_setaffinity"):  # before a library counts them
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: arguments.threads])
    if arguments.serve:
        _serve(arguments.serve, TASKS[arguments.tasks[0]], arguments.threads, setting)
        return
    print(f"{arguments.threads} threads; load before: {os.getloadavg()[0]:.1f}\n")
    print("| task | library | tokens/s | best | CPU seconds | peak GiB | speed | memory |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name in arguments.tasks:
        found, left_out = measure(
            name, arguments.libraries, arguments.repeats, arguments.threads, setting
        )
        theirs = found.get("transformers")
        for library, values in found.items():
            tokens = TASKS[name].tokens
            cells = [
                name,
                library,
                f"{tokens / values['seconds']:.4g}",
                f"{tokens / values['best_seconds']:.4g}",
                f"{values['cpu_seconds']:.3g}",
                f"{values['peak_gib']:.2f}",
                f"{theirs['seconds'] / values['seconds']:.2f}" if theirs else "",
                f"{values['peak_gib'] / theirs['peak_gib']:.2f}" if theirs else "",
            ]
            print(f"| {' | '.join(cells)} |", flush=True)
        for library, reason in left_out.items():
            print(f"| {name} | {library}: {reason} | | | | | | |", flush=True)
    print(f"\nLoad after: {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
