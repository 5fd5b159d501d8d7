#!/usr/bin/env bash
# Runs a command on every machine of a Cloud TPU slice: requests the slice, waits for it, copies
# this clone to it, installs, runs, shows the output, brings the results back, deletes the slice.
#
#   bash launch/tpu_vm.sh [--SETTING=VALUE ...] [--dry-run] [--keep] COMMAND...
#
#   bash launch/tpu_vm.sh --tpu-type=v5litepod-8 \
#       rrope posgen --config=configs/posgen_paper.py --workdir=runs/posgen_paper
#
# Settings: launch/cluster.env.example. --dry-run prints the commands and calls nothing. --keep
# leaves the slice there (and billed); with --name it then serves again. Needs gcloud, logged in.
#
# The slice is deleted whatever happens, Ctrl-C included, unless --keep; where that fails, the
# command that deletes it is printed. Exit code: that of the command; 42 when the slice was
# preempted, so `bash launch/run_worker.sh bash launch/tpu_vm.sh ...` requests another one.
# shellcheck disable=SC2329 # it does not see what trap and insist call
set -euo pipefail

# shellcheck source=launch/cluster.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/cluster.sh"
# shellcheck source=launch/slices.sh
source "$root/launch/slices.sh"

readonly PREEMPTED=42 LOST=255 TRIES=5
readonly MOST_LOST=10 # connections in a row; gcloud tries each for nearly a minute
poll=${RROPE_POLL:-20} # seconds between two looks at the queue, and between two tries

keep=""
# shellcheck disable=SC2034 # read_flags reads it
reads="PROJECT ZONE TPU_TYPE CAPACITY RUNTIME_VERSION QUEUE_FOR NETWORK SUBNETWORK SHARED"
read_flags "$@"
read_file
require PROJECT ZONE TPU_TYPE
name_job
: "${RROPE_CAPACITY:=on-demand}" "${RROPE_QUEUE_FOR:=6h}" "${RROPE_SHARED:=}" "${RROPE_RETRIES:=10}"
check_shared
check_tpu_type
check RETRIES '0|[1-9][0-9]*' "a whole number, 0 or more"
check CAPACITY 'on-demand|spot|reserved' "on-demand, spot or reserved"
if [[ -z ${RROPE_RUNTIME_VERSION:-} ]]; then
  # https://cloud.google.com/tpu/docs/runtimes
  case $RROPE_TPU_TYPE in
    v6e-*) RROPE_RUNTIME_VERSION=v2-alpha-tpuv6e ;;
    v5p-*) RROPE_RUNTIME_VERSION=v2-alpha-tpuv5 ;;
    v5litepod-*) RROPE_RUNTIME_VERSION=v2-alpha-tpuv5-lite ;;
    v[234]-*) RROPE_RUNTIME_VERSION=tpu-ubuntu2204-base ;;
    *) refuse "--tpu-type=$RROPE_TPU_TYPE is none that this script knows (v2- to v4-, v5litepod-,\
 v5p-, v6e-); for another give --runtime-version, too" ;;
  esac
fi
require_tool gcloud "install the Google Cloud CLI and log in: gcloud auth login"
require_tool git "it lists the files to copy"
results=$root/runs/$RROPE_NAME
# shellcheck disable=SC2154 # read_flags sets bucket
elsewhere=$RROPE_SHARED$bucket # not empty: the results do not go with the slice
if [[ -z $elsewhere && -e $results ]]; then
  refuse "$results exists, and the results of --name=$RROPE_NAME would go there; choose another"
fi

[[ -z $dry_run ]] || say "a dry run: the commands are printed, nothing is called"

readonly place=(--project="$RROPE_PROJECT" --zone="$RROPE_ZONE" --quiet)

# call WORDS...: like run, but a signal to this script ends the waiting at once.
child=""
call() {
  local code=0
  if [[ -n $dry_run ]]; then
    run "$@"
    return
  fi
  set -m # a process group of its own, so that finish ends all of it
  "$@" </dev/null &
  child=$!
  set +m
  wait "$child" || code=$?
  child=""
  return "$code"
}

queued() {
  call gcloud compute tpus queued-resources "$1" "$RROPE_NAME" "${place[@]}" "${@:2}"
}

on_all() {
  call gcloud compute tpus tpu-vm ssh "$RROPE_NAME" "${place[@]}" --worker=all --command="$1"
}

# worker WORDS...: a step of launch/tpu_vm_worker.sh, on every machine.
worker() {
  quote bash rrope_jax/launch/tpu_vm_worker.sh "$@"
  on_all "$quoted"
}

# insist WORDS...: tries them several times; machines that have just come up refuse at first.
insist() {
  local try
  for ((try = 1; try <= TRIES; try++)); do
    ! "$@" || return 0
    say "try $try of $TRIES failed"
    ((try == TRIES)) || sleep "$poll"
  done
  return 1
}

state() {
  queued describe --format='value(state.state)'
}

ours="" started="" temporary=""
finish() {
  local code=$?
  trap - EXIT
  trap 'tell_how_to_delete; exit 130' INT TERM
  [[ -z $child ]] || kill -- "-$child" 2>/dev/null || true
  [[ -z $temporary ]] || rm -rf "$temporary"
  if [[ -n $started && -z $elsewhere ]]; then
    ((code < 128)) || worker stop || true # so that it saves
    fetch || code=1 ours=""
  fi
  if [[ -n $keep && -n $started$ours ]]; then
    tell_how_to_delete
  elif [[ -n $ours ]]; then
    say "deleting $RROPE_NAME"
    insist delete || { tell_how_to_delete && code=1; }
  fi
  exit "$code"
}

# is_absent MESSAGE: whether gcloud says with it that there is no such resource.
is_absent() {
  grep -Eqi 'not.found' <<<"$1"
}

delete() {
  local said
  if [[ -n $dry_run ]]; then
    queued delete --force
  elif ! said=$(queued delete --force 2>&1) && ! is_absent "$said"; then
    printf '%s\n' "$said" >&2
    return 1
  fi
}

tell_how_to_delete() {
  quote gcloud compute tpus queued-resources delete "$RROPE_NAME" --force "${place[@]}"
  say "$RROPE_NAME may be there still, and billed, until you delete it: $quoted"
}

# Without a share the results are on the first machine's own disk, and go with it.
fetch() {
  local words=(gcloud compute tpus tpu-vm scp "$RROPE_NAME:rrope_jax/runs" "$results"
    --recurse --worker=0 "${place[@]}")
  [[ -n $dry_run ]] || mkdir -p "$root/runs"
  if insist call "${words[@]}"; then
    say "results: $results"
    return 0
  fi
  quote "${words[@]}"
  say "the results are on $RROPE_NAME only, so it is not deleted; fetch them: $quoted"
  tell_how_to_delete
  return 1
}

request() {
  local flags=() found
  if [[ -n $dry_run ]]; then
    :
  elif found=$(state 2>&1); then
    [[ -n $keep ]] || refuse "--name=$RROPE_NAME is there already ($found); choose another name,\
 or use it and leave it there with --keep"
    return 0
  elif ! is_absent "$found"; then
    printf '%s\n' "$found" >&2
    return 1
  fi
  case $RROPE_CAPACITY in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
  esac
  [[ -z ${RROPE_NETWORK:-} ]] || flags+=(--network="$RROPE_NETWORK")
  [[ -z ${RROPE_SUBNETWORK:-} ]] || flags+=(--subnetwork="$RROPE_SUBNETWORK")
  say "requesting $RROPE_NAME: $RROPE_TPU_TYPE, $RROPE_CAPACITY, in $RROPE_ZONE"
  ours=1 # from here on, even if the answer gets lost
  queued create --async --node-id="$RROPE_NAME" --accelerator-type="$RROPE_TPU_TYPE" \
    --runtime-version="$RROPE_RUNTIME_VERSION" --valid-until-duration="$RROPE_QUEUE_FOR" \
    ${flags[@]+"${flags[@]}"}
}

await_slice() {
  local found last="" unknown=0
  while :; do
    if found=$(state); then
      unknown=0
    else
      found="" unknown=$((unknown + 1))
      ((unknown < TRIES)) || return 1
    fi
    [[ -z $found || $found == "$last" ]] || say "$RROPE_NAME is $found"
    case $found in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED | DELETING)
        queued describe --format='yaml(state)' >&2 || true
        return 1
        ;;
    esac
    last=$found
    sleep "$poll"
  done
}

# The tracked files and the new ones that git does not ignore, as they are here.
pack() {
  local file
  while IFS= read -r -d '' file; do
    [[ ! -e $root/$file && ! -L $root/$file ]] || printf '%s\0' "$file"
  done < <(git -C "$root" ls-files -z --cached --others --exclude-standard) >"$1.list"
  [[ -s $1.list ]] || return 1
  tar -C "$root" --null -T "$1.list" -czf "$1"
}

copy() {
  call gcloud compute tpus tpu-vm scp "$1" "$RROPE_NAME:" "${place[@]}" --worker=all &&
    on_all "mkdir -p rrope_jax && tar -xzf rrope_jax.tar.gz -C rrope_jax"
}

# follow: shows the output until the command has ended everywhere; sets `code` to its exit code.
follow() {
  local answer lost=0 from=+1 complete
  while :; do
    complete=1
    worker follow "$from" || complete="" # the connection may end before the command does
    from=20                              # lines to show again after that
    answer=$(worker status) || answer=""
    if [[ -n $answer && $answer != *running* ]]; then
      [[ -n $complete ]] || worker follow "$from" || true
      # A number from each machine. Of those that are not 0 the smallest counts: an error on one
      # machine (1) makes the others lose a peer (42) or abort (134).
      code=$(grep -Ex '[0-9]+' <<<"$answer" | grep -vx 0 | sort -n | head -n 1 || true)
      code=${code:-0}
      return
    elif [[ $(state || true) =~ ^(SUSPEND|FAILED|DELETING) ]]; then
      say "$RROPE_NAME was preempted; with --workdir on a share the same command goes on"
      code=$PREEMPTED started="" # there is nothing left to fetch from
      return
    elif [[ -n $answer ]]; then
      lost=0
    elif ((++lost == MOST_LOST)); then
      say "$RROPE_NAME cannot be reached"
      code=$LOST
      return
    fi
    sleep "$poll"
  done
}

trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
archive=rrope_jax.tar.gz
request || { say "the request was refused" && exit 1; }
if [[ -z $dry_run ]]; then
  await_slice || { say "there is no slice for $RROPE_NAME" && exit 1; }
  temporary=$(mktemp -d)
  archive=$temporary/$archive
  pack "$archive" || { say "$root is no git clone, nothing to copy" && exit 1; }
fi
insist copy "$archive" || { say "copying failed" && exit 1; }
worker install "$RROPE_SHARED" || { say "installing failed" && exit 1; }
started=1 code=0
worker start "$RROPE_RETRIES" "${command[@]}" || { say "starting failed" && exit 1; }
if [[ -n $dry_run ]]; then
  worker follow +1
else
  follow
fi
exit "$code"
