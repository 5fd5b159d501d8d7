"""Gives hostile inputs to everything that reads files and flags of others.

    python -m tests.fuzz [TARGET ...] [--inputs=100000] [--seed=0] --out=DIR
    python -m tests.fuzz --replay=DIR/TARGET/KIND-NUMBER.zip

The same command goes on where it was stopped. Ends with 1 where there are faults. See
docs/robustness.md.
"""

import argparse
import logging
import os
import sys
import tempfile
from pathlib import Path

# Read by libraries when they are loaded: no threads before a fork, and little memory set aside.
os.environ |= {"JAX_PLATFORMS": "cpu", "TOKENIZERS_PARALLELISM": "false", "MALLOC_ARENA_MAX": "2"}


def main() -> int:
    """Runs the command; returns its exit code."""
    from tests.fuzz import running
    from tests.fuzz.judging import ACCEPTED, FAULTS, REFUSED, judge
    from tests.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(TARGETS))
    parser.add_argument(
        "--inputs", type=int, default=100_000, help="of each target, fewer of slow ones"
    )
    parser.add_argument("--seed", type=int, default=0, help="of all inputs")
    parser.add_argument("--out", type=Path, help="folder of what is found")
    parser.add_argument("--replay", type=Path, help="a kept input to try again, in this process")
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    if given.replay is not None:
        name, files = running.load(given.replay)
        with tempfile.TemporaryDirectory() as scratch:
            print(judge(TARGETS[name], files, Path(scratch, "input")))
        return 0
    if given.out is None or (unknown := set(given.targets) - TARGETS.keys()):
        parser.error("--out is missing" if given.out is None else f"unknown: {unknown}")
    print(f"{'':18}" + "".join(f"{kind:>10}" for kind in ("inputs", ACCEPTED, REFUSED, *FAULTS)))
    faults = []
    for name in given.targets or TARGETS:
        report = running.campaign(
            TARGETS[name], inputs=given.inputs, seed=given.seed, out=given.out
        )
        numbers = [report.done, *(report.counts[k] for k in (ACCEPTED, REFUSED, *FAULTS))]
        print(f"{name:18}" + "".join(f"{number:10,}" for number in numbers), flush=True)
        faults += [(name, fault) for fault in report.faults.values()]
    for name, fault in faults:
        print(f"\n{name}: {fault['kind']}, {fault['count']} times, the first is {fault['first']}")
        print(f"  {fault['what'][:300]}\n  {fault['where']}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
