"""Ministral 3: Mistral whose queries have a temperature that grows with their position."""

from rrope_jax.io.families.family import NO_BIASES, ONE_LIST, SILU, Family, Gguf
from rrope_jax.io.families.mistral import MISTRAL

MINISTRAL3 = Family(
    name="ministral3",
    architecture="Ministral3ForCausalLM",
    defaults={
        "max_position_embeddings": 262144,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "rms_norm_eps": 1e-5,
        "sliding_window": None,
    },
    refused=SILU | NO_BIASES,
    read=MISTRAL.read,
    write=MISTRAL.write,
    gguf=Gguf(
        "mistral3",
        adjacent_pairs=True,
        frequency_factors=ONE_LIST,
        position_temperature=True,
        refused={"attention.sliding_window": 0},
    ),
)
