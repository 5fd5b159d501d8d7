"""The benchmark of SmolLM2: both sides do the same work, and the script prints its table."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rrope_jax.io import pretrained
from rrope_jax.model import ModelConfig
from rrope_jax.model.presets import PRESETS, Preset
from rrope_jax.rope import RopeSpec
from tests.benchmarks import smollm2, smollm2_ours
from tests.benchmarks.smollm2_setting import Setting

TINY = Setting("tiny")
TINY_GEMMA3 = ModelConfig(
    vocab_size=131,
    d_model=32,
    num_layers=4,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    d_ff=48,
    layer_types=("sliding_attention", "full_attention"),
    sliding_window=24,
    activation="geglu",
    qk_norm="head",
    norm_placement="both",
    norm_offset=True,
    embedding_scale=32**0.5,
    rms_norm_eps=1e-6,
    tie_embeddings=True,
)
GEMMA3 = Preset(
    TINY_GEMMA3,
    RopeSpec(head_dim=16, theta=1e6, sliding_attention=RopeSpec(head_dim=16, theta=1e4)),
    context=64,
)
TOKENS = np.random.default_rng(1).integers(0, TINY.model.vocab_size, 40).astype(np.int32)


@pytest.mark.peers
@pytest.mark.long
@pytest.mark.parametrize("preset", ["tiny", "gemma3_tiny"])
def test_both_compute_the_same(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    from tests.benchmarks import smollm2_transformers

    monkeypatch.setitem(PRESETS, "gemma3_tiny", GEMMA3)
    setting = Setting(preset)
    theirs = smollm2_transformers.Transformers(setting)
    theirs.model.save_pretrained(tmp_path)
    decoder = pretrained.load(tmp_path)[0]
    assert decoder.config == setting.model
    assert decoder.rope == setting.known.rope
    ours: Any = smollm2_ours.Ours(setting, decoder)
    for _ in range(2):  # a run leaves the cache as it was
        assert ours.decode(TOKENS, 12)() == [theirs.decode(TOKENS, 12)()]
    assert ours.score(TOKENS)() == pytest.approx(theirs.score(TOKENS)(), rel=1e-5)
    assert ours.train(TOKENS)() == pytest.approx(theirs.train(TOKENS)(), rel=1e-5)


def test_tokens_that_count() -> None:
    assert smollm2.TASKS["prefill_2k"].tokens == 2048
    assert smollm2.TASKS["decode_512"].tokens == 256


def test_a_table_with_speed_and_memory(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Medians of what the processes answer, in relation to transformers."""
    seconds = {"rrope_jax": (9.0, 2.0, 1.0, 4.0), "transformers": (9.0, 3.0, 3.0, 3.0)}

    class Worker:
        def __init__(self, library: str, task: str, threads: int, setting: Setting):
            peak = 1.5 if library == "rrope_jax" else 3.0
            self._answers = iter(
                {"seconds": s, "cpu_seconds": 6.0, "peak_gib": peak} for s in seconds[library]
            )

        def run(self) -> dict[str, float]:
            return next(self._answers)

        def close(self) -> None:
            pass

    monkeypatch.setattr(smollm2, "_Worker", Worker)
    smollm2.main(["--tasks", "train_1k", "--repeats", "3"])
    out = capsys.readouterr().out
    assert "| train_1k | rrope_jax | 512 | 1024 | 6 | 1.50 | 1.50 | 0.50 |" in out
    assert "| train_1k | transformers | 341.3 | 341.3 | 6 | 3.00 | 1.00 | 1.00 |" in out
