"""Perplexity beside transformers, on the exported model."""

from pathlib import Path

import numpy as np
import pytest

from rrope_jax.__main__ import main
from rrope_jax.evaluation.perplexity import Losses
from rrope_jax.io import pretrained
from tests.evaluation.tiny import random_tokens
from tests.jobs.tiny_checkpoint import write_checkpoint


@pytest.mark.peers
@pytest.mark.slow
def test_losses_are_those_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    source, exported = write_checkpoint(tmp_path / "model"), tmp_path / "exported"
    rope = ["--config.rope.scaling=yarn", "--config.rope.factor=2", "--config.rope.resonance=True"]
    command = ["convert", f"--from={source}", f"--to={exported}", "--format=hf", *rope]
    assert main(command) == 0
    decoder, description = pretrained.load(exported)
    tokens_T = random_tokens(0, description.context)
    theirs = AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    ids_BT = torch.from_numpy(tokens_T[None]).long()
    with torch.no_grad():
        loss = theirs(ids_BT, labels=ids_BT).loss.item()
    assert np.mean(Losses(decoder)(tokens_T[None])) == pytest.approx(loss, rel=1e-5)
