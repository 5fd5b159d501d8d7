#!/usr/bin/env bash
# What a first accelerator has to show, in calls of a few minutes: docs/accelerator.md.
#
#   bash launch/accelerator.sh [gpu|tpu|cpu] [OUT] [--minutes=9] [--wheels=DIR] [--system] [FLAGS]
#
# Run it again until it ends with 0; 75 says that something is left. OUT (runs/accelerator) gets
# results.json, report.md and figures. --wheels=DIR, or RROPE_WHEELS, installs from a folder of
# wheels and asks no network; --system takes PYTHON (or python3) with its own packages, and puts
# those wheels before them. RROPE_ACCELERATOR_STORE=gs://BUCKET/FOLDER, or s3://, is where a
# checkpoint goes to and comes back from; without it that is a server on loopback. Other FLAGS go to
# `python -m tests.accelerator`, such as --parts=device,tests.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

refuse() {
  printf 'accelerator.sh: %s\n' "$1" >&2
  exit 2
}

platform="" out="" wheels=${RROPE_WHEELS:-} system=no flags=()
for word in "$@"; do
  case $word in
    gpu | tpu | cpu) platform=$word ;;
    --wheels=*) wheels=${word#--wheels=} ;;
    --system) system=yes ;;
    -*) flags+=("$word") ;;
    *)
      [[ -z $out ]] || refuse "'$word' is one word too many; give gpu, tpu or cpu, a folder and flags"
      out=$word
      ;;
  esac
done
if [[ -z $platform ]]; then
  find_gpu
  [[ -n $driver ]] || refuse "there is no NVIDIA GPU here; give tpu or cpu"
  platform=gpu
fi
out=${out:-$root/runs/accelerator}
[[ $out == /* ]] || out=$PWD/$out
[[ -z $wheels || $wheels == /* ]] || wheels=$PWD/$wheels
[[ -z $wheels || -d $wheels ]] || refuse "--wheels=$wheels is no folder"

readonly VENV=$root/.venv-accelerator
readonly PACKAGES=$root/runs/accelerator_packages
extra=""
[[ $platform == cpu ]] || extra=$platform

# requirements PYTHON: those of the package and of the platform's extra, one a line.
requirements() {
  "$1" - "$root/setup.cfg" "$extra" <<'END_OF_PYTHON'
import configparser
import sys

file, extra = sys.argv[1:]
setup = configparser.ConfigParser()
setup.read(file)
print(setup["options"]["install_requires"].strip())
if extra:
    print(setup["options.extras_require"][extra].strip())
END_OF_PYTHON
}

# add VENV WHAT ARGUMENTS...: installs something that can be done without.
add() {
  local venv=$1 what=$2
  shift 2
  "$venv/bin/python" -m pip install --disable-pip-version-check --quiet "$@" ||
    printf 'No %s: they could not be installed\n' "$what" >&2
}

# from_wheels: fills VENV from the folder alone.
from_wheels() {
  local needed=() line site=(--no-index --find-links "$wheels")
  make_venv "$VENV"
  while IFS= read -r line; do
    [[ -z $line ]] || needed+=("$line")
  done < <(requirements "$VENV/bin/python")
  if [[ ! -e $VENV/.installed-wheels ]]; then
    printf 'Installing into %s from %s\n' "$VENV" "$wheels"
    install "$VENV" "${site[@]}" "${needed[@]}"
    add "$VENV" "tests" "${site[@]}" pytest
    add "$VENV" "rows of PyTorch and transformers" "${site[@]}" torch transformers
    touch "$VENV/.installed-wheels"
  fi
  python=$VENV/bin/python
}

# from_network: fills VENV with the pinned releases, and for a GPU with what it is compared with.
from_network() {
  prepare "$VENV" "${extra:+$extra,}dev"
  if [[ $platform == gpu && ! -e $VENV/.tried-peers ]]; then
    touch "$VENV/.tried-peers"
    add "$VENV" "rows of PyTorch and transformers" --constraint "$root/launch/constraints.txt" \
      torch transformers
  fi
  python=$VENV/bin/python
}

# from_system: takes the Python as it is, be it an environment or not, with the wheels of the
# folder, all of them, in front of its packages. Nothing of it is changed.
from_system() {
  local found said
  python=${PYTHON:-python3}
  found=$(probe "$python")
  is_supported "${found% *}" || refuse "--system: $python is no Python 3.11, 3.12 or 3.13"
  if [[ -n $wheels ]]; then
    if [[ ! -e $PACKAGES/.installed ]]; then
      rm -rf "$PACKAGES"
      mkdir -p "$PACKAGES"
      "$python" -m pip install --disable-pip-version-check --quiet --no-index --no-deps \
        --target "$PACKAGES" "$wheels"/*.whl
      touch "$PACKAGES/.installed"
    fi
    PYTHONPATH=$PYTHONPATH:$PACKAGES
  fi
  if ! said=$("$python" -c 'import rrope_jax.jobs.posgen' 2>&1); then
    refuse "$python cannot run it: ${said##*$'\n'}; install that, or bring it with --wheels=DIR"
  fi
}

cd "$root"
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
if [[ $system == yes ]]; then
  from_system
elif [[ -n $wheels ]]; then
  from_wheels
else
  from_network
fi
exec "$python" -m tests.accelerator "$platform" "$out" ${flags[@]+"${flags[@]}"}
