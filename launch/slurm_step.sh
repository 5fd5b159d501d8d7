#!/usr/bin/env bash
# One try of all processes of a job; called by launch/slurm.sbatch inside a job.
#
# srun answers SIGTERM by killing the processes. Here it is passed on to them instead, and they are
# waited for, so that they can save.
set -euo pipefail

interrupted=""
trap 'interrupted=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM

# SLURM signals every process of a step, so the workers run the command in their own place
# (RROPE_RETRIES=0): passed on once more, a SIGTERM would count as a second one. When a process
# ends, the others get five minutes to save and end.
srun --kill-on-bad-exit=0 --wait=300 env RROPE_RETRIES=0 bash launch/run_worker.sh "$@" &
while :; do
  interrupted="" code=0
  wait $! || code=$?
  [[ -n $interrupted ]] || exit "$code"
done
