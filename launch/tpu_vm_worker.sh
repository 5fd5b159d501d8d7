#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each machine of a slice; not called by hand.
#
# The command runs apart from the connection that started it, so that a lost connection, or a
# laptop that sleeps, does not end it. Its output and exit code are in ~/rrope_jax_job.
set -euo pipefail

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
job=$HOME/rrope_jax_job

# install SHARED: everything the command needs; runs/ becomes the share where there is one.
install() {
  # JAX asks for this on v5e and newer: libtpu starts and ends faster.
  echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null || true
  mkdir -p "$root/runs"
  if [[ -n $1 ]] && ! mountpoint -q "$root/runs"; then
    command -v mount.nfs >/dev/null ||
      { sudo apt-get -qq update && sudo apt-get -qq install -y nfs-common; }
    sudo mount -t nfs -o hard "$1" "$root/runs"
    [[ -w $root/runs ]] || sudo chmod a+rwx "$root/runs"
  fi
  bash "$root/launch/install.sh" tpu
}

# appears FILE: whether it does within five seconds.
appears() {
  local left=50
  until [[ -e $1 ]] || ((left-- == 0)); do
    sleep 0.1
  done
  [[ -e $1 ]]
}

is_running() {
  [[ -e $job/process && ! -e $job/code ]] && kill -0 "$(<"$job/process")" 2>/dev/null
}

# start RETRIES COMMAND...
start() {
  if is_running; then
    echo "a command is still running here" >&2
    return 1
  fi
  rm -rf "$job"
  mkdir -p "$job"
  cd "$root"
  # shellcheck disable=SC2016 # the inner bash expands these
  RROPE_RETRIES=$1 setsid nohup bash -c '
    job=$1
    shift
    bash launch/run_worker.sh "$@" &
    echo $! >"$job/process"
    wait $!
    echo $? >"$job/code"
  ' _ "$job" "${@:2}" >"$job/log" 2>&1 </dev/null &
  appears "$job/process"
}

# follow LINES: the output, +1 for all of it, until the command ends.
follow() {
  tail -n "$1" -f -s 0.5 --pid="$(<"$job/process")" "$job/log"
}

# status: "running", or the exit code; 137 where the machine went down with it.
status() {
  if [[ ! -e $job/process ]]; then
    echo "no command was started here" >&2
    return 1
  elif is_running; then
    echo running
  elif appears "$job/code"; then # it is written just after the end
    cat "$job/code"
  else
    echo 137
  fi
}

# stop: SIGTERM, at which jobs save and end; waits two minutes for that.
stop() {
  local left=120
  ! is_running || kill -TERM "$(<"$job/process")"
  while is_running && ((left-- > 0)); do
    sleep 1
  done
}

"$@"
