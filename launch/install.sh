#!/usr/bin/env bash
# Fills .venv for the accelerator of this machine; jobs are then run by launch/run_worker.sh.
#
#   bash launch/install.sh tpu|gpu|cpu
#
# Where there is no Python 3.11 to 3.13 (the images of TPU VMs have 3.10), uv fetches 3.11, for
# which launch/constraints.txt has the releases that most tests run with.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

case ${1:-} in
  tpu | gpu) extra=$1 ;;
  cpu) extra="" ;;
  *)
    printf 'install.sh: %s is no accelerator; give tpu, gpu or cpu\n' "'${1:-}'" >&2
    exit 2
    ;;
esac

has_python() {
  (find_python) 2>/dev/null
}

if [[ -z ${PYTHON:-} ]] && ! is_usable "$root/.venv" && ! has_python; then
  if ! command -v uv >/dev/null; then
    python3 -m pip install --quiet --user uv
    PATH=$HOME/.local/bin:$PATH
  fi
  uv python install 3.11
  PYTHON=$(uv python find 3.11)
  export PYTHON
fi
prepare "$root/.venv" "$extra"
