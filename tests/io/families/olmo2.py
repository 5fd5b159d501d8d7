"""OLMo 2: norms after each sublayer, and over all heads of queries and keys."""

from tests.io.families.case import YARN, Case

CASES = (
    Case("olmo2", "OLMo 2", "untied", {"tie_word_embeddings": False, "head_dim": 12}),
    Case(
        "olmo2",
        "OLMo 2, extended",
        "YaRN, one key head",
        {
            "head_dim": 12,
            "num_key_value_heads": 1,
            "rope_parameters": {**YARN, "attention_factor": 1.1},
            "max_position_embeddings": 128,
        },
    ),
    Case(
        "olmo2",
        "",
        "tied, heads apart",
        {"tie_word_embeddings": True},
        llama_cpp="llama.cpp wants an output matrix, and heads of d_model / num_heads",
    ),
)
