#!/usr/bin/env bash
# Lint, types and tests in the clone's own environment.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]
#
# Without arguments every test runs, the slow ones too (some ten minutes on two cores); to leave
# them out, give -m 'not slow'. PYTHON=/path/to/python chooses the Python (3.11 to 3.13).
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

prepare "$root/.venv" dev
cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
# Files side by side, one for each core. More would rather want memory than save time.
.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile "$@"
