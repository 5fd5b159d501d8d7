#!/usr/bin/env bash
# From a fresh clone to the table: sets up .venv and runs the small PosGen ablation.
#
#   bash launch/quickstart.sh [FLAGS]
#
# FLAGS go to `rrope posgen`, such as --workdir=DIR or --config.num_seeds=1. Needs Python 3.11, 3.12
# or 3.13; PYTHON=/path/to/python chooses one. Running it again continues or shows what there is.
# A GPU that is there is used; RROPE_DEVICE=cpu keeps to the CPU.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

workdir=$root/runs/posgen_quick
for flag in "$@"; do
  case $flag in
    --workdir=*) workdir=${flag#--workdir=} ;;
  esac
done

prepare_for_device "$root/.venv"
"$root/.venv/bin/rrope" posgen --config="$root/configs/posgen_quick.py" --workdir="$workdir" "$@"

if [[ -e $workdir/report.md ]]; then
  printf '\nTable: %s\n' "$workdir/report.md"
  printf 'Plot:  %s\n' "$workdir"/*.png
fi
