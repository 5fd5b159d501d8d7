"""Perplexity beside lm-evaluation-harness, which runs the exported folder in transformers."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from rrope_jax.__main__ import main
from rrope_jax.rope import RopeSpec
from tests.evaluation.tiny import tiny_decoder
from tests.io import tiny
from tests.io.vocabularies import files, sentencepiece_json, size

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("RROPE_LM_EVAL")
CONTEXT = 40
TEXTS = {
    "a.txt": "ab12 A bB and 12 caba, " * 9,
    "b.txt": "One line.\nAnother 1 2 b ü line\n" * 4,
    "c.txt": "b" * (2 * CONTEXT - 3),
}
TASK = """\
task: rrope_text
dataset_path: json
dataset_kwargs:
  data_files: {rows}
test_split: train
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
"""


def _log_likelihoods_of_the_harness(exported: Path, folder: Path) -> dict[str, float]:
    """By document, in nats; windows of `CONTEXT` - 1 tokens and the one before them."""
    folder.mkdir()
    rows = folder / "rows.jsonl"
    lines = [json.dumps({"name": name, "text": text}) for name, text in TEXTS.items()]
    rows.write_text("\n".join(lines) + "\n")
    (folder / "rrope_text.yaml").write_text(TASK.format(rows=rows))
    command = [
        *(str(PYTHON), "-m", "lm_eval", "--model", "hf", "--tasks", "rrope_text"),
        *("--model_args", f"pretrained={exported},dtype=float32,max_length={CONTEXT - 1}"),
        *("--include_path", str(folder), "--device", "cpu", "--batch_size", "1"),
        *("--output_path", str(folder / "out"), "--log_samples"),
    ]
    caches = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    subprocess.run(command, check=True, env=os.environ | caches, capture_output=True)
    (written,) = (folder / "out").rglob("samples_rrope_text_*.jsonl")
    samples = map(json.loads, written.read_text().splitlines())
    return {sample["doc"]["name"]: float(sample["resps"][0][0]) for sample in samples}


@pytest.mark.peers
@pytest.mark.long
@pytest.mark.skipif(PYTHON is None, reason="RROPE_LM_EVAL names no Python that has lm_eval")
@pytest.mark.parametrize("scaling", ["none", "yarn"])
def test_sliding_windows_have_its_log_likelihoods(scaling: str, tmp_path: Path) -> None:
    yarn = {"scaling": "yarn", "factor": 4.0, "original_context": 16, "resonance": True}
    rope = RopeSpec(head_dim=8, **(yarn if scaling == "yarn" else {}))  # type: ignore[arg-type]
    tokenizer = sentencepiece_json()
    exported, texts, run = tmp_path / "hf", tmp_path / "texts", tmp_path / "run"
    decoder = tiny_decoder(rope, vocab_size=size(tokenizer))
    described = files(tokenizer, bos_token="<s>", eos_token="</s>")
    tiny.save(decoder, exported, "hf", tokenizer=described, extras={"bos_token_id": 1})
    expected = _log_likelihoods_of_the_harness(exported, tmp_path / "harness")

    texts.mkdir()
    for name, text in TEXTS.items():
        (texts / name).write_text(text)
    fields = {
        "data.source": texts,
        "data.heldout": "('*',)",
        "data.bos": True,
        "eval.perplexity.protocol": "sliding",
        "eval.perplexity.contexts": CONTEXT,
        "eval.perplexity.stride": CONTEXT - 1,
        "eval.passkey.enabled": False,
    }
    config = ROOT / "configs" / "evaluate_smollm2.py"
    command = ["evaluate", f"--config={config}", f"--checkpoint={exported}", f"--workdir={run}"]
    assert main([*command, *(f"--config.{name}={value}" for name, value in fields.items())]) == 0
    results = json.loads((run / "results.json").read_text())
    found = {
        entry["document"]: -entry["loss"] * entry["tokens"]
        for entry in results["perplexity_by_document"]
    }
    # sums of some hundred losses, each with the rounding of float32 logits
    assert found == pytest.approx(expected, rel=1e-5)
