#!/usr/bin/env bash
# Lint, types and tests in the clone's own environment.
#
#   bash launch/test.sh [PYTEST ARGUMENTS]
#
# Without arguments the tests run that a change should pass while it is made. Those marked heavy, and
# those of the launch scripts where these are as they were, run where CI is set, as in .ci/run. With
# arguments pytest decides: -m heavy, -m launch, -m long (minutes each, not in .ci/run either).
# PYTHON=/path/to/python chooses the Python (3.11 to 3.13).
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

# launchers_changed: whether the launch scripts or their tests differ from what the upstream branch
# (without one, the last commit) has. True as well where git cannot tell.
launchers_changed() {
  local base folders=(launch .ci tests/launch)
  base=$(git merge-base HEAD '@{upstream}' 2>/dev/null || echo HEAD)
  ! git diff --quiet "$base" -- "${folders[@]}" 2>/dev/null ||
    [[ -n $(git ls-files --others --exclude-standard -- "${folders[@]}") ]]
}

prepare "$root/.venv" dev
cd "$root"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/mypy
if [[ $# -eq 0 ]]; then
  # Compiling is most of the work, and optimizing a quarter of that, for programs that run once. What
  # compilers optimize is tested by .ci/run's other steps, and here with any arguments.
  export JAX_DISABLE_MOST_OPTIMIZATIONS=${JAX_DISABLE_MOST_OPTIMIZATIONS:-1}
  chosen="not long"
  if [[ -z ${CI:-} ]]; then
    chosen+=" and not heavy"
    printf 'Left to CI: tests marked heavy (CI=true runs them here)\n'
    if ! launchers_changed; then
      chosen+=" and not launch"
      printf 'Left out: tests of the launch scripts, which have not changed (-m launch runs them)\n'
    fi
  fi
  set -- -m "$chosen"
fi
# Side by side, one for each core; who is done takes over what others have left. More than four
# would rather want memory than save time.
.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal "$@"
