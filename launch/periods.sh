#!/usr/bin/env bash
# The experiment of docs/findings.md: which periods, and why.
#
#   bash launch/periods.sh quick|narrow|paper [FLAGS]
#
# Trains and tests PosGen with every rule of resonance on RoPE and YaRN, then puts the results beside
# what each table predicts. quick: half the paper's lengths; 140 trainings of 23 s on an idle core.
# narrow: the paper's lengths in a narrow model, another 140 of as many seconds. paper: the paper's
# model, for an accelerator. FLAGS go to `rrope posgen`, such as --config.num_seeds=1. Results are in
# runs/periods_NAME and runs/periods_NAME_predicted; stop it at any time and run it again, it goes on
# where it was.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

setting=${1:-}
flags=(--config.num_seeds=5 --config.first_seed=20 "--config.tasks=recursive,cot")
validate_once=(--config.train.validate_every=2000 --config.train.steps_per_call=100)
case $setting in
  quick)
    config=posgen_quick length=32
    flags+=("${validate_once[@]}")
    ;;
  narrow)
    config=posgen_small length=64
    flags+=(--config.first_seed=30 --config.train.steps=2000 --config.train.batch_size=32
      "${validate_once[@]}" --config.validation_sequences=100 --config.test_sequences=200)
    ;;
  paper) config=posgen_paper length=64 ;;
  *)
    printf 'usage: bash launch/periods.sh quick|narrow|paper [FLAGS]\n' >&2
    exit 2
    ;;
esac
shift

rules=("" resonance_ "rational$((length / 2))_" "rational${length}_" "rational$((4 * length))_" coprime_ designed_)
methods=""
for scaling in rope yarn; do
  for rule in "${rules[@]}"; do
    methods+=${methods:+,}$rule$scaling
  done
done

prepare_for_device "$root/.venv"
cd "$root"
.venv/bin/rrope posgen --config="configs/$config.py" --workdir="runs/periods_$setting" \
  --config.name="periods_$setting" --config.methods="$methods" \
  --config.protocols=scaled_training,scaled_at_test --config.rope.resonance_period="$length" \
  --config.rope.resonance_length=$((4 * length)) --config.rope.resonance_near=5 "${flags[@]}" "$@"
.venv/bin/rrope posgen --workdir="runs/periods_${setting}_predicted" --compare "runs/periods_$setting"
