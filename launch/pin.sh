#!/usr/bin/env bash
# Rewrites launch/constraints.txt with the newest releases that go together, for several Pythons.
#
#   bash launch/pin.sh python3.11 python3.12 python3.13
#
# Nothing is installed. The first Python also gets what the peers extra needs; PyTorch itself keeps
# the version named here, since its newer builds bring gigabytes of CUDA libraries.
set -euo pipefail

readonly TORCH=2.13.0
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
reports=$(mktemp -d)
trap 'rm -rf "$reports"' EXIT

extras=dev,docs,peers wanted=("torch==$TORCH")
for python in "$@"; do
  "$python" -m pip install --disable-pip-version-check --quiet --dry-run --ignore-installed \
    --report "$reports/$("$python" -c 'import platform; print(platform.python_version())').json" \
    "${root}[$extras]" ${wanted[@]+"${wanted[@]}"}
  extras=dev,docs wanted=()
done

"$1" - "$reports" >"$root/launch/constraints.txt" <<'END'
import json, pathlib, re, sys

versions = {}  # package -> Python -> version
pythons = []
for report in sorted(pathlib.Path(sys.argv[1]).iterdir(), key=lambda p: int(p.stem.split(".")[1])):
    pythons.append(".".join(report.stem.split(".")[:2]))
    for package in json.loads(report.read_text())["install"]:
        name = re.sub(r"[-_.]+", "-", package["metadata"]["name"]).lower()
        version = package["metadata"]["version"].partition("+")[0]
        versions.setdefault(name, {})[pythons[-1]] = version
del versions["rrope-jax"]

print("# The releases that the tests run with. Written by: bash launch/pin.sh", *map("python{}".format, pythons))
for name, by_python in sorted(versions.items()):
    distinct = sorted(set(by_python.values()), key=list(by_python.values()).index)
    if len(distinct) == 1:
        print(f"{name}=={distinct[0]}")
        continue
    for version in distinct:
        marker = " or ".join(f'python_version == "{p}"' for p, v in by_python.items() if v == version)
        print(f"{name}=={version} ; {marker}")
END
