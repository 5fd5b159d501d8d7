#!/usr/bin/env bash
# Runs a command on every machine of one or several TPU slices of a GKE cluster that has JobSet.
#
#   bash launch/gke_jobset.sh [--SETTING=VALUE ...] [--dry-run] COMMAND...
#
#   bash launch/gke_jobset.sh --gke-accelerator=tpu-v5p-slice --topology=4x4x4 \
#       rrope train --config=configs/llama.py:7b,32k --workdir=runs/llama2_7b \
#       --config.train.accumulation=1
#
# Settings: launch/cluster.env.example; launch/Dockerfile makes the image. Fills in
# launch/gke_jobset.yaml and gives it to kubectl, in its current context; --dry-run prints it instead.
set -euo pipefail

# shellcheck source=launch/cluster.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/cluster.sh"
# shellcheck source=launch/slices.sh
source "$root/launch/slices.sh"

# shellcheck disable=SC2034 # read_flags reads it
reads="GKE_ACCELERATOR TOPOLOGY IMAGE SHARED NUM_SLICES CHIPS_PER_HOST"
read_flags "$@"
read_file
require GKE_ACCELERATOR TOPOLOGY IMAGE
# shellcheck disable=SC2154 # read_flags sets it
[[ -n $bucket ]] || require SHARED
: "${RROPE_SHARED:=}"
name_job
: "${RROPE_NUM_SLICES:=1}" "${RROPE_RETRIES:=10}" "${RROPE_CHIPS_PER_HOST:=4}"
check TOPOLOGY '[1-9][0-9]{0,3}(x[1-9][0-9]{0,3}){1,2}' "such as 4x4x4 or 16x16"
check_shared
check_image
check NUM_SLICES '[1-9][0-9]*' "a whole number, 1 or more"
check CHIPS_PER_HOST '[1-9][0-9]*' "a whole number, 1 or more"
check RETRIES '0|[1-9][0-9]*' "a whole number, 0 or more"
check_topology
chips=$((${RROPE_TOPOLOGY//x/ * }))
require_tool kubectl "install it: gcloud components install kubectl"
[[ -n $dry_run ]] || kubectl get crd jobsets.jobset.x-k8s.io >/dev/null ||
  refuse "kubectl's current cluster has no JobSet; choose another context or install JobSet there:\
 https://jobset.sigs.k8s.io/docs/installation"

quote bash launch/run_worker.sh "${command[@]}"
# Read by name in fill.
# shellcheck disable=SC2034
{
  NAME=$RROPE_NAME RETRIES=$RROPE_RETRIES NUM_SLICES=$RROPE_NUM_SLICES
  HOSTS=$((chips / RROPE_CHIPS_PER_HOST)) CHIPS_PER_HOST=$RROPE_CHIPS_PER_HOST
  ACCELERATOR=$RROPE_GKE_ACCELERATOR TOPOLOGY=$RROPE_TOPOLOGY IMAGE=$RROPE_IMAGE
  NFS_SERVER=${RROPE_SHARED%%:*} NFS_PATH=${RROPE_SHARED#*:}
  COMMAND="exec $quoted" # exec, so that SIGTERM reaches run_worker.sh
}

# fill: the template from standard input, without its comments and the lines for the other kind of
# runs/, with the variables' values. These stand inside single quotes, in which YAML doubles a single
# quote and leaves all else alone.
fill() {
  local line name value quote="'" other="# with a share"
  [[ -z $RROPE_SHARED ]] || other="# without a share"
  while IFS= read -r line; do
    [[ ! $line =~ ^[[:space:]]*# && $line != *"$other" ]] || continue
    line=${line%  # with*}
    while [[ $line == *\$\{* ]]; do
      printf %s "${line%%\$\{*}"
      line=${line#*\$\{}
      name=${line%%\}*}
      line=${line#*\}}
      value=${!name}
      printf %s "${value//$quote/$quote$quote}"
    done
    printf '%s\n' "$line"
  done
}

manifest=$(fill <"$root/launch/gke_jobset.yaml")
if [[ -n $dry_run ]]; then
  printf '%s\n' "$manifest"
  exit
fi
# create, not apply: it refuses a name that is there already.
kubectl create -f - <<<"$manifest"
say "output: kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$RROPE_NAME --prefix"
say "to end it before it is done: kubectl delete jobset $RROPE_NAME"
