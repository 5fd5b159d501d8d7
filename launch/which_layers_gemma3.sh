#!/usr/bin/env bash
# The experiment of docs/which_layers.md: which layers of Gemma 3 270M a scaling should be for.
#
#   bash launch/which_layers_gemma3.sh [FLAGS]
#
# Fetches model and texts, evaluates every setting and compares all with YaRN on full layers alone.
# FLAGS go to every `rrope evaluate`, such as --config.eval.passkey.enabled=False. Results are in
# runs/gemma3_* of the clone; stop it at any time and run it again, it goes on where it was.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

prepare "$root/.venv"
cd "$root"
model=$(bash launch/gemma3.sh)
model=${model#"$root/"} # results name it as given
[[ -d texts ]] || bash launch/long_texts.sh

yarn() { # LAYERS: sets `flags` to those of YaRN with twice the context on a type of layers
  flags=(--config.rope."$1".scaling=yarn --config.rope."$1".factor=2)
}
yarn full_attention
full=("${flags[@]}")
yarn sliding_attention
sliding=("${flags[@]}")
resonance=(--config.rope.{full,sliding}_attention.resonance=True)

evaluate() { # NAME [FLAG...]
  local name=$1
  shift
  .venv/bin/rrope evaluate --config=configs/evaluate_gemma3.py --workdir="runs/gemma3_$name" \
    --checkpoint="$model" "$@"
}

evaluate none "$@"
evaluate yarn_full "${full[@]}" "$@"
evaluate yarn_all "${full[@]}" "${sliding[@]}" "$@"
evaluate resonance_yarn_full "${full[@]}" "${resonance[0]}" "$@"
evaluate yarn_full_resonance_sliding "${full[@]}" "${resonance[1]}" "$@"
evaluate resonance_yarn_all "${full[@]}" "${sliding[@]}" "${resonance[@]}" "$@"

.venv/bin/rrope evaluate --workdir=runs/gemma3_compared --compare runs/gemma3_{yarn_full,none,yarn_all} \
  runs/gemma3_{resonance_yarn_full,yarn_full_resonance_sliding,resonance_yarn_all}
