"""Granite 3: four multipliers, that of attention larger than in real models, where it is 1/128."""

from tests.io.families.case import Case

_MULTIPLIERS = {
    "embedding_multiplier": 12.0,
    "residual_multiplier": 0.22,
    "logits_scaling": 7.0,
}

CASES = (
    Case(
        "granite",
        "Granite 3.0 to 3.3 (2B)",
        "tied",
        {**_MULTIPLIERS, "attention_multiplier": 0.15, "tie_word_embeddings": True},
        exported="granite",
    ),
    Case(
        "granite",
        "Granite 3.0 to 3.3 (8B)",
        "untied, one key head",
        {**_MULTIPLIERS, "attention_multiplier": 0.3, "num_key_value_heads": 1, "head_dim": None},
        exported="granite",
    ),
)
