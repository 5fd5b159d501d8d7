"""All that is tried, from the fastest to the slowest."""

from tests.fuzz import (
    conversions,
    flag_words,
    gguf_files,
    inspections,
    model_folders,
    own_folders,
    questions,
    rope_keys,
    texts,
    tokenizer_exports,
    tokenizer_files,
)

TARGETS = {
    module.TARGET.name: module.TARGET
    for module in (
        rope_keys,
        texts,
        questions,
        tokenizer_files,
        gguf_files,
        inspections,
        model_folders,
        flag_words,
        tokenizer_exports,
        own_folders,
        conversions,
    )
}
