"""Text data: sources, tokenizers, packing and the input pipeline for one or more hosts."""
