#!/usr/bin/env bash
# The experiment of docs/periods_pretrained.md: pretrained models under each rule of resonance.
#
#   bash launch/periods_pretrained.sh [TABLE...]
#
# Fetches models and texts, evaluates YaRN under every rule, without any fine-tune, and compares all
# with YaRN itself. Tables are smollm2_16k (one document), smollm2_8k (two others), smollm2_32k (one
# document, some rules) and gemma3_40k (one document); all of them by default. smollm2_finetuned, for
# which one has to ask, trains YaRN and the two rules that cost least, 17 minutes of a core each.
# Results are in runs/periods_TABLE of the clone, and beside one another in runs/periods_compared;
# stop it at any time and run it again, it goes on where it was.
set -euo pipefail

# shellcheck source=launch/environment.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh"

prepare "$root/.venv"
cd "$root"
[[ -d texts ]] || bash launch/long_texts.sh

# rule_flags RULE GROUP CONTEXT: sets `flags` to those of a rule in a group of the config, for a
# model whose context before the extension has so many tokens.
rule_flags() {
  local group=$2 context=$3
  case $1 in
    yarn) flags=() ;;
    nearest | coprime) flags=("$group.resonance=$1") ;;
    rational_*) flags=("$group.resonance=rational" "$group.resonance_period=${1#rational_}") ;;
    designed)
      flags=("$group.resonance=designed" "$group.resonance_period=$context"
        "$group.resonance_length=$((extended * context))")
      ;;
  esac
}

# evaluate_rules TABLE CONFIG MODEL GROUP CONTEXT FACTOR "RULE..." [FLAG...]
evaluate_rules() {
  local table=$1 config=$2 model=$3 group=$4 context=$5 extended=$6 rule runs=()
  local rules=$7
  shift 7
  for rule in $rules; do
    rule_flags "$rule" "$group" "$context"
    .venv/bin/rrope evaluate --config="$config" --checkpoint="$model" \
      --workdir="runs/periods_$table/$rule" "$group.scaling=yarn" "$group.factor=$extended" \
      ${flags[@]+"${flags[@]}"} --config.eval.passkey.enabled=False "$@"
    runs+=("runs/periods_$table/$rule")
  done
  .venv/bin/rrope evaluate --workdir="runs/periods_compared/$table" --compare "${runs[@]}"
}

# join MODEL: one table of all documents and contexts of a model.
join() {
  .venv/bin/rrope table --workdir="runs/periods_compared/$1" --runs "runs/periods_$1"_*/*
}

smollm2() { # TABLE "RULE..." "CONTEXTS" [FLAG...]
  local table=$1 rules=$2 contexts=$3 model
  shift 3
  model=$(bash launch/smollm2.sh)
  evaluate_rules "$table" configs/evaluate_smollm2.py "${model#"$root/"}" --config.rope 8192 4 \
    "$rules" --config.eval.perplexity.contexts="$contexts" "$@"
}

# finetune TABLE "RULE...": the fine-tune of launch/extend_smollm2.sh under each rule, then to 32K.
finetune() {
  local table=$1 rule runs=()
  bash launch/smollm2.sh # the config names it
  for rule in $2; do
    rule_flags "$rule" --config.rope 8192
    .venv/bin/rrope train --config=configs/extend_smollm2.py --workdir="runs/periods_trained/$rule" \
      --config.rope.resonance=none ${flags[@]+"${flags[@]}"}
    .venv/bin/rrope evaluate --config=configs/evaluate_smollm2.py \
      --checkpoint="runs/periods_trained/$rule" --workdir="runs/periods_$table/$rule" \
      --config.eval.passkey.enabled=False "$TECHNICAL"
    runs+=("runs/periods_$table/$rule")
  done
  .venv/bin/rrope evaluate --workdir="runs/periods_compared/$table" --compare "${runs[@]}"
}

readonly TECHNICAL="--config.data.heldout=('debian_reference.txt',)"
readonly OTHERS="--config.data.heldout=('anarchist_faq_E.txt','austen_persuasion.txt')"

# P is the context before the extension, a sixteenth of it and a 256th of it.
smollm2_rules="yarn nearest rational_8192 rational_512 rational_32 coprime designed"
gemma3_rules="yarn nearest rational_32768 rational_2048 rational_128 coprime designed"

run_table() {
  case $1 in
    smollm2_16k) smollm2 "$1" "$smollm2_rules" "(2048,4096,8192,16384)" "$TECHNICAL" ;;
    smollm2_8k) smollm2 "$1" "$smollm2_rules" "(2048,4096,8192)" "$OTHERS" ;;
    smollm2_32k)
      smollm2 "$1" "yarn nearest rational_8192 rational_512 designed" \
        "(32768,)" "$TECHNICAL"
      ;;
    smollm2_finetuned) finetune "$1" "yarn rational_8192 rational_512" ;;
    gemma3_40k)
      model=$(bash launch/gemma3.sh)
      evaluate_rules "$1" configs/evaluate_gemma3.py "${model#"$root/"}" \
        --config.rope.full_attention 32768 2 "$gemma3_rules" "$TECHNICAL"
      ;;
    *)
      printf '%s\n' "$1 is no table; choose from ${tables[*]} smollm2_finetuned" >&2
      exit 2
      ;;
  esac
}

tables=(smollm2_16k smollm2_8k smollm2_32k gemma3_40k)
for table in "${@:-${tables[@]}}"; do
  run_table "$table"
  [[ $table == *_finetuned ]] || join "${table%_*}"
done
