#!/usr/bin/env bash
# The experiment of docs/extension.md: SmolLM2-135M from 8K to 32K tokens, with and without Resonance.
#
#   bash launch/extend_smollm2.sh [FLAGS]
#
# Fetches model and texts, evaluates every method as it is, fine-tunes YaRN and Resonance YaRN,
# evaluates those, compares all, exports one and lets it answer. FLAGS go to every `rrope evaluate`,
# such as --config.eval.passkey.enabled=False, which halves the hours. Results are in runs/smollm2_*
# of the clone; stop it at any time and run it again, it goes on where it was.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

prepare "$root/.venv"
cd "$root"
model=$(bash launch/smollm2.sh)
model=${model#"$root/"} # results name it as given
[[ -d texts ]] || bash launch/long_texts.sh

evaluate() { # NAME CHECKPOINT [FLAG...]
  local name=$1 checkpoint=$2
  shift 2
  .venv/bin/rrope evaluate --config=configs/evaluate_smollm2.py --workdir="runs/smollm2_$name" \
    --checkpoint="$checkpoint" "$@"
}

evaluate none "$model" "$@"
evaluate ntk "$model" --config.rope.scaling=ntk --config.rope.factor=4 "$@"
for resonance in False True; do
  name=yarn
  [[ $resonance == False ]] || name=resonance_yarn
  evaluate "$name" "$model" --config.rope.scaling=yarn --config.rope.factor=4 \
    --config.rope.resonance="$resonance" "$@"
  .venv/bin/rrope train --config=configs/extend_smollm2.py --workdir="runs/extended_$name" \
    --config.rope.resonance="$resonance"
  evaluate "${name}_finetuned" "runs/extended_$name" "$@"
done

compare() { # NAME RUN...: differences are from the first
  .venv/bin/rrope evaluate --workdir="runs/smollm2_$1" --compare "${@:2}"
}
compare compared runs/smollm2_{yarn,none,ntk,resonance_yarn,yarn_finetuned,resonance_yarn_finetuned}
# the same on a scale that plain RoPE does not set
compare scaled runs/smollm2_{yarn,ntk,resonance_yarn,yarn_finetuned,resonance_yarn_finetuned}
compare finetuned runs/smollm2_{yarn_finetuned,resonance_yarn_finetuned}

convert() { # FORMAT TARGET
  [[ -e $2 ]] ||
    .venv/bin/rrope convert --from=runs/extended_resonance_yarn --to="$2" --format="$1"
}
convert hf runs/smollm2_32k
convert gguf runs/smollm2_32k.gguf
.venv/bin/rrope generate --checkpoint=runs/smollm2_32k --prompt="The capital of France is" \
  --max_tokens=20
