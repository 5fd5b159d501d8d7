"""The commands for slices that docs and scripts name are not refused once the slice is there."""

import re
import shlex
from pathlib import Path

import pytest

from rrope_jax.cli.command_line import parse
from rrope_jax.cli.errors import refusing_layouts
from rrope_jax.cli.settings import from_config
from rrope_jax.jobs import plan, train
from rrope_jax.jobs.train_setting import TrainSetting
from tests.train import slices

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for pattern in ("README.md", "docs/**/*.md", "launch/*.sh", "configs/*.py")
    for path in sorted(ROOT.glob(pattern))
]
# Cloud TPU's names: v5p counts cores, two a chip; the others count chips.
SLICES = {
    "v5p-8": ("v5p", (2, 2, 1)),
    "v5p-128": ("v5p", (4, 4, 4)),
    "v5litepod-8": ("v5e", (2, 4)),
    "2x2x1": ("v5p", (2, 2, 1)),
    "4x4x4": ("v5p", (4, 4, 4)),
    "v5p:4x4x4": ("v5p", (4, 4, 4)),
}


def _commands(page: Path) -> list[tuple[str, str]]:
    """Slices and trainings on them, of the commands on a page or in a first comment of a script."""
    text = page.read_text()
    if page.suffix == ".sh":
        text = re.sub(r"^# ?", "", text, flags=re.M)
    found = []
    for command in re.sub(r"\\\n\s*", "", text).splitlines():
        place = re.search(r"--(?:tpu-type|topology)=(\S+)", command)
        job = re.search(r"rrope (?:train|plan) [^#|`]*--config=[^#|`]*", command)
        if place and job and "--workdir=" in job[0] and "=configs/evaluate_" not in job[0]:
            found.append((place[1], job[0]))
    return found


COMMANDS = [
    pytest.param(place, command, id=f"{page.stem}-{number}")
    for page in PAGES
    for number, (place, command) in enumerate(_commands(page))
]


def test_there_are_some() -> None:
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize(("place", "command"), COMMANDS)
def test_not_refused(place: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    _, name, *flags = shlex.split(command)
    job = {"train": train, "plan": plan}[name]
    values = parse(name, job.SUMMARY, flags, job._define)
    chip, shape = SLICES[place]
    with refusing_layouts():
        setting = from_config(TrainSetting, values.config, "config")
        plan._training(setting).check(slices.tpus(chip, shape))
