"""SmolLM3: one layer in four without rotation."""

from tests.io.families.case import YARN, Case

CASES = (
    Case(
        "smollm3",
        "SmolLM3-3B",
        "tied, every fourth layer without rotation",
        {
            "tie_word_embeddings": True,
            "head_dim": None,
            "num_hidden_layers": 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6},
        },
    ),
    Case(
        "smollm3",
        "SmolLM3-3B extended by YaRN",
        "untied, one key head, YaRN, its own list of layers",
        {
            "tie_word_embeddings": False,
            "num_key_value_heads": 1,
            "no_rope_layers": [1, 0, 0, 1],
            "rope_parameters": YARN,
            "max_position_embeddings": 128,
        },
        llama_cpp="it has rotation in other layers there",
    ),
    Case(
        "smollm3",
        "SmolLM3 with windows",
        "windows in rotated layers",
        {
            "tie_word_embeddings": False,
            "no_rope_layers": [1, 1, 0, 1],
            "use_sliding_window": True,
            "sliding_window": 24,
            "layer_types": ["sliding_attention"] * 2 + ["full_attention"] * 2,
        },
        llama_cpp="its architecture smollm3 has no windows",
    ),
)
