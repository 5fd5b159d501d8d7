"""Stands in for gcloud: notes its arguments, keeps one queued resource, runs ssh commands locally.

Started by the stub of `tests.launch.cloud` with the folder of the cloud and gcloud's arguments. The
folder holds what a test arranges: `states` (one a line, each shown once, the last for ever),
`refusal` (of a request), and how often `describe`, `ssh`, `scp` and `delete` are to fail first.
Each machine of the slice is a folder, the home in which its commands run.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

LOST_CONNECTION = 255


def _fails(cloud: Path, verb: str) -> bool:
    left = cloud / f"{verb}_failures"
    count = int(left.read_text()) if left.exists() else 0
    left.write_text(str(max(0, count - 1)))
    return count > 0


def _create(cloud: Path) -> int:
    if (refusal := cloud / "refusal").exists():
        print(refusal.read_text(), file=sys.stderr)
        return 1
    (cloud / "there").touch()
    return 0


def _describe(cloud: Path) -> int:
    if _fails(cloud, "describe"):
        print("ERROR: UNAVAILABLE", file=sys.stderr)
        return 1
    if not (cloud / "there").exists():
        print("ERROR: NOT_FOUND: Resource was not found.", file=sys.stderr)
        return 1
    states = (cloud / "states").read_text().splitlines()
    print(states[0])
    if len(states) > 1:
        (cloud / "states").write_text("\n".join(states[1:]))
    return 0


def _delete(cloud: Path) -> int:
    if not (cloud / "there").exists():
        print("ERROR: NOT_FOUND: Resource was not found.", file=sys.stderr)
        return 1
    if _fails(cloud, "delete"):
        print("ERROR: UNAVAILABLE", file=sys.stderr)
        return 1
    (cloud / "there").unlink()
    return 0


def _ssh(cloud: Path, homes: list[Path], command: str) -> int:
    if _fails(cloud, "ssh"):
        return LOST_CONNECTION
    # What sshd does: the login shell of the account reads one string.
    running = [
        subprocess.Popen(["bash", "-c", command], cwd=home, env={**os.environ, "HOME": str(home)})
        for home in homes
    ]
    # gcloud ends with the first exit code that is not 0.
    return next((code for process in running if (code := process.wait())), 0)


def _scp(cloud: Path, homes: list[Path], source: str, target: str) -> int:
    if _fails(cloud, "scp"):
        return 1
    if target.endswith(":"):
        for home in homes:
            shutil.copy(source, home)
    else:
        shutil.copytree(homes[0] / source.split(":")[1], target)
    return 0


def main(cloud: Path, words: list[str]) -> int:
    with (cloud / "calls").open("a") as calls:
        calls.write(json.dumps(words) + "\n")
    flags = dict(word.lstrip("-").partition("=")[::2] for word in words if word.startswith("-"))
    plain = [word for word in words if not word.startswith("-")]
    homes = sorted(cloud.glob("worker*"))
    if flags.get("worker") == "0":
        homes = homes[:1]
    match plain[:4]:
        case ["compute", "tpus", "queued-resources", "create"]:
            return _create(cloud)
        case ["compute", "tpus", "queued-resources", "describe"]:
            return _describe(cloud)
        case ["compute", "tpus", "queued-resources", "delete"]:
            return _delete(cloud)
        case ["compute", "tpus", "tpu-vm", "ssh"]:
            return _ssh(cloud, homes, flags["command"])
        case ["compute", "tpus", "tpu-vm", "scp"]:
            return _scp(cloud, homes, plain[4], plain[5])
    print(f"unexpected: {words}", file=sys.stderr)
    return 3


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
