"""Mistral with and without its window."""

from tests.io.families.case import Case

CASES = (
    Case(
        "mistral",
        "Mistral 7B 0.1",
        "window in all layers",
        {"sliding_window": 24, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
        llama_cpp="no architecture of llama.cpp has a window in all layers of such a model",
    ),
    Case(
        "mistral",
        "Mistral 7B 0.2 and 0.3",
        "no window",
        {"sliding_window": None, "num_key_value_heads": 1},
        exported="mistral",
    ),
)
