"""The same work in this package, PyTorch and transformers, in the same run on the same device."""

import os
from typing import Any

from rrope_jax.jobs import posgen as posgen_job
from tests.accelerator.call import Call
from tests.benchmarks import platforms, smollm2, training_step
from tests.benchmarks.posgen_step import SIZES
from tests.benchmarks.smollm2_setting import Setting

TASKS = ("train_1k", "prefill_8k", "decode_512", "score_8k")
_SMALL_TASKS = ("train_1k", "decode_512")
_SECONDS = 70.0  # a measurement's, mostly starting and compiling


def run(call: Call) -> None:
    """A measurement of the PosGen step, and one for each task of SmolLM2."""
    # the processes of SmolLM2 need most of the memory
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    call.measure("posgen_step", _SECONDS, lambda: _posgen_step(call))
    for task in _SMALL_TASKS if call.small else TASKS:
        call.measure(task, _SECONDS, lambda task=task: _smollm2(call, task))


def _posgen_step(call: Call) -> dict[str, Any]:
    """Of one training, in the products that JAX takes by itself, and PyTorch in the same."""
    platforms.select(call.platform)
    size = SIZES["quick" if call.small else "paper"]
    program, planned = size.plan()
    peers, reason, device = _peers(call)
    seconds, left_out = training_step.times(
        program,
        planned[0],
        peers=peers,
        steps=10 if call.small else 26,
        repeats=3 if call.small else 7,
        device=device,
    )
    if reason is not None:
        left_out = dict.fromkeys(training_step.PEERS, reason)
    return {
        "config": size.config,
        "gflop": training_step.flops(program) / 1e9,
        "seconds": seconds,
        "left_out": left_out,
    }


def _peers(call: Call) -> tuple[tuple[str, ...], str | None, str]:
    """The peers that can be measured, why they cannot, and PyTorch's name of the device."""
    try:
        return tuple(training_step.PEERS), None, platforms.torch_device(call.platform)
    except RuntimeError as error:
        return (), str(error), "cpu"


def _smollm2(call: Call, task: str) -> dict[str, Any]:
    """Of each library in a process of its own, measured in turns."""
    setting = Setting("tiny" if call.small else "smollm2_135m", "bfloat16", call.platform)
    libraries, left_out = _libraries(call)
    measured, unable = smollm2.measure(
        task,
        libraries,
        repeats=2 if call.small else 5,
        threads=posgen_job.cores(),
        setting=setting,
    )
    return {
        "preset": setting.preset,
        "dtype": setting.dtype,
        "tokens": smollm2.TASKS[task].tokens,
        "libraries": measured,
        "left_out": left_out | unable,
    }


def _libraries(call: Call) -> tuple[list[str], dict[str, str]]:
    """Those that can be measured, and why the others cannot."""
    able, left_out = [], {}
    for library in smollm2.LIBRARIES:
        try:
            if library != "rrope_jax":
                platforms.torch_device(call.platform)
                import transformers  # noqa: F401
        except (ImportError, RuntimeError) as error:
            left_out[library] = str(error)
        else:
            able.append(library)
    return able, left_out
