#!/usr/bin/env bash
# The table of docs/method_table.md: every method on PosGen and on a pretrained model.
#
#   bash launch/method_table.sh
#
# Fetches model and text, trains and tests PosGen models, evaluates SmolLM2 under every method, and
# joins all in one table and one plot, in runs/methods of the clone. Stop it at any time and run it
# again, it goes on where it was.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

prepare "$root/.venv"
cd "$root"
model=$(bash launch/smollm2.sh)
model=${model#"$root/"} # results name it as given
[[ -d texts ]] || bash launch/long_texts.sh

# Scalings in the order of docs/rope.md. NoPE has no wavelengths to round.
readonly SCALINGS="rope linear ntk dynamic_ntk ntk_by_parts yarn dynamic_yarn llama3 dprope abf hardclip
  cope rope_id"
tables=(nope)
for scaling in $SCALINGS; do
  tables+=("$scaling" "resonance_$scaling")
done
# Other positions for far pairs.
readonly FAR=(self_extend resonance_self_extend jet_long resonance_jet_long)

posgen() { # NAME "METHOD..." [FLAG...]
  .venv/bin/rrope posgen --config=configs/posgen_methods.py --workdir="runs/methods_$1" \
    --config.methods="${2// /,}" "${@:3}"
}
posgen posgen "${tables[*]}"
posgen far "${FAR[*]}" --config.rope.far_window=16 --config.rope.far_group=8 \
  --config.rope.far_context=32
posgen learned "learned_rope resonance_learned_rope"
posgen log_n "rope yarn resonance_rope resonance_yarn" --config.rope_at_test.position_temperature=log_n \
  --config.rope_at_test.temperature_context=33

for method in "${tables[@]}" "${FAR[@]}" yarn,log_n; do
  .venv/bin/rrope evaluate --config="configs/evaluate_method.py:$method" \
    --workdir="runs/methods_smollm2/${method/,/_}" --checkpoint="$model"
done

.venv/bin/rrope table --workdir=runs/methods --runs runs/methods_{posgen,far,learned,log_n} \
  runs/methods_smollm2/*
