"""Gemma 3 270M over context lengths up to 40K: the loss at their ends, and passkey.

    rrope evaluate --config=configs/evaluate_gemma3.py --workdir=runs/gemma3_yarn_full \
        --checkpoint=models/gemma-3-270m.Q4_K_M.gguf \
        --config.rope.full_attention.scaling=yarn --config.rope.full_attention.factor=2

launch/gemma3.sh and launch/long_texts.sh fetch model and texts; launch/which_layers_gemma3.sh runs
this config for every setting of docs/which_layers.md. Of the vocabulary of 262,144 the logits are
most of the work, so only the last 1,024 tokens of each context are predicted.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The config of `rrope evaluate`; what it leaves out is the checkpoint's own."""
    config = ConfigDict()
    config.data = ConfigDict()
    config.data.source = "texts"
    config.data.bos = True  # Gemma was trained with it, and is lost without
    config.data.heldout = ("anarchist_faq_E.txt", "austen_persuasion.txt", "debian_reference.txt")

    config.eval = ConfigDict()
    config.eval.perplexity = ConfigDict()
    config.eval.perplexity.enabled = True
    config.eval.perplexity.contexts = (2048, 4096, 8192, 16384, 24576, 32768, 36864, 40960)
    config.eval.perplexity.last_tokens = 1024
    config.eval.perplexity.logits_chunk = 256

    config.eval.passkey = ConfigDict()
    config.eval.passkey.enabled = True
    config.eval.passkey.contexts = (2048, 8192)
    config.eval.passkey.depths = (0.1, 0.5)
    config.eval.passkey.trials = 1
    return config
