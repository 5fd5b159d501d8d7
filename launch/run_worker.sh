#!/usr/bin/env bash
# Runs one process of a job on this machine, and runs it again where that can help.
#
#   bash launch/run_worker.sh COMMAND...
#
# COMMAND is any command, such as: rrope train --config=configs/X.py --workdir=runs/x. It is found
# in the clone's .venv first. The exit code is that of its last run.
#
# Run again, after a pause: exit code 42 (preempted, or a peer was lost) and death by a signal
# (128+n), since the same command goes on from its last checkpoint. Not run again: 0 (done), other
# codes (an error or bad usage, which would only happen again), SIGINT, and whatever ends after this
# script was itself told to stop: SIGTERM and SIGINT are passed on, and the command is waited for.
#
#   RROPE_RETRIES  how often at most it is run again (10). 0 where a scheduler restarts the job: the
#                  command then takes the place of this script.
#   RROPE_BACKOFF  seconds of the first pause (10); doubled each time, up to 300
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
retries=${RROPE_RETRIES:-10}
pause=${RROPE_BACKOFF:-10}
readonly MAX_PAUSE=300 RETRYABLE=42 INTERRUPTED=130

say() {
  printf 'run_worker.sh: %s\n' "$*" >&2
}

if (($# == 0)); then
  say "no COMMAND; give one, such as: rrope train --config=configs/X.py --workdir=runs/x"
  exit 2
fi
for name in RROPE_RETRIES RROPE_BACKOFF; do
  if [[ -n ${!name:-} && ! ${!name} =~ ^(0|[1-9][0-9]*)$ ]]; then
    say "$name=${!name} must be a whole number, 0 or more"
    exit 2
  fi
done

# Every default gives way to what the caller has set.
set_environment() {
  local node
  export PATH="$root/.venv/bin:$PATH"
  export PYTHONUNBUFFERED=${PYTHONUNBUFFERED:-1} # a log that is followed has whole lines at once
  for node in /dev/accel* /dev/vfio/[0-9]* /dev/nvidia[0-9]*; do
    if [[ -e $node ]]; then
      # A restart need not compile again, which takes minutes for a large model. Not on CPUs, where
      # a cached program may have been compiled for another machine's instructions.
      export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$root/runs/.compiled}
      break
    fi
  done
  # JAX takes 75 % of a GPU's memory unless told otherwise. The share that rrope plan counts on:
  local line chips=$root/rrope_jax/planning/chips.py
  if [[ -z ${XLA_PYTHON_CLIENT_MEM_FRACTION:-} && -r $chips ]]; then
    while IFS= read -r line; do
      if [[ $line == "GPU_MEMORY_SHARE = "* ]]; then
        export XLA_PYTHON_CLIENT_MEM_FRACTION=${line##* }
      fi
    done <"$chips"
  fi
}

child="" told="" interrupted=""
pass_on() {
  told=$1 interrupted=1
  [[ -z $child ]] || kill -s "$1" "$child" 2>/dev/null || true
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# run_once COMMAND...: sets `code` to its exit code.
run_once() {
  # Job control, since the commands that a script starts with & ignore SIGINT without it.
  set -m
  "$@" &
  child=$!
  set +m
  [[ -z $told ]] || pass_on "$told" # it came before there was a process to pass it to
  while :; do
    interrupted="" code=0
    wait "$child" || code=$?
    [[ -n $interrupted ]] || break # else a signal ended the waiting and not the command
  done
  child=""
}

helps_to_retry() {
  ((code == RETRYABLE || (code > 128 && code != INTERRUPTED)))
}

set_environment
((retries > 0)) || exec "$@"
tries=0
while :; do
  run_once "$@"
  if [[ -n $told ]] || ! helps_to_retry; then
    exit "$code"
  fi
  if ((tries >= retries)); then
    say "exit code $code; it has been run again $tries times, that is enough"
    exit "$code"
  fi
  tries=$((tries + 1))
  say "exit code $code; running again in $pause s ($tries of $retries)"
  for ((left = pause; left > 0; left--)); do
    sleep 1 # a second at a time, since bash acts on a signal only between commands
    [[ -z $told ]] || exit "$code"
  done
  pause=$((pause * 2 < MAX_PAUSE ? pause * 2 : MAX_PAUSE))
done
