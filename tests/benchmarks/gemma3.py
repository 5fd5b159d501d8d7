"""Gemma 3 270M: this package beside transformers, as `tests.benchmarks.smollm2` does it.

    python -m tests.benchmarks.gemma3
    python -m tests.benchmarks.gemma3 --tasks prefill_32k --repeats 1

To be run from the root of the repository, in an environment with the `peers` extra. Takes the flags
of that benchmark. Parameters are random, so the weights are not needed. docs/speed_gemma3.md has
the figures.
"""

import sys

from tests.benchmarks import smollm2

# Of a vocabulary of 262,144, all logits of long rows would be more than the rest of the model.
TASKS = ("prefill_512", "prefill_2k", "prefill_8k", "decode_512", "decode_4k")

if __name__ == "__main__":
    arguments = sys.argv[1:] if "--tasks" in sys.argv else [*sys.argv[1:], "--tasks", *TASKS]
    smollm2.main(["--preset", "gemma3_270m", *arguments])
