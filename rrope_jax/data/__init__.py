"""Text: sources, tokenizers, packing, and the input pipeline of one host or many."""
