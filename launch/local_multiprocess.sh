#!/usr/bin/env bash
# Runs one job as N processes on this machine, on its CPU: what a cluster does, to try out at home.
#
#   bash launch/local_multiprocess.sh N CONFIG [FLAGS...]
#   bash launch/local_multiprocess.sh N COMMAND...
#
#   bash launch/local_multiprocess.sh 2 configs/tiny_from_scratch.py --workdir=runs/tiny
#
# CONFIG is one of rrope train; a COMMAND is one such as: rrope posgen --config=configs/X.py ...
# Every line that a process prints begins with its number. JAX_NUM_CPU_DEVICES=D gives each D
# devices.
#
# SIGINT and SIGTERM are passed on. When one process fails, the others have 30 s to end. The exit
# code is 0 (all are done), that of an error (1, bad usage 2), else 42: the same command goes on, as
# does `bash launch/run_worker.sh bash launch/local_multiprocess.sh ...` by itself. 130 after SIGINT.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
readonly GRACE=30 RETRYABLE=42 INTERRUPTED=130

refuse() {
  printf 'local_multiprocess.sh: %s\n' "$1" >&2
  exit 2
}

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || refuse "N=${1:-} must be a number of processes, 1 or more"
count=$1
shift
(($# > 0)) || refuse "no CONFIG; give one of rrope train, such as configs/tiny_from_scratch.py"
if [[ $1 == *.py || $1 == *.py:* ]]; then
  set -- rrope train --config="$1" "${@:2}"
fi
export PATH="$root/.venv/bin:$PATH"
command -v "$1" >/dev/null || refuse "$1 is not here; install it: bash launch/install.sh cpu"

# A free port. It could be taken by the time it is used, which then says so and can be retried.
port=$(python3 -c 'import socket; s = socket.create_server(("", 0)); print(s.getsockname()[1])')
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
export JAX_NUM_PROCESSES=$count
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1}

pipes=$(mktemp -d)
trap 'rm -rf "$pipes"' EXIT
workers=() printers=() codes=() told=""

signal_all() {
  local i
  for ((i = 0; i < ${#workers[@]}; i++)); do
    [[ -n ${codes[i]:-} ]] || kill -s "$1" "${workers[i]}" 2>/dev/null || true
  done
}
trap 'told=TERM; signal_all TERM' TERM
trap 'told=INT; signal_all INT' INT

print_lines() {
  local line
  trap '' INT TERM # the last lines are worth having
  while IFS= read -r line || [[ -n $line ]]; do
    printf '[%s] %s\n' "$1" "$line"
  done
}

# Job control, so that a Ctrl-C at the terminal reaches the processes once, by way of this script.
set -m
for ((i = 0; i < count; i++)); do
  mkfifo "$pipes/$i"
  print_lines "$i" <"$pipes/$i" &
  printers+=($!)
  JAX_PROCESS_ID=$i "$@" >"$pipes/$i" 2>&1 </dev/null &
  workers+=($!)
done
set +m

# collect: takes the exit codes of the processes that have ended; sets `running` and `failed`.
collect() {
  local i
  running=0 failed=""
  for ((i = 0; i < count; i++)); do
    if [[ -z ${codes[i]:-} ]]; then
      if kill -0 "${workers[i]}" 2>/dev/null; then
        running=$((running + 1))
        continue
      fi
      codes[i]=0
      wait "${workers[i]}" || codes[i]=$?
    fi
    ((codes[i] == 0)) || failed=1
  done
}

left=$GRACE
while collect && ((running > 0)); do
  if [[ -n $failed ]]; then
    ((left != 0)) || signal_all TERM
    ((left != -10)) || signal_all KILL
    left=$((left - 1))
  fi
  sleep 1 || true
done
for printer in "${printers[@]}"; do
  wait "$printer" || true
done

code=0
for one in "${codes[@]}"; do
  if ((one != 0)); then
    if ((one == RETRYABLE || one > 128)); then
      ((code != 0)) || code=$RETRYABLE
    elif ((code == 0 || code == RETRYABLE)); then
      code=$one
    fi
  fi
done
((code != RETRYABLE)) || [[ $told != INT ]] || code=$INTERRUPTED
exit "$code"
