"""Ministral 3: a temperature that grows with the position."""

from tests.io.families.case import YARN, Case

CASES = (
    Case(
        "ministral3",
        "Ministral 3 (text)",
        "untied, YaRN without its temperature",
        {
            "rope_parameters": {
                **YARN,
                "mscale": 1.0,
                "mscale_all_dim": 1.0,
                "llama_4_scaling_beta": 0.4,
            },
            "max_position_embeddings": 128,
        },
        exported="ministral3",
    ),
    Case(
        "ministral3",
        "",
        "tied, YaRN with its temperature",
        {
            "tie_word_embeddings": True,
            "rope_parameters": {**YARN, "llama_4_scaling_beta": 0.2},
            "max_position_embeddings": 128,
        },
        exported="ministral3",
    ),
)
