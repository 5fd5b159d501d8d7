# Sourced by the scripts beside it and by .ci/run: finds a Python and fills a virtual environment.
# Sets `root`, the folder of the clone. Works with the bash 3.2 of macOS.
# shellcheck shell=bash

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
readonly SUPPORTED="3.11 3.12 3.13" # as python_requires in setup.cfg
readonly CUDA_DRIVER=580            # the oldest major release of NVIDIA's driver for CUDA 13

# probe PYTHON: prints its version and whether it can make environments: "3.11 venv" or "3.11 none".
# Prints nothing when it does not run (a pyenv shim with no version behind it, say).
probe() {
  "$1" -c '
import sys
try:
    import ensurepip, venv
    able = "venv"
except ImportError:
    able = "none"
print("%d.%d %s" % (sys.version_info[0], sys.version_info[1], able))
' 2>/dev/null || true
}

is_supported() {
  [[ " $SUPPORTED " == *" $1 "* ]]
}

# find_python: sets `python` to the one to use: $PYTHON if set, else python3 if it will do, else the
# newest that will. When none will, says so in one line and ends the script.
find_python() {
  local candidates=(python3 python3.13 python3.12 python3.11)
  local candidate found version too_old="" no_venv=""
  [[ -z ${PYTHON:-} ]] || candidates=("$PYTHON")
  for candidate in "${candidates[@]}"; do
    found=$(probe "$candidate")
    version=${found% *}
    if [[ -z $found ]]; then
      continue
    elif ! is_supported "$version"; then
      too_old=${too_old:-"$candidate is Python $version"}
    elif [[ $found == *" none" ]]; then
      no_venv=${no_venv:-"$candidate, Python $version, lacks its venv module"}
    else
      python=$candidate
      return
    fi
  done
  local trouble=${no_venv:-${too_old:-"${candidates[0]} does not run"}}
  printf '%s\n' "Python 3.11, 3.12 or 3.13 with its venv module is needed ($trouble): install it\
 (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.13) or set PYTHON\
 to one." >&2
  exit 2
}

# is_usable VENV: whether nothing was cut off in it and its Python is supported; if `python` is set,
# of the same version.
is_usable() {
  local found wanted
  [[ -x $1/bin/python && ! -e $1/.incomplete ]] || return 1
  found=$(probe "$1/bin/python")
  wanted=$([[ -z ${python:-} ]] || probe "$python")
  is_supported "${found% *}" && [[ -z $wanted || ${wanted% *} == "${found% *}" ]]
}

# make_venv VENV: makes it if it is missing, makes it anew if it is of no use.
make_venv() {
  # A $PYTHON that will not do is an error even where an environment exists.
  [[ -z ${PYTHON:-} ]] || find_python
  if ! is_usable "$1"; then
    [[ -n ${python:-} ]] || find_python
    "$python" -m venv --clear "$1"
  fi
}

# install VENV ARGUMENTS...: runs pip there; marks the environment while it is half-filled.
install() {
  local venv=$1 verbosity=--quiet
  shift
  [[ ! -t 1 ]] || verbosity=--progress-bar=on
  touch "$venv/.incomplete"
  # Absent when a run was cut off early, or when another tool made the environment.
  "$venv/bin/python" -c 'import pip' 2>/dev/null || "$venv/bin/python" -m ensurepip
  "$venv/bin/python" -m pip install --disable-pip-version-check "$verbosity" "$@" || return
  rm "$venv/.incomplete"
}

# digest PYTHON: of everything that decides what is installed.
digest() {
  "$1" - "$root" <<'END'
import hashlib
import pathlib
import sys

root = pathlib.Path(sys.argv[1])
state = hashlib.sha256(f"{sys.version} {root}".encode())
for name in ("setup.cfg", "pyproject.toml", "launch/constraints.txt"):
    state.update((root / name).read_bytes())
print(state.hexdigest())
END
}

# prepare VENV [EXTRA]: an environment with the package, its pinned requirements and those of one
# extra. Does nothing when that is what it holds already.
prepare() {
  local venv=$1 extra=${2:-} state
  make_venv "$venv"
  state=$(digest "$venv/bin/python")
  local mark=$venv/.installed-${extra:-base}
  if [[ ! -e $mark || $(<"$mark") != "$state" ]]; then
    local size="600 MB"
    [[ $extra != gpu* ]] || size="4 GB"
    printf 'Installing into %s (the first time some %s, a few minutes)\n' "$venv" "$size"
    rm -f "$mark"
    install "$venv" --constraint "$root/launch/constraints.txt" \
      --editable "$root${extra:+[$extra]}" || return
    # An extra brings everything that the package needs without one.
    printf '%s\n' "$state" | tee "$mark" >"$venv/.installed-base"
  fi
}

# find_gpu [FILE]: sets `driver` to the version of NVIDIA's driver where there is a GPU, such as
# 580.65.06, and to nothing where there is none. FILE is where the driver's kernel module says it.
find_gpu() {
  local file=${1:-/proc/driver/nvidia/version} said=""
  driver=""
  if command -v nvidia-smi >/dev/null; then
    # The tool is also there where a container was given no GPU.
    [[ $(nvidia-smi -L 2>/dev/null) == *"GPU 0"* ]] || return 0
    said=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null) || said=""
  elif [[ -r $file ]]; then
    said=$(<"$file")
  fi
  [[ ! $said =~ ([0-9]{3,}(\.[0-9]+)+) ]] || driver=${BASH_REMATCH[1]}
}

# choose_device: sets `device` to gpu where this machine has a GPU that JAX can use, else to cpu,
# saying why where there is one. RROPE_DEVICE=cpu or gpu decides, and so does JAX_PLATFORMS=cpu.
choose_device() {
  device=cpu
  case ${RROPE_DEVICE:-} in
    cpu | gpu) device=$RROPE_DEVICE ;;
    "")
      [[ ${JAX_PLATFORMS:-} != cpu ]] || return 0
      find_gpu
      [[ -n $driver ]] || return 0
      if ((${driver%%.*} >= CUDA_DRIVER)); then
        device=gpu
      else
        printf '%s\n' "The GPU's driver is $driver, and CUDA 13 needs $CUDA_DRIVER: going on with\
 the CPU." >&2
      fi
      ;;
    *)
      printf '%s\n' "RROPE_DEVICE=$RROPE_DEVICE is no device; give cpu or gpu" >&2
      exit 2
      ;;
  esac
}

# prepare_for_device VENV: `prepare` for the GPU where `choose_device` finds one. Where that cannot
# be installed, for the CPU.
prepare_for_device() {
  local venv=$1 kept=no
  choose_device
  if [[ $device == gpu ]]; then
    make_venv "$venv"
    [[ ! -e $venv/.installed-base ]] || kept=yes
    if prepare "$venv" gpu; then
      return
    fi
    [[ ${RROPE_DEVICE:-} != gpu ]] || return 1
    printf '%s\n' "JAX for the GPU could not be installed: going on with the CPU." >&2
    # pip brings everything here before it installs anything, so what was there before is whole.
    [[ $kept == no ]] || rm -f "$venv/.incomplete"
  fi
  prepare "$venv"
}
