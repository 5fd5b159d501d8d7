#!/usr/bin/env bash
# Runs a command on every machine of one or several TPU slices of a GKE cluster, through xpk.
#
#   bash launch/xpk.sh [--SETTING=VALUE ...] [--dry-run] COMMAND...
#
#   bash launch/xpk.sh --tpu-type=v5p-128 \
#       rrope train --config=configs/llama.py:7b,32k --workdir=runs/llama2_7b \
#       --config.train.accumulation=1
#
# Settings: launch/cluster.env.example; launch/Dockerfile makes the image, docs/launch.md the cluster
# and its storage. --dry-run prints the command. The job restarts on exit codes 42 and 127 to 255;
# machines are given back when it ends. Needs xpk (pip install xpk), gcloud and kubectl.
set -euo pipefail

# shellcheck source=launch/cluster.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/cluster.sh"
# shellcheck source=launch/slices.sh
source "$root/launch/slices.sh"

# shellcheck disable=SC2034 # read_flags reads it
reads="PROJECT ZONE GKE_CLUSTER TPU_TYPE IMAGE XPK_STORAGE NUM_SLICES"
read_flags "$@"
read_file
require PROJECT ZONE GKE_CLUSTER TPU_TYPE IMAGE
# shellcheck disable=SC2154 # read_flags sets it
[[ -n $bucket ]] || require XPK_STORAGE
: "${RROPE_XPK_STORAGE:=}"
name_job
: "${RROPE_NUM_SLICES:=1}" "${RROPE_RETRIES:=10}"
check NUM_SLICES '[1-9][0-9]*' "a whole number, 1 or more"
check XPK_STORAGE '([a-z0-9]([a-z0-9._-]*[a-z0-9])?)?' "the name of a storage that xpk attached, not a\
 bucket (xpk storage list)"
check_image
check_tpu_type
check RETRIES '0|[1-9][0-9]*' "a whole number, 0 or more"
require_tool xpk "install it: pip install xpk"

# xpk restarts the whole job, so a machine does not retry on its own. exec, so that the SIGTERM which
# xpk passes on reaches run_worker.sh. Four minutes are for the save that it causes.
quote bash launch/run_worker.sh "${command[@]}"
storage=()
[[ -z $RROPE_XPK_STORAGE ]] || storage=(--storage="$RROPE_XPK_STORAGE")
run xpk workload create --project="$RROPE_PROJECT" --zone="$RROPE_ZONE" \
  --cluster="$RROPE_GKE_CLUSTER" --workload="$RROPE_NAME" --tpu-type="$RROPE_TPU_TYPE" \
  --num-slices="$RROPE_NUM_SLICES" --docker-image="$RROPE_IMAGE" ${storage[@]+"${storage[@]}"} \
  --max-restarts="$RROPE_RETRIES" --termination-grace-period-seconds=240 --env RROPE_RETRIES=0 \
  --command="cd /rrope_jax && exec $quoted"

delete=(xpk workload delete --project="$RROPE_PROJECT" --zone="$RROPE_ZONE"
  --cluster="$RROPE_GKE_CLUSTER" --workload="$RROPE_NAME")
quote "${delete[@]}"
say "to end it before it is done: $quoted"
