"""A cloud made of stubs, on which the scripts that start jobs elsewhere run without one."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.launch.machine import Machine

FAKE_GCLOUD = Path(__file__).with_name("fake_gcloud.py")
# What the scripts call, here and on the workers, besides the tools of `machine`.
TOOLS = (
    *("cat", "chmod", "date", "env", "git", "gzip", "head", "kill", "nohup", "setsid"),
    *("sleep", "sort", "tail", "tar", "tr"),
)

# Arguments that go wrong wherever a shell, YAML or Kubernetes reads them once too often.
TRICKY = [
    "--a=two words",
    "--b='single' \"double\"",
    "--c=$HOME $(HOME) $$ $$(HOME) ${HOME} `id`",
    "--d=line\nend $HOME $$(HOME) 'x'",
    "--e=back\\slash \\n",
    "--f=*?[a] ~ #no & ; | > {x,y} !",
    "--g=tab\tand \u00fcmlaut \u4e2d",
    "",
    "-",
    "--h=\x1b[0m",
    "--i: {yaml: [1, 2]} %s {} {{x}}",
]

# A command for the workers: writes its arguments, the environment and its process down in runs/,
# then does what a file in its home tells it to.
JOB = """#!{python}
import json, os, pathlib, signal, sys, time
home = pathlib.Path(os.environ["HOME"])
runs = pathlib.Path("runs")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(42))
runs.mkdir(exist_ok=True)
(runs / "job.json").write_text(json.dumps([sys.argv[1:], dict(os.environ), os.getcwd()]))
print("output of", home.name, flush=True)
order = home / "order"
codes = order.read_text().split() if order.exists() else []
if codes and codes[0] == "wait":
    time.sleep(60)
if codes:
    order.write_text(" ".join(codes[1:]))
    sys.exit(int(codes[0]))
"""


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@dataclass
class Cloud:
    """What the scripts see of a cloud: a PATH of stubs and the machines of one slice.

    Attributes:
        machine: Where the scripts are started; its clone is a git checkout.
        folder: The state of the cloud, as `tests.launch.fake_gcloud` describes.
    """

    machine: Machine
    folder: Path

    @classmethod
    def beside(cls, machine: Machine) -> "Cloud":
        folder = machine.folder / "cloud"
        folder.mkdir()
        programs = machine.folder / "bin"
        for tool in TOOLS:
            found = shutil.which(tool)
            assert found is not None, tool
            (programs / tool).symlink_to(found)
        start = f'#!/bin/bash\nexec {sys.executable} -S "{FAKE_GCLOUD}" "{folder}" "$@"\n'
        write_program(programs / "gcloud", start)
        write_program(programs / "job", JOB.format(python=sys.executable))
        write_program(programs / "sudo", f'#!/bin/bash\necho "$@" >>"{folder}/sudo"\n')
        write_program(programs / "mountpoint", "#!/bin/bash\nexit 1\n")
        machine.add_python("python3", "3.11")
        subprocess.run(["git", "init", "--quiet", str(machine.root)], check=True)
        cloud = cls(machine, folder)
        cloud.arrange(states="WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE")
        cloud.add_worker()
        return cloud

    def arrange(self, **files: str) -> None:
        for name, text in files.items():
            (self.folder / name).write_text(text)

    def add_worker(self) -> Path:
        home = self.folder / f"worker{len(list(self.folder.glob('worker*')))}"
        home.mkdir()
        return home

    def remove(self, program: str) -> None:
        (self.machine.folder / "bin" / program).unlink()

    def add_recorder(self, program: str, body: str = "") -> None:
        """A program that notes its arguments, standard input for kubectl included."""
        write_program(
            self.machine.folder / "bin" / program,
            f"#!{sys.executable} -S\n"
            "import json, os, pathlib, sys\n"
            f"words = [{program!r}, *sys.argv[1:]]\n"
            f"with open({str(self.folder / 'calls')!r}, 'a') as calls:\n"
            "    calls.write(json.dumps(words) + '\\n')\n" + body,
        )

    def environment(self, **more: str) -> dict[str, str]:
        path = str(self.machine.folder / "bin")
        home = str(self.machine.folder)
        return {"PATH": path, "HOME": home, "RROPE_POLL": "0", "RROPE_BACKOFF": "0", **more}

    def run(self, script: str, *words: str, **more: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", str(self.machine.root / "launch" / script), *words],
            env=self.environment(**more),
            cwd=self.machine.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @contextmanager
    def running(self, script: str, *words: str, **more: str) -> "Iterator[subprocess.Popen[str]]":
        """The script in the background; what is left of it in the end is killed."""
        process = subprocess.Popen(
            ["bash", str(self.machine.root / "launch" / script), *words],
            env=self.environment(**more),
            cwd=self.machine.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def calls(self) -> list[list[str]]:
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [json.loads(line) for line in lines]

    def verbs(self) -> list[str]:
        """The calls of gcloud as words such as `create`, without the looks at the state."""
        named = {"install", "start", "follow", "status", "stop"}
        verbs = []
        for words in self.calls():
            step = words[-1].split("tpu_vm_worker.sh ")[-1].split(" ")[0]
            verbs.append(step if words[3] == "ssh" and step in named else words[3])
        return [verb for verb in verbs if verb != "describe"]

    @property
    def is_billed(self) -> bool:
        return (self.folder / "there").exists()


def wait_for(path: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.02)


def job_of(home: Path) -> tuple[Sequence[str], dict[str, str], str]:
    """Arguments, environment and folder that the job saw on a worker."""
    arguments, environment, folder = json.loads((home / "rrope_jax/runs/job.json").read_text())
    return arguments, environment, folder
